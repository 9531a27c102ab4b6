"""Checks of model-local functions: none calls itself, and inlining does not explode.

Thirty functions that each call the one before twice are two kilobytes, and 2**30 nodes when calls
are replaced by bodies. The size after inlining is therefore computed first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from dask_onnx.core import config
from dask_onnx.core.errors import ModelError, Suggestion
from dask_onnx.modelio.operator_names import canonical_domain
from dask_onnx.modelio.weights import with_bodies
from dask_onnx.modelio.wire import MAX_PROTO_BYTES

_Key = tuple[str, str, str]
"""Domain, name and overload of a function."""
_MAX_CALLS = 100
"""Length of a chain of calls that ONNX's inliner follows."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """Nodes of one function's body, or of the main graph."""

    nodes: int
    """Nodes that call no function."""
    bytes: int
    """Serialised bytes of all nodes."""
    calls: Mapping[_Key, int]
    """Number of calls of each function."""


def check_functions(model: onnx.ModelProto, kept: Collection[tuple[str, str]]) -> None:
    """Check the calls of functions, and the number of nodes after they are inlined.

    Parameters
    ----------
    model : ModelProto
    kept : collection of (str, str)
        Domain and name of functions that are not inlined.

    Raises
    ------
    ModelError
        A function calls itself, directly or through others; or the model would have more nodes than
        ``onnx.model.max-nodes`` or more bytes than protobuf allows. ``numbers`` has them.
    """
    limit = int(config.get("model.max-nodes"))
    _check_size(len(model.graph.node), 0, limit, "has")
    if not model.functions:
        return
    bodies: dict[_Key, onnx.FunctionProto] = {}
    for function in model.functions:
        key = (canonical_domain(function.domain), function.name, function.overload)
        if key in bodies:
            raise ModelError(
                f"the function {function.name!r} of domain {function.domain!r} is defined twice",
                "export the model again",
            )
        if key[:2] not in kept:
            bodies[key] = function
    parts = {key: _parts(function.node, bodies) for key, function in bodies.items()}
    sizes: dict[_Key, tuple[int, int]] = {}
    depths: dict[_Key, int] = {}
    for key in _callees_first(parts):
        sizes[key] = _inlined(parts[key], sizes)
        depths[key] = 1 + max((depths[callee] for callee in parts[key].calls), default=0)
    _check_depth(depths)
    nodes, size = _inlined(_parts(model.graph.node, bodies), sizes)
    _check_size(nodes, size, limit, "has, with its functions inlined,")


def _check_depth(depths: Mapping[_Key, int]) -> None:
    deepest = max(depths, key=depths.__getitem__, default=None)
    if deepest is not None and depths[deepest] > _MAX_CALLS:
        raise ModelError(
            f"the function {deepest[1]!r} is the first of {depths[deepest]:,} that call each other "
            f"in turn; ONNX follows {_MAX_CALLS}",
            "export the model without functions, or with fewer inside each other",
            node=deepest[1],
            numbers={"calls": depths[deepest], "most_calls": _MAX_CALLS},
        )


def _check_call(node: onnx.NodeProto, function: onnx.FunctionProto) -> None:
    for what in ("input", "output"):
        given, taken = len(getattr(node, what)), len(getattr(function, what))
        if given > taken:
            raise ModelError(
                f"node {node.name or node.op_type!r} has {given} {what}s; the function "
                f"{function.name!r} that it calls has {taken}",
                "export the model again: it is damaged, or its exporter has a fault",
                node=node.name or node.op_type,
                numbers={f"{what}s": given, "most": taken},
            )


def _parts(nodes: Iterable[onnx.NodeProto], bodies: Mapping[_Key, onnx.FunctionProto]) -> _Parts:
    count = size = 0
    calls: dict[_Key, int] = {}
    for node in nodes:
        size += node.ByteSize()
        for inner in with_bodies(node):
            key = (canonical_domain(inner.domain), inner.op_type, inner.overload)
            if key in bodies:
                _check_call(inner, bodies[key])
                calls[key] = calls.get(key, 0) + 1
            else:
                count += 1
    return _Parts(count, size, calls)


def _inlined(parts: _Parts, sizes: Mapping[_Key, tuple[int, int]]) -> tuple[int, int]:
    """Return nodes and bytes after inlining; Python's integers do not overflow."""
    nodes = parts.nodes + sum(sizes[key][0] * times for key, times in parts.calls.items())
    size = parts.bytes + sum(sizes[key][1] * times for key, times in parts.calls.items())
    return nodes, size


def _callees_first(parts: Mapping[_Key, _Parts]) -> list[_Key]:
    """Return the functions in an order in which each follows those that it calls."""
    done: dict[_Key, bool] = {}
    order: list[_Key] = []
    for start in parts:
        pending: list[tuple[_Key, bool]] = [(start, False)]
        while pending:
            key, is_left = pending.pop()
            if is_left:
                done[key] = True
                order.append(key)
            elif key not in done:
                done[key] = False
                pending.append((key, True))
                pending += [(callee, False) for callee in parts[key].calls]
            elif not done[key]:
                raise _circle(key, pending)
    return order


def _circle(key: _Key, pending: Sequence[tuple[_Key, bool]]) -> ModelError:
    path = [each[1] for each, is_left in pending if is_left]
    circle = [*path[path.index(key[1]) :], key[1]] if key[1] in path else [key[1], key[1]]
    shown = " -> ".join(circle if len(circle) < 9 else [*circle[:4], "...", *circle[-4:]])
    return ModelError(
        f"the function {key[1]!r} calls itself: {shown}",
        "export the model again: functions of ONNX cannot be recursive",
        node=key[1],
    )


def _check_size(nodes: int, size: int, limit: int, verb: str) -> None:
    if nodes > limit:
        raise ModelError(
            f"the model {verb} {nodes:,} nodes, more than the limit of {limit:,}",
            "raise the limit, if the model is meant to be as large: "
            f'dask.config.set({{"onnx.model.max-nodes": {nodes}}})',
            option="onnx.model.max-nodes",
            numbers={"nodes": float(nodes), "most_nodes": limit},
            suggestions=[Suggestion("onnx.model.max-nodes", nodes)],
        )
    if size > MAX_PROTO_BYTES:
        raise ModelError(
            f"the model {verb} {size:,} bytes of nodes; a model can have {MAX_PROTO_BYTES:,}",
            "export the model with fewer calls of its functions",
            numbers={"bytes": float(size), "most_bytes": MAX_PROTO_BYTES},
        )
