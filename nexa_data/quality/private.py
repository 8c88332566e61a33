"""Personal data and secrets in texts: counted, or blanked. All patterns take time that grows with the text's length alone."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import accumulate, chain
from typing import Any

from nexa_core.config.quality import PrivateStep
from nexa_data.quality import Limit, Step

Span = tuple[int, int]

# Each run of characters that could be one is tried from its beginning only.
EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]++@(?:\w(?:[\w-]*\w)?\.)+[^\W\d_]{2,}\b")
IP_ADDRESS = re.compile(
    r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?!\.?\d|[A-Za-z_])"
)
PHONE = re.compile(
    r"""(?x) (?<![\w.+-])
    (?: \+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}     # +49 30 1234 5678
      | \(\d{3}\)[ ]?\d{3}[ .-]\d{4} | \d{3}[.-]\d{3}[.-]\d{4} )              # (555) 123-4567, 555-123-4567
    (?![\w-])"""
)
SECRET = re.compile(
    r"""(?x)
    \b(?:AKIA|ASIA)[0-9A-Z]{16}\b                                   # Amazon
    | \bgh[pousr]_[A-Za-z0-9]{36,}\b | \bgithub_pat_\w{22,}\b        # GitHub
    | \bxox[abeprs]-[A-Za-z0-9-]{10,}                                # Slack
    | \bsk-[A-Za-z0-9_-]{20,}                                        # OpenAI, Anthropic
    | \bhf_[A-Za-z0-9]{30,}\b                                        # Hugging Face
    | \bAIza[0-9A-Za-z_-]{35}                                        # Google
    | (?<![\w-])eyJ[\w-]{10,}+\.eyJ[\w-]{10,}+\.[\w-]+               # JSON web tokens
    | -----BEGIN[ ](?:[A-Z]+[ ])*PRIVATE[ ]KEY-----(?:.|\n)*?(?:-----END[ ](?:[A-Z]+[ ])*PRIVATE[ ]KEY-----|\Z)
    """
)
SECRET_MARKS = (
    *("AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    *("xox", "sk-", "hf_", "AIza", "eyJ", "PRIVATE KEY"),
)
DIGITS = re.compile(r"(?<!\w)\d++(?:[ .-]\d++)*+(?!\w)")
FEWEST_CARD_DIGITS = 13
CARD_GROUPS = (
    (4, 4, 4, 4),
    (4, 4, 4, 4, 3),
    (4, 6, 5),
    (4, 6, 4),
    *((length,) for length in range(FEWEST_CARD_DIGITS, 20)),
)
"""How the digits of a card are written."""
IBAN = re.compile(r"(?i)(?<![a-z0-9])([a-z]{2})\d{2}(?: ?[a-z0-9]){11,30}")
IBAN_LENGTHS = {
    15: "NO", 16: "BE", 18: "DK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST",
    26: "IS TR", 27: "FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU",
    31: "MT SC", 32: "LC",
}  # fmt: skip
"""Characters by country. Source: SWIFT, IBAN Registry."""
IBAN_LENGTH = {country: length for length, countries in IBAN_LENGTHS.items() for country in countries.split()}


def private(settings: PrivateStep) -> Step:
    """The numbers of what was found; where it is masked, nothing is left to be found."""
    kinds = tuple(settings.kinds)
    return Step(
        tuple(f"num_{kind}" for kind in kinds),
        lambda text: [sum(1 for _ in FINDERS[kind](text)) for kind in kinds],
        tuple(Limit(f"num_{kind}", most=0) for kind in kinds),
    )


def all_texts(columns: Mapping[str, Any]) -> str:
    """The texts of all columns of a canonical row, one a line; without numbers alone, for a tenth of long ids pass as cards."""
    return "\n".join(_texts({name: value for name, value in columns.items() if name != "row_id"}))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_texts, value))
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name == "extra_json" and inner is not None:
                yield from (text for text in _texts(json.loads(inner)) if not text.isdigit())
            else:
                yield name
                yield from _texts(inner)


def masker(kinds: Iterable[str]) -> Callable[[Any], Any]:
    """What blanks private data in all texts of a value, its keys among them, and numbers that are a card's."""
    wanted = set(kinds)
    ordered = [kind for kind in FINDERS if kind in wanted]

    def mask_text(text: str) -> str:
        for kind in ordered:
            text = _blanked(text, FINDERS[kind](text), f"[{kind.upper()}]")
        return text

    def mask(value: Any) -> Any:
        if isinstance(value, str):
            return mask_text(value)
        if type(value) is int:
            masked = mask_text(str(value)) if "card" in wanted else ""
            return masked if masked == "[CARD]" else value
        if isinstance(value, Decimal):
            return mask_text(str(value)) if mask_text(str(value)) != str(value) else value
        if isinstance(value, Mapping):
            return _masked_mapping(value, mask)
        if isinstance(value, list | tuple):
            return [mask(inner) for inner in value]
        return value

    return mask


def _blanked(text: str, spans: Iterable[Span], word: str) -> str:
    pieces, end = [], 0
    for begin, after in spans:
        pieces += [text[end:begin], word]
        end = after
    return "".join([*pieces, text[end:]]) if pieces else text


def _masked_mapping(value: Mapping[Any, Any], mask: Callable[[Any], Any]) -> dict[Any, Any]:
    """Keys that become the same are numbered, so that no value is lost."""
    found: dict[Any, Any] = {}
    for key, inner in value.items():
        name = masked = mask(key) if isinstance(key, str) else key
        number = 1
        while name in found:
            number += 1
            name = f"{masked} {number}"
        found[name] = mask(inner)
    return found


def _spans(pattern: re.Pattern[str], marks: tuple[str, ...] = ("",)) -> Callable[[str], Iterator[Span]]:
    """What a pattern finds, which has one of the marks in it; to look for those first takes a fraction of the time."""

    def find(text: str) -> Iterator[Span]:
        if any(mark in text for mark in marks):
            yield from (match.span() for match in pattern.finditer(text))

    return find


def _cards(text: str) -> Iterator[Span]:
    """Groups of digits as cards have them, beginning with 2 to 6, whose check digit agrees; others may stand beside them."""
    for run in DIGITS.finditer(text):
        if run.end() - run.start() < FEWEST_CARD_DIGITS:
            continue
        groups = [match.span() for match in re.finditer(r"\d+", run.group())]
        sizes = [end - begin for begin, end in groups]
        at = 0
        while at < len(groups):
            fitting = (form for form in CARD_GROUPS if tuple(sizes[at : at + len(form)]) == form)
            spans = ((groups[at][0], groups[at + len(form) - 1][1], len(form)) for form in fitting)
            found = next(((begin, end, size) for begin, end, size in spans if _is_card(run.group()[begin:end])), None)
            if found is not None:
                yield run.start() + found[0], run.start() + found[1]
            at += 1 if found is None else found[2]


def _is_card(text: str) -> bool:
    """Luhn's check digit. Source: ISO/IEC 7812-1, annex B."""
    digits = [int(char) for char in text if char.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return 2 <= digits[0] <= 6 and len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _ibans(text: str) -> Iterator[Span]:
    """Account numbers of the length of their country, whose remainder of 97 agrees; a word may follow. Source: ISO 13616-1."""
    for match in IBAN.finditer(text):
        length = IBAN_LENGTH.get(match.group(1).upper())
        counts = list(accumulate(int(char != " ") for char in match.group()))
        if length is None or counts[-1] < length:
            continue
        end = match.start() + counts.index(length) + 1
        packed = text[match.start() : end].replace(" ", "").upper()
        number = "".join(str(int(char, 36)) for char in packed[4:] + packed[:4])
        if int(number) % 97 == 1 and not text[end : end + 1].isalnum():
            yield match.start(), end


FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "email": _spans(EMAIL, ("@",)),
    "ip_address": _spans(IP_ADDRESS),
    "card": _cards,
    "iban": _ibans,
    "secret": _spans(SECRET, SECRET_MARKS),
    "phone": _spans(PHONE),
}
"""In the order in which they are blanked: phone numbers last, because card numbers look like them."""
