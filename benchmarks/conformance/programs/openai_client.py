"""Ask by the official client: what the others are compared with."""

from __future__ import annotations

from answers import KEY, MODEL, PROMPT, QUESTION, TOKENS, URL, answer
from openai import OpenAI


def main() -> None:
    client = OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
    text = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=TOKENS, temperature=0)
    other = client.completions.create(model=MODEL, prompt=QUESTION, max_tokens=TOKENS, temperature=0)
    chat = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=TOKENS, temperature=0
    )
    usage = chat.usage.completion_tokens if chat.usage else 0
    answer(text=text.choices[0].text, other=other.choices[0].text, chat=chat.choices[0].message.content, usage=usage)


if __name__ == "__main__":
    main()
