"""Personal data and secrets in texts: counted, or blanked."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nexa_core.config.quality import PrivateStep
from nexa_data.quality import Limit, Step

PATTERNS = {
    "email": re.compile(r"(?<![\w.+-])[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,}\b"),
    "ip_address": re.compile(
        r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.]*\d)"
    ),
    "phone": re.compile(
        r"""(?x) (?<![\w.+-])
        (?: \+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}     # +49 30 1234 5678
          | \(\d{3}\)[ ]?\d{3}[ .-]\d{4} | \d{3}[.-]\d{3}[.-]\d{4} )              # (555) 123-4567, 555-123-4567
        (?![\w-])"""
    ),
    "card": re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])"),
    "iban": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "secret": re.compile(
        r"""(?x)
        \b(?:AKIA|ASIA)[0-9A-Z]{16}\b                                   # Amazon
        | \bgh[pousr]_[A-Za-z0-9]{36,}\b | \bgithub_pat_\w{22,}\b        # GitHub
        | \bxox[abeprs]-[A-Za-z0-9-]{10,}                                # Slack
        | \bsk-[A-Za-z0-9_-]{20,}                                        # OpenAI, Anthropic
        | \bhf_[A-Za-z0-9]{30,}\b                                        # Hugging Face
        | \bAIza[0-9A-Za-z_-]{35}                                        # Google
        | \beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+  # JSON web tokens
        | -----BEGIN[ ](?:[A-Z]+[ ])*PRIVATE[ ]KEY-----(?:.|\n)*?(?:-----END[ ](?:[A-Z]+[ ])*PRIVATE[ ]KEY-----|\Z)
        """
    ),
}


def private(settings: PrivateStep) -> Step:
    """The numbers of what was found; where it is masked, nothing is left to be found."""
    kinds = tuple(settings.kinds)
    return Step(
        tuple(f"num_{kind}" for kind in kinds),
        lambda text: [sum(1 for _ in find(text, kind)) for kind in kinds],
        tuple(Limit(f"num_{kind}", most=0) for kind in kinds),
    )


def find(text: str, kind: str) -> Iterable[re.Match[str]]:
    """Where a text has private data of that kind; numbers only where their check digits agree."""
    is_valid = CHECKS.get(kind)
    return (match for match in PATTERNS[kind].finditer(text) if is_valid is None or is_valid(match.group()))


def masker(kinds: Iterable[str]) -> Callable[[Any], Any]:
    """What blanks private data in all texts of a value, its keys among them."""
    ordered = [kind for kind in PATTERNS if kind in set(kinds)]
    ordered.sort(key=lambda kind: kind in ("phone",))  # last: card numbers look like them

    def mask_text(text: str) -> str:
        for kind in ordered:
            is_valid, word = CHECKS.get(kind), f"[{kind.upper()}]"

            def blank(match: re.Match[str], is_valid: Any = is_valid, word: str = word) -> str:
                return word if is_valid is None or is_valid(match.group()) else match.group()

            text = PATTERNS[kind].sub(blank, text)
        return text

    def mask(value: Any) -> Any:
        if isinstance(value, str):
            return mask_text(value)
        if isinstance(value, Mapping):
            return {mask(key): mask(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [mask(inner) for inner in value]
        return value

    return mask


def _is_card(text: str) -> bool:
    """Luhn's check digit. Source: ISO/IEC 7812-1, annex B."""
    digits = [int(char) for char in text if char.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """The remainder of 97. Source: ISO 13616-1."""
    packed = text.replace(" ", "")
    number = "".join(str(int(char, 36)) for char in packed[4:] + packed[:4])
    return 15 <= len(packed) <= 34 and int(number) % 97 == 1


CHECKS: dict[str, Callable[[str], bool]] = {"card": _is_card, "iban": _is_iban}
