"""Whether several samples of a prompt come to the same final answer."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from nexa_core.config.distill_filter import AgreementCheck
from nexa_core.paths import Layout
from nexa_distill.answers import canonical, final_answer
from nexa_distill.checks import KEPT, Check, Pair, Verdict, rejected

NO_ANSWER, TOO_FEW, MINORITY, NO_MAJORITY, STANDS_FOR_IT = (
    "no final answer",
    "too few samples to agree",
    "another answer than most samples",
    "too few samples agree",
    "another sample stands for it",
)


def check_agreement(settings: AgreementCheck, layout: Layout) -> Check:
    """Of equally large groups the one with the earliest sample counts as the largest."""

    def check(pairs: Sequence[Pair]) -> list[Verdict]:
        found = [KEPT] * len(pairs)
        groups = defaultdict[str, list[int]](list)
        for index, pair in enumerate(pairs):
            groups[pair.group].append(index)
        for indices in groups.values():
            for index, verdict in zip(indices, _judge(settings, [pairs[index] for index in indices]), strict=True):
                found[index] = verdict
        return found

    return check


def _judge(settings: AgreementCheck, samples: list[Pair]) -> list[Verdict]:
    if len(samples) < settings.min_samples:
        return [rejected(TOO_FEW, f"{len(samples)} left")] * len(samples)
    answers = [None if (found := final_answer(sample.completion)) is None else canonical(found) for sample in samples]
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return [rejected(NO_ANSWER)] * len(samples)
    most, number = counts.most_common(1)[0]  # the first seen of equals
    told, share = f"{number} of {len(samples)} say {most}", number / len(samples)
    if number < settings.min_share * len(samples):
        return [rejected(NO_MAJORITY, told, share=share)] * len(samples)
    kept = answers.index(most)
    return [
        Verdict(scores={"share": share}) if index == kept else rejected(_reason(answer, most), told, share=share)
        for index, answer in enumerate(answers)
    ]


def _reason(answer: str | None, most: str) -> str:
    if answer is None:
        return NO_ANSWER
    return STANDS_FOR_IT if answer == most else MINORITY
