# pyright: reportMissingImports=false
"""Ask by litellm: text and conversation, whole and streamed, and asynchronously."""

from __future__ import annotations

import asyncio
from typing import Any

import litellm
from answers import KEY, MODEL, PROMPT, QUESTION, TOKENS, URL, answer

COMMON: dict[str, Any] = {
    "model": f"hosted_vllm/{MODEL}",
    "api_base": f"{URL}/v1",
    "api_key": KEY,
    "max_tokens": TOKENS,
    "temperature": 0,
}
MESSAGES = [{"role": "user", "content": QUESTION}]


def main() -> None:
    text = litellm.text_completion(prompt=PROMPT, **COMMON)
    chat = litellm.completion(messages=MESSAGES, **COMMON)
    chunks = list(litellm.completion(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **COMMON))
    later = asyncio.run(litellm.acompletion(messages=MESSAGES, **COMMON))
    answer(
        text=text.choices[0].text,
        chat=chat.choices[0].message.content,
        streamed="".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        later=later.choices[0].message.content,
        usage=chat.usage.completion_tokens,
    )
    try:
        litellm.completion(messages=MESSAGES, **(COMMON | {"api_key": "wrong"}))
    except litellm.AuthenticationError:
        answer(refused=True)


if __name__ == "__main__":
    main()
