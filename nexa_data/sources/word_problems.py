"""The built-in source `word_problems`: arithmetic problems in words from a seeded grammar, with worked answers.

The problems lie in four parts, by a hash of the question, so that no question is in two: what a teacher was trained on, few
that have answers, many that have none, and the test.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nexa_data.split import positions_of

NUM_PROBLEMS = 25_000
SEED = 0
SALT = "word_problems"
PARTS = {"teacher": 0.8, "unlabelled": 0.16, "labelled": 0.016, "test": 0.024}
"""The share of each: 20,000 problems, 4,000, 400 and 600, or nearly so."""
WITHOUT_ANSWERS = "unlabelled"
MOST = 60
"""No number on the way is larger: few enough sums that a small model can know them all."""

SHE = ("Ada", "Bella", "Clara", "Dora", "Emma", "Fiona", "Greta", "Hanna", "Iris", "Julia", "Kira", "Lena")
HE = ("Adam", "Ben", "Carl", "David", "Erik", "Felix", "Gregor", "Hugo", "Ivan", "Jonas", "Kai", "Leo")
THINGS = (
    *("apples", "pears", "plums", "nuts", "eggs", "rolls", "cards", "coins", "stamps", "marbles", "pencils", "books"),
    *("shells", "stones", "beads", "buttons", "stickers", "balls", "candles", "flowers"),
)
CONTAINERS = ("bags", "boxes", "baskets", "crates", "packs", "jars")


@dataclass(frozen=True)
class Problem:
    question: str
    steps: tuple[str, ...]
    """Each like `7 * 6 = 42`."""
    final: int

    @property
    def answer(self) -> str:
        """The steps in one sentence, and behind it `#### 42`, as in GSM8K. Source: Cobbe et al. 2021, arXiv:2110.14168."""
        return f"First {', then '.join(self.steps)}.\n#### {self.final}"


def read_word_problems(parts: Sequence[str] = tuple(PARTS)) -> Iterator[dict[str, Any]]:
    """The problems of some parts: `question`, `part`, `num_steps`, worked `answer` and `final` number, null where unlabelled."""
    found = problems()
    for problem, part in zip(found, parts_of([problem.question for problem in found]), strict=True):
        if part in parts:
            has_answer = part != WITHOUT_ANSWERS
            yield {
                "question": problem.question,
                "part": part,
                "num_steps": len(problem.steps),
                "answer": problem.answer if has_answer else None,
                "final": str(problem.final) if has_answer else None,
            }


def problems(num_problems: int = NUM_PROBLEMS, seed: int = SEED) -> list[Problem]:
    """Distinct problems, always the same."""
    draw = random.Random(seed)
    found: dict[str, Problem] = {}
    while len(found) < num_problems:
        problem = _problem(draw)
        found.setdefault(problem.question, problem)
    return list(found.values())


def parts_of(questions: Sequence[str]) -> list[str]:
    """Of each question the part that it belongs to, from nothing but its letters."""
    names, ends = list(PARTS), np.cumsum(list(PARTS.values()))
    shares = positions_of([question.encode() for question in questions], SALT).astype(np.float64) / 2**64
    return [names[min(place, len(names) - 1)] for place in np.searchsorted(ends, shares, side="right").tolist()]


class _Story:
    """A problem in the making: its sentences, its sums, and how many there are now."""

    def __init__(self, draw: random.Random):
        self.draw = draw
        self.name, self.other = draw.sample((*SHE, *HE), 2)
        self.pronoun = "She" if self.name in SHE else "He"
        self.things = draw.choice(THINGS)
        self.sentences: list[str] = []
        self.steps: list[str] = []
        self.number = 0

    def say(self, *wordings: str, **values: Any) -> None:
        words = {"name": self.name, "other": self.other, "pronoun": self.pronoun, "things": self.things}
        self.sentences.append(self.draw.choice(wordings).format(**words, **values))

    def compute(self, sign: str, operand: int) -> None:
        before = self.number
        self.number = {
            "+": before + operand,
            "-": before - operand,
            "*": before * operand,
            "/": before // operand,
        }[sign]
        self.steps.append(f"{before} {sign} {operand} = {self.number}")


def _problem(draw: random.Random) -> Problem:
    story = _Story(draw)
    num_steps = draw.choice((2, 3))
    draw.choice((_have, _buy_packed, _find_twice))(story)
    question = "How many {things} does {name} have now?"
    while len(story.steps) < num_steps:
        friends = [number for number in range(2, 10) if story.number % number == 0 and story.number > number]
        if len(story.steps) == num_steps - 1 and friends and draw.random() < 0.4:
            _share(story, draw.choice(friends))
            question = "How many {things} does each of them get?"
        else:
            draw.choice((_get_more, _give_away) if 12 < story.number < MOST - 12 else _one_way(story))(story)
    story.say(question)
    return Problem(" ".join(story.sentences), tuple(story.steps), story.number)


def _one_way(story: _Story) -> tuple[Any, ...]:
    return (_get_more,) if story.number <= 12 else (_give_away,)


def _have(story: _Story) -> None:
    story.number = story.draw.randint(5, 40)
    story.say("{name} has {number} {things}.", "There are {number} {things} on {name}'s table.", number=story.number)


def _buy_packed(story: _Story) -> None:
    packs, each = story.draw.randint(2, 7), story.draw.randint(2, 8)
    story.say(
        "{name} buys {packs} {containers} with {each} {things} each.",
        "{name} has {packs} {containers}, and in each of them there are {each} {things}.",
        packs=packs, each=each, containers=story.draw.choice(CONTAINERS),
    )  # fmt: skip
    story.number = packs
    story.compute("*", each)


def _find_twice(story: _Story) -> None:
    first, second = story.draw.randint(3, 25), story.draw.randint(2, 12)
    story.say(
        "{name} finds {first} {things} in the morning and {second} in the evening.",
        "On Monday {name} gets {first} {things}, and on Tuesday {second}.",
        first=first, second=second,
    )  # fmt: skip
    story.number = first
    story.compute("+", second)


def _get_more(story: _Story) -> None:
    more = story.draw.randint(2, 12)
    story.say(
        "{other} gives {name} {more} more.",
        "Then {name} buys {more} more.",
        "{pronoun} finds {more} more of them.",
        more=more,
    )
    story.compute("+", more)


def _give_away(story: _Story) -> None:
    fewer = story.draw.randint(2, min(12, story.number - 2))
    story.say(
        "{pronoun} gives {fewer} of them to {other}.",
        "Then {name} loses {fewer} of them.",
        "{other} takes {fewer} of them away.",
        fewer=fewer,
    )
    story.compute("-", fewer)


def _share(story: _Story, friends: int) -> None:
    story.say(
        "{pronoun} shares them equally among {friends} friends.",
        "Now {friends} children share all of them equally.",
        friends=friends,
    )
    story.compute("/", friends)
