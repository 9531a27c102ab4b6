"""Measurement of the seconds that each node of a model takes on this host.

The model is cut into stages by kernel, which run one after the other on real values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dask_onnx.core.specs import SessionSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.onnx_model import OnnxModel, StageExtractor
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.stages import Stage
from dask_onnx.runtime.profile import (
    PROFILE_SECONDS,
    NodeTimes,
    StageTimes,
    number_nodes,
    profile_stage,
    save_node_times,
    time_stage,
)
from dask_onnx.runtime.stage_refs import spec_of_value
from dask_onnx.store.supply import fetch_blobs
from dask_onnx.store.weight_store import Store

Values = Mapping[str, Any]
"""Inputs or other values by name."""
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of arrays by name."""


def measure_nodes(
    facts: ModelFacts, requests: Sequence[Values], spec: SessionSpec
) -> list[NodeTimes]:
    """Return the seconds of each node on one thread, for each of several requests.

    Times that are saved for the same shapes are reused. Other requests run a few times. A stage of
    ONNX Runtime's nodes runs under its profiler. A stage of kernels in Python is timed as a whole,
    and its time is divided among its nodes in proportion to their predicted times.

    Parameters
    ----------
    facts : ModelFacts
        The model.
    requests : sequence of mapping of str to array
        Values of all inputs by name.
    spec : SessionSpec
        Options of the sessions; the number of threads is set to 1.

    Returns
    -------
    list of NodeTimes
        One for each request.

    Raises
    ------
    StageError
        A stage cannot be built on this host, or fails on the values.
    """
    spec = replace(spec, intra_op_num_threads=1)
    known = {
        _key(times.shapes): times
        for times in facts.saved_node_times(spec)
        if times.session == repr(spec)
    }
    new = [
        feeds for feeds in requests if not (_has_shapes(feeds) and _key(shapes_of(feeds)) in known)
    ]
    for times in _run(facts, new, spec) if new else ():
        save_node_times(facts.times_token_of(spec), times)
        known[_key(times.shapes)] = times
    return [known[_key(shapes_of(feeds))] for feeds in requests]


def shapes_of(feeds: Values) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the values that are arrays."""
    return {name: value.shape for name, value in feeds.items() if isinstance(value, np.ndarray)}


def _key(shapes: Shapes) -> tuple[Any, ...]:
    return tuple(sorted(shapes.items()))


def _has_shapes(feeds: Values) -> bool:
    """Return whether all values are arrays, so that shapes determine the work of a request."""
    return len(shapes_of(feeds)) == len(feeds)


@dataclass(slots=True)
class _Request:
    """State of one request while its stages run."""

    shapes: Shapes
    """Shapes of the inputs."""
    values: dict[str, Any]
    """Values known so far that later stages read."""
    predicted: Mapping[int, float]
    """Node number to predicted seconds, of nodes with kernels in Python."""
    seconds: dict[int, float] = field(default_factory=dict)
    """Node number to measured seconds."""
    whole: float = 0.0
    """Measured seconds of all stages so far."""

    def add(self, stage: Stage, times: StageTimes, still_read: Collection[str]) -> None:
        """Add a stage's times and results, and drop values that no later stage reads."""
        self.seconds |= times.seconds
        self.whole += times.whole
        for spec, value in zip(stage.outputs, times.results, strict=True):
            self.values[spec.name] = _plain(value)
        self.values = {name: v for name, v in self.values.items() if name in still_read}


def _run(facts: ModelFacts, feeds: Sequence[Values], spec: SessionSpec) -> list[NodeTimes]:
    recipe = Recipe("whole", shapes_of(feeds[0]), spec)
    stages = facts.cut(recipe, facts.graph.outputs).stages
    in_python = [stage for stage in stages if stage.kernel != "onnxruntime"]
    requests = [
        _Request(
            shapes_of(each),
            {name: _plain(value) for name, value in each.items()},
            _predicted(facts, in_python, replace(recipe, shapes=shapes_of(each))),
        )
        for each in feeds
    ]
    extractor = StageExtractor(number_nodes(facts.onnx.parse()))
    with _weights(facts.onnx) as blobs:
        runner = _Runner(facts, extractor, blobs, spec, PROFILE_SECONDS / len(stages))
        for number, stage in enumerate(stages):
            found = runner.run(stage, requests)
            still_read = {spec.name for each in stages[number + 1 :] for spec in each.inputs}
            for request, times in zip(requests, found, strict=True):
                request.add(stage, times, still_read)
    return [NodeTimes(each.shapes, each.seconds, each.whole, repr(spec)) for each in requests]


def _predicted(facts: ModelFacts, stages: Sequence[Stage], recipe: Recipe) -> dict[int, float]:
    """Return the predicted seconds of each node of some stages, by node number."""
    if not stages:
        return {}
    cut = facts.cut_inputs(recipe, facts.graph.outputs)
    return {
        node: cut.costs.seconds(cut.node_costs[node], stage.kernel)
        for stage in stages
        for node in stage.nodes
    }


@contextlib.contextmanager
def _weights(model: OnnxModel) -> Iterator[Path]:
    """Put the model's weights into the host's store and keep them there; return their folder."""
    store = Store()
    with store.shared_access():
        store.put(model)
        lease = store.lease(model.token)
        try:
            fetch_blobs(store, model.ref, model.blob_keys, ())
            yield store.blobs
        finally:
            lease.release()


@dataclass(frozen=True, slots=True)
class _Runner:
    """Function that runs a stage on its kernel with each of several requests."""

    facts: ModelFacts
    """The model."""
    extractor: StageExtractor
    """Source of the stages' ONNX models, whose nodes are named by number."""
    blobs: Path
    """Folder of the weights."""
    spec: SessionSpec
    """Options of the sessions."""
    max_seconds: float
    """Seconds after which a stage is not run again; it runs once at least."""

    def run(self, stage: Stage, requests: Sequence[_Request]) -> list[StageTimes]:
        """Return the times and results of a stage, one for each request."""
        inputs = [spec_of_value(spec, requests[0].values[spec.name]) for spec in stage.inputs]
        proto = self.extractor.extract(stage.nodes, inputs, stage.outputs)
        feeds = [{spec.name: each.values[spec.name] for spec in inputs} for each in requests]
        max_seconds = self.max_seconds
        if stage.kernel == "onnxruntime":
            return profile_stage(
                proto, self.blobs, self.spec, feeds, label=stage.label, max_seconds=max_seconds
            )
        custom = self.facts.custom if stage.kernel == "custom" else None
        operators = () if custom is None else custom.operators()
        shares = [{node: each.predicted[node] for node in stage.nodes} for each in requests]
        return time_stage(
            proto, self.blobs, operators, feeds, shares, label=stage.label, max_seconds=max_seconds
        )


def _plain(value: Any) -> Any:
    """Return strings as objects, as tasks pass them to kernels; other values unchanged."""
    is_text = isinstance(value, np.ndarray) and value.dtype.kind in "UST"
    return value.astype(object) if is_text else value
