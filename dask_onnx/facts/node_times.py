"""What each node of a model takes here: the stages that its kernels make of it run one after the
other, on real values."""

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
from dask_onnx.runtime.kernel import spec_as_given
from dask_onnx.runtime.profile import (
    ENOUGH_SECONDS,
    NodeTimes,
    StageTimes,
    note_times,
    number_nodes,
    profile_stage,
    time_stage,
)
from dask_onnx.store.supply import fetch_blobs
from dask_onnx.store.weight_store import Store

Values = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


def measure_nodes(
    facts: ModelFacts, requests: Sequence[Values], spec: SessionSpec
) -> list[NodeTimes]:
    """What each node took on one thread with each of some requests.

    What is noted at the very shapes comes from the notes. The rest runs a few times: a stage of
    ONNX Runtime's nodes under its profiler; one of nodes in Python by the clock, whose time is
    told among them as it was predicted.

    Parameters
    ----------
    requests : values of all inputs by name

    Raises
    ------
    StageError
        A stage cannot be built here, or not be run on the values.
    """
    spec = replace(spec, intra_op_num_threads=1)
    noted = {
        _key(times.shapes): times for times in facts.noted_times() if times.session == repr(spec)
    }
    new = [
        feeds for feeds in requests if not (_says_all(feeds) and _key(shapes_of(feeds)) in noted)
    ]
    for times in _run(facts, new, spec) if new else ():
        note_times(facts.times_token, times)
        noted[_key(times.shapes)] = times
    return [noted[_key(shapes_of(feeds))] for feeds in requests]


def shapes_of(feeds: Values) -> dict[str, tuple[int, ...]]:
    """Of all values that are arrays."""
    return {name: value.shape for name, value in feeds.items() if isinstance(value, np.ndarray)}


def _key(shapes: Shapes) -> tuple[Any, ...]:
    return tuple(sorted(shapes.items()))


def _says_all(feeds: Values) -> bool:
    """Whether its shapes say how much a request is to do: those of a sequence do not."""
    return len(shapes_of(feeds)) == len(feeds)


@dataclass(slots=True)
class _Request:
    """One request on its way through the stages."""

    shapes: Shapes
    values: dict[str, Any]
    """Those that are there, and that a stage is still to read."""
    predicted: Mapping[int, float]
    """Seconds of the nodes in Python."""
    seconds: dict[int, float] = field(default_factory=dict)
    whole: float = 0.0

    def note(self, stage: Stage, times: StageTimes, still_read: Collection[str]) -> None:
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
        runner = _Runner(facts, extractor, blobs, spec, ENOUGH_SECONDS / len(stages))
        for number, stage in enumerate(stages):
            found = runner.run(stage, requests)
            still_read = {spec.name for each in stages[number + 1 :] for spec in each.inputs}
            for request, times in zip(requests, found, strict=True):
                request.note(stage, times, still_read)
    return [NodeTimes(each.shapes, each.seconds, each.whole, repr(spec)) for each in requests]


def _predicted(facts: ModelFacts, stages: Sequence[Stage], recipe: Recipe) -> dict[int, float]:
    """Seconds of each node of some stages."""
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
    """The folder that the model's weights are in, and stay in for as long."""
    store = Store()
    with store.using():
        store.put(model)
        lease = store.lease(model.token)
        try:
            fetch_blobs(store, model.ref, model.blob_keys, ())
            yield store.blobs
        finally:
            lease.release()


@dataclass(frozen=True, slots=True)
class _Runner:
    """Runs a stage with each of some requests, on the kernel that it has."""

    facts: ModelFacts
    extractor: StageExtractor
    blobs: Path
    spec: SessionSpec
    enough: float
    """Seconds that a stage may run for, after a first time."""

    def run(self, stage: Stage, requests: Sequence[_Request]) -> list[StageTimes]:
        inputs = [spec_as_given(spec, requests[0].values[spec.name]) for spec in stage.inputs]
        proto = self.extractor.extract(stage.nodes, inputs, stage.outputs)
        feeds = [{spec.name: each.values[spec.name] for spec in inputs} for each in requests]
        enough = self.enough
        if stage.kernel == "onnxruntime":
            return profile_stage(
                proto, self.blobs, self.spec, feeds, label=stage.label, enough=enough
            )
        custom = self.facts.custom if stage.kernel == "custom" else None
        operators = () if custom is None else custom.operators()
        shares = [{node: each.predicted[node] for node in stage.nodes} for each in requests]
        return time_stage(
            proto, self.blobs, operators, feeds, shares, label=stage.label, enough=enough
        )


def _plain(value: Any) -> Any:
    """Text as Python's strings, as tasks hand it to kernels."""
    is_text = isinstance(value, np.ndarray) and value.dtype.kind in "UST"
    return value.astype(object) if is_text else value
