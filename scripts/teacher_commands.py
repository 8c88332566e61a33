"""Asking a teacher, and a teacher to try it with that costs nothing."""

from pathlib import Path
from typing import Annotated

import typer

from nexa_core.command import show
from scripts.options import Config, Json, Overrides, as_overrides

app = typer.Typer()


@app.command()
def collect_teacher(
    config: Config = Path("configs/distill.yaml"),
    override: Overrides = None,
    src: Annotated[str | None, typer.Option(help="The prompts: a dataset's key or a Parquet file.")] = None,
    dst: Annotated[str | None, typer.Option(help="The answers: a dataset's key or a Parquet file.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="openai:<model>, local:<checkpoint or folder> or recorded:<file>.")
    ] = None,
    max_samples: Annotated[int | None, typer.Option(help="Ask only the first so many prompts.", min=1)] = None,
    max_cost_usd: Annotated[
        float | None, typer.Option(help="What all answers may cost; exit 3 when it is used up.")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Collect anew what was collected with other settings.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and send nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Ask a teacher for an answer to each prompt; each is paid for once, whatever happens.

    Example: nexa collect-teacher --config configs/distill.yaml --max-samples 100 --dry-run
    """
    from nexa_core.config import DistillConfig, load_config
    from nexa_core.paths import Layout
    from nexa_distill.collect_teacher import collect, estimate_collection

    flags = as_overrides(
        {
            "inputs": src,
            "collect.teacher": teacher,
            "collect.max_samples": max_samples,
            "collect.max_cost_usd": max_cost_usd,
        }
    )
    settings = load_config(config, DistillConfig, overrides=[*(override or []), *flags])
    layout = Layout.from_environment()
    if dry_run:
        expected = estimate_collection(settings, layout)
        show(expected.as_json(), expected.as_text(), as_json)
        return
    collected = collect(settings, layout, destination=dst, replace=replace)
    show(collected.as_json(), collected.as_text(layout), as_json)


@app.command("simulate-teacher")
def simulate_teacher(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 for a free one.", min=0, max=65535)] = 8009,
    seed: Annotated[int, typer.Option(help="Decides the answers and the faults.")] = 0,
    latency_seconds: Annotated[float, typer.Option(help="How long an answer takes.", min=0)] = 0.2,
    latency_spread: Annotated[
        float, typer.Option(help="Share by which a request's own latency is above or below.", min=0, max=1)
    ] = 0.0,
    faults: Annotated[
        str,
        typer.Option(
            help="Shares of what goes wrong: rate_limit, rate_limit_date, server_error, bad_gateway, unavailable, unauthorized, "
            "echo_key, reset, reset_body, hang, truncated_json, malformed, empty_choices; and of how answers end: refusal, "
            "content_filter, flagged, truncated.",
            metavar="NAME=SHARE,...",
        ),
    ] = "",
    retry_after_seconds: Annotated[float, typer.Option(help="What the faults with 429 tell to wait.", min=0)] = 1.0,
    requests_per_minute: Annotated[int | None, typer.Option(help="Above it, 429.", min=1)] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(help="Of prompts and max_tokens; above it, 429.", min=1)
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests at once; above it, 429.", min=1)] = None,
    answers: Annotated[
        Path | None, typer.Option(help="JSON lines with prompt and completion (or answer). [default: drawn words]")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json that answers are counted with. [default: 4 bytes a token]")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="The only model known. Repeatable. [default: any]")] = None,
    prompt_usd_per_million: Annotated[str, typer.Option(help="Price of a million prompt tokens.")] = "0.15",
    completion_usd_per_million: Annotated[str, typer.Option(help="Price of a million completion tokens.")] = "0.60",
    bill: Annotated[Path | None, typer.Option(help="Write the bill to this file at the end.")] = None,
) -> None:
    """Serve a teacher that costs nothing: OpenAI-compatible, with seeded faults and a bill. Prints its URL; ends at Ctrl-C.

    Example: nexa simulate-teacher --port 0 --faults rate_limit=0.02,server_error=0.01,reset=0.005
    """
    from nexa_llm.simulator.answers import AnswerFile, DrawnWords, vocabulary
    from nexa_llm.simulator.bill import Prices, parse_price
    from nexa_llm.simulator.faults import parse_faults
    from nexa_llm.simulator.limits import Limits
    from nexa_llm.simulator.server import Behaviour, serve
    from nexa_llm.simulator.tokens import BytePieces, FileTokens

    behaviour = Behaviour(
        seed=seed,
        faults=parse_faults(faults, seed=seed),
        answerer=AnswerFile(answers) if answers else DrawnWords(),
        tokens=FileTokens(tokenizer) if tokenizer else BytePieces(vocabulary()),
        prices=Prices(
            parse_price(prompt_usd_per_million, "--prompt-usd-per-million"),
            parse_price(completion_usd_per_million, "--completion-usd-per-million"),
        ),
        limits=Limits(
            requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, concurrency=concurrency
        ),
        models=tuple(model or ()),
        latency_seconds=latency_seconds,
        latency_spread=latency_spread,
        retry_after_seconds=retry_after_seconds,
    )
    total = serve(behaviour, host=host, port=port, bill_path=bill, announce=lambda url: print(url, flush=True))
    where = f"; bill {bill}" if bill else ""
    print(f"{total['answers']:,} answers for {total['usd']} USD, {sum(total['requests'].values()):,} requests{where}")
