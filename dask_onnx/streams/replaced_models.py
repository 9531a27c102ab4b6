"""Comparison of a model with the one that replaces it while frames or blocks go on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec, same_dtype


def check_replacement(
    old: tuple[Sequence[TensorSpec], Sequence[str]],
    new: tuple[Sequence[TensorSpec], Sequence[str]],
    *,
    what: str = "the new model",
    option: str = "model",
) -> None:
    """Refuse a model that takes other inputs, or gives other outputs, than the one before.

    Parameters
    ----------
    old, new : tuple of (sequence of TensorSpec, sequence of str)
        Inputs, and names of the outputs, of either model.
    what : str
        The new model in words, for the error.
    option : str
        Option that named it.

    Raises
    ------
    InputError
        Names, dtypes, numbers of axes or fixed sizes differ.
    """
    before, after = ({spec.name: spec for spec in each[0]} for each in (old, new))
    for name in {**before, **after}:
        if not _takes_alike(before.get(name), after.get(name)):
            raise InputError(
                f"{what} takes {after.get(name) or f'no input {name!r}'}; the old one takes "
                f"{before.get(name) or f'no input {name!r}'}",
                "replace it by a model with the same inputs",
                option=option,
                input=name,
            )
    if list(old[1]) != list(new[1]):
        raise InputError(
            f"{what} gives {_listed(new[1])}; the old one gives {_listed(old[1])}",
            "replace it by a model with the same outputs, or name those of both: outputs=...",
            option=option,
            suggestions=[Suggestion("outputs")],
        )


def _takes_alike(one: TensorSpec | None, other: TensorSpec | None) -> bool:
    """Return whether two inputs take the same values, as far as the models tell."""
    if one is None or other is None:
        return False
    if not same_dtype(one.dtype, other.dtype) or one.kind != other.kind:
        return False
    if one.shape is None or other.shape is None:
        return True
    return len(one.shape) == len(other.shape) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int)
        for a, b in zip(one.shape, other.shape, strict=True)
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(str(name)) for name in names) or "none"
