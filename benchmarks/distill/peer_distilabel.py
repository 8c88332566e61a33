"""distilabel: a pipeline of one TextGeneration; its batches are as large as the concurrency, since a batch is asked at once."""

from contest import API_KEY, MAX_TOKENS, MODEL, Task, hand_in, parse_task
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

MAX_RETRIES = 10


def ask_all(task: Task) -> list[dict[str, str]]:
    with Pipeline(name="contest") as pipeline:
        rows = LoadDataFromDicts(data=[{"instruction": prompt} for prompt in task.prompts], batch_size=task.concurrency)
        llm = OpenAILLM(
            model=MODEL,
            base_url=task.base_url,
            api_key=API_KEY,
            max_retries=MAX_RETRIES,
            generation_kwargs={"temperature": 0.0, "max_new_tokens": MAX_TOKENS},
        )
        asking = TextGeneration(llm=llm, input_batch_size=task.concurrency)
        rows >> asking
    answered = pipeline.run(use_cache=False)["default"]["train"]
    return [{"prompt": row["instruction"], "completion": row["generation"]} for row in answered]


if __name__ == "__main__":
    task = parse_task(__doc__)
    hand_in(task, ask_all(task))
