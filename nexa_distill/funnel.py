"""What each step left of a teacher's answers."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nexa_distill.checks import Pair, Rejection

NUM_EXAMPLES, MAX_EXAMPLE_CHARS = 2, 200


@dataclass
class Stage:
    """One step, filled as rows come."""

    name: str
    rows_in: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)

    @property
    def rows_out(self) -> int:
        return self.rows_in - self.reasons.total()

    def saw(self, pair: Pair, rejection: Rejection | None) -> None:
        self.rows_in += 1
        if rejection is None:
            return
        self.reasons[rejection.reason] += 1
        if len(self.examples) < NUM_EXAMPLES:
            shown = {
                "row_id": pair.group,
                "prompt": pair.prompt,
                "completion": pair.completion,
                "detail": rejection.detail,
            }
            self.examples.append({name: text[:MAX_EXAMPLE_CHARS] for name, text in shown.items()})

    def as_json(self, parameters: Any) -> dict[str, Any]:
        return {
            "name": self.name,
            "parameters": parameters,
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "reasons": dict(sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))),
            "examples": self.examples,
        }


def funnel_text(steps: list[dict[str, Any]]) -> str:
    """The steps of a manifest as a table."""
    width = max(len(step["name"]) for step in steps)
    lines = [f"  {'step':<{width}} {'rows in':>10} {'rejected':>10} {'share':>8}"]
    for step in steps:
        removed = step["rows_in"] - step["rows_out"]
        share = removed / step["rows_in"] if step["rows_in"] else 0.0
        lines.append(f"  {step['name']:<{width}} {step['rows_in']:>10,} {removed:>10,} {share:>8.2%}")
        lines += [f"    {number:>10,}x {reason}" for reason, number in step["reasons"].items()]
    return "\n".join(lines)
