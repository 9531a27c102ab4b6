"""Values of types that only ml_dtypes knows, into ONNX Runtime and out of it without a copy.

ORT's Python interface takes bfloat16 and the float8 types as their bits only, and returns some of
them as a bare address.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import helper

from dask_onnx.modelio.value_types import numpy_dtype, parse_type

_EXTENDED = frozenset(
    f"tensor({name})"
    for name in ("bfloat16", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz")
)
_BITS: Mapping[int, type[np.generic]] = {1: np.uint8, 2: np.uint16}


def is_extended_type(kind: str) -> bool:
    """Return whether values of a type, in ONNX's notation, need the functions of this module."""
    return kind in _EXTENDED


def run_with_ort_values(
    inference: Any,
    ort_value: Any,
    outputs: Sequence[str],
    feeds: Mapping[str, Any],
    run_options: Any,
) -> list[Any]:
    """Run a session like `InferenceSession.run`, on tensors of every type that ORT has.

    Parameters
    ----------
    inference : onnxruntime.InferenceSession
        ORT's session.
    ort_value : type
        The class ``onnxruntime.OrtValue``, since this module does not import onnxruntime.
    outputs : sequence of str
        Names of the outputs to return.
    feeds : mapping of str to array
        Inputs by name.
    run_options : onnxruntime.RunOptions or None
        Options of the run.

    Returns
    -------
    list of ndarray
        One array per output; those of extended types are views of ORT's memory.
    """
    values = {name: _to_ort(ort_value, np.asarray(a, order="C")) for name, a in feeds.items()}
    results = inference.run_with_ort_values(list(outputs), values, run_options)
    return [_from_ort(value) for value in results]


def _to_ort(ort_value: Any, array: np.ndarray) -> Any:
    if array.dtype.isbuiltin == 1 or array.dtype.hasobject:
        return ort_value.ortvalue_from_numpy(array)
    elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    bits = array.view(_BITS[array.dtype.itemsize])
    return ort_value.ortvalue_from_numpy_with_onnx_type(bits, elem_type)


def _from_ort(value: Any) -> Any:
    kind = value.data_type()
    if not is_extended_type(kind):
        return value.numpy()
    dtype = numpy_dtype(parse_type(kind).tensor_type.elem_type)
    shape = tuple(value.shape())
    if not math.prod(shape):
        return np.empty(shape, dtype)
    return np.asarray(_Bits(value, shape, _BITS[dtype.itemsize])).view(dtype)


class _Bits:
    """ORT's memory in numpy's array interface; alive as long as an array is a view of it."""

    def __init__(self, value: Any, shape: tuple[int, ...], bits: type[np.generic]) -> None:
        self._value = value
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": np.dtype(bits).str,
            "data": (value.data_ptr(), False),
        }
