"""Inference of the input axis that is the sequence."""

from __future__ import annotations

from collections.abc import Mapping

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.axes.propagate import propagate
from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.facts.model_facts import ModelFacts

Seeds = Mapping[str, int]
"""Graph input to its sharded axis."""


def sequence_axes(
    facts: ModelFacts, specs: Mapping[str, TensorSpec], outputs: tuple[str, ...]
) -> Seeds:
    """Return the axis of tokens of each input.

    It is an axis other than the rows whose positions attention pairs with one another. Open axes
    are tried first, those of one name together; then axes of a fixed size.

    Parameters
    ----------
    specs : mapping of value to TensorSpec
        Every value at fixed sizes.
    outputs : tuple of str
        Wanted values.

    Raises
    ------
    PlanError
        No axis qualifies, or several do.
    """
    rows = facts.batch_at(outputs).input_axes
    groups: dict[object, dict[str, int]] = {}
    for spec in facts.inputs_of(outputs):
        for axis, dim in enumerate(spec.shape or ()):
            if axis != rows.get(spec.name) and spec.kind is None:
                groups.setdefault(_group(spec.name, axis, dim), {}).setdefault(spec.name, axis)
    named = {key: seeds for key, seeds in groups.items() if not isinstance(key, int)}
    fixed = {key: seeds for key, seeds in groups.items() if isinstance(key, int) and key > 1}
    for candidates in (named, fixed):
        found = [seeds for seeds in candidates.values() if _is_paired(facts, specs, seeds)]
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            listed = "; ".join(map(describe, found))
            raise PlanError(
                f"attention works over several axes: {listed}",
                f"choose one, such as dx.Sharded(axis={dict(found[0])!r}, n=...)",
                option="axis",
                suggestions=[Suggestion("axis", dict(each)) for each in found],
            )
    if len(named) == 1:
        return next(iter(named.values()))
    listed = "; ".join(map(describe, named.values())) or "none"
    raise PlanError(
        f"attention works over no axis of the inputs; open axes other than the rows: {listed}",
        'name the axis of each input: dx.Sharded(axis={"x": 1}, n=...)',
        option="axis",
    )


def _group(name: str, axis: int, dim: Dim) -> object:
    """Return what axes have in common that may be one sharded axis: name, or else size."""
    return (name, axis) if dim is None else dim


def _is_paired(facts: ModelFacts, specs: Mapping[str, TensorSpec], seeds: Seeds) -> bool:
    """Return whether some value pairs every position with every other."""
    sizes = set()
    for name, axis in seeds.items():
        shape = specs[name].shape
        sizes.add(None if shape is None else shape[axis])
    if len(sizes) != 1:
        return False
    deps = propagate(facts.graph, specs, seeds, facts.custom_axes)
    return any(dep.kind == Kind.PAIRED for dep in deps.values())


def describe(seeds: Seeds) -> str:
    """Return text such as ``axis 1 of input_ids, axis 1 of attention_mask``."""
    return ", ".join(f"axis {axis} of {name}" for name, axis in seeds.items())
