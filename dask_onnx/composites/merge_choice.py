"""Choice between one graph of several models, and a run of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dask_onnx.analysis.report import analyse, assumed_shapes
from dask_onnx.composites.merged_models import Merged, merge
from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.formatting import format_count, format_seconds
from dask_onnx.core.specs import TensorSpec
from dask_onnx.facts.model_facts import ModelFacts

Merge = Literal["auto"] | bool
"""Caller's choice: that of the planner, one graph, or none."""
_TASK_SECONDS = 1e-3
"""Seconds that a task costs beside its run: Dask's scheduler, a message, and the start of a run."""


@dataclass(frozen=True, slots=True)
class MergeChoice:
    """Choice between one graph and several for a composite, and its reason."""

    merged: ModelFacts | None
    """The one graph; None if the models run apart."""
    reason: str
    """Reason, with the numbers behind it."""
    shared_nodes: int = 0
    """Nodes of the models that one graph does not run again, as equal ones run before."""
    shared_seconds: float = 0.0
    """Predicted seconds of these nodes, on one core."""

    @property
    def is_merged(self) -> bool:
        """True if the models run as one graph."""
        return self.merged is not None


def choose_merge(
    name: str, parts: Mapping[str, ModelFacts], inputs: Sequence[TensorSpec], wish: Merge
) -> MergeChoice:
    """Return whether models run as one graph, by predicted seconds. Runs nothing.

    One graph saves what the models have in common, and a task for each of them but one. Runs of
    their own can be on several workers at a time.

    Parameters
    ----------
    name : str
        Name of the one graph.
    parts : mapping of str to ModelFacts
        Models with no name in common but those of inputs.
    inputs : sequence of TensorSpec
        Inputs of the one graph.
    wish : "auto", True or False

    Raises
    ------
    PlanError
        `wish` is True, and the models cannot be merged.
    """
    if wish is False:
        return MergeChoice(None, "the caller wants them apart: merge=False")
    if len(parts) == 1:
        return MergeChoice(None, "there is one model")
    blocker = _blocker(parts)
    merged = None if blocker else merge(name, list(parts.values()), inputs)
    if merged is not None:
        blocker = _rows_blocker(parts, merged.facts)
    if merged is None or blocker:
        if wish is True:
            raise PlanError(
                f"the models of {name!r} cannot be merged into one graph: {blocker}",
                "leave merge out: they then run side by side",
                option="merge",
                reason=blocker,
                suggestions=[Suggestion("merge", "auto"), Suggestion("merge", False)],
            )
        return MergeChoice(None, blocker)
    return _by_seconds(parts, merged, inputs, wish)


def _blocker(parts: Mapping[str, ModelFacts]) -> str:
    """Return the reason for which models cannot be one graph; empty if they can."""
    first_name, first = next(iter(parts.items()))
    for name, part in parts.items():
        if part.custom is not None or part.libraries:
            return f"{name!r} has kernels of the caller"
        if part.onnx.rows is not None:
            return f"rows of {name!r} are declared by the caller"
        if part.onnx.parse().functions:
            return f"{name!r} has functions of its own"
        if part.has_unseeded_nodes:
            return f"{name!r} has random nodes"
        if any(spec.kind is not None for spec in (*part.inputs, *part.onnx.outputs)):
            return f"{name!r} has inputs or outputs that are no tensors"
        for domain, version in part.onnx.opsets.items():
            other = first.onnx.opsets.get(domain, version)
            if other != version:
                return (
                    f"{first_name!r} and {name!r} have other versions of {domain or 'ai.onnx'} "
                    f"({other} and {version})"
                )
    return ""


def _rows_blocker(parts: Mapping[str, ModelFacts], merged: ModelFacts) -> str:
    """Return whether one graph cuts a batch otherwise than the models do; empty if not."""
    whole = merged.batch_at(tuple(merged.graph.outputs))
    for name, part in parts.items():
        own = part.batch_at(tuple(part.graph.outputs))
        if own.fixed_rows != whole.fixed_rows:
            return (
                f"rows of a run of {name!r} are {own.fixed_rows or 'open'}, of others they are not"
            )
        for each, axis in own.input_axes.items():
            if whole.input_axes[each] != axis:
                return f"{name!r} has the rows of {each!r} on axis {axis}, others have not"
        for each, axis in own.output_axes.items():
            if whole.output_axes[each] != axis:
                return f"the rows of {each!r} would depend on one another in one graph"
        if (own.dependent, own.opaque) != (whole.dependent, whole.opaque) or own.random:
            return f"the rows of {name!r} are proven otherwise than those of others"
    return ""


def _by_seconds(
    parts: Mapping[str, ModelFacts], merged: Merged, inputs: Sequence[TensorSpec], wish: Merge
) -> MergeChoice:
    shapes, _ = assumed_shapes(merged.facts.onnx)
    seconds = {n: _seconds(p, {s.name: shapes[s.name] for s in p.inputs}) for n, p in parts.items()}
    by_name: dict[str, float] = {k: v for part in seconds.values() for k, v in part.items()}
    gone = [name for names in merged.shared.values() for name in names]
    saved = sum(by_name.get(name, 0.0) for name in gone)
    total = sum(by_name.values())
    longest = max(sum(part.values()) for part in seconds.values())
    gain, loss = saved + (len(parts) - 1) * _TASK_SECONDS, total - saved - longest
    what = (
        f"one graph saves {format_count(len(gone), 'node')} that the models have in common "
        f"({format_seconds(saved)}) and {format_count(len(parts) - 1, 'task')}; apart they can run "
        f"at the same time, which saves {format_seconds(max(loss, 0.0))}"
    )
    if wish is True:
        return MergeChoice(merged.facts, f"the caller wants one graph: {what}", len(gone), saved)
    is_better = gain >= loss
    facts = merged.facts if is_better else None
    return MergeChoice(facts, what, len(gone) if is_better else 0, saved if is_better else 0.0)


def _seconds(facts: ModelFacts, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Return the predicted seconds of each node by its name."""
    found = analyse(facts.graph, shapes, facts.schemas, facts.costs, facts.custom_axes)
    return {
        node.name: facts.costs.seconds(cost)
        for node, cost in zip(facts.graph.nodes, found.node_costs, strict=True)
    }
