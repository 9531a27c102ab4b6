"""Comparison of claims about an axis with runs.

A model is run in pieces, on permuted positions, or with the values of one position replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.analysis.axes.propagate import propagate
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.row_candidates import Candidate
from dask_onnx.analysis.row_probes import probe_specs
from dask_onnx.analysis.row_proofs import prove

RTOL, ATOL = 2e-3, 1e-5
"""Tolerances of rounding; RTOL is relative to the largest absolute value of an output."""

Feeds = Mapping[str, Any]


class CannotRunError(Exception):
    """Neither ONNX Runtime nor ONNX's reference evaluator runs a model on given inputs."""


class Runner:
    """Model in ONNX Runtime without optimisation, or else in ONNX's reference evaluator.

    Parameters
    ----------
    model : onnx.ModelProto
    any_kernel : bool
        True if the reference evaluator may run what ORT cannot.

    Raises
    ------
    CannotRunError
        No evaluator accepts the model.
    """

    def __init__(self, model: onnx.ModelProto, *, any_kernel: bool = True) -> None:
        self.model, self.any_kernel = model, any_kernel
        self.outputs = [value.name for value in model.graph.output]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._run = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            ).run
        except Exception as error:
            # ORT raises different classes for missing kernels and for invalid graphs.
            if not any_kernel:
                raise CannotRunError(str(error)) from error
            self._run = _reference(model)

    def __call__(self, feeds: Feeds, outputs: Sequence[str] = ()) -> dict[str, Any]:
        """Return outputs by name, all of them by default.

        Raises
        ------
        CannotRunError
            The model rejects the inputs.
        """
        names = list(outputs or self.outputs)
        try:
            found = self._run(names, dict(feeds))
        except Exception as error:  # whatever ONNX Runtime raises
            raise CannotRunError(str(error).splitlines()[0]) from error
        return dict(zip(names, found, strict=True))

    def only(self, output: str) -> Runner:
        """Return a runner of the subgraph of one output."""
        made = onnx.ModelProto()
        made.CopyFrom(self.model)
        needed, kept = {output}, []
        for node in reversed(made.graph.node):
            if not needed.isdisjoint(node.output):
                kept.append(node)
                needed |= set(names_read(node))
        del made.graph.node[:]
        made.graph.node.extend(kept[::-1])
        wanted = [value for value in made.graph.output if value.name == output]
        del made.graph.output[:]
        made.graph.output.extend(wanted)
        return Runner(made, any_kernel=self.any_kernel)


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Return the names that a node reads, including those in its bodies."""
    yield from node.input
    for body in (attribute.g for attribute in node.attribute if attribute.HasField("g")):
        for inner in body.node:
            yield from names_read(inner)


def _reference(model: onnx.ModelProto) -> Any:
    try:
        return ReferenceEvaluator(model).run
    except Exception as error:  # whatever the evaluator raises
        raise CannotRunError(str(error)) from error


def same(found: Any, expected: Any) -> bool:
    """Return whether two outputs have equal shapes, and elements equal up to rounding."""
    if isinstance(found, list) or isinstance(expected, list):
        alike = isinstance(found, list) and isinstance(expected, list)
        return alike and len(found) == len(expected) and all(map(same, found, expected))
    if found is None or expected is None:
        return found is expected
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if found.dtype.kind in "OUS" or found.dtype.kind not in "iufcb":
        return bool((found == expected).all())
    if found.dtype in (np.int8, np.uint8):  # quantised values may differ by one step
        return bool((abs(found.astype(int) - expected.astype(int)) <= 1).all())
    if found.dtype.kind in "iub":
        return bool((found == expected).all())
    wide = np.complex128 if found.dtype.kind == "c" else np.float64
    return _close(found.astype(wide), expected.astype(wide), 10 if found.itemsize == 2 else 1)


def _close(found: np.ndarray, expected: np.ndarray, coarser: float) -> bool:
    finite = np.isfinite(expected)
    if (finite != np.isfinite(found)).any():
        return False
    special = ~finite
    if not (((found == expected) | (np.isnan(found) & np.isnan(expected)))[special]).all():
        return False
    top = np.abs(expected[finite]).max(initial=0.0)
    gap = np.abs(found[finite] - expected[finite]).max(initial=0.0)
    return bool(gap <= coarser * (ATOL + RTOL * top))


# Feeds.


def count(feeds: Feeds, seeds: Candidate) -> int:
    """Return the number of positions, which all inputs in `seeds` share."""
    (positions,) = {feeds[name].shape[axis] for name, axis in seeds.items()}
    return int(positions)


def picked(feeds: Feeds, seeds: Candidate, positions: Sequence[int]) -> dict[str, Any]:
    """Return the inputs restricted to some positions."""
    return {
        name: np.take(array, positions, axis=seeds[name]) if name in seeds else array
        for name, array in feeds.items()
    }


def replaced(feeds: Feeds, seeds: Candidate, position: int, seed: int = 0) -> dict[str, Any]:
    """Return the inputs with the values of one position replaced by others of a similar range."""
    rng = np.random.default_rng(seed)
    made = dict(feeds)
    for name, axis in seeds.items():
        array = np.array(feeds[name])
        by_position = np.moveaxis(array, axis, 0)  # a view
        other = np.resize(rng.permutation(array.reshape(-1)), by_position.shape[1:])
        if array.dtype.kind == "f" and array.dtype.itemsize >= 4:
            other = other * array.dtype.type(1.75) + array.dtype.type(0.5)
        by_position[position] = other
        made[name] = array
    return made


def splits(positions: int) -> list[list[list[int]]]:
    """Return partitions in two: the first and the rest, halves, the first two and the rest."""
    cuts = sorted({1, positions // 2, min(2, positions - 1)} - {0})
    whole = list(range(positions))
    return [[whole[:cut], whole[cut:]] for cut in cuts]


# Claims that runs contradict.


def faults_of_rows(
    runner: Runner, feeds: Feeds, seeds: Candidate, axes: Mapping[str, int | None]
) -> dict[str, str]:
    """Check by runs that pieces of the inputs yield pieces of the outputs.

    Parameters
    ----------
    runner : Runner
    feeds : mapping of str to array
        Inputs.
    seeds : mapping of input to axis
        Source axis, along which the inputs are cut.
    axes : mapping of output to axis
        Axis along which pieces are concatenated; None for an output that is equal for all pieces.

    Returns
    -------
    dict of output to str
        Description of each contradiction; outputs that agree are left out.
    """
    try:
        return _faults_of_rows(runner, feeds, seeds, axes)
    except CannotRunError:
        faults: dict[str, str] = {}
        for name, axis in axes.items():  # separately, as another output may be the one that fails
            try:
                faults |= _faults_of_rows(runner.only(name), feeds, seeds, {name: axis})
            except CannotRunError as error:
                faults |= _not_run({name: axis}, f"does not run: {error}")
        return faults


def _faults_of_rows(
    runner: Runner, feeds: Feeds, seeds: Candidate, axes: Mapping[str, int | None]
) -> dict[str, str]:
    names = list(axes)
    whole = runner(feeds, names)
    faults: dict[str, str] = {}
    for pieces in splits(count(feeds, seeds)):
        parts = [runner(picked(feeds, seeds, piece), names) for piece in pieces]
        for name, axis in axes.items():
            if not same(_joined([part[name] for part in parts], axis), whole[name]):
                sizes = "+".join(str(len(piece)) for piece in pieces)
                faults.setdefault(name, f"pieces {sizes} differ")
    order = np.random.default_rng(0).permutation(count(feeds, seeds)).tolist()
    turned = runner(picked(feeds, seeds, order), names)
    for name, axis in axes.items():
        expected = whole[name] if axis is None else _picked_of(whole[name], axis, order)
        if not same(turned[name], expected):
            faults.setdefault(name, "permuted positions differ")
    return faults


def _not_run(axes: Mapping[str, int | None], text: str) -> dict[str, str]:
    """Return the fault of each output with rows; others do not imply that the axis may vary."""
    return {name: text for name, axis in axes.items() if axis is not None}


def _joined(parts: Sequence[Any], axis: int | None) -> Any:
    if axis is None:
        return parts[0] if all(same(part, parts[0]) for part in parts) else None
    try:
        return np.concatenate(parts, axis=axis)
    except ValueError:  # shapes that cannot be concatenated
        return None


def _picked_of(value: Any, axis: int, order: Sequence[int]) -> Any:
    array = np.asarray(value)
    fits = array.ndim > axis and array.shape[axis] == len(order)
    return np.take(array, order, axis=axis) if fits else None


def faults_of_dependence(
    runner: Runner, feeds: Feeds, seeds: Candidate, deps: Mapping[str, Dependence]
) -> dict[str, str]:
    """Check by runs that replacing one position changes only the elements that may read it.

    Covers outputs of kind FREE, INDEPENDENT and WINDOW, at the sizes of `feeds`. Returns a
    description of each contradiction by output.
    """
    if not deps:
        return {}
    positions, names = count(feeds, seeds), list(deps)
    whole = runner(feeds, names)
    faults: dict[str, str] = {}
    for position in sorted({0, positions // 2, positions - 1}):
        try:
            other = runner(replaced(feeds, seeds, position, position), names)
        except CannotRunError:
            continue  # the model rejects the values
        for name, dep in deps.items():
            if dep.kind > Kind.WINDOW or name in faults or dep.coupled:
                continue
            before, after = np.asarray(whole[name]), np.asarray(other[name])
            if before.shape != after.shape:
                faults[name] = f"values at {position} change the shape"
                continue
            keep = untouched(dep, before.shape, positions, position)
            if keep is None:
                faults[name] = f"no {dep.outer} x {positions} x {dep.inner} on axis {dep.axis}"
            elif not same(after[keep], before[keep]):
                faults[name] = f"values at {position} change elements of others"
    return faults


def untouched(
    dep: Dependence, shape: Sequence[int], positions: int, position: int
) -> np.ndarray | None:
    """Return a mask of the elements that do not read a position; None if `dep` has another shape.

    The mask has shape `shape`.
    """
    if dep.kind == Kind.FREE:
        return np.ones(shape, bool)
    if dep.axis is None or dep.axis >= len(shape):
        return None
    size = shape[dep.axis]
    length, rest = divmod(size, max(dep.outer * dep.inner, 1))
    if rest or (dep.kind == Kind.INDEPENDENT and length != positions):
        return None
    keep = np.ones(size, bool)
    for index, place in enumerate((np.arange(size) // dep.inner % max(length, 1)).tolist()):
        start, stop = dep.window.interval(place, place + 1)
        keep[index] = not start <= position < stop
    dims = [1] * len(shape)
    dims[dep.axis] = size
    return np.broadcast_to(keep.reshape(dims), tuple(shape))


# Claims.


def forget_shapes(graph: onnx.GraphProto) -> None:
    """Remove the declared shapes of all values except the main graph's inputs."""
    del graph.value_info[:]
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for body in (a.g for node in graph.node for a in node.attribute if a.HasField("g")):
        forget_shapes(body)
        for value in body.input:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")


def with_open_axes(
    model: onnx.ModelProto,
    feeds: Feeds,
    seeds: Candidate,
    frozen: Sequence[str] = (),
) -> onnx.ModelProto:
    """Return a model whose tensor inputs have the sizes of `feeds`, and "N" along `seeds`.

    Inputs in `frozen` become initializers.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    forget_shapes(graph)
    kept = [value for value in graph.input if value.name not in frozen]
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(feeds[name]), name) for name in frozen
    )
    del graph.input[:]
    graph.input.extend(kept)
    for value in graph.input:
        if not value.type.HasField("tensor_type") or value.name not in feeds:
            continue
        dims: list[int | str] = list(np.shape(feeds[value.name]))
        if value.name in seeds:
            dims[seeds[value.name]] = "N"
        elem_type = value.type.tensor_type.elem_type
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, elem_type, dims))
    return made


class Blocked(NamedTuple):
    """Reason why an output is not claimed to be independent."""

    node: str
    op_type: str
    kind: str
    how: str


def claims(
    facts: GraphFacts, outputs: Sequence[str], seeds: Candidate
) -> tuple[dict[str, int | None], dict[str, Blocked]]:
    """Return the axes of independent outputs, and the reasons for the others.

    The axis is None for an output that does not depend on the rows at all.
    """
    found = prove(facts, tuple(outputs), seeds)
    blocked = {b.output: Blocked(b.node, b.op_type, b.kind.label, b.how) for b in found.blockers}
    others = tuple(name for name in outputs if name not in blocked)
    if blocked and others:  # the second number of rows is probed only if nothing blocks
        found = prove(facts, others, seeds)
        blocked |= {
            b.output: Blocked(b.node, b.op_type, b.kind.label, b.how) for b in found.blockers
        }
    axes = {name: found.output_axes[name] for name in others if name not in blocked}
    if None in axes.values():  # of unknown type, or equal for all rows
        deps = propagate(facts, probe_specs(facts, seeds, None, None)[0], seeds)
        axes = {n: axis for n, axis in axes.items() if axis is not None or n not in deps}
    return ({} if found.coupled else axes), blocked
