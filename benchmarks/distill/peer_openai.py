"""The openai client, as its documentation shows: AsyncOpenAI with its own retries, and an error is a row lost."""

import asyncio
import json

import openai
from contest import API_KEY, MAX_TOKENS, MODEL, Task, hand_in, parse_task

MAX_RETRIES = 10


async def ask_all(task: Task) -> list[dict[str, str | None]]:
    gate = asyncio.Semaphore(task.concurrency)
    async with openai.AsyncOpenAI(base_url=task.base_url, api_key=API_KEY, max_retries=MAX_RETRIES) as client:

        async def ask(prompt: str) -> dict[str, str | None]:
            async with gate:
                try:
                    answer = await client.chat.completions.create(
                        model=MODEL,
                        messages=[{"role": "user", "content": prompt}],
                        temperature=0,
                        max_tokens=MAX_TOKENS,
                    )
                except (openai.OpenAIError, json.JSONDecodeError):  # a 200 that is no JSON is not tried again by it
                    return {"prompt": prompt, "completion": None}
                return {"prompt": prompt, "completion": answer.choices[0].message.content}

        return await asyncio.gather(*(ask(prompt) for prompt in task.prompts))


if __name__ == "__main__":
    task = parse_task(__doc__)
    hand_in(task, asyncio.run(ask_all(task)))
