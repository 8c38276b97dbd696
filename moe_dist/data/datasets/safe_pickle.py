"""The only kind of pickle that is read: dictionaries of numbers, text and uint8 arrays, as CIFAR is published.

Unpickling calls whatever a file names. Here a file can name only what a uint8 array needs, and gets stand-ins that keep
bytes and do nothing else: not even NumPy's own reconstruction runs on what the file says.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

_MEMO_WRITES = ("PUT", "BINPUT", "LONG_BINPUT")


def load_arrays(data: bytes) -> dict[str, Any]:
    """The dictionary pickled in `data`, its keys and byte strings as text, its arrays as uint8 `numpy.ndarray`.

    Raises ValueError where it names anything that such a dictionary does not need, is damaged, or holds something else.
    """
    try:
        _require_modest(data)
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}, not a dictionary")
        return {_text(key): _plain(value) for key, value in content.items()}
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"not a pickle of plain arrays, or damaged ({error})") from None


def _require_modest(data: bytes) -> None:
    """Raise ValueError unless lengths end inside `data` and the memo grows one by one.

    Python reserves as much memory as a pickle asks for.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name in _MEMO_WRITES and int(argument or 0) > count:
            raise ValueError(f"memo number {argument} after {count} steps")


def _plain(value: Any) -> Any:
    """A value of the dictionary with its text decoded, an array in place of its stand-in."""
    if isinstance(value, _Array):
        return value.array
    return [_text(item) for item in value] if isinstance(value, list) else _text(value)


def _text(value: Any) -> Any:
    """`value`, decoded where it is a byte string, which was Python 2's text."""
    return value.decode("latin1") if isinstance(value, bytes) else value


class _Array:
    """The stand-in for an array: any call makes one, and the array's state fills it."""

    array: np.ndarray

    def __init__(self, *_ignored: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise ValueError("an array is not of uint8")
        if not all(type(side) is int and side >= 0 for side in shape) or math.prod(shape) != len(data):
            raise ValueError(f"an array of shape {shape!r} holds {len(data)} bytes")
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran_order else "C")


class _Dtype:
    """The stand-in for the type of an array, which must be uint8."""

    def __init__(self, code: Any, *_ignored: Any) -> None:
        if code not in ("u1", b"u1"):
            raise ValueError(f"an array of {code!r} where uint8 was expected")

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and padding, which uint8 does not have."""


_STAND_INS: dict[str, Any] = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": str.encode,
}
"""All that a file may name. The last one is how Python 3 writes bytes in Python 2's pickles."""


class _Unpickler(pickle.Unpickler):
    """Gives a stand-in for every name that a file may contain, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name not in _STAND_INS:
            raise pickle.UnpicklingError(f"it would call {full_name}")
        return _STAND_INS[full_name]
