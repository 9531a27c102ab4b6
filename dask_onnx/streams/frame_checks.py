"""Checks of the frames of a stream that a model by itself would not make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.core.array_values import plain_array
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import is_floating


@dataclass(slots=True)
class FrameChecks:
    """Checks of the frames of one stream."""

    uniform: bool
    """True if all frames must have the shape and the dtype of the first one that is good."""
    require_finite: bool
    """True if a NaN or an infinity makes a bad frame."""
    _first: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] | None = None

    def check(self, frame: Any) -> None:
        """Check one frame.

        Raises
        ------
        InputError
            It differs from the first one, or has a value that is not finite.
        """
        if self.require_finite:
            for name, array in _arrays(frame):
                _check_finite(name, array)
        if self.uniform:
            self._check_uniform(_kinds_of(frame))

    def note_good(self, frame: Any) -> None:
        """Take a frame that fits the model as the first one, if there is none yet."""
        if self.uniform and self._first is None:
            self._first = _kinds_of(frame)

    def _check_uniform(self, found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
        if self._first is None:
            return
        for name in self._first.keys() | found.keys():
            first, own = self._first.get(name), found.get(name)
            if first != own:
                raise InputError(
                    f"input {name!r} has {_shown(own)}; the first frame has {_shown(first)}",
                    "give frames of one shape and dtype, or leave uniform=True out",
                    option="uniform",
                    input=name or None,
                    suggestions=[Suggestion("uniform", False)],
                )


def signature_of(frame: Any) -> Any:
    """Return shapes and dtypes of a frame's arrays: frames with equal ones may share a run."""
    return tuple((name, array.shape, str(array.dtype)) for name, array in _arrays(frame))


def _arrays(frame: Any) -> Iterator[tuple[str, np.ndarray]]:
    items = frame.items() if isinstance(frame, Mapping) else [("", frame)]
    for name, value in items:
        if isinstance(value, np.ndarray | np.generic | int | float | list | tuple):
            array, missing = plain_array(value, None)
            yield str(name), array if missing is None else np.ma.masked_array(array, missing)


def _kinds_of(frame: Any) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    return {name: (array.shape, array.dtype) for name, array in _arrays(frame)}


def _check_finite(name: str, array: np.ndarray) -> None:
    if not is_floating(array.dtype):
        return
    # What is masked becomes NaN in the model.
    bad = ~np.isfinite(np.ma.getdata(array)) | np.ma.getmaskarray(array)
    if not bad.any():
        return
    index = tuple(map(int, np.unravel_index(int(bad.argmax()), bad.shape)))
    where = f"input {name!r}" if name else "the frame"
    raise InputError(
        f"{where} has {int(bad.sum()):,} values that are not finite, the first, {array[index]}, at "
        f"index {index}",
        "mend the source, or leave require_finite=True out",
        option="require_finite",
        input=name or None,
        numbers={"bad_values": int(bad.sum()), "values": array.size}
        | ({"first_row": index[0]} if index else {}),
        suggestions=[Suggestion("require_finite", False)],
    )


def _shown(found: tuple[tuple[int, ...], np.dtype[Any]] | None) -> str:
    return "no value" if found is None else f"shape {found[0]} and dtype {found[1]}"
