"""Features as pictures: small PNG files inside the page."""

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np


def picture(values: np.ndarray, shape: Sequence[int]) -> str | None:
    """A `data:` address of a row's features as grey or coloured pixels, from its least value to its greatest.

    None where the shape is no picture's: (height, width), or 1 or 3 channels of that.
    """
    channels = shape[0] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels not in (1, 3) or min(shape) < 1:
        return None
    least, most = values.min(), values.max()
    scaled = (values - least) / (most - least if most > least else 1) * 255
    pixels = scaled.round().astype(np.uint8).reshape(channels, *shape[-2:]).transpose(1, 2, 0)
    return f"data:image/png;base64,{base64.b64encode(_png(pixels)).decode('ascii')}"


def _png(pixels: np.ndarray) -> bytes:
    """Pixels (height, width, channels) as a PNG file. Source: https://www.w3.org/TR/png-3/"""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in np.ascontiguousarray(pixels))
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
