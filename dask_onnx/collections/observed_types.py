"""Types of outputs that no rule infers, found by running the nodes that make them.

A dask.array and a table need dtype, rank and sizes of a result before anything is computed. ONNX's
inference and the rules of this package know those of all operators of ONNX, and of most of ONNX
Runtime's. What a model declares of its outputs is no substitute: kernels need not keep to it. So
where the rank of a wanted output follows from no rule, each node that stops the inference runs on
made-up inputs (zeros, then ones, with few rows), in this process, once for each model. The nodes
behind it do not.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dask_onnx.analysis.graph import NodeFacts
from dask_onnx.analysis.learned_types import LearnedType, Observation, is_typed, learned_type
from dask_onnx.analysis.row_probes import probe_shapes
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.collections.eager import predict_eager
from dask_onnx.collections.request_builder import build_request
from dask_onnx.collections.run_options import RunOptions
from dask_onnx.core.errors import DaskOnnxError
from dask_onnx.core.specs import SessionSpec, TensorSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.facts.staged_model import whole_model
from dask_onnx.modelio.onnx_model import extract_onnx
from dask_onnx.runtime.session import has_onnxruntime

log = logging.getLogger(__name__)

_SIZES = ((2, (8, 6)), (3, (9, 7, 5)))
"""Rows, and sizes of other open dimensions in turns, of the two shapes that a node runs at."""
_MAX_NODES = 16
"""Nodes that are run at most, one after the other."""
_MAX_WEIGHT_BYTES = 64 * 2**20
"""Bytes of weights up to which a node is run."""
_MAX_RUN_SECONDS = 2.0
"""Seconds that a run may take: a loop that ends by value may not end on made-up inputs."""
_OBSERVED = "observed types"
"""First part of the key of the values that were looked at, among a model's results."""


def observe_types(facts: ModelFacts, values: Sequence[str]) -> None:
    """Find the types of values that no rule infers, by running nodes on made-up inputs.

    The types are kept with the model. Nothing runs where all types follow from rules, or where
    ONNX Runtime is not installed; a node that fails on made-up inputs keeps its declared type.

    Parameters
    ----------
    facts : ModelFacts
        The model.
    values : sequence of str
        Graph outputs or intermediate values.
    """
    if all(is_typed(facts.inferred.get(name)) for name in values) or not has_onnxruntime():
        return
    key = (_OBSERVED, tuple(values))
    if facts.kept.get(key):
        return
    failed: set[int] = set()
    for _ in range(_MAX_NODES):
        found = _next_node(facts, values, failed)
        if found is None:
            break
        node, specs = found
        types = _observed(facts, node, specs)
        if types:
            facts.learn(types)
        else:
            failed.add(node.index)
    facts.kept.put(key, True)


def _next_node(
    facts: ModelFacts, values: Sequence[str], failed: set[int]
) -> tuple[NodeFacts, Sequence[Mapping[str, TensorSpec]]] | None:
    """Return the first node that stops the inference, with all specs at both shapes."""
    if all(is_typed(facts.inferred.get(name)) for name in values):
        return None
    axes, _ = facts.input_axes
    seeds = {name: axis for name, axis in axes.items() if axis is not None}
    specs = [
        infer_shapes(
            facts.graph,
            probe_shapes(facts.onnx, seeds, None, rows, sizes),
            facts.schemas,
            trusts_outputs=False,
        )
        for rows, sizes in _SIZES
    ]
    for index in facts.graph.ancestors(values):
        node = facts.graph.nodes[index]
        if index in failed or all(is_typed(facts.inferred.get(name)) for name in node.outputs):
            continue
        # With sizes, rules know its types: made-up sizes, equal by chance, would say less.
        if all(is_typed(each.get(name)) for each in specs for name in node.outputs):
            continue
        read = [name for name in node.reads if name not in facts.graph.initializers]
        if all(_is_complete(each.get(name)) for each in specs for name in read):
            return node, specs
    return None


def _is_complete(spec: TensorSpec | None) -> bool:
    if spec is None or spec.dtype is None or spec.shape is None:
        return False
    return all(isinstance(dim, int) for dim in spec.shape)


def _observed(
    facts: ModelFacts, node: NodeFacts, specs: Sequence[Mapping[str, TensorSpec]]
) -> dict[str, LearnedType]:
    """Return the types of a node's outputs; those on which runs do not agree are left out."""
    read = [name for name in dict.fromkeys(node.reads) if name not in facts.graph.initializers]
    open_inputs = [
        TensorSpec(name, specs[0][name].dtype, (None,) * len(specs[0][name].shape or ()))
        for name in read
    ]
    outputs = [TensorSpec(name, None, None) for name in node.outputs]
    part = extract_onnx(facts.onnx, [node.index], open_inputs, outputs)
    if part.parameter_bytes > _MAX_WEIGHT_BYTES:
        return {}
    alone = ModelFacts(part, facts.custom, facts.libraries)
    log.info(
        "node %r (%r) of model %r runs on made-up inputs: its output types follow from no rule",
        *(node.name, node.op_type, facts.name),
    )
    runs: dict[str, list[Observation]] = {name: [] for name in node.outputs}
    for each in specs:
        shapes = [None if (s := each.get(name)) is None else s.shape for name in node.inputs]
        for fill in (0, 1):
            feeds = {name: _made_up(each[name], fill) for name in read}
            try:
                results = _run(alone, feeds)
            except DaskOnnxError as error:
                log.info("node %r keeps its declared types: %s", node.name, error.cause)
                return {}
            for name, value in results.items():
                runs[name].append(Observation(tuple(map(_sizes, shapes)), value))
    found = {name: learned_type(each) for name, each in runs.items()}
    return {name: kind for name, kind in found.items() if kind is not None}


def _sizes(shape: Sequence[Any] | None) -> tuple[int, ...] | None:
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        return None
    return tuple(shape)


def _made_up(spec: TensorSpec, fill: int) -> np.ndarray:
    shape = tuple(dim for dim in spec.shape or () if isinstance(dim, int))
    if spec.dtype == object:
        return np.full(shape, "" if fill == 0 else "a b", object)
    return np.full(shape, fill, spec.dtype)


def _run(facts: ModelFacts, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    session = SessionSpec(max_run_seconds=_MAX_RUN_SECONDS)
    run = RunOptions(list(facts.graph.outputs), None, whole_model(facts, session))
    request, arrays, _ = build_request(facts, feeds, run, inline=True)
    return predict_eager(request, arrays, inline=True)
