"""Attention in blocks of keys: finding it in a graph, and the partial softmax of a block.

A shard of queries reads one block of keys at a time. Each block returns the largest score, the sum
of exponentials relative to it, and the values weighted by them. Blocks are combined exactly by
rescaling to the largest score of all (Milakov and Gimelshein, "Online normalizer calculation for
softmax", 2018; Dao et al., "FlashAttention", 2022).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.sharding.layout_candidates import InputLayouts, LayoutCandidate, LayoutCandidates
from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.shard_operands import Constant

_DTYPES = ("float32", "float64")
"""Types of scores whose partial sums are precise enough."""


@dataclass(frozen=True, slots=True)
class BlockForm:
    """Value restricted to one shard of queries and one block of keys."""

    name: str
    """Name of the value in the unsharded graph."""
    rows: Layout | None
    """Layout of the queries; None where the value has all of them or no such axis."""
    keys: Layout
    """Layout of the keys."""

    @property
    def label(self) -> str:
        """Name of the restricted value in a submodel."""
        rows = "" if self.rows is None else self.rows.label
        return f"{self.name}@{rows}k{self.keys.label}"


@dataclass(frozen=True, slots=True, eq=False)
class BlockedAttention:
    """Nodes from the product of queries and keys to the product of probabilities and values."""

    before: tuple[int, ...]
    """Nodes that compute the scores, ascending: the product with the keys, scaling and masking."""
    softmax: int
    """Node that computes the probabilities."""
    after: tuple[int, ...]
    """Nodes that replace NaN by 0 where no key is allowed."""
    mix: int
    """Product with the values."""
    key_layouts: Mapping[int, InputLayouts]
    """For each node the layout of the keys in each input; None where an input has no keys."""

    @property
    def nodes(self) -> frozenset[int]:
        """All nodes of the attention."""
        return frozenset((*self.before, self.softmax, *self.after, self.mix))


def find_blocked(
    candidates: LayoutCandidates, chosen: Mapping[int, LayoutCandidate], outer: Collection[str]
) -> list[BlockedAttention]:
    """Return the attentions whose keys can be read in blocks.

    Parameters
    ----------
    chosen : mapping of node to LayoutCandidate
        Nodes on shards.
    outer : collection of str
        Values that nodes outside the attention or the caller need as well.
    """
    finder = _Finder(candidates, chosen, frozenset(outer))
    nodes = candidates.facts.nodes
    softmaxes = [i for i in sorted(chosen) if standard_op_type(nodes[i]) == "Softmax"]
    return [found for index in softmaxes if (found := finder.around(index))]


class _Finder:
    """Matches attentions around Softmax nodes."""

    def __init__(
        self,
        candidates: LayoutCandidates,
        chosen: Mapping[int, LayoutCandidate],
        outer: frozenset[str],
    ) -> None:
        self.candidates, self.chosen, self.outer = candidates, chosen, outer
        self.nodes = candidates.facts.nodes
        self.readers: defaultdict[str, set[int]] = defaultdict(set)
        for index in chosen:
            for name in self.nodes[index].reads:
                self.readers[name].add(index)

    def around(self, softmax: int) -> BlockedAttention | None:
        """Return the attention that a Softmax belongs to; None if it is not in one."""
        node, candidate = self.nodes[softmax], self.chosen[softmax]
        spec = self.candidates.specs[node.inputs[0]]
        rank, last = len(spec.shape or ()), len(spec.shape or ()) - 1
        # The default axis was 1 before opset 13.
        default = -1 if self.candidates.opset >= 13 else 1
        is_last = _attribute(self.candidates, softmax, "axis", default) in (-1, last)
        rows = candidate.input_layouts[0]
        if rank < 2 or not is_last or rows is None or rows.axis == last or rows.blocks != 1:
            return None
        if spec.dtype is None or spec.dtype.name not in _DTYPES:
            return None
        after = self._after(node.outputs[0])
        before = self._before(node.inputs[0], last)
        if after is None or before is None:
            return None
        mix = after[-1]
        values = self.nodes[mix].inputs[1]
        shape = self.candidates.specs[values].shape or ()
        is_whole = self.chosen[mix].input_layouts[1] is None
        if not is_whole or self.candidates.is_given(values):
            return None
        if len(shape) < 2 or shape[-2] != self.candidates.positions:
            return None
        key_layouts = {**before, mix: (Layout(last), Layout(len(shape) - 2))}
        return BlockedAttention(tuple(sorted(before)), softmax, tuple(after[:-1]), mix, key_layouts)

    def _after(self, probabilities: str) -> list[int] | None:
        """Return the nodes after a Softmax, up to the product with the values."""
        found: list[int] = []
        while True:
            readers = self.readers[probabilities]
            if probabilities in self.outer or not readers:
                return None
            kinds = {standard_op_type(self.nodes[i]): i for i in readers}
            if set(kinds) == {"IsNaN", "Where"} and len(readers) == 2:
                replaced = self.nodes[kinds["Where"]]
                tested = self.nodes[kinds["IsNaN"]].outputs[0]
                zero = self.candidates.walk.constant(replaced.inputs[1])
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

    def _before(self, scores: str, last: int) -> dict[int, InputLayouts] | None:
        """Return the nodes that compute scores, to the layouts of the keys in their inputs.

        Goes back to the product with the keys; None if there is none.
        """
        index = self.candidates.facts.producer.get(scores)
        if index is None or index not in self.chosen or scores in self.outer:
            return None
        if len(self.readers[scores]) != 1:
            return None
        node, keys = self.nodes[index], Layout(last)
        if standard_op_type(node) == "MatMul":
            turned = len(self.candidates.specs[node.inputs[1]].shape or ()) - 1
            is_whole = self.chosen[index].input_layouts[1] is None
            if not is_whole:
                return None
            found = self.candidates.candidate(index, {1: Layout(turned)}, (True,))
            if found is None or not self._is_cut(index, found, keys):
                return None
            return {index: found.input_layouts}
        if self.candidates.family(index) != "elementwise":
            return None
        shape = self.candidates.specs[scores].shape
        for place, name in enumerate(node.inputs):
            spec = self.candidates.specs.get(name)
            before = self._before(name, last) if spec and spec.shape == shape else None
            if before is None:
                continue
            candidates = self.candidates.sliced_candidates(index, {place: keys}, (), (True,))
            for candidate in candidates:
                if self._is_cut(index, candidate, keys):
                    return {**before, index: candidate.input_layouts}
        return None

    def _is_cut(self, index: int, candidate: LayoutCandidate, keys: Layout) -> bool:
        """Return whether a candidate returns scores of a block of keys without slicing weights."""
        names = self.nodes[index].inputs
        cut = [
            name
            for name, layout in zip(names, candidate.input_layouts, strict=True)
            if layout is not None
        ]
        return candidate.output_layouts[0] == keys and not any(map(self.candidates.is_given, cut))


def _attribute(candidates: LayoutCandidates, index: int, name: str, default: int) -> int:
    proto = candidates.facts.proto.graph.node[index]
    return next((attribute.i for attribute in proto.attribute if attribute.name == name), default)


PARTIAL = ("max", "sum", "mix")
"""Results of one block of keys: largest scores, sums of exponentials, weighted values."""


def partial_softmax(
    scores: str, values: str, prefix: str, dtype: np.dtype, opset: int
) -> tuple[list[NodeProto], dict[str, Constant]]:
    """Return the nodes of the softmax over one block of keys, and the constants that they read.

    Parameters
    ----------
    scores, values : str
        Names of the scores and the values of the block.
    prefix : str
        Start of new names; the results are ``{prefix}.max``, ``.sum`` and ``.mix``.
    dtype : numpy.dtype
        Type of the scores.
    """
    lowest = np.array(np.finfo(dtype).min, dtype)
    constants = {f"{prefix}.lowest": Constant(lowest)}
    axes = f"{prefix}.axes"
    if opset >= 13:
        constants[axes] = Constant(np.array([-1], np.int64))

    # The axes of a reduction became an input in opset 13 (ReduceSum) and 18 (ReduceMax).
    def reduced(op: str, name: str, output: str, since: int) -> NodeProto:
        if opset >= since:
            return helper.make_node(op, [name, axes], [output], name=output, keepdims=1)
        return helper.make_node(op, [name], [output], name=output, keepdims=1, axes=[-1])

    def made(op: str, inputs: Sequence[str], output: str) -> NodeProto:
        return helper.make_node(op, inputs, [output], name=output)

    nodes = [
        reduced("ReduceMax", scores, f"{prefix}.most", 18),
        # If no key is allowed, all scores are -inf. With a finite maximum their exponentials are
        # 0 rather than NaN.
        made("Max", [f"{prefix}.most", f"{prefix}.lowest"], f"{prefix}.max"),
        made("Sub", [scores, f"{prefix}.max"], f"{prefix}.below"),
        made("Exp", [f"{prefix}.below"], f"{prefix}.exp"),
        reduced("ReduceSum", f"{prefix}.exp", f"{prefix}.sum", 13),
        made("MatMul", [f"{prefix}.exp", values], f"{prefix}.mix"),
    ]
    return nodes, constants
