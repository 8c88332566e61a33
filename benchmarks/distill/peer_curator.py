"""Bespoke Curator: its openai backend with limits that do not bind, its cache in a fresh folder, no telemetry, no viewer."""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

os.environ |= {"TELEMETRY_ENABLED": "false", "CURATOR_VIEWER": "false", "CURATOR_DISABLE_RICH_DISPLAY": "1"}
# It counts tokens with an encoding that tiktoken would download; litellm, which it needs anyway, holds the same file.
os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(find_spec("litellm").origin).parent / "litellm_core_utils" / "tokenizers")

from bespokelabs import curator
from contest import API_KEY, MAX_TOKENS, MODEL, Task, hand_in, parse_task
from datasets import Dataset

NO_LIMIT = 10**9


class Asking(curator.LLM):
    def prompt(self, row: dict[str, str]) -> str:
        return row["prompt"]

    def parse(self, row: dict[str, str], response: str) -> dict[str, str]:
        return {"prompt": row["prompt"], "completion": response}


def ask_all(task: Task) -> list[dict[str, str]]:
    llm = Asking(
        model_name=MODEL,
        backend="openai",
        generation_params={"temperature": 0, "max_tokens": MAX_TOKENS},
        backend_params={
            "base_url": task.base_url,
            "api_key": API_KEY,
            "max_concurrent_requests": task.concurrency,
            "max_requests_per_minute": NO_LIMIT,
            "max_tokens_per_minute": NO_LIMIT,
            "seconds_to_pause_on_rate_limit": 1,
            "require_all_responses": False,
        },
    )
    with tempfile.TemporaryDirectory() as cache:
        answered = llm(Dataset.from_dict({"prompt": task.prompts}), working_dir=cache)
        return list(answered.dataset)


if __name__ == "__main__":
    task = parse_task(__doc__)
    hand_in(task, ask_all(task))
