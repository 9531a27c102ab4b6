"""Opening of a fixed batch with proof: the rewritten graph is proven, and compared by running it.

`open_batch` rewrites the graph. Here `find_batch` must prove every output of the result, and
`check_freed` runs it beside the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.axes.table import CustomAxes
from dask_onnx.analysis.batch import find_batch
from dask_onnx.analysis.batch_facts import BatchFacts
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.opening.opener import Blocked, Opened, open_batch
from dask_onnx.analysis.sample_inputs import sample_inputs
from dask_onnx.analysis.shapes import Schemas
from dask_onnx.core.errors import ModelError
from dask_onnx.modelio.onnx_model import OnnxModel

Runner = Callable[[OnnxModel, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Function that runs a model once: inputs by name to outputs by name."""

LIMIT = 0.01
"""Largest relative difference that counts as rounding: sums in another order, or integers that a
rounding operator makes differ by one."""


@dataclass(frozen=True, slots=True)
class Freed:
    """A model whose number of rows is proven to be open."""

    opened: Opened
    """The rewritten model, with what was rewritten."""
    batch: BatchFacts
    """Batch facts of the rewritten graph."""

    @property
    def model(self) -> OnnxModel:
        """The rewritten model."""
        return self.opened.model


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """Difference between an output of the rewritten graph and that of the original."""

    output: str
    """Name of the output."""
    rows: int
    """Number of rows of the run."""
    relative: float
    """Largest difference divided by the largest magnitude of the output; for integers, booleans and
    strings the share of elements that differ. Infinite for another shape or dtype."""
    is_exact: bool
    """True if all elements are equal, NaN to NaN included."""


def free_batch(
    model: OnnxModel,
    axes: Mapping[str, int] | None = None,
    schemas: Schemas | None = None,
    custom: CustomAxes | None = None,
) -> Freed | Blocked:
    """Open the batch of a graph that was exported for a fixed number of rows, if proven safe.

    Parameters
    ----------
    model, axes, schemas, custom
        As for `open_batch`.

    Returns
    -------
    Freed or Blocked
        Blocked also where nodes draw random numbers, or quantize by a statistic over all rows.
    """
    found = open_batch(model, axes, schemas, custom, read_weights=True)
    if isinstance(found, Blocked):
        return found
    facts = GraphFacts(found.model)
    batch = find_batch(facts, facts.outputs, None, schemas, custom)
    if _carried(batch) != dict(
        found.input_axes
    ):  # another axis looks likelier: declare the rewritten one
        found = replace(found, model=replace(found.model, rows=dict(found.input_axes)))
        facts = GraphFacts(found.model)
        batch = find_batch(facts, facts.outputs, None, schemas, custom)
    obstacle = _obstacle(found, batch)
    if obstacle is None:
        return Freed(found, batch)
    node, kind, how = obstacle
    op_type = next((each.op_type for each in facts.nodes if each.name == node), "")
    return Blocked(found.rows, node, op_type, kind, how)


def _carried(batch: BatchFacts) -> dict[str, int]:
    """Return the inputs with a batch axis, and the axis of each."""
    return {name: axis for name, axis in batch.input_axes.items() if axis is not None}


def _obstacle(found: Opened, batch: BatchFacts) -> tuple[str, Kind, str] | None:
    """Return node, kind and description of what prevents the proof; None if nothing does."""
    for blocker in batch.blockers:
        return blocker.node, blocker.kind, blocker.how
    if batch.coupled:
        return batch.coupled[0], Kind.REDUCED, "quantizes by a statistic over all rows of a run"
    if batch.random:
        return batch.random[0], Kind.OPAQUE, "draws random numbers"
    if _carried(batch) != dict(found.input_axes):
        return "", Kind.OPAQUE, f"rows on {_carried(batch)}, not on {dict(found.input_axes)}"
    for spec in found.model.outputs:
        if batch.output_axes[spec.name] is None and spec.kind is None:
            return spec.name, Kind.LENGTH, "an output without rows of its own"
    return None


def check_freed(
    original: OnnxModel, freed: Freed, run: Runner, seeds: int = 3
) -> list[OutputDifference]:
    """Compare a model with its rewritten form, up to rounding.

    Parameters
    ----------
    original, freed, run
        As for `differences`.
    seeds : int
        Number of random inputs that are tried until one is within `LIMIT`: a graph may amplify
        rounding on some inputs (a variance close to zero), while a wrong graph differs on all.

    Returns
    -------
    list of OutputDifference
        Differences on the inputs where they are smallest.

    Raises
    ------
    ModelError
        If an output differs by more than `LIMIT` on all of them.
    """
    best: list[OutputDifference] = []
    for seed in range(seeds):
        found = differences(original, freed, run, seed)
        if not best or _largest(found).relative < _largest(best).relative:
            best = found
        if _largest(best).relative <= LIMIT:
            return best
    worst = _largest(best)
    raise ModelError(
        f"model {original.name!r} with an open batch gives other numbers: output {worst.output!r} "
        f"differs by {worst.relative:.2g} of its largest magnitude in a run of {worst.rows} rows",
        "run the model as it was exported, and report this as a bug",
        input=worst.output,
        numbers={"relative_difference": worst.relative, "limit": LIMIT, "rows": worst.rows},
    )


def _largest(found: list[OutputDifference]) -> OutputDifference:
    return max(found, key=lambda each: each.relative)


def differences(
    original: OnnxModel, freed: Freed, run: Runner, seed: int = 0
) -> list[OutputDifference]:
    """Run a model and its rewritten form on random inputs, and compare the outputs.

    Once with the exported number of rows, and once with twice that plus one, for which the original
    runs three times, the last run filled up with earlier rows.

    Parameters
    ----------
    original : OnnxModel
    freed : Freed
        Made from `original`.
    run : function of OnnxModel and inputs to outputs
        Such as a session of ONNX Runtime.
    seed : int
        Seed of the random inputs, see `sample_inputs`.

    Returns
    -------
    list of OutputDifference
        One for each output and number of rows.
    """
    opened, rows = freed.opened, freed.opened.rows
    found = []
    for count in (rows, 2 * rows + 1):
        shapes = {
            name: tuple(count if i == opened.input_axes.get(name) else n for i, n in enumerate(s))
            for name, s in opened.shapes.items()
        }
        facts = GraphFacts(original)
        feeds = sample_inputs(facts, shapes, np.random.default_rng(seed))
        new = run(opened.model, feeds)
        old = _in_runs(original, freed, run, feeds, count)
        found += [_difference(name, count, old[name], new[name]) for name in old]
    return found


def _in_runs(
    original: OnnxModel,
    freed: Freed,
    run: Runner,
    feeds: Mapping[str, np.ndarray],
    count: int,
) -> dict[str, np.ndarray]:
    """Return the outputs of the original, which takes a fixed number of rows per run."""
    rows, axes = freed.opened.rows, freed.opened.input_axes
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, count, rows):
        positions = np.arange(start, start + rows) % count
        given = {
            name: np.take(array, positions, axes[name]) if name in axes else array
            for name, array in feeds.items()
        }
        for name, array in run(original, given).items():
            axis = freed.batch.output_axes.get(name)
            if axis is not None:
                kept = range(min(rows, count - start))
                parts.setdefault(name, []).append(np.take(np.asarray(array), kept, axis))
    return {
        name: np.concatenate(arrays, freed.batch.output_axes[name])
        for name, arrays in parts.items()
    }


def _difference(name: str, rows: int, old: np.ndarray, new: np.ndarray) -> OutputDifference:
    new = np.asarray(new)
    if old.shape != new.shape or old.dtype != new.dtype:
        return OutputDifference(name, rows, float("inf"), is_exact=False)
    is_number = np.issubdtype(old.dtype, np.inexact) or old.dtype.kind == "V"
    same = old == new
    if is_number:
        old, new = old.astype(np.float64), new.astype(np.float64)
        same = (old == new) | (np.isnan(old) & np.isnan(new))
    if bool(np.all(same)):
        return OutputDifference(name, rows, 0.0, is_exact=True)
    if not is_number:
        return OutputDifference(name, rows, float(np.mean(~same)), is_exact=False)
    if not np.array_equal(np.isfinite(old), np.isfinite(new)):
        return OutputDifference(name, rows, float("inf"), is_exact=False)
    largest = float(np.max(np.abs(old), where=np.isfinite(old), initial=0.0))
    apart = float(np.max(np.abs(old - new), where=~same, initial=0.0))
    return OutputDifference(name, rows, apart / max(largest, 1e-30), is_exact=False)
