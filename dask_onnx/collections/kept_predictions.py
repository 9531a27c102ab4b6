"""Predictions with a checkpoint: what decides their results, and the chunks of arrays in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
import numpy as np
from dask.base import is_dask_collection, tokenize
from dask.delayed import Delayed

from dask_onnx.cluster.current_scheduler import chosen_scheduler, compute_now
from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.checkpoints import keep_result, refuse_kind
from dask_onnx.collections.extraction import with_fed_defaults
from dask_onnx.collections.feeds import convert_feeds
from dask_onnx.collections.grouped_chunks import chunks_kept
from dask_onnx.collections.kinds import is_bag, is_dataarray, is_table, shapes_of
from dask_onnx.collections.masked_rows import has_masks
from dask_onnx.collections.output_forms import computed_values, output_forms
from dask_onnx.collections.path_inputs import refuse_paths
from dask_onnx.collections.predictions import predict
from dask_onnx.collections.request_checks import resolve_feeds, resolve_outputs
from dask_onnx.collections.run_options import RowOptions, RunOptions, TableOptions
from dask_onnx.core.stage_tasks import digest
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.facts.staged_model import StagedModel, whole_model
from dask_onnx.io.kept_chunks import checkpoint_folder, open_checkpoint, stored_manifest
from dask_onnx.io.run_manifest import RunManifest, package_versions, plain
from dask_onnx.runtime.cores import available_cores

_LEAST_ROWS = 64
"""Rows of a chunk of an array in memory, where the caller leaves the number open."""
_CHUNKS_PER_THREAD = 8
"""Chunks of an array in memory for each thread: so much is lost at most, one in so many."""


@dataclass(frozen=True, slots=True)
class KeptPrediction:
    """Facts that decide the results of a prediction besides its input."""

    kind: str
    """Kind of the prediction, such as "arrays" or "texts"."""
    model: Any
    """Token of the model, and of what belongs to it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options that change results, by name."""

    def manifest(self, x: Any, block_rows: int | None = None) -> RunManifest:
        """Return the manifest of the prediction for a lazy collection, or several by input name.

        Parameters
        ----------
        x : collection, or mapping of str to collection or array
        block_rows : int, optional
            Rows of a chunk, where the library has chosen them.
        """
        named = x if isinstance(x, Mapping) else {"": x}
        inputs, options = {}, dict(self.options)
        for name, value in named.items():
            label = f"the input {name!r}" if name else "the input"
            token, parts = _token_of(value)
            inputs[f"Dask's token of {label}"] = token
            options[f"the division of {label}"] = parts
        return RunManifest(
            kind=self.kind,
            model=digest(self.model),
            options=plain(options),
            inputs=plain(inputs),
            block_rows=block_rows,
            versions=package_versions(),
        )

    def keep(self, x: Any, checkpoint: Any, result: Callable[[], Any]) -> Any:
        """Return the result of a lazy prediction, its finished chunks kept and taken up again.

        Parameters
        ----------
        x : collection, or mapping of str to collection or array
            The input.
        checkpoint : path or URL
            Folder of the chunks.
        result : callable
            Makes the lazy prediction.

        Raises
        ------
        InputError
            The input is not lazy, or of a kind whose chunks cannot be kept; the folder belongs to
            another prediction.
        """
        parts = list(x.values()) if isinstance(x, Mapping) else [x]
        lazy = [part for part in parts if is_dask_collection(part)]
        if not lazy or any(isinstance(part, Delayed) for part in lazy):
            raise refuse_kind(lazy[0] if lazy else parts[0] if parts else x)
        folder = checkpoint_folder(checkpoint)
        store = open_checkpoint(folder, self.manifest(x))
        return keep_result(result(), store)


def predict_kept(
    facts: ModelFacts,
    x: Any,
    run: RunOptions,
    table: TableOptions,
    rows: RowOptions,
    checkpoint: Any,
) -> Any:
    """Run a model on a collection and keep finished chunks; see ``checkpoint`` of `Model.predict`.

    Raises
    ------
    InputError
        As `Model.predict`; besides, the collection is of a kind whose chunks cannot be kept, or the
        folder belongs to another prediction.
    """
    refuse_paths(x, facts.inputs)
    folder = checkpoint_folder(checkpoint)
    parts = x.values() if isinstance(x, Mapping) else [x]
    if not any(is_dask_collection(each) for each in parts):
        is_arrow = hasattr(type(x), "__arrow_c_stream__")
        if is_table(x) or is_dataarray(x) or is_arrow:
            raise refuse_kind(x)
        table.refuse(x)
        rows.refuse(x)
        return _predict_in_memory(facts, x, run, folder)
    kept = _kept_prediction(facts, x, run, table, rows)
    with chunks_kept():
        return kept.keep(x, folder, lambda: predict(facts, x, run, table, rows))


def _kept_prediction(
    facts: ModelFacts, x: Any, run: RunOptions, table: TableOptions, rows: RowOptions
) -> KeptPrediction:
    kind = "a table" if is_table(x) else "a bag" if is_bag(x) else "arrays"
    wanted = resolve_outputs(run.outputs, facts.graph.outputs, facts.known_values)
    options = {
        "outputs": list(wanted.names),
        "batch_size": run.batch_size,
        "plan": _plan_identity(facts, run.plan),
        **(dataclasses.asdict(table) if is_table(x) else {}),
        **(dataclasses.asdict(rows) if is_table(x) or is_bag(x) else {}),
    }
    return KeptPrediction(kind, facts.__dask_tokenize__(), options)


def _plan_identity(facts: ModelFacts, plan: Any) -> Any:
    """Return the parts of a plan that decide results: stages, options of sessions, rounding."""
    if not isinstance(plan, StagedModel | None):
        return str(type(plan).__name__)  # refused where the request is built
    staged = whole_model(facts) if plan is None else plan
    stages = digest([stage.nodes for stage in staged.stages])
    others = digest(repr(staged.recipe.session), repr(staged.lossy))
    return f"{staged.recipe.strategy}, {len(staged.stages)} stages ({stages[:8]}, {others[:8]})"


def _token_of(value: Any) -> tuple[str, str]:
    """Return Dask's token of an input, and how the input is divided."""
    if is_dataarray(value):
        value = value.data
    if isinstance(value, da.Array):
        chunks = digest(repr(value.chunks))
        return value.name, f"{value.npartitions} chunks ({chunks[:8]})"
    if is_table(value) and is_dask_collection(value):
        return value._name, f"{value.npartitions} partitions"
    if is_bag(value):
        return value.name, f"{value.npartitions} partitions"
    return str(tokenize(value)), "whole"


def _predict_in_memory(facts: ModelFacts, x: Any, run: RunOptions, folder: str) -> Any:
    """Cut arrays in memory into chunks, predict these and keep them, and return arrays.

    The chunks are those of the run that has begun in the folder, whatever the cluster is now.
    """
    _, client = chosen_scheduler(effective_retries(run.retries))
    fed = with_fed_defaults(facts, x)
    wanted = resolve_outputs(run.outputs, fed.graph.outputs, fed.known_values)
    values = tuple(computed_values(output_forms(fed, wanted.names)))
    inputs = fed.inputs_of(values)
    given = resolve_feeds(x, fed.inputs, [spec.name for spec in inputs])
    feeds = convert_feeds(given, inputs)
    if unfit := [spec for spec in inputs if not isinstance(feeds[spec.name], np.ndarray)]:
        raise refuse_kind(feeds[unfit[0].name])
    axes = _row_axes(fed, feeds, values, run)
    rows = [feeds[name].shape[axis] for name, axis in axes.items() if axis is not None]
    stored = stored_manifest(folder)
    step = None if stored is None else stored.block_rows
    if step is None:
        step = _rows_of_chunk(max(rows, default=1), run, client)
    # Masked arrays are converted in the tasks, since results are masked by their masks.
    masked = {name: value for name, value in given.items() if has_masks(value)}
    chunked = {
        name: _chunked(masked.get(name, value), axes.get(name), step)
        for name, value in feeds.items()
    }
    kept = _kept_prediction(facts, x, run, TableOptions(), RowOptions())
    store = open_checkpoint(folder, kept.manifest(chunked, step))
    with chunks_kept():
        lazy = keep_result(predict(facts, chunked, run, TableOptions(), RowOptions()), store)
    (found,) = compute_now([lazy], run.retries)
    return found


def _row_axes(
    facts: ModelFacts, feeds: Mapping[str, np.ndarray], values: tuple[str, ...], run: RunOptions
) -> Mapping[str, int | None]:
    """Return the axis of each input along which rows may be cut; None for all if none may."""
    whole = dict.fromkeys(feeds)
    if run.batch_size is None:
        return whole
    batch = facts.batch_at(values, shapes_of(feeds, facts.inputs))
    is_cut = batch.is_proven and all(batch.output_axes[name] is not None for name in values)
    return {name: batch.input_axes.get(name) for name in feeds} if is_cut else whole


def _rows_of_chunk(rows: int, run: RunOptions, client: Any) -> int:
    """Return the rows of a chunk: a multiple of the batch size, and enough chunks for all."""
    threads = available_cores()
    if client is not None:
        threads = int(client.scheduler_info(n_workers=0)["total_threads"]) or 1
    per_run = run.batch_size if isinstance(run.batch_size, int) else _LEAST_ROWS
    step = -(-rows // (_CHUNKS_PER_THREAD * threads))
    return max(1, -(-step // per_run)) * per_run


def _chunked(value: np.ndarray, axis: int | None, step: int) -> da.Array:
    chunks: Sequence[int] = [step if place == axis else -1 for place in range(value.ndim)]
    name = f"array-{digest(str(tokenize(value)), step if axis is not None else None)}"
    array: da.Array = da.from_array(value, chunks=tuple(chunks), name=name)
    return array
