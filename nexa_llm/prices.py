"""What models cost: a dated table, which settings override."""

from collections.abc import Mapping

from nexa_core.config.ask import Price
from nexa_core.errors import UserError
from nexa_core.lookup import did_you_mean

PICOUSD = 10**12
"""In a US dollar. Prices are whole numbers of these for each token, so that sums are exact."""

PRICES_AS_OF = "2025-08-31"
PRICES_SOURCE = "https://platform.openai.com/docs/pricing"
PRICES = {
    "gpt-4.1": ("2.00", "8.00"),
    "gpt-4.1-mini": ("0.40", "1.60"),
    "gpt-4.1-nano": ("0.10", "0.40"),
    "gpt-4o": ("2.50", "10.00"),
    "gpt-4o-mini": ("0.15", "0.60"),
    "gpt-5": ("1.25", "10.00"),
    "gpt-5-mini": ("0.25", "2.00"),
    "gpt-5-nano": ("0.05", "0.40"),
    "o3": ("2.00", "8.00"),
    "o4-mini": ("1.10", "4.40"),
}
"""US dollars for a million tokens of prompt and of answer, as of `PRICES_AS_OF`; without discounts for batches or caches."""


def find_price(model: str, own: Mapping[str, Price]) -> Price | None:
    """The model's price: the settings' own, or the table's; None where neither knows it."""
    if model in own:
        return own[model]
    if model in PRICES:
        prompt, completion = map(float, PRICES[model])
        return Price(prompt_usd_per_million=prompt, completion_usd_per_million=completion)
    return None


def require_price(model: str, own: Mapping[str, Price]) -> Price:
    """`find_price`, for who has a budget.

    Raises:
        UserError: the price is not known, so that no budget can be kept.
    """
    price = find_price(model, own)
    if price is None:
        example = f'{{"{model}": {{"prompt_usd_per_million": 0.15, "completion_usd_per_million": 0.6}}}}'
        raise UserError(
            f"A budget is set and the price of '{model}' is not known.{did_you_mean(model, [*own, *PRICES])} Give it, e.g. "
            f"--override 'collect.prices={example}'. Known as of {PRICES_AS_OF} "
            f"({PRICES_SOURCE}): {', '.join(sorted(PRICES))}"
        )
    return price


def as_usd(picousd: int) -> float:
    return picousd / PICOUSD
