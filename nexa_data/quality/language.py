"""The language of a text."""

from functools import cache
from typing import Any

from nexa_core.config.quality import LanguageStep
from nexa_core.errors import UserError
from nexa_core.lookup import unknown
from nexa_data.quality import Limit, Step


def language(settings: LanguageStep) -> Step:
    """Raises UserError for a code that py3langid does not know."""
    known = set(_identifier().labels)
    for code in settings.languages:
        if code not in known:
            raise UserError(unknown("language", code, known))
    wanted = frozenset(settings.languages)

    def measure(text: str) -> tuple[float]:
        return (min(1.0, sum(float(share) for code, share in _identifier().rank(text) if code in wanted)),)

    return Step(("probability",), measure, (Limit("probability", least=settings.min_probability),))


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # takes seconds to load

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
