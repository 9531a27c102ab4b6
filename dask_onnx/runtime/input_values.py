"""Values in memory as inputs of a model: arrays, lists, numbers, sequences and optionals.

Arrays of every kind of collection come through `as_input`: those in memory before any work, those
of lazy collections in the task, where their values are first known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dask_onnx.core.array_values import plain_array
from dask_onnx.core.conversions import conversion, source_of, target_of
from dask_onnx.core.errors import InputError
from dask_onnx.core.object_conversions import convert_array
from dask_onnx.core.specs import TensorSpec, dtype_name
from dask_onnx.core.value_conversions import MISSING, Unfit
from dask_onnx.modelio.value_types import numpy_dtype, parse_type


def as_input(value: Any, spec: TensorSpec) -> Any:
    """Return a value in memory as ONNX Runtime takes it for an input.

    Parameters
    ----------
    value : array_like
        For an input that is a sequence, a list; for an optional, a value or None. Masked places of
        a masked array are missing values.
    spec : TensorSpec
        Input of the model.

    Returns
    -------
    ndarray, or list of these, or None
        Of the model's dtype; the same object if it has it.

    Raises
    ------
    InputError
        Values are not taken by the table of conversions, with their number and the index of the
        first; or they cannot become an array.
    """
    if spec.kind is not None:
        return _as_kind(value, spec)
    is_plain = type(value) is np.ndarray and not value.dtype.hasobject
    # numpy takes None for float64 where dtypes are compared.
    if is_plain and spec.dtype is not None and value.dtype == spec.dtype:
        return value
    array, missing = _as_array(value, spec)
    if spec.dtype is None:
        _refuse_mask(missing, spec)
        return array
    check_dtype(array.dtype, spec)
    try:
        return convert_array(array, spec.dtype, missing)
    except Unfit as fault:
        raise _input_error(fault, array, spec) from None


def check_dtype(dtype: np.dtype[Any], spec: TensorSpec, *, option: str | None = None) -> None:
    """Compare the dtype of an array with an input of the model.

    Parameters
    ----------
    dtype : dtype
        Dtype of the array.
    spec : TensorSpec
        Input of the model.
    option : str, optional
        Name of the parameter that has the array, for the error.

    Raises
    ------
    InputError
        The table of conversions refuses the dtype, whatever the values are.
    """
    if spec.dtype is None or dtype == spec.dtype:
        return
    cell = conversion(source_of(dtype), target_of(spec.dtype))
    if cell.is_refused:
        raise InputError(
            f"input {spec.name!r} has dtype {dtype}; the model takes {dtype_name(spec.dtype)}: "
            f"{cell.rule}",
            cell.next_step,
            option=option,
            input=spec.name,
            reason=cell.rule,
        )


def _as_array(value: Any, spec: TensorSpec) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a value as an array, and where it is masked."""
    try:
        return plain_array(value, spec.dtype)
    except Exception as error:  # arrays of other libraries raise errors of their own
        raise _no_array(value, spec, error) from None


def _no_array(value: Any, spec: TensorSpec, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(
        f"input {spec.name!r} is given as {type(value).__name__}, which cannot become one array: "
        f"{reason}",
        "give rows of equal shape and one kind of values",
        input=spec.name,
        reason=reason,
    )


def _refuse_mask(missing: np.ndarray | None, spec: TensorSpec) -> None:
    if missing is not None:
        count = int(missing.sum())
        raise InputError(
            f"input {spec.name!r} has {count:,} masked values, and its type is not known",
            "fill them: .filled(...)",
            input=spec.name,
            numbers={"bad_values": count, "values": missing.size},
        )


def _input_error(fault: Unfit, array: np.ndarray, spec: TensorSpec) -> InputError:
    place, count = int(fault.bad.argmax()), int(fault.bad.sum())
    index = tuple(map(int, np.unravel_index(place, fault.bad.shape)))
    numbers: dict[str, float] = {"bad_values": count, "values": array.size}
    if index:
        numbers["first_row"] = index[0]
    shown = "" if fault.fault == MISSING else f": {fault.places.get(place) or _shown(array[index])}"
    what = f"it {fault.fault}"
    if index:
        do = "do" if count > 1 else "does"
        where = index if len(index) > 1 else index[0]
        what = (
            f"{count:,} of {array.size:,} values {do} not fit, the first, at index {where}, "
            f"{fault.fault}"
        )
    return InputError(
        f"input {spec.name!r} {fault.rule}; {what}{shown}",
        fault.next_step,
        input=spec.name,
        reason=fault.fault,
        numbers=numbers,
    )


def _shown(value: Any) -> str:
    text = str(value) if isinstance(value, np.generic) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _as_kind(value: Any, spec: TensorSpec) -> Any:
    """Return a value for an input that is a sequence, a map or an optional."""
    head, _, inner = (spec.kind or "").partition("(")
    inner = inner[:-1].strip()
    if head == "optional":
        return None if value is None else as_input(value, _spec_of(spec.name, inner))
    if head == "seq" and isinstance(value, list):
        element = _spec_of(spec.name, inner)
        return [as_input(each, element) for each in value]
    if head == "map" and isinstance(value, Mapping):
        return _as_map(value, spec)
    return value


def _as_map(value: Mapping[Any, Any], spec: TensorSpec) -> dict[Any, Any]:
    """Return a mapping for an input that is a map of keys to single numbers or texts."""
    kind = parse_type(spec.kind or "").map_type
    if not kind.value_type.HasField("tensor_type"):
        return dict(value)
    names = _in_line(list(value), spec.name, numpy_dtype(kind.key_type))
    if len(set(names)) < len(names):
        raise InputError(
            f"input {spec.name!r} has keys that become the same: {len(names):,} keys, "
            f"{len(set(names)):,} different",
            "give each key once: bytes are text",
            input=spec.name,
            numbers={"keys": len(names), "different_keys": len(set(names))},
        )
    wanted = numpy_dtype(kind.value_type.tensor_type.elem_type)
    try:
        numbers = _in_line(list(value.values()), spec.name, wanted)
    except InputError as error:
        key = names[int(error.numbers.get("first_row", 0))]
        cause = f"{error.cause}, the value of key {key!r}"
        raise InputError(cause, error.next_step, **error.fields) from None
    return dict(zip(names, numbers, strict=True))


def _in_line(values: Sequence[Any], name: str, dtype: np.dtype[Any] | None) -> list[Any]:
    """Return single values in a dtype of the model, as Python has them."""
    array = as_input(values, TensorSpec(name, dtype, None))
    if np.ndim(array) != 1:
        raise InputError(
            f"input {name!r} is a map, and its values have {np.ndim(array) - 1} axes",
            "give one number or text for each key",
            input=name,
            numbers={"axes": np.ndim(array) - 1},
        )
    found: list[Any] = array.tolist()
    return found


def _spec_of(name: str, kind: str) -> TensorSpec:
    """Return the spec of a type in ONNX's notation."""
    if not kind.startswith("tensor("):
        return TensorSpec(name, None, None, kind)
    return TensorSpec(name, numpy_dtype(parse_type(kind).tensor_type.elem_type), None)
