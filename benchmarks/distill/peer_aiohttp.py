"""Bare aiohttp: so many workers, and a retry on any failure; no store, no budget, no pace, and all answers in memory."""

import asyncio
import json
from typing import Any

import aiohttp
from contest import API_KEY, MAX_TOKENS, MODEL, Task, hand_in, parse_task

MOST_TRIES = 20


async def ask_all(task: Task) -> list[dict[str, str | None]]:
    waiting = iter(enumerate(task.prompts))
    found: list[dict[str, str | None]] = [{"prompt": prompt, "completion": None} for prompt in task.prompts]
    connector = aiohttp.TCPConnector(limit=task.concurrency)
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def work() -> None:
            for index, prompt in waiting:
                found[index]["completion"] = await ask(session, task.base_url, prompt)

        await asyncio.gather(*(work() for _ in range(task.concurrency)))
    return found


async def ask(session: aiohttp.ClientSession, base_url: str, prompt: str) -> str | None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    for _ in range(MOST_TRIES):
        try:
            async with session.post(f"{base_url}/chat/completions", json=body) as response:
                if response.status == 200:
                    return text_of(json.loads(await response.read()))
                await asyncio.sleep(float(response.headers.get("Retry-After", 0.1)))
        except (aiohttp.ClientError, ValueError):
            await asyncio.sleep(0.1)
    return None


def text_of(answer: Any) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


if __name__ == "__main__":
    task = parse_task(__doc__)
    hand_in(task, asyncio.run(ask_all(task)))
