"""The API of OpenAI, as vLLM extends it, translated: bodies to requests, completions and events to answers.

Pure: no socket, no event loop. The HTTP server (`runtime/http`) and batch files (`runtime/batch_files`) share it.

    call = prepare_call("/v1/chat/completions", body, model)      # raises ApiError
    answer = call.answer(client.generate(call.requests))          # or call.writer() for a stream
"""
