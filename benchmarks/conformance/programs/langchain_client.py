# pyright: reportMissingImports=false
"""Ask by langchain-openai: a conversation whole, streamed and in a batch, and a text."""

from __future__ import annotations

from typing import Any

from answers import KEY, MODEL, PROMPT, QUESTION, TOKENS, URL, answer
from langchain_openai import ChatOpenAI, OpenAI

COMMON: dict[str, Any] = {"model": MODEL, "base_url": f"{URL}/v1", "api_key": KEY, "temperature": 0, "max_retries": 0}


def main() -> None:
    chat = ChatOpenAI(max_tokens=TOKENS, stream_usage=True, **COMMON)
    whole = chat.invoke(QUESTION)
    chunks = list(chat.stream(QUESTION))
    answer(
        chat=whole.content,
        streamed="".join(str(chunk.content) for chunk in chunks),
        batch=[message.content for message in chat.batch([QUESTION, PROMPT])],
        text=OpenAI(max_tokens=TOKENS, **COMMON).invoke(PROMPT),
        usage=whole.usage_metadata["output_tokens"],
        stream_usage=max((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks),
    )


if __name__ == "__main__":
    main()
