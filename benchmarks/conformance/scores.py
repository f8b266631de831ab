"""The programs that judge a server: lm-eval by its scores, guidellm by its load."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ..models import EXAMPLES
from .client import PROGRAMS, Check
from .environments import Environment
from .server import KEY, NAME, Server


def check_lm_eval(environment: Environment, server: Server, expected: dict[str, Any]) -> list[Check]:
    """Score by the server and by transformers: choices by their log-probabilities, texts by a conversation."""
    with tempfile.TemporaryDirectory() as folder:
        text = str(EXAMPLES / "held_out.txt")
        made = environment.run(["python", str(PROGRAMS / "lm_eval_targets.py"), str(server.model), text, folder])
        if made.returncode:
            return [Check("the tasks are written", False, made.stderr[-1000:])]
        served = f"model={NAME},tokenizer_backend=huggingface,tokenizer={server.model},num_concurrent=4,max_retries=1"
        local = ["--model", "hf", "--model_args", f"pretrained={server.model},dtype=float32", "--device", "cpu"]
        choices = ["--model", "local-completions", "--model_args"]
        choices += [f"{served},base_url={server.url}/v1/completions,tokenized_requests=True"]
        texts = ["--model", "local-chat-completions", "--apply_chat_template", "--model_args"]
        texts += [f"{served},base_url={server.url}/v1/chat/completions"]
        own_texts = [*local, "--apply_chat_template"]
        runs = {
            "local-completions, acc of choices": ("verse_ends", "acc,none", choices, local),
            "local-completions, acc_norm of choices": ("verse_ends", "acc_norm,none", choices, local),
            "local-chat-completions, exact match of texts": ("verse_text", "exact_match,none", texts, own_texts),
        }
        return [compare_scores(environment, folder, what, *run) for what, run in runs.items()]


def compare_scores(
    environment: Environment, folder: str, what: str, task: str, metric: str, served: list[str], local: list[str]
) -> Check:
    """Run a task by the server and by transformers; the scores must be equal, and neither all nor nothing."""
    scores = [evaluate(environment, folder, task, metric, model) for model in (served, local)]
    holds = isinstance(scores[0], float) and scores[0] == scores[1] and 0 < scores[0] < 1
    return Check(f"{what}: as by transformers", holds, " and ".join(map(str, scores)))


def evaluate(environment: Environment, folder: str, task: str, metric: str, model: list[str]) -> float | str:
    """Return the score of a task, or the end of what went wrong."""
    out = Path(folder, f"{task}-{model[1]}")
    words = ["lm_eval", "run", *model, "--tasks", task, "--include_path", folder, "--output_path", str(out)]
    files = sorted(out.rglob("results*.json")) if out.exists() else []
    if not files:
        done = environment.run(words, timeout_s=1200, variables={"OPENAI_API_KEY": KEY, "OMP_NUM_THREADS": "1"})
        files = sorted(out.rglob("results*.json"))
        if done.returncode or not files:
            return done.stderr.strip()[-800:]
    return float(json.loads(files[-1].read_text())["results"][task][metric])


def check_guidellm(environment: Environment, server: Server, expected: dict[str, Any]) -> list[Check]:
    """Load the server with a few synthetic requests; all must complete."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        words = ["guidellm", "run", "--backend", f"kind=openai_http,target={server.url},model={NAME},api_key={KEY}"]
        words += ["--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=20"]
        words += ["--tokenizer", f"kind=hf_auto,model={server.model}"]
        words += ["--data", "kind=synthetic_text,prompt_tokens=20,output_tokens=8"]
        words += ["--output", f"kind=json,path={report}"]
        done = environment.run(words, timeout_s=900)
        if done.returncode or not report.exists():
            return [Check("runs", False, done.stderr[-1500:] or done.stdout[-1500:])]
        requests = json.loads(report.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    return [Check("every request completes", requests["successful"] == 20 and not requests["errored"], str(requests))]
