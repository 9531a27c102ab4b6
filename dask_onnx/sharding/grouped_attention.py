"""Rewriting of com.microsoft.GroupQueryAttention, so that queries and keys are apart.

The operator may split packed projections, rotate queries and keys, and return the grown cache. On
shards the keys and values have to be gathered, the queries not. The rewritten graph has the split,
the rotation and the cache as nodes, beside a GroupQueryAttention that does nothing but attend.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.modelio.operator_names import OperatorName, operator_name

GROUPED: OperatorName = ("com.microsoft", "GroupQueryAttention")
"""Name of the operator."""
QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE, LENGTHS, TOTAL = range(7)
"""Positions of its first inputs."""
COSINES, SINES, POSITIONS, BIAS, SINKS = range(7, 12)
"""Positions of its optional inputs."""
_KEPT = frozenset("num_heads kv_num_heads scale softcap local_window_size smooth_softmax".split())
"""Attributes of an attention that does nothing but attend."""
_ROTARY = frozenset(("do_rotary", "rotary_interleaved"))
_OLDEST_OPSET = 13
"""First opset whose Split and Unsqueeze take sizes and axes as inputs."""


def grouped_inputs(node: onnx.NodeProto) -> list[str]:
    """Return the names of a node's inputs, empty for those that are left out."""
    return [*node.input, *[""] * (SINKS + 1)][: max(SINKS + 1, len(node.input))]


def only_attends(node: onnx.NodeProto) -> bool:
    """Return whether a GroupQueryAttention has separate inputs that it does not rotate."""
    names = grouped_inputs(node)
    return (
        operator_name(node) == GROUPED
        and {a.name for a in node.attribute if _is_set(a)} <= _KEPT
        and bool(names[KEY] and names[VALUE])
        and not any((names[COSINES], names[SINES], names[POSITIONS], *names[SINKS + 1 :]))
    )


def _is_set(attribute: onnx.AttributeProto) -> bool:
    """Return whether an attribute differs from its default, as far as that is none or zero."""
    return helper.get_attribute_value(attribute) not in (0, b"NONE")


def unpack_grouped(model: OnnxModel, specs: Mapping[str, TensorSpec]) -> OnnxModel:
    """Return an equivalent model whose grouped attentions only attend.

    Nodes with positions of their own, quantised caches or unknown attributes stay as they are.
    Several rows with caches are those of a prompt, as ONNX Runtime demands for several tokens.
    Returns `model` itself if there is nothing to rewrite.
    """
    proto = model.parse()
    if model.opsets.get("", 1) < _OLDEST_OPSET:
        return model
    nodes: list[onnx.NodeProto] = []
    is_changed = False
    for node in proto.graph.node:
        if not _can_unpack(node, specs):
            nodes.append(node)
            continue
        is_changed = True
        writer = _Unpacking(node, specs)
        writer.write()
        nodes += writer.nodes
        proto.graph.initializer.extend(writer.constants)
    if not is_changed:
        return model
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    data = proto.SerializeToString(deterministic=True)
    return replace(model, proto=data, token=hashlib.sha256(data).hexdigest()[:32], source=None)


def _can_unpack(node: onnx.NodeProto, specs: Mapping[str, TensorSpec]) -> bool:
    if operator_name(node) != GROUPED:
        return False
    names = grouped_inputs(node)
    given = {a.name for a in node.attribute if _is_set(a)}
    rotates = "do_rotary" in given
    if not given <= _KEPT | _ROTARY or any((names[POSITIONS], *names[SINKS + 1 :])):
        return False
    if any(list(node.output)[3:]) or bool(names[PAST_KEY]) != bool(names[PAST_VALUE]):
        return False
    if rotates != bool(names[COSINES] and names[SINES]):
        return False
    width = _width(specs, names[QUERY])
    return width is not None and bool(names[KEY]) == bool(names[VALUE])


def _width(specs: Mapping[str, TensorSpec], name: str) -> int | None:
    """Return the size of a value's last axis; None if it or the value's rank is not known."""
    spec = specs.get(name)
    if spec is None or spec.shape is None or len(spec.shape) != 3:
        return None
    return spec.shape[-1] if isinstance(spec.shape[-1], int) else None


class _Unpacking:
    """Writes the nodes that replace one GroupQueryAttention."""

    def __init__(self, node: onnx.NodeProto, specs: Mapping[str, TensorSpec]) -> None:
        self.node, self.names = node, grouped_inputs(node)
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.heads = int(self.attributes["num_heads"])
        self.shared = int(self.attributes["kv_num_heads"])
        width = _width(specs, self.names[QUERY]) or 0
        self.size = width // (self.heads if self.names[KEY] else self.heads + 2 * self.shared)
        """Features of a head."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.prefix = node.output[0]

    def write(self) -> None:
        """Write all nodes."""
        query, key, value = self._separate()
        outputs = [*self.node.output, "", ""][:3]
        has_past = bool(self.names[PAST_KEY])
        rotates = bool(self.attributes.get("do_rotary"))
        past = self._past_lengths() if has_past or rotates else ""
        if rotates:
            positions = self._positions(past)
            query = self._rotated(query, positions, self.heads)
            key = self._rotated(key, positions, self.shared)
        inputs = [query, key, value, *self.names[PAST_KEY : TOTAL + 1], "", "", ""]
        inputs += self.names[BIAS : SINKS + 1]
        while not inputs[-1]:
            inputs.pop()
        unused = [self._name("present_key"), self._name("present_value")]
        attention = helper.make_node(
            GROUPED[1], inputs, [outputs[0], *unused], name=self.node.name, domain=GROUPED[0]
        )
        attention.attribute.extend(a for a in self.node.attribute if a.name in _KEPT)
        self.nodes.append(attention)
        for new, cache, output in ((key, PAST_KEY, outputs[1]), (value, PAST_VALUE, outputs[2])):
            if output:
                self._present(new, self.names[cache], self._name("past"), output)

    def _name(self, text: str) -> str:
        return f"{self.prefix}.{text}"

    def _add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node, and return its output."""
        label = f"{self.node.name or self.prefix}.{output.removeprefix(self.prefix + '.')}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=label, **attributes))
        return output

    def _constant(self, text: str, values: Any) -> str:
        """Append an initializer of int64 unless there is one of this name, and return its name."""
        name = self._name(text)
        if all(tensor.name != name for tensor in self.constants):
            self.constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def _separate(self) -> tuple[str, str, str]:
        """Return queries, keys and values, split where one input packs them."""
        if self.names[KEY]:
            return self.names[QUERY], self.names[KEY], self.names[VALUE]
        features = [count * self.size for count in (self.heads, self.shared, self.shared)]
        parts = [self._name(each) for each in ("query", "key", "value")]
        inputs = [self.names[QUERY], self._constant("features", features)]
        label = f"{self.node.name or self.prefix}.split"
        self.nodes.append(helper.make_node("Split", inputs, parts, name=label, axis=-1))
        return parts[0], parts[1], parts[2]

    def _past_lengths(self) -> str:
        """Return the number of cached tokens of each row: none in a prompt."""
        one, zero = self._constant("one", [1]), self._constant("zero", [0])
        shape = self._add("Shape", [self.names[QUERY]], self._name("shape"))
        tokens = self._add("Gather", [shape, one], self._name("tokens"))
        total = self._add("Cast", [self.names[TOTAL]], self._name("total"), to=7)
        total = self._add("Reshape", [total, one], self._name("total_row"))
        lengths = self._add("Cast", [self.names[LENGTHS]], self._name("lengths"), to=7)
        lengths = self._add(
            "Reshape", [lengths, self._constant("row", [-1])], self._name("length_row")
        )
        ends = self._add("Add", [lengths, one], self._name("ends"))
        before = self._add("Sub", [ends, tokens], self._name("before"))
        is_prompt = self._add("Equal", [total, tokens], self._name("is_prompt"))
        past = self._add("Where", [is_prompt, zero, before], self._name("pasts"))
        if self.names[PAST_KEY]:
            # Several rows have a cache of one length, that of a prompt; the index fails otherwise.
            most = self._add("ReduceMax", [past], self._name("most"))
            fewest = self._add("ReduceMin", [past], self._name("fewest"))
            spread = self._add("Sub", [most, fewest], self._name("spread"))
            self._add("Gather", [most, spread], self._name("past"))
        return past

    def _positions(self, past: str) -> str:
        """Return the positions of the tokens, shape (rows, tokens)."""
        start, step = self._constant("start", 0), self._constant("step", 1)
        tokens = self._add(
            "Squeeze", [self._name("tokens"), self._constant("zero", [0])], self._name("count")
        )
        own = self._add("Range", [start, tokens, step], self._name("range"))
        column = self._add("Unsqueeze", [past, self._constant("one", [1])], self._name("column"))
        return self._add("Add", [column, own], self._name("positions"))

    def _rotated(self, name: str, positions: str, heads: int) -> str:
        output = (
            f"{name}.rotated" if name.startswith(self.prefix) else self._name(f"{name}.rotated")
        )
        inputs = [name, positions, self.names[COSINES], self.names[SINES]]
        return self._add(
            "RotaryEmbedding",
            inputs,
            output,
            domain=GROUPED[0],
            interleaved=int(self.attributes.get("rotary_interleaved", 0)),
            num_heads=heads,
        )

    def _present(self, new: str, cache: str, past: str, output: str) -> None:
        """Write the grown cache, shape (rows, heads, tokens, size); a longer one ends in zeros."""
        split = self._constant("split", [0, 0, self.shared, self.size])
        apart = self._add("Reshape", [new, split], f"{output}.heads")
        own = output if not cache else f"{output}.own"
        self._add("Transpose", [apart], own, perm=[0, 2, 1, 3])
        if not cache:
            return
        zero, axis = self._constant("zero", [0]), self._constant("token_axis", [2])
        kept = self._add("Slice", [cache, zero, past, axis], f"{output}.kept")
        grown = self._add("Concat", [kept, own], f"{output}.grown", axis=2)
        sizes = self._token_counts(cache, grown, output)
        rest = self._add("Sub", sizes, f"{output}.missing")
        rest = self._add("Max", [rest, zero], f"{output}.rest")
        before = self._constant("before_pads", [0] * 6)
        pads = self._add("Concat", [before, rest, zero], f"{output}.pads", axis=0)
        self._add("Pad", [grown, pads], output)

    def _token_counts(self, cache: str, grown: str, output: str) -> list[str]:
        axis = self._constant("token_axis", [2])
        counts = []
        for label, value in (("cached", cache), ("all", grown)):
            shape = self._add("Shape", [value], f"{output}.{label}_shape")
            counts.append(self._add("Gather", [shape, axis], f"{output}.{label}_tokens"))
        return counts
