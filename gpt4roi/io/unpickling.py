"""Restricted unpickling: plain containers and arrays of numbers, opened without calling or importing anything."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt4roi.errors import InputError


class RestrictedUnpickler(pickle._Unpickler):
    """Opens lists, dictionaries, numbers, texts, and what stands for the admitted names.

    The one written in Python: the other sets memory aside for any number that a damaged file names.

    Args:
        data: The pickle.
        admitted: (module, name) -> what stands for it; any other name is a pickle.UnpicklingError.
    """

    def __init__(self, data: bytes, admitted: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._admitted = admitted

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name of the pickle."""
        found = self._admitted.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, and only arrays of numbers are admitted")
        return found


def load_arrays(data: bytes) -> Any:
    """Opens a pickle of plain containers and arrays; each array is a PickledArray.

    Raises whatever a damaged pickle makes the unpickler raise, which is every kind of error.
    """
    return RestrictedUnpickler(data, _ARRAYS).load()


class _DType:
    """Stands for numpy.dtype: remembers what an array of numbers is made of."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype:
        dtype = np.dtype(self.code)
        if dtype.kind not in "iufb":
            raise InputError("array of something else than numbers")
        return dtype if self.order == "|" else dtype.newbyteorder(self.order)


class PickledArray:
    """Stands for numpy.ndarray: takes shape, kind and bytes, and makes the array itself."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple = ((0,), _DType("f4"), False, b"")

    def __setstate__(self, state: tuple) -> None:
        self.state = tuple(state)[-4:]

    def array(self) -> np.ndarray:
        """Returns the numbers; raises InputError where bytes, kind and shape do not fit together."""
        try:
            shape, dtype, fortran, data = self.state
            return np.frombuffer(data, dtype.dtype()).reshape(shape, order="F" if fortran else "C")
        except InputError:
            raise
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise InputError("array that is not complete") from None


def _from_buffer(data: bytes, dtype: _DType, shape: tuple, order: str) -> PickledArray:
    array = PickledArray()
    array.__setstate__((shape, dtype, order == "F", data))
    return array


def _encode(characters: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return characters.encode("latin1")


def _no_bytes(*content: Any) -> bytes:
    if content:
        raise pickle.UnpicklingError("it makes bytes of something else")
    return b""


_ARRAYS = {
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    ("numpy.core.multiarray", "_reconstruct"): PickledArray,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
}
"""Names a pickle of arrays holds, and what of ours stands for them: no function of a library is called."""
