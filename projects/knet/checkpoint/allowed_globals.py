"""What a weight file may name besides tensors and plain containers; everything else is refused.

A pickle is a small program: it imports what it names and calls it. So a file from elsewhere gets
only the few names below, none of which can do more than make an array or a plain value.
"""

from __future__ import annotations

import argparse
import importlib
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

try:
    multiarray: Any = importlib.import_module("numpy._core.multiarray")
except ModuleNotFoundError:  # numpy < 2
    multiarray = importlib.import_module("numpy.core.multiarray")

_MULTIARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since numpy 2


def torch_globals() -> list[Any]:
    """What `torch.load(weights_only=True)` is to accept besides its own list."""
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdSU"}
    return [
        # numbers that training code logged, such as the best score so far
        *((_scalar, f"{module}.scalar") for module in _MULTIARRAYS),
        # arrays, such as the colours of classes
        *((_empty_array, f"{module}._reconstruct") for module in _MULTIARRAYS),
        np.ndarray,
        np.dtype,
        *sorted(dtypes, key=lambda dtype: dtype.__name__),
        # the command line, a record of plain attributes, in checkpoints of ImageNet training
        argparse.Namespace,
    ]


class RefusedGlobal(pickle.UnpicklingError):
    """A pickle names something that is not allowed.

    Args:
        name: of the global.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


# stands for the class in a pickled array, which `_empty_array` makes; it cannot be called
_ARRAY_CLASS = "numpy.ndarray"


def _empty_array(subtype: Any, shape: Any, dtype: Any) -> np.ndarray:
    """Arrays are made empty and get their values afterwards."""
    return multiarray._reconstruct(np.ndarray, (0,), b"b")


def _scalar(dtype: Any, value: Any) -> Any:
    """Without a value it would be as many zeros as its type asks for."""
    return multiarray.scalar(dtype, value)


def _dtype(*arguments: Any) -> np.dtype:
    dtype = np.dtype(*arguments)
    if dtype.kind in "OV":  # Python objects and records are no weights
        raise RefusedGlobal(f"numpy.dtype({arguments[0]!r})")
    return dtype


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 pickles bytes for Python 2."""
    if encoding != "latin1":
        raise RefusedGlobal(f"_codecs.encode({encoding!r})")
    return text.encode("latin1")


_PICKLE_GLOBALS: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): _ARRAY_CLASS,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    **{(module, "_reconstruct"): _empty_array for module in _MULTIARRAYS},
    **{(module, "scalar"): _scalar for module in _MULTIARRAYS},
}


class PlainUnpickler(pickle.Unpickler):
    """Reads a pickle of numbers, strings, plain containers and numpy arrays.

    Args:
        file: opened for reading bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        # Python 2 wrote the published files of Detectron2
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of an allowed name.

        Raises:
            RefusedGlobal: any other name.
        """
        try:
            return _PICKLE_GLOBALS[module, name]
        except KeyError:
            raise RefusedGlobal(f"{module}.{name}") from None
