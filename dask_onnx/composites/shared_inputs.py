"""Inputs that several models have in common, and those of each by the name of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import Dim, TensorSpec, same_dtype


@dataclass(frozen=True, slots=True)
class SharedInputs:
    """Inputs of a composite."""

    specs: tuple[TensorSpec, ...]
    """Inputs of the composite, in the order in which they first occur."""
    names: Mapping[str, Mapping[str, str]]
    """For each model, the name in the composite of each of its inputs."""


def share_inputs(
    models: Mapping[str, tuple[TensorSpec, ...]], rename: Mapping[str, Mapping[str, str]]
) -> SharedInputs:
    """Return the inputs of several models, those of equal names as one.

    Where every model has exactly one input, they are one, under the name of the first.

    Parameters
    ----------
    models : mapping of str to tuple of TensorSpec
        Inputs of each model.
    rename : mapping of str to mapping of str to str
        For each model, other names of its inputs in the composite.

    Raises
    ------
    InputError
        `rename` names what no model has; or inputs of one name have other dtypes or shapes.
    """
    _check_rename(models, rename)
    only = _only_name(models, rename)
    names = {
        model: {spec.name: rename.get(model, {}).get(spec.name, only or spec.name) for spec in own}
        for model, own in models.items()
    }
    found: dict[str, tuple[str, TensorSpec]] = {}
    for model, own in models.items():
        _check_distinct(model, names[model])
        for spec in own:
            name = names[model][spec.name]
            renamed = replace(spec, name=name)
            if name in found:
                renamed = _common(name, found[name], (model, renamed))
                found[name] = (found[name][0], renamed)
            else:
                found[name] = (model, renamed)
    return SharedInputs(tuple(spec for _, spec in found.values()), names)


def _only_name(
    models: Mapping[str, tuple[TensorSpec, ...]], rename: Mapping[str, Mapping[str, str]]
) -> str | None:
    """Return the name of the one input that all models take; None if some have several."""
    if any(len(own) != 1 for own in models.values()):
        return None
    first, (spec,) = next(iter(models.items()))
    return rename.get(first, {}).get(spec.name, spec.name)


def _check_rename(
    models: Mapping[str, tuple[TensorSpec, ...]], rename: Mapping[str, Mapping[str, str]]
) -> None:
    for model, names in rename.items():
        if model not in models:
            raise InputError(
                f"rename names model {model!r}, which is not in the composite",
                f"its models are {_listed(models)}",
                option="rename",
                suggestions=[Suggestion("rename", {each: names}) for each in models],
            )
        own = [spec.name for spec in models[model]]
        for name, new in names.items():
            if name not in own or not isinstance(new, str) or not new:
                raise InputError(
                    f"rename has {name!r}: {new!r} for model {model!r}",
                    f"give a text for its inputs, which are {_listed(own)}",
                    option="rename",
                    input=str(name),
                )


def _check_distinct(model: str, names: Mapping[str, str]) -> None:
    if len(set(names.values())) < len(names):
        raise InputError(
            f"two inputs of model {model!r} get one name: {dict(names)}",
            "give each another name in rename",
            option="rename",
            input=model,
        )


def _common(name: str, one: tuple[str, TensorSpec], other: tuple[str, TensorSpec]) -> TensorSpec:
    """Return the spec that two models take both.

    Raises
    ------
    InputError
        Their dtypes, ranks or fixed sizes differ.
    """
    (first, a), (second, b) = one, other
    shape = _common_shape(a.shape, b.shape)
    if not same_dtype(a.dtype, b.dtype) or a.kind != b.kind or isinstance(shape, str):
        why = shape if isinstance(shape, str) else "their types differ"
        raise InputError(
            f"models {first!r} and {second!r} share input {name!r}, and {why}: {a} and {b}",
            f"convert to one in a function before them (dx.chain), or tell the inputs apart: "
            f"rename={{{second!r}: {{...: {second + '_' + name!r}}}}}",
            option="rename",
            input=name,
            suggestions=[Suggestion("rename")],
        )
    return replace(a, shape=shape)


def _common_shape(
    a: tuple[Dim, ...] | None, b: tuple[Dim, ...] | None
) -> tuple[Dim, ...] | str | None:
    """Return the shape that fits both, or the reason why none does."""
    if a is None or b is None:
        return a if b is None else b
    if len(a) != len(b):
        return f"their numbers of axes differ ({len(a)} and {len(b)})"
    for axis, (x, y) in enumerate(zip(a, b, strict=True)):
        if isinstance(x, int) and isinstance(y, int) and x != y:
            return f"their sizes along axis {axis} differ ({x} and {y})"
    return tuple(x if isinstance(x, int) else y for x, y in zip(a, b, strict=True))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(str(name)) for name in names)
