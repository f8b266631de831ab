"""All clients."""

from __future__ import annotations

from .client import Client
from .scores import check_guidellm, check_lm_eval
from .texts import check_curl, check_langchain, check_litellm, check_llm, check_openai, check_schemathesis

CLIENTS = [
    Client("openai", check_openai, ["openai==3.57.0"]),
    Client("curl", check_curl),
    Client("llm", check_llm, ["llm==0.36"]),
    Client("litellm", check_litellm, ["litellm==1.110.2"]),
    Client("langchain-openai", check_langchain, ["langchain-openai==1.7.4"]),
    Client("schemathesis", check_schemathesis, ["schemathesis==4.32.5"]),
    Client("lm-eval", check_lm_eval, ["lm-eval[api]==0.4.13", "accelerate>=1.10"], "lm_eval", with_ours=True),
    Client("guidellm", check_guidellm, ["guidellm==0.8.1"], with_ours=True, by_default=False),
]
