"""Plots as inline SVG: a page of them needs no script, and prints."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from nexa_data.overview.scores import Score

WIDTH, HEIGHT, TOP, BOTTOM = 420, 170, 6, 146
SMALL_WIDTH, SMALL_HEIGHT, SMALL_TOP, SMALL_BOTTOM = 180, 86, 6, 68
MARGIN = 1
LEAST_BINS = 8
NUM_SINGLE = 10
"""Up to so many different numbers each have a mark."""


def bar(parts: Sequence[tuple[str, float]]) -> Markup:
    """A horizontal bar whose parts, each (class, share of the whole), lie one after the other."""
    drawn, begin = Markup(), 0.0
    for name, share in parts:
        drawn += Markup('<rect class="{}" x="{}" width="{}" height="10"/>').format(name, _n(begin), _n(share * 100))
        begin += share * 100
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    ).format(drawn)


def length_plot(counts: Mapping[str, np.ndarray], edges: np.ndarray, what: str, label: str) -> Markup:
    """How each split's rows lie along a logarithmic axis; an area is a share of them, however wide its bins are.

    Args:
        what: what is counted, e.g. "characters".
        label: what the plot shows, for those who cannot see it.
    """
    x = _log_places(edges, WIDTH - MARGIN)
    outlines = {split: _densities(each, x) for split, each in counts.items()}
    top = max(float(heights.max()) for _, heights in outlines.values())
    drawn = Markup('<path class="axis" d="M{} {}H{}"/>').format(MARGIN, BOTTOM, WIDTH - MARGIN) + _marks(edges, x)
    for split, (places, heights) in reversed(outlines.items()):  # the training split lies on top
        levels = BOTTOM - heights / top * (BOTTOM - TOP)
        steps = "".join(f"V{_n(level)}H{_n(end)}" for level, end in zip(levels, places[1:], strict=True))
        outline = f"M{_n(places[0])} {BOTTOM}{steps}V{BOTTOM}"
        drawn += Markup('<path class="area {0}" d="{1}Z"/><path class="line {0}" d="{1}"/>').format(split, outline)
    return _svg(drawn + _told(counts, edges, x, what), WIDTH, HEIGHT, "plot", label)


def score_plot(score: Score) -> Markup:
    """How many rows have which score, on a logarithmic axis of rows, with the limits and what lies beyond them."""
    edges, right = score.edges, SMALL_WIDTH - MARGIN
    x = _log_places(edges, right) if score.is_log else np.interp(edges, (edges[0], edges[-1]), (MARGIN, right))
    drawn = _score_bars(score, x)
    drawn += Markup('<path class="axis" d="M{} {}H{}"/>').format(MARGIN, SMALL_BOTTOM, right)
    for limit in (score.least, score.most):
        if limit is not None and score.low <= limit <= score.high:
            drawn += Markup('<path class="limit" d="M{} 0V{}"/>').format(_n(np.interp(limit, edges, x)), SMALL_BOTTOM)
    for value, anchor, place in ((score.low, "start", MARGIN), (score.high, "end", right)):
        drawn += _text(short(value), place, SMALL_HEIGHT - 4, anchor)
    label = f"{score.step}, {score.name}: rows by score, kept {' and '.join(limits_of(score))}"
    return _svg(drawn, SMALL_WIDTH, SMALL_HEIGHT, "plot small", label)


def limits_of(score: Score) -> list[str]:
    """The limits in words."""
    limits = (("at least", score.least), ("at most", score.most))
    return [f"{words} {short(limit)}" for words, limit in limits if limit is not None]


def short(value: float) -> str:
    """A number in few characters."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if abs(value) >= 0.001 else "0"


def _densities(counts: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of bins, fewer for few rows (by Rice's rule), and how densely rows lie in each."""
    total = max(1, int(counts.sum()))
    together = max(1, round(len(counts) / max(LEAST_BINS, 2 * total ** (1 / 3))))
    begins = np.arange(0, len(counts), together)
    places = np.append(x[begins], x[-1])
    return places, np.add.reduceat(counts, begins) / total / np.diff(places)


def _marks(edges: np.ndarray, x: np.ndarray) -> Markup:
    """Marks at round numbers, and at 0 where it has a bin."""
    drawn = Markup()
    for mark in ([0] if edges[0] == 0 else []) + round_numbers(max(1, int(edges[0])), int(edges[-1]) - 1):
        place = _place(mark, edges, x)
        anchor = "end" if place > WIDTH - 20 else "start" if place < 20 else "middle"
        drawn += Markup('<path class="tick" d="M{} {}v4"/>').format(_n(place), BOTTOM)
        drawn += _text(short(mark), place, BOTTOM + 17, anchor)
    return drawn


def round_numbers(least: int, most: int) -> list[int]:
    """1, 10, 100, ... between these; of fewer decades 2 and 5 too, of less than one every so many, of few all."""
    decades = math.log10(most / least)
    if decades < 1:
        power = 10 ** int(math.log10(max(1, (most - least) / 3)))
        step = next(
            power * each for each in (1, 2, 5, 10) if most - least < NUM_SINGLE or (most - least) / (power * each) <= 7
        )
        return list(range(-(-least // step) * step, most + 1, step))
    steps = (1, 2, 5) if decades < 2.5 else (1,)
    return [step * 10**power for power in range(13) for step in steps if least <= step * 10**power <= most]


def _place(value: int, edges: np.ndarray, x: np.ndarray) -> float:
    """Where a whole number lies: in the middle of its bin, where it has one of its own."""
    index = int(np.searchsorted(edges, value, side="right")) - 1
    if edges[index + 1] - edges[index] == 1:
        return float(x[index] + x[index + 1]) / 2
    inside = edges > 0
    return float(np.interp(math.log10(value), np.log10(edges[inside]), x[inside]))


def _told(counts: Mapping[str, np.ndarray], edges: np.ndarray, x: np.ndarray, what: str) -> Markup:
    """Over each bin an invisible field that tells its numbers when it is pointed at."""
    drawn = Markup()
    for index in range(len(edges) - 1):
        first, last = int(edges[index]), int(edges[index + 1]) - 1
        lines = [f"{first:,} {what}" if first == last else f"{first:,} to {last:,} {what}"]
        lines += [f"{split} {each[index] / max(1, each.sum()):.1%}" for split, each in counts.items()]
        drawn += _field(x[index], x[index + 1], BOTTOM, "\n".join(lines))
    return drawn


def _score_bars(score: Score, x: np.ndarray) -> Markup:
    heights = np.log10(1 + score.counts)
    heights *= (SMALL_BOTTOM - SMALL_TOP) / max(1e-9, heights.max())
    drawn = Markup()
    for index in np.flatnonzero(score.counts):
        first, last = score.edges[index], score.edges[index + 1]
        drawn += Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
            "kept" if score.is_kept((first + last) / 2) else "out",
            _n(x[index]),
            _n(SMALL_BOTTOM - heights[index]),
            _n(max(0.6, x[index + 1] - x[index] - 0.5)),
            _n(heights[index]),
        )
        told = f"{short(first)} to {short(last)}: {score.counts[index]:,} rows"
        drawn += _field(x[index], x[index + 1], SMALL_BOTTOM, told)
    return drawn


def _log_places(edges: np.ndarray, right: float) -> np.ndarray:
    """Where edges lie on a logarithmic axis; 0 lies a little before the next one."""
    logs = np.log10(np.maximum(edges, 1e-9))
    if edges[0] == 0:
        logs[0] = logs[1] - 0.15
    return np.interp(logs, (logs[0], logs[-1]), (MARGIN, right))


def _svg(drawn: Markup, width: int, height: int, name: str, label: str) -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        name, width, height, label, drawn
    )


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(_n(x), _n(y), anchor, text)


def _field(begin: float, end: float, height: float, title: str) -> Markup:
    return Markup('<rect class="hover" x="{}" y="0" width="{}" height="{}"><title>{}</title></rect>').format(
        _n(begin), _n(end - begin), _n(height), title
    )


def _n(value: float) -> str:
    """A coordinate, to a hundredth."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
