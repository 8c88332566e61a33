"""Teachers that run in this process: the shipped one knows its subject, and answers depend on the request alone."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from nexa_core import digests
from nexa_core.config.ask import AskConfig
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.encoder import encoding_digest
from nexa_data.sources.word_problems import parts_of, problems
from nexa_distill.answers import final_answer
from nexa_llm.ask import Teachers, ask
from nexa_llm.chat import ChatRequest, Sampling
from nexa_models.checkpoint import load_checkpoint, model_of
from nexa_models.local_teacher import LocalTeacher, open_local
from nexa_models.predict import complete
from tests.conftest import FinishedLab

SHIPPED = Path(__file__).parent.parent / "nexa_distill" / "teacher"
NAME = "local:nexa_distill/teacher"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> LocalTeacher:
    """The shipped one, named as in configs/distill.yaml, of a laboratory that is elsewhere."""
    return open_local(AskConfig(teacher=NAME), Layout(tmp_path_factory.mktemp("elsewhere")))


@pytest.fixture(scope="module")
def held_out() -> list[Any]:
    """Problems that neither teacher nor student was trained on."""
    found = problems()
    parts = parts_of([each.question for each in found])
    return [problem for problem, part in zip(found, parts, strict=True) if part == "test"][:128]


def requests(prompts: list[str], **sampling: Any) -> list[ChatRequest]:
    drawn = Sampling(**{"max_tokens": 40, **sampling})
    return [ChatRequest(({"role": "user", "content": prompt},), drawn) for prompt in prompts]


def read(body: bytes) -> tuple[str, str, dict[str, Any]]:
    choice = json.loads(body)["choices"][0]
    return choice["message"]["content"], choice["finish_reason"], choice.get("logprobs", {}).get("by_id", {})


def test_the_shipped_teacher_is_the_one_its_card_and_run_speak_of() -> None:
    card = (SHIPPED / "README.md").read_text()
    assert digests.of_file(SHIPPED / "model.safetensors") in card
    lineage, manifest = (json.loads((SHIPPED / "run" / f"{name}.json").read_text()) for name in ("lineage", "manifest"))
    assert lineage["run_id"] == manifest["run_id"]
    assert lineage["fingerprint"] in card
    assert digests.of_file(SHIPPED / "run" / "metrics.json") in lineage["outputs"].values()
    assert manifest["metrics"]["exact_match"] > 0.95


def test_transformers_loads_the_shipped_teacher_and_it_answers(held_out: list[Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(SHIPPED, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED, local_files_only=True)
    messages = [{"role": "user", "content": held_out[0].question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert ids["input_ids"].tolist() == [tokenizer(held_out[0].question)["input_ids"]], "asked as it was trained"
    out = model.generate(**ids, max_new_tokens=40)
    assert tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == held_out[0].answer


def test_the_shipped_teacher_answers_held_out_questions(teacher: LocalTeacher, held_out: list[Any]) -> None:
    bodies = teacher.answer_batch(requests([each.question for each in held_out]))
    answers = [read(body) for body in bodies]
    num_right = sum(final_answer(text) == str(each.final) for (text, _, _), each in zip(answers, held_out, strict=True))
    assert num_right > 0.95 * len(held_out)
    assert {reason for _, reason, _ in answers} == {"stop"}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_does_not_depend_on_what_is_asked_beside_it(
    teacher: LocalTeacher, held_out: list[Any], temperature: float
) -> None:
    asked = requests([each.question for each in held_out[:12]], temperature=temperature, seed=3, top_p=0.95)
    together = teacher.answer_batch(asked)
    assert [teacher.answer_batch([request])[0] for request in asked] == together
    assert teacher.answer_batch(asked[::-1])[::-1] == together


def test_samples_and_seeds_differ_and_repeat(teacher: LocalTeacher, held_out: list[Any]) -> None:
    (first,) = requests([held_out[0].question], temperature=2.0, seed=0)
    samples = [ChatRequest(first.messages, first.sampling, index) for index in range(4)]
    texts = [read(body)[0] for body in teacher.answer_batch(samples)]
    assert len(set(texts)) == 4
    assert [read(body)[0] for body in teacher.answer_batch(samples)] == texts
    (other,) = requests([held_out[0].question], temperature=2.0, seed=9)
    assert read(teacher.answer_batch([other])[0])[0] not in texts


def test_a_small_top_p_is_greedy(teacher: LocalTeacher, held_out: list[Any]) -> None:
    prompts = [each.question for each in held_out[:8]]
    drawn = teacher.answer_batch(requests(prompts, temperature=1.0, top_p=1e-6))
    assert drawn == teacher.answer_batch(requests(prompts))


def test_logprobs_are_those_of_the_model(teacher: LocalTeacher, held_out: list[Any]) -> None:
    prompts = [each.question for each in held_out[:3]]
    for prompt, body in zip(prompts, teacher.answer_batch(requests(prompts, logprobs=5)), strict=True):
        _, _, stated = read(body)
        tokenizer = teacher._tokenizer
        before = [1, *tokenizer.encode(prompt, add_special_tokens=False).ids]
        ids = torch.tensor([before + stated["token_ids"]])
        at = torch.arange(len(before) - 1, ids.shape[1] - 1)
        with torch.inference_mode():
            wanted = torch.log_softmax(teacher._model(ids, at).double(), dim=-1)
        places = zip(wanted, stated["top_ids"], stated["top_logprobs"], stated["tail_mass"], strict=True)
        for logprobs, top_ids, top_logprobs, tail in places:
            assert top_ids[0] == int(logprobs.argmax())
            assert top_logprobs == sorted(top_logprobs, reverse=True)
            assert logprobs[top_ids].tolist() == pytest.approx(top_logprobs, abs=1e-4)
            assert tail == pytest.approx(1 - float(logprobs[top_ids].exp().sum()), abs=1e-5)
        assert stated["token_ids"][-1] == 2, "the end is a token that a student learns as well"
    assert teacher.tokenizer_sha256 == encoding_digest((SHIPPED / "tokenizer.json").read_text())


def test_an_answer_ends_at_its_limit_or_at_a_text(teacher: LocalTeacher, held_out: list[Any]) -> None:
    prompt = held_out[0].question
    whole, _, _ = read(teacher.answer_batch(requests([prompt]))[0])
    cut, reason, _ = read(teacher.answer_batch(requests([prompt], max_tokens=5))[0])
    assert reason == "length"
    assert whole.startswith(cut)
    stopped, reason, _ = read(teacher.answer_batch(requests([prompt], stop=("####",)))[0])
    assert (stopped, reason) == (whole[: whole.index("####")], "stop")


def test_a_prompt_that_leaves_no_room_is_told_and_spoils_no_other(teacher: LocalTeacher, held_out: list[Any]) -> None:
    long, short = teacher.answer_batch(requests(["apples " * 200, held_out[0].question]))
    assert read(long)[:2] == ("", "length")
    assert read(short)[0] == held_out[0].answer


def test_what_it_cannot_do_is_refused(teacher: LocalTeacher, finished_lab: FinishedLab) -> None:
    with pytest.raises(UserError, match="one message of a user"):
        teacher.answer_batch([ChatRequest(({"role": "system", "content": "Be kind."},))])
    with pytest.raises(UserError, match="no tools"):
        teacher.answer_batch([ChatRequest(({"role": "user", "content": "?"},), tools=({"type": "function"},))])
    with pytest.raises(UserError, match=r"no such file or folder.*nexa_distill/teacher"):
        open_local(AskConfig(teacher="local:nowhere"), finished_lab.layout)
    mlp = finished_lab.layout.relative(finished_lab.checkpoint("mlp"))
    with pytest.raises(UserError, match="has to be a causal_lm"):
        open_local(AskConfig(teacher=f"local:{mlp}"), finished_lab.layout)


def test_a_checkpoint_answers_as_the_model_in_it(finished_lab: FinishedLab) -> None:
    layout, path = finished_lab.layout, finished_lab.checkpoint("causal_lm")
    teacher = open_local(AskConfig(teacher=f"local:{layout.relative(path)}"), layout)
    prompts = [f"write {count} words:" for count in range(1, 6)]
    checkpoint = load_checkpoint(path)
    wanted = complete(
        model_of(checkpoint), checkpoint.spec, prompts, max_new_tokens=8, batch_size=8, device=torch.device("cpu")
    )
    assert [read(body)[0] for body in teacher.answer_batch(requests(prompts, max_tokens=8))] == wanted
    with pytest.raises(UserError, match="one message of a user; it was given system, user"):
        system, user = {"role": "system", "content": "a"}, {"role": "user", "content": "b"}
        teacher.answer_batch([ChatRequest((system, user))])


def test_its_answers_are_stored_and_not_made_twice(tmp_path: Path, held_out: list[Any]) -> None:
    config, layout = AskConfig(teacher=NAME), Layout(tmp_path)
    asked = requests([each.question for each in held_out[:5]], logprobs=3)
    first = list(ask(asked, config, layout, purpose="test"))
    again = list(ask(asked, config, layout, purpose="test"))
    assert [each.text for each in first] == [each.text for each in again] == [each.answer for each in held_out[:5]]
    assert [each.is_new for each in first + again] == [True] * 5 + [False] * 5
    assert first[0].logprobs == again[0].logprobs is not None
    assert len(again[0].logprobs.top_ids) == again[0].completion_tokens
    assert again[0].logprobs.tokenizer_sha256 == encoding_digest((SHIPPED / "tokenizer.json").read_text())


def test_of_local_teachers_the_last_one_is_held(tmp_path: Path) -> None:
    one, other = AskConfig(teacher=NAME), AskConfig(teacher=NAME, system_prompt="Be kind.")
    with ExitStack() as stack:
        teachers = Teachers(Layout(tmp_path), stack)
        first = teachers.of(one)
        assert teachers.of(one) is first
        assert teachers.of(other) is teachers.of(other) is not first
        assert teachers.of(one) is not first
