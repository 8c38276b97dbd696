"""Pickles as Python 2 wrote them (protocol 2, text as byte strings): the format CIFAR is published in."""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any, ClassVar

import numpy as np


class _Array:
    """Reduced as NumPy under Python 2 did, its bytes in one string."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels


class _Name:
    """Something a pickle names: written as GLOBAL, without being imported here."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]
    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_text(self, text: str | bytes) -> None:
        data = text.encode("latin1") if isinstance(text, str) else text
        if len(data) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)

    def save_name(self, what: _Name) -> None:
        self.write(pickle.GLOBAL + f"{what.module}\n{what.name}\n".encode())

    def save_array(self, array: _Array) -> None:
        self.save(_Name("numpy.core.multiarray", "_reconstruct"))
        self.save((_Name("numpy", "ndarray"), (0,), "b"))
        self.write(pickle.REDUCE + pickle.MARK)
        self.save(1)
        self.save(array.pixels.shape)
        self.save(_Name("numpy", "dtype"))
        self.save((array.pixels.dtype.str[1:], 0, 1))
        self.write(pickle.REDUCE)
        self.save((3, "|", None, None, None, -1, -1, 0))
        self.write(pickle.BUILD)
        self.save(False)
        self.save(array.pixels.tobytes())
        self.write(pickle.TUPLE + pickle.BUILD)

    dispatch[str] = dispatch[bytes] = save_text
    dispatch[_Name] = save_name
    dispatch[_Array] = save_array


def dumps(content: dict[str, Any]) -> bytes:
    """`content` as Python 2 pickled it, its arrays with it."""
    out = io.BytesIO()
    arrays = {key: _Array(value) if isinstance(value, np.ndarray) else value for key, value in content.items()}
    pickler = _Pickler(out, protocol=2)
    pickler.fast = True
    pickler.dump(arrays)
    return out.getvalue()
