"""Samples that are vectors instead of images: in shards as .npy files, which are read without unpickling anything.

Letters: D numbers of a vector.
"""

from __future__ import annotations

import io

import numpy as np

VECTOR = "npy"
"""The extension of a vector in a shard."""
_MAGIC = b"\x93NUMPY"


def is_vector(data: bytes) -> bool:
    """Whether the bytes of a sample begin as a vector's do."""
    return data.startswith(_MAGIC)


def encode_vector(values: np.ndarray) -> bytes:
    """The numbers [D] as the bytes of an .npy file of float32."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(values, np.float32), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def decode_vector(data: bytes) -> np.ndarray:
    """The numbers [D] float32. Raises ValueError where the bytes are anything else, or a number is not finite."""
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise ValueError(f"not a vector ({error})") from None
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.ndim != 1 or not values.size:
        raise ValueError("not a vector of float32")
    if not np.isfinite(values).all():
        raise ValueError("a number of the vector is not finite")
    return values
