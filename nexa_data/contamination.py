"""Contamination: rows that repeat texts of an evaluation set, with the text that both have.

    index = index_evaluation(texts, row_ids, settings)
    for found in find_contaminated(index, block): ...      # of each block of rows, anywhere

Texts overlap in n-grams, runs of 13 words; symbols are none, so that `24/2 = <<24/2=12>>` is five words. A text of 8 to 12 words
is one n-gram of all its words. Shorter ones are not looked for inside other texts, because their words meet by chance; a text
that is the same as a whole, symbols included, is found whatever its length (`find_same`). Words of templates belong to no
n-gram and do not count.

Source: Brown et al. 2020, Language Models are Few-Shot Learners, appendix C (13-grams, of at least 8 words); Touvron et al.
2023, Llama 2, appendix A.6 (contaminated words as a share of the sample's, not clean from 20% on).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from nexa_core.config.overlaps import Decontamination
from nexa_data.runs import Hashes, Indices, bounds_of, mixed, ranges, runs
from nexa_data.words import Texts, Words, blocks, places_of, read, words_of

MAX_OCCURRENCES = 16
"""Places in the evaluation set that are known of one n-gram, those in the rows with the smallest ids; more are a template's."""
SIEVE_BYTES = (1 << 16, 1 << 26)
"""Smallest and largest table that tells most n-grams apart from the evaluation set's by one look."""

NOTHING = numpy.uint64(0)

Mask = NDArray[numpy.bool_]


@dataclass(frozen=True)
class Span:
    """A piece of a row's text that the evaluation text has too, as characters `begin` to `end` of the row."""

    begin: int
    end: int
    text: str


@dataclass(frozen=True)
class Contaminated:
    """A row that overlaps with evaluation texts; the spans and shares are of the first, the one that it covers most.

    The shares are of words: how much of the evaluation text is in the row, and how much of the row in the text.
    """

    row: int
    evaluation_ids: tuple[str, ...]
    evaluation_share: float
    row_share: float
    spans: tuple[Span, ...]

    @property
    def coverage(self) -> float:
        """The larger share: a question inside a long page counts as well as a paragraph out of a long passage."""
        return max(self.evaluation_share, self.row_share)


@dataclass(frozen=True)
class EvaluationIndex:
    """The n-grams of an evaluation set by their hashes, each as often as it occurs.

    Of each occurrence `rows` is the text, `begins` its first word there and `sizes` the number of words. `num_words` are those
    of a text that count. `too_short` are the ids of which no text has n-grams. `wholes` are hashes of whole texts, sorted, and
    `whole_rows` the texts that they are of.
    """

    row_ids: tuple[str, ...]
    too_short: tuple[str, ...]
    num_words: Indices
    hashes: Hashes
    rows: Indices
    begins: Indices
    sizes: Indices
    sieve: Mask
    wholes: Hashes
    whole_rows: Indices
    templates: dict[int, Hashes]
    min_coverage: float


def index_evaluation(texts: Sequence[str], row_ids: Sequence[str], settings: Decontamination) -> EvaluationIndex:
    """The index of an evaluation set; the order of its texts has no influence, and several may be of one row."""
    order = sorted(range(len(texts)), key=lambda row: row_ids[row])
    words = _words_of_all([texts[row] for row in order])
    templates = _template_runs(settings.templates, settings.ngram_words)
    is_free = ~_is_template(words, templates)
    text_of = numpy.repeat(numpy.arange(len(order)), words.counts)
    begins, lengths = _stretches(is_free, text_of)
    is_long = lengths >= settings.min_ngram_words
    begins, lengths = begins[is_long], lengths[is_long]
    hashes, _, num_runs = runs(words.hashes[ranges(begins, lengths)], lengths, settings.ngram_words)
    begins = ranges(begins, num_runs)
    sizes = numpy.repeat(numpy.minimum(lengths, settings.ngram_words), num_runs)
    hashes = _told_apart(hashes, sizes)
    has_runs = numpy.isin(numpy.arange(len(order)), text_of[begins])
    kept = _first_occurrences(hashes, begins)
    hashes, begins, sizes, rows = hashes[kept], begins[kept], sizes[kept], text_of[begins[kept]]
    sorted_ids = tuple(row_ids[row] for row in order)
    looked_for = {row_id for row_id, has in zip(sorted_ids, has_runs, strict=True) if has}
    wholes = whole_hashes([texts[row] for row in order])
    whole_rows = numpy.argsort(wholes, kind="stable")
    return EvaluationIndex(
        row_ids=sorted_ids,
        too_short=tuple(row_id for row_id in dict.fromkeys(sorted_ids) if row_id not in looked_for),
        num_words=numpy.bincount(text_of[is_free], minlength=len(order)),
        hashes=hashes,
        rows=rows,
        begins=begins - bounds_of(words.counts)[rows],
        sizes=sizes,
        sieve=_sieve(hashes),
        wholes=wholes[whole_rows],
        whole_rows=whole_rows,
        templates=templates,
        min_coverage=settings.min_coverage,
    )


def find_contaminated(index: EvaluationIndex, texts: Texts) -> Iterator[Contaminated]:
    """Each row of `texts` that overlaps with an evaluation text by `min_coverage` and more, in order."""
    num_before = 0
    for block in blocks(texts):
        yield from _find_in_block(index, block, num_before)
        num_before += len(block)


def find_same(index: EvaluationIndex, texts: Texts) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Each row whose text is an evaluation text as a whole, and the ids of those, in order."""
    hashes = whole_hashes(texts)
    first = numpy.searchsorted(index.wholes, hashes)
    last = numpy.searchsorted(index.wholes, hashes, side="right")
    for row in numpy.flatnonzero((hashes != NOTHING) & (last > first)).tolist():
        found = index.whole_rows[first[row] : last[row]]
        yield row, tuple(dict.fromkeys(index.row_ids[each] for each in found.tolist()))


def whole_hashes(texts: Texts) -> Hashes:
    """A hash of all words and symbols of each text; `NOTHING` where it has none."""
    hashes = [numpy.empty(0, numpy.uint64)]
    for block in blocks(texts):
        words = words_of(read(block))
        found = numpy.full(len(block), NOTHING)
        whole, _, _ = runs(words.hashes, words.counts, max(int(words.counts.max(initial=1)), 1))
        found[words.counts > 0] = numpy.maximum(whole, NOTHING + numpy.uint64(1))
        hashes.append(found)
    return numpy.concatenate(hashes)


@dataclass(frozen=True)
class _Hits:
    """N-grams of a block that the evaluation set has: their first words, and where their occurrences lie in the index."""

    begins: Indices
    sizes: Indices
    firsts: Indices
    counts: Indices

    def of(self, chosen: Mask | slice) -> "_Hits":
        return _Hits(self.begins[chosen], self.sizes[chosen], self.firsts[chosen], self.counts[chosen])


def _find_in_block(index: EvaluationIndex, block: list[str], num_before: int) -> Iterator[Contaminated]:
    characters = read(block, symbols=False)
    words = words_of(characters)
    hits = _hits(index, words)
    if len(hits.begins) == 0:
        return
    begins, ends = places_of(words, characters, block)
    is_free, bounds = ~_is_template(words, index.templates), bounds_of(words.counts)
    text_of = numpy.searchsorted(bounds, hits.begins, side="right") - 1
    for row in sorted(set(text_of.tolist())):
        part = slice(bounds[row], bounds[row + 1])
        found = _best(index, hits.of(text_of == row), is_free[part], int(bounds[row]))
        if found is None:
            continue
        evaluation_rows, evaluation_share, row_share, is_covered = found
        spans = tuple(
            Span(begin, end, block[row][begin:end]) for begin, end in _spans(is_covered, begins[part], ends[part])
        )
        evaluation_ids = tuple(dict.fromkeys(index.row_ids[each] for each in evaluation_rows))
        yield Contaminated(num_before + row, evaluation_ids, evaluation_share, row_share, spans)


def _hits(index: EvaluationIndex, words: Words) -> _Hits:
    found = [_Hits(*(numpy.empty(0, numpy.int64) for _ in range(4)))]
    for size in numpy.unique(index.sizes).tolist():
        hashes, begins = _whole_runs(words, size)
        passed = numpy.flatnonzero(index.sieve[hashes & numpy.uint64(len(index.sieve) - 1)])
        hashes, begins = hashes[passed], begins[passed]
        firsts = numpy.searchsorted(index.hashes, hashes)
        counts = numpy.searchsorted(index.hashes, hashes, side="right") - firsts
        found.append(_Hits(begins, numpy.full(len(begins), size), firsts, counts).of(counts > 0))
    return _Hits(*(numpy.concatenate(arrays) for arrays in zip(*map(_arrays, found), strict=True)))


def _arrays(hits: _Hits) -> tuple[Indices, ...]:
    return hits.begins, hits.sizes, hits.firsts, hits.counts


def _best(
    index: EvaluationIndex, hits: _Hits, is_free: Mask, first_word: int
) -> tuple[list[int], float, float, Mask] | None:
    """The evaluation rows that a row overlaps with, the one that it covers most first; of that one the two shares and the row's
    words that overlap. None where all stay below the threshold."""
    hit_of = numpy.repeat(numpy.arange(len(hits.begins)), hits.counts)
    occurrences = ranges(hits.firsts, hits.counts)
    best: tuple[float, float, Mask] | None = None
    best_coverage = 0.0
    found: list[int] = []
    for evaluation_row in numpy.unique(index.rows[occurrences]).tolist():
        is_here = index.rows[occurrences] == evaluation_row
        here, its = occurrences[is_here], hit_of[is_here]
        num_covered = int(_covered(index.begins[here], index.sizes[here]).sum())
        is_covered = _covered(hits.begins[its] - first_word, hits.sizes[its], len(is_free))
        evaluation_share = num_covered / int(index.num_words[evaluation_row])
        row_share = int((is_covered & is_free).sum()) / max(int(is_free.sum()), 1)
        coverage = max(evaluation_share, row_share)
        if coverage < index.min_coverage:
            continue
        if coverage > best_coverage:
            best, best_coverage = (evaluation_share, row_share, is_covered), coverage
            found.insert(0, evaluation_row)
        else:
            found.append(evaluation_row)
    return None if best is None else (found, *best)


def _spans(is_covered: Mask, begins: Indices, ends: Indices) -> Iterator[tuple[int, int]]:
    """The characters from the first to the last word of each stretch of words that overlap."""
    firsts, lengths = _stretches(is_covered, numpy.zeros(len(is_covered), numpy.int64))
    for first, length in zip(firsts.tolist(), lengths.tolist(), strict=True):
        yield int(begins[first]), int(ends[first + length - 1])


def _words_of_all(texts: Sequence[str]) -> Words:
    parts = [words_of(read(block, symbols=False)) for block in blocks(texts)]
    hashes, counts = [part.hashes for part in parts], [part.counts for part in parts]
    none = numpy.empty(0, numpy.int64)
    return Words(numpy.concatenate([none.astype(numpy.uint64), *hashes]), none, numpy.concatenate([none, *counts]))


def _template_runs(templates: Sequence[str], ngram_words: int) -> dict[int, Hashes]:
    """The n-grams of the templates by their number of words; a short template is one n-gram of all its words."""
    by_size: dict[int, list[Hashes]] = {}
    for template in templates:
        words = words_of(read([template], symbols=False))
        size = min(int(words.counts[0]), ngram_words)
        if size > 0:
            by_size.setdefault(size, []).append(_whole_runs(words, size)[0])
    return {size: numpy.unique(numpy.concatenate(hashes)) for size, hashes in sorted(by_size.items())}


def _is_template(words: Words, templates: dict[int, Hashes]) -> Mask:
    is_template = numpy.zeros(len(words.hashes), numpy.bool_)
    for size, wanted in templates.items():
        hashes, begins = _whole_runs(words, size)
        begins = begins[numpy.isin(hashes, wanted)]
        is_template |= _covered(begins, numpy.full(len(begins), size), len(is_template))
    return is_template


def _whole_runs(words: Words, size: int) -> tuple[Hashes, Indices]:
    """The runs of `size` words and the first word of each; texts of fewer words have none."""
    hashes, begins, num_runs = runs(words.hashes, words.counts, size)
    is_whole = numpy.repeat(words.counts >= size, num_runs)
    hashes, begins = hashes[is_whole], begins[is_whole]
    return _told_apart(hashes, numpy.full(len(hashes), size)), begins


def _told_apart(hashes: Hashes, sizes: Indices) -> Hashes:
    """Hashes that differ for runs of other sizes."""
    return mixed(hashes ^ sizes.astype(numpy.uint64))


def _first_occurrences(hashes: Hashes, begins: Indices) -> Indices:
    """The order of `hashes`, in which equal ones are sorted by their place and the first few of them are kept."""
    order = numpy.lexsort((begins, hashes))
    ordered = hashes[order]
    place = numpy.arange(len(order)) - numpy.searchsorted(ordered, ordered)
    return order[place < MAX_OCCURRENCES]


def _sieve(hashes: Hashes) -> Mask:
    """Whether a hash with these last bits may be there."""
    smallest, largest = SIEVE_BYTES
    sieve = numpy.zeros(min(max(smallest, 16 << len(hashes).bit_length()), largest), numpy.bool_)
    sieve[hashes & numpy.uint64(len(sieve) - 1)] = True
    return sieve


def _stretches(chosen: Mask, text_of: Indices) -> tuple[Indices, Indices]:
    """Where each stretch of chosen words inside one text begins, and how many words it has."""
    goes_on = chosen[1:] & chosen[:-1] & (text_of[1:] == text_of[:-1])
    begins = numpy.flatnonzero(chosen & ~numpy.append(False, goes_on)[: len(chosen)])
    lasts = numpy.flatnonzero(chosen & ~numpy.append(goes_on, False)[: len(chosen)])
    return begins, lasts - begins + 1


def _covered(begins: Indices, sizes: Indices, num_words: int = 0) -> Mask:
    """Which words lie in at least one of these runs."""
    num_words = max(num_words, int((begins + sizes).max(initial=0)))
    steps = numpy.bincount(begins, minlength=num_words + 1) - numpy.bincount(begins + sizes, minlength=num_words + 1)
    return numpy.cumsum(steps)[:num_words] > 0
