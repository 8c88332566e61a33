"""The built-in source `digits`: real scanned images that come with scikit-learn."""

from collections.abc import Iterator
from typing import Any

BRIGHTEST = 16  # Source: Alpaydin and Kaynak 1998, https://archive.ics.uci.edu/dataset/80


def read_digits() -> Iterator[dict[str, Any]]:
    """1,797 rows: `pixels`, an image's 64 brightnesses row by row (0 to 1, for a shape of 1x8x8), and its `digit`."""
    from sklearn.datasets import load_digits  # a second of imports that only this source needs

    images = load_digits()
    for pixels, digit in zip(images.data / BRIGHTEST, images.target, strict=True):
        yield {"pixels": pixels.tolist(), "digit": int(digit)}
