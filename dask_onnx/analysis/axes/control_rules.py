"""Rules of the control-flow operators If, Loop and Scan, by way of their bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.view import NodeView, join
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.modelio.operator_names import standard_op_type

CONTROL_FLOW = frozenset(("If", "Loop", "Scan"))
"""Operators whose bodies are analysed."""

_MAX_ROUNDS = 6
"""Rounds of the fixed-point iteration of loop states; states that still change are OPAQUE."""

RunBody = Callable[[int, Mapping[str, Dependence]], list[Dependence]]
"""Function from a body's number and its inputs' dependences to its outputs' dependences."""


def body_outputs(
    v: NodeView, bodies: Sequence[GraphFacts], is_capturing: bool, run: RunBody
) -> list[Dependence]:
    """Return the dependence of each output of a control-flow node.

    Parameters
    ----------
    v : NodeView
    bodies : sequence of GraphFacts
        Bodies in the order of the node's attributes.
    is_capturing : bool
        True if a body captures values of the enclosing graph that depend on the source axis.
    run : function of a body's number and its inputs' dependences
        Returns the dependences of that body's outputs.
    """
    if v.op == "If":
        return _if(v, bodies, run)
    if v.op == "Loop":
        return _loop(v, bodies[0], run)
    return _scan(v, bodies[0], is_capturing, run)


def _if(v: NodeView, bodies: Sequence[GraphFacts], run: RunBody) -> list[Dependence]:
    """Return the outputs of If: those of both branches merged, raised to the condition's kind."""
    count = len(v.proto.output)  # a damaged branch may return more
    results = [run(index, {})[:count] for index in range(len(bodies))]
    outputs = []
    for branches in zip(*results, strict=True):
        found = branches[0]
        for other in branches[1:]:
            found = _merged(v, found, other)
        condition = v.dep(0)
        if condition.kind != Kind.FREE:
            how = "condition on the length" if condition.kind == Kind.LENGTH else "condition"
            found = found.resized(v.name, how, max(condition.kind, Kind.GATHERED))
        outputs.append(found)
    return outputs


def _merged(v: NodeView, first: Dependence, second: Dependence) -> Dependence:
    """Return the dependence of a value that is either of two."""
    if first.kind == Kind.FREE and second.kind == Kind.FREE:
        return FREE
    if first.index != second.index:
        first, second = first.without_index(), second.without_index()
    same = (first.axis, first.outer, first.inner) == (second.axis, second.outer, second.inner)
    if not same and not (first.axis == second.axis and (first.is_uniform or second.is_uniform)):
        return v.lost(first, Kind.OPAQUE, "branches differ")
    return join(second, first, v.name) if first.is_uniform else join(first, second, v.name)


def _loop(v: NodeView, body: GraphFacts, run: RunBody) -> list[Dependence]:
    """Return the outputs of Loop: final states, then values stacked over the iterations.

    Inputs are the trip count, the condition and the initial states; the body returns condition,
    states and values to stack.
    """
    first_states = [v.dep(i) for i in range(2, len(v.ins))]
    names = list(body.inputs[: 2 + len(first_states)])
    count = v.dep(0)
    fixed: dict[str, Dependence] = {}
    if count.kind != Kind.FREE:
        fixed[names[0]] = Dependence(Kind.LENGTH, node=v.name, how="iterations")
    settled = _settled(v, names[2:], first_states, fixed, run, first=1)
    if settled is None:
        return list(v.opaque("states without a fixed point"))
    states, results = settled
    scanned = [
        dep if dep.axis is None else dep.at(dep.axis + 1) for dep in results[1 + len(states) :]
    ]
    ends_by_value = results[0].kind != Kind.FREE or v.dep(1).kind != Kind.FREE
    outputs = [*states, *scanned]
    if ends_by_value or count.kind != Kind.FREE:
        how = "iterations by value" if ends_by_value else "iterations by length"
        outputs = [v.lost(dep, Kind.SCANNED, how) for dep in outputs]
    return outputs


def _settled(
    v: NodeView,
    names: Sequence[str],
    states: list[Dependence],
    fixed: Mapping[str, Dependence],
    run: RunBody,
    first: int = 0,
) -> tuple[list[Dependence], list[Dependence]] | None:
    """Iterate a body until its states' dependences no longer change.

    Parameters
    ----------
    v : NodeView
    names : sequence of str
        The body's inputs that are states.
    states : list of Dependence
        Initial states.
    fixed : mapping of the body's other inputs to Dependence
    run : function that returns the outputs of the body
    first : int
        Index of the first state among the body's outputs.

    Returns
    -------
    (states, outputs of the body) or None
        None if they still change after `_MAX_ROUNDS`.
    """
    for _ in range(_MAX_ROUNDS):
        given = {**fixed, **dict(zip(names, states, strict=True))}
        results = run(0, {name: dep for name, dep in given.items() if dep.kind != Kind.FREE})
        after = [
            new if old.kind == Kind.FREE else _merged(v, old, new)
            for old, new in zip(states, results[first : first + len(states)], strict=True)
        ]
        if after == states:
            return states, results
        states = after
    return None


def _scan(v: NodeView, body: GraphFacts, is_capturing: bool, run: RunBody) -> list[Dependence]:
    """Return the outputs of Scan: final states, then values stacked over the iterations."""
    count = v.attr("num_scan_inputs", 1)
    n_states = len(v.ins) - count
    axes = v.attr("scan_input_axes") or [0] * count
    out_axes = v.attr("scan_output_axes") or [0] * (len(v.proto.output) - n_states)
    names = list(body.inputs[: len(v.ins)])
    if v.opset < 9:
        return list(v.opaque("Scan before opset 9"))
    if any(v.dep(i).is_resized for i in range(n_states, len(v.ins))):
        return [v.lost(v.dep(n_states), Kind.SCANNED, "iterations")] * len(v.proto.output)
    given: dict[str, Dependence] = {}
    by_element: list[str] = []
    for index, name in enumerate(names):
        dep = v.dep(index)
        if dep.kind == Kind.FREE:
            continue
        if index < n_states:
            given[name] = dep
            continue
        rank = v.rank(index)
        if rank is None:
            return list(v.opaque("unknown rank"))
        axis = axes[index - n_states] % rank
        if dep.axis == axis:
            by_element.append(name)
        else:
            given[name] = dep if dep.axis is None else dep.at(dep.axis - (axis < dep.axis))
    if by_element:
        # Other inputs are read once for each position, and captured values as a whole.
        is_alone = not given and not is_capturing and len(by_element) == count
        return _scan_positions(v, body, n_states, by_element, is_alone, out_axes)
    return _scan_beside(v, n_states, names, given, run, out_axes)


def _scan_positions(
    v: NodeView,
    body: GraphFacts,
    n_states: int,
    by_element: Sequence[str],
    is_alone: bool,
    out_axes: Sequence[int],
) -> list[Dependence]:
    """Return the outputs where the positions are the scanned axis.

    Outputs computed without a state are independent; the others are SCANNED.
    """
    deps = [v.dep(body.inputs.index(name)) for name in by_element]
    lead = deps[0]
    for dep in deps[1:]:
        lead = join(lead, dep, v.name)
    if not is_alone:
        return [v.lost(lead, Kind.PAIRED, "scan that reads other inputs")] * len(v.proto.output)
    if any((dep.outer, dep.inner) != (1, 1) for dep in deps):
        return list(v.opaque("merged axes"))
    if v.attr("scan_input_directions") or v.attr("scan_output_directions"):
        return list(v.opaque("scan directions"))
    states = set(body.inputs[:n_states])
    outputs = []
    for number, value in enumerate(body.outputs):
        read = _inputs_of(body, value)
        axis = out_axes[number - n_states] if number >= n_states else 0
        rank = len(v.out_shape(number) or ())
        if number < n_states:
            is_kept = read == {body.inputs[number]}
            outputs.append(FREE if is_kept else v.lost(lead, Kind.SCANNED, "states of a scan"))
        elif not read.isdisjoint(states):
            outputs.append(v.lost(lead, Kind.SCANNED, "states of a scan"))
        elif axis < 0 and not rank:
            outputs.append(v.lost(lead, Kind.OPAQUE, "unknown rank"))
        else:
            outputs.append(lead.without_index().at(axis % rank if axis < 0 else axis))
    return outputs


def _inputs_of(body: GraphFacts, value: str) -> set[str]:
    """Return the body's inputs that a value is computed from, and "" unless it is a plain copy."""
    if value in body.inputs:
        return {value}
    nodes, read = body.between((), (value,))
    found = {name for name in read if name in body.inputs}
    return (
        found if all(standard_op_type(body.nodes[i]) == "Identity" for i in nodes) else {"", *found}
    )


def _scan_beside(
    v: NodeView,
    n_states: int,
    names: Sequence[str],
    given: Mapping[str, Dependence],
    run: RunBody,
    out_axes: Sequence[int],
) -> list[Dependence]:
    """Return the outputs where the positions lie on another axis than the scanned one."""
    first_states = [given.get(name, FREE) for name in names[:n_states]]
    fixed = {name: dep for name, dep in given.items() if name not in names[:n_states]}
    settled = _settled(v, names[:n_states], first_states, fixed, run)
    if settled is None:
        return list(v.opaque("states without a fixed point"))
    states, results = settled
    scanned = []
    for number, (dep, axis) in enumerate(zip(results[n_states:], out_axes, strict=False)):
        rank = len(v.out_shape(n_states + number) or ())
        if dep.axis is None:
            scanned.append(dep)
        elif axis < 0 and not rank:
            scanned.append(v.lost(dep, Kind.OPAQUE, "unknown rank"))
        else:
            place = axis % rank if axis < 0 else axis
            scanned.append(dep.at(dep.axis + (place <= dep.axis)))
    return [*states, *scanned]
