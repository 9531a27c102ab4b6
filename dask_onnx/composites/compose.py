"""`compose`: several models on the same inputs as one."""

from __future__ import annotations

from collections.abc import Mapping

from dask_onnx.api.model import Model
from dask_onnx.composites.composite import Composite
from dask_onnx.composites.merge_choice import Merge
from dask_onnx.composites.prefixed_models import SEPARATOR
from dask_onnx.core.errors import InputError, Suggestion


def compose(
    models: Mapping[str, Model] | None = None,
    /,
    *,
    rename: Mapping[str, Mapping[str, str]] | None = None,
    merge: Merge = "auto",
    name: str | None = None,
    **named: Model,
) -> Composite:
    """Return several models that run on the same inputs as one. Runs nothing.

    Inputs of equal names are one. Where every model has exactly one input, they are one too,
    whatever its names, under that of the first. Outputs are named by model: ``"face/scores"``.

    Parameters
    ----------
    models : mapping of str to Model, optional
        Models by name, for names that are no keywords of Python or are options here.
    rename : mapping of str to mapping of str to str, optional
        For each model, names in the composite of some of its inputs:
        ``{"face": {"data": "image"}}``.
    merge : {"auto", True, False}
        "auto": the models become one graph where that saves more than they gain by running at the
        same time, as predicted. True: one graph. False: none.
    name : str, optional
        Name in dashboards, plans and messages; by default those of the models.
    **named : Model
        Models by name.

    Returns
    -------
    Composite

    Raises
    ------
    InputError
        There are no models, a name cannot be one, or models differ in the dtype or shape of an
        input that they share.

    See Also
    --------
    chain : Models one after the other, with Python functions between.

    Examples
    --------
    >>> found = dx.compose(face=m1, text=m2, objects=m3).predict(images)
    >>> found["face/scores"], found["text/maps"]
    """
    every = {**(models or {}), **named}
    twice = sorted(set(models or {}) & set(named))
    if not every or twice:
        what = f"{', '.join(map(repr, twice))} given twice" if twice else "no models"
        raise InputError(
            f"compose was given {what}",
            "name each model once: dx.compose(face=m1, text=m2)",
            option=twice[0] if twice else "models",
        )
    for key, model in every.items():
        _check_member(key, model)
    if merge not in ("auto", True, False):
        raise InputError(
            f"merge is {merge!r}",
            "choose 'auto', True or False",
            option="merge",
            suggestions=[Suggestion("merge", "auto")],
        )
    return Composite(every, rename or {}, merge, name or "+".join(every))


def _check_member(key: object, model: object) -> None:
    if not isinstance(key, str) or not key or SEPARATOR in key:
        raise InputError(
            f"a model is named {key!r}",
            f"give a text without {SEPARATOR!r}, which stands between model and output",
            option="models",
        )
    if not isinstance(model, Model):
        raise InputError(
            f"{key} is a {type(model).__name__}",
            "pass what dask_onnx.load returns; functions and pictures go into dx.chain",
            option=key,
        )
