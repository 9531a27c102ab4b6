"""Comparison of a composite with the one that replaces it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from dask_onnx.api.model import Model
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.streams.replaced_models import check_replacement


class HasSpecs(Protocol):
    """A composite, as far as it is compared."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs by the names of the composite."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs by the names of the composite."""


def check_replacements(known: Mapping[str, Model], models: Mapping[str, Any]) -> None:
    """Refuse replacements of models that a composite does not have, or by what is no model.

    Parameters
    ----------
    known : mapping of str to Model
        Models of the composite.
    models : mapping of str to Model
        New ones.

    Raises
    ------
    InputError
        With the name as ``option``.
    """
    for name, model in models.items():
        if name not in known:
            raise InputError(
                f"the composite has no model {name!r}",
                f"its models are {', '.join(map(repr, known))}",
                option=name,
                suggestions=[Suggestion(each) for each in known],
            )
        if not isinstance(model, Model):
            raise InputError(
                f"{name} is a {type(model).__name__}",
                "pass what dask_onnx.load returns",
                option=name,
            )


def check_alike(old: HasSpecs, new: HasSpecs, names: str) -> None:
    """Refuse models that change the inputs or the names of outputs of a composite.

    Parameters
    ----------
    old, new : HasSpecs
        Composite before and after.
    names : str
        Names of the new models, for the error.

    Raises
    ------
    InputError
        Names, dtypes, numbers of axes or fixed sizes differ.
    """
    before, after = ((each.inputs, [spec.name for spec in each.outputs]) for each in (old, new))
    check_replacement(before, after, what=f"the composite with the new {names}", option=names)
