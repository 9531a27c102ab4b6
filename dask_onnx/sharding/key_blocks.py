"""Attention in blocks of keys: which nodes are one, and the partial softmax of a block.

A query block meets one block of keys at a time. Of each block it keeps the largest score, the sum
of exponentials relative to it, and the values weighted by these; blocks are combined exactly by
rescaling to the largest score of all (Milakov and Gimelshein, "Online normalizer calculation for
softmax", 2018; Dao et al., "FlashAttention", 2022).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from dask_onnx.sharding.node_ways import Takes, Way, Ways
from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.shard_operands import Constant

_DTYPES = ("float32", "float64")
"""Types of scores whose partial sums are precise enough."""


@dataclass(frozen=True, slots=True)
class BlockForm:
    """A value for one shard of queries and one block of keys."""

    name: str
    rows: Layout | None
    """Where the positions of the queries lie; None for one that has them all, or none."""
    keys: Layout
    """Where the positions of the keys lie."""

    @property
    def label(self) -> str:
        """A name for the form in a model."""
        rows = "" if self.rows is None else self.rows.label
        return f"{self.name}@{rows}k{self.keys.label}"


@dataclass(frozen=True, slots=True, eq=False)
class BlockedAttention:
    """Nodes from the product of queries and keys to that of probabilities and values."""

    before: tuple[int, ...]
    """The product with the keys and what scales and masks it, ascending."""
    softmax: int
    behind: tuple[int, ...]
    """What replaces NaN, where no key is allowed, by 0."""
    mix: int
    """The product with the values."""
    key_takes: Mapping[int, Takes]
    """For each input of a node where the keys lie in it; None where they do not."""

    @property
    def nodes(self) -> frozenset[int]:
        """All of them."""
        return frozenset((*self.before, self.softmax, *self.behind, self.mix))


def find_blocked(
    ways: Ways, chosen: Mapping[int, Way], outer: Collection[str]
) -> list[BlockedAttention]:
    """Return the attentions whose keys can be taken in blocks.

    Parameters
    ----------
    chosen : number of each node on shards to its way
    outer : values that are needed besides by nodes on shards
    """
    finder = _Finder(ways, chosen, frozenset(outer))
    nodes = ways.facts.nodes
    softmaxes = [i for i in sorted(chosen) if nodes[i].op_type == "Softmax" and not nodes[i].domain]
    return [found for index in softmaxes if (found := finder.around(index))]


class _Finder:
    def __init__(self, ways: Ways, chosen: Mapping[int, Way], outer: frozenset[str]) -> None:
        self.ways, self.chosen, self.outer = ways, chosen, outer
        self.nodes = ways.facts.nodes
        self.readers: defaultdict[str, set[int]] = defaultdict(set)
        for index in chosen:
            for name in self.nodes[index].reads:
                self.readers[name].add(index)

    def around(self, softmax: int) -> BlockedAttention | None:
        """The attention that a Softmax is in."""
        node, way = self.nodes[softmax], self.chosen[softmax]
        spec = self.ways.specs[node.inputs[0]]
        rank, last = len(spec.shape or ()), len(spec.shape or ()) - 1
        is_last = _attribute(self.ways, softmax, "axis", -1 if self.ways.opset >= 13 else 1) in (
            -1,
            last,
        )
        rows = way.takes[0]
        if rank < 2 or not is_last or rows is None or rows.axis == last or rows.blocks != 1:
            return None
        if spec.dtype is None or spec.dtype.name not in _DTYPES:
            return None
        behind = self._behind(node.outputs[0])
        before = self._before(node.inputs[0], last)
        if behind is None or before is None:
            return None
        mix = behind[-1]
        values = self.nodes[mix].inputs[1]
        shape = self.ways.specs[values].shape or ()
        is_whole = self.chosen[mix].takes[1] is None and not self.ways.is_given(values)
        if len(shape) < 2 or shape[-2] != self.ways.positions or not is_whole:
            return None
        takes = {**before, mix: (Layout(last), Layout(len(shape) - 2))}
        return BlockedAttention(tuple(sorted(before)), softmax, tuple(behind[:-1]), mix, takes)

    def _behind(self, probabilities: str) -> list[int] | None:
        """The nodes behind a Softmax, up to the product with the values."""
        found: list[int] = []
        while True:
            readers = self.readers[probabilities]
            if probabilities in self.outer or not readers:
                return None
            kinds = {self.nodes[i].op_type: i for i in readers}
            if set(kinds) == {"IsNaN", "Where"} and len(readers) == 2:
                replaced = self.nodes[kinds["Where"]]
                tested = self.nodes[kinds["IsNaN"]].outputs[0]
                zero = self.ways.walk.constant(replaced.inputs[1])
                if replaced.inputs[0] != tested or replaced.inputs[2] != probabilities:
                    return None
                if zero is None or np.any(zero.array):
                    return None
                found += [kinds["IsNaN"], kinds["Where"]]
                probabilities = replaced.outputs[0]
                continue
            is_product = set(kinds) == {"MatMul"} and len(readers) == 1
            if is_product and self.nodes[kinds["MatMul"]].inputs[0] == probabilities:
                return [*found, kinds["MatMul"]]
            return None

    def _before(self, scores: str, last: int) -> dict[int, Takes] | None:
        """The nodes that make scores, back to the product with the keys, and their keys' places."""
        index = self.ways.facts.producer.get(scores)
        if index is None or index not in self.chosen or scores in self.outer:
            return None
        if len(self.readers[scores]) != 1:
            return None
        node, keys = self.nodes[index], Layout(last)
        if node.op_type == "MatMul":
            turned = len(self.ways.specs[node.inputs[1]].shape or ()) - 1
            is_whole = self.chosen[index].takes[1] is None
            way = self.ways.way(index, {1: Layout(turned)}, (True,)) if is_whole else None
            return {index: way.takes} if way and self._is_cut(index, way, keys) else None
        if self.ways.family(index) != "elementwise":
            return None
        shape = self.ways.specs[scores].shape
        for place, name in enumerate(node.inputs):
            spec = self.ways.specs.get(name)
            before = self._before(name, last) if spec and spec.shape == shape else None
            if before is None:
                continue
            ways = self.ways.sliced_ways(index, {place: keys}, (), (True,))
            for way in ways:
                if self._is_cut(index, way, keys):
                    return {**before, index: way.takes}
        return None

    def _is_cut(self, index: int, way: Way, keys: Layout) -> bool:
        """Whether a way gives scores of a block of keys, and reads no weights in blocks."""
        names = self.nodes[index].inputs
        cut = [name for name, layout in zip(names, way.takes, strict=True) if layout is not None]
        return way.gives[0] == keys and not any(map(self.ways.is_given, cut))


def _attribute(ways: Ways, index: int, name: str, default: int) -> int:
    proto = ways.facts.proto.graph.node[index]
    return next((attribute.i for attribute in proto.attribute if attribute.name == name), default)


PARTIAL = ("max", "sum", "mix")
"""What a block of keys gives: the largest score, the sum of exponentials, the weighted values."""


def partial_softmax(
    scores: str, values: str, prefix: str, dtype: np.dtype, opset: int
) -> tuple[list[NodeProto], dict[str, Constant]]:
    """Return the nodes that take the softmax of a block of keys, and constants that they read.

    Parameters
    ----------
    scores, values : names of the scores and the values of the block
    prefix : what new names begin with; the results are ``{prefix}.max``, ``.sum`` and ``.mix``
    """
    lowest = np.array(np.finfo(dtype).min, dtype)
    constants = {f"{prefix}.lowest": Constant(lowest)}
    axes = f"{prefix}.axes"
    if opset >= 13:
        constants[axes] = Constant(np.array([-1], np.int64))

    def reduced(op: str, name: str, output: str, since: int) -> NodeProto:
        if opset >= since:
            return helper.make_node(op, [name, axes], [output], name=output, keepdims=1)
        return helper.make_node(op, [name], [output], name=output, keepdims=1, axes=[-1])

    def made(op: str, inputs: Sequence[str], output: str) -> NodeProto:
        return helper.make_node(op, inputs, [output], name=output)

    nodes = [
        reduced("ReduceMax", scores, f"{prefix}.most", 18),
        # Where no key is allowed, all scores are infinitely low: exponentials become 0, not NaN.
        made("Max", [f"{prefix}.most", f"{prefix}.lowest"], f"{prefix}.max"),
        made("Sub", [scores, f"{prefix}.max"], f"{prefix}.below"),
        made("Exp", [f"{prefix}.below"], f"{prefix}.exp"),
        reduced("ReduceSum", f"{prefix}.exp", f"{prefix}.sum", 13),
        made("MatMul", [f"{prefix}.exp", values], f"{prefix}.mix"),
    ]
    return nodes, constants
