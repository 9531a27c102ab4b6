"""Sizes of open dimensions that a caller left open, chosen so that the graph can run with them.

Most open dimensions may have any size. Those of a decoder may not: its mask is as long as the past
and the new tokens together. Exporters say so in the name of the dimension ("past_sequence_length +
1"), by convention ("total_sequence_length"), or not at all; then the sizes are tried on the graph.
"""

from __future__ import annotations

import ast
import itertools
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.size_conflicts import conflict_at
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.modelio.onnx_model import OnnxModel

ASSUMED_SIZE = 64
"""Size of an open dimension that nothing else determines: a multiple of the strides of common
networks."""
_MOST_TRIALS = 32
"""Bound on the sizes that are tried on a graph, each of which infers all shapes."""
_OPERATIONS: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
}
_SUMS = (("total", "past"), ("all", "past"), ("total", "cached"))
"""Beginnings of names: a total X is a past X and an X."""
_Sizes = dict[str, int]
"""Size of each dimension by its name."""

_sizes_of: BoundedCache[Hashable, _Sizes] = BoundedCache("assumed sizes", 256)
"""Results of `assumed_sizes` by the model's token and the other arguments."""


def assumed_sizes(
    model: OnnxModel, axes: Mapping[str, int | None], rows: int, known: Mapping[str, int]
) -> _Sizes:
    """Return a size for each named dimension of a model's inputs that is no batch axis.

    Parameters
    ----------
    model : OnnxModel
    axes : mapping of str to int or None
        Batch axis of each input.
    rows : int
        Size of the batch axes.
    known : mapping of str to int
        Sizes that the caller gave to dimensions by their names.
    """
    names = _open_names(model, axes)
    if all(name in known for name in names):
        return dict(known)
    key = (model.token, tuple(sorted(axes.items())), rows, tuple(sorted(known.items())))
    return dict(_sizes_of.get_or_make(key, lambda: _find(model, names, axes, rows, known)))


def _open_names(model: OnnxModel, axes: Mapping[str, int | None]) -> list[str]:
    return list(
        dict.fromkeys(
            dim
            for spec in model.inputs
            for axis, dim in enumerate(spec.shape or ())
            if isinstance(dim, str) and axis != axes.get(spec.name)
        )
    )


def _find(
    model: OnnxModel,
    names: list[str],
    axes: Mapping[str, int | None],
    rows: int,
    known: Mapping[str, int],
) -> _Sizes:
    first = _by_names(names, known)
    free = [name for name in names if name not in known and _variables(name) == {name}]
    if len(free) < 2:
        return first  # nothing to choose: one size does not contradict another
    facts = GraphFacts(model)

    def can_run(sizes: Mapping[str, int]) -> bool:
        shapes = {
            spec.name: tuple(
                rows
                if axis == axes.get(spec.name)
                else sizes.get(dim, ASSUMED_SIZE)
                if isinstance(dim, str)
                else ASSUMED_SIZE
                if dim is None
                else dim
                for axis, dim in enumerate(spec.shape)
            )
            for spec in model.inputs
            if spec.shape is not None and spec.kind is None
        }
        return conflict_at(facts, shapes) is None

    tried = itertools.islice(itertools.chain([first], _others(names, free, first)), _MOST_TRIALS)
    return next((sizes for sizes in tried if can_run(sizes)), first)


def _by_names(names: list[str], known: Mapping[str, int]) -> _Sizes:
    """Return sizes by what the names of dimensions say."""
    variables = dict.fromkeys(v for name in names for v in sorted(_variables(name)))
    sizes = {name: known.get(name, ASSUMED_SIZE) for name in variables}
    for name in variables:
        if name not in known and (parts := _summands(name, sizes)):
            sizes[name] = sum(sizes[part] for part in parts)
    for name in names:
        if name not in sizes:
            value = known.get(name, _evaluated(name, sizes))
            sizes[name] = value if value is not None and value > 0 else ASSUMED_SIZE
    return sizes | dict(known)


def _summands(name: str, sizes: Mapping[str, int]) -> tuple[str, str] | None:
    """Return the dimensions whose sum a "total" one is, by its name."""
    for total, past in _SUMS:
        rest = name.removeprefix(total)
        parts = past + rest, rest.lstrip("_- ")
        if rest != name and all(part in sizes for part in parts):
            return parts
    return None


def _others(names: list[str], free: list[str], first: _Sizes) -> Iterator[_Sizes]:
    """Yield sizes in which one dimension is the sum of two others; masks come first."""
    ordered = sorted(free, key=lambda name: "mask" not in name.lower())
    for target in ordered:
        others = [name for name in free if name != target]
        for one, other in itertools.combinations_with_replacement(others, 2):
            yield {**first, target: first[one] + first[other]}


def _variables(name: str) -> frozenset[str]:
    """Return the names in an expression; the text itself if it is none."""
    tree = _parsed(name)
    if tree is None:
        return frozenset([name])
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def _parsed(name: str) -> ast.expr | None:
    """Return the arithmetic expression in a dimension's name, such as "past + 1"; else None."""
    try:
        tree = ast.parse(name.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    allowed = (ast.BinOp, ast.Name, ast.Constant, ast.Load, *_OPERATIONS)
    nodes = list(ast.walk(tree))
    constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
    is_sum = all(isinstance(node, allowed) for node in nodes)
    has_name = any(isinstance(node, ast.Name) for node in nodes)
    return tree if is_sum and has_name and all(type(c) is int for c in constants) else None


def _evaluated(name: str, sizes: Mapping[str, int]) -> int | None:
    tree = _parsed(name)
    try:
        return None if tree is None else _value(tree, sizes)
    except (KeyError, ZeroDivisionError):
        return None


def _value(node: Any, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.BinOp):
        operation = _OPERATIONS[type(node.op)]
        return operation(_value(node.left, sizes), _value(node.right, sizes))
    return sizes[node.id] if isinstance(node, ast.Name) else int(node.value)
