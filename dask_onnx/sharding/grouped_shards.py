"""GroupQueryAttention on a shard of queries: the keys before the shard become its cache.

The operator is always causal. Tokens from `start` to `stop` attend to the keys before `stop`, as if
they came after a cache of `start` tokens; so each shard computes exactly what it has in the
unsharded result, at half of the products. ONNX Runtime takes a cache for one row at a time, so rows
are nodes of their own. Tokens past the length of their row, which are padding, see the keys of the
row alone; a bias says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from dask_onnx.analysis.axes.dependence import Dependence
from dask_onnx.analysis.axes.view import NodeView
from dask_onnx.core.specs import TensorSpec
from dask_onnx.sharding.grouped_attention import (
    BIAS,
    KEY,
    LENGTHS,
    PAST_KEY,
    PAST_VALUE,
    QUERY,
    SINKS,
    TOTAL,
    VALUE,
    grouped_inputs,
    only_attends,
)
from dask_onnx.sharding.shard_operands import Constant, LocalOperand

_MAX_ROWS = 32
"""Rows of a request that become nodes of their own."""


def shard_of_grouped_queries(view: NodeView) -> Sequence[Dependence] | None:
    """Return the dependences of a GroupQueryAttention that reads queries in shards, keys whole.

    Returns None for other nodes and layouts, whose rule of the axis analysis decides.
    """
    queries = view.dep(QUERY)
    if queries.axis is None or not only_attends(view.proto):
        return None
    if view.rank(QUERY) != 3 or (queries.axis, queries.outer, queries.inner) != (1, 1, 1):
        return None
    rows = view.size(QUERY, 0)
    if not isinstance(rows, int) or rows > _MAX_ROWS:
        return None
    if view.size(QUERY, 1) != view.positions or view.size(KEY, 1) != view.positions:
        return None
    if not set(view.carriers) <= {QUERY, BIAS}:
        return None
    if view.has(BIAS) and (view.rank(BIAS) != 4 or view.dep(BIAS).axis != 2):
        return None
    rest = view.lost(queries, queries.kind, "keys and values")
    return [queries, *[rest] * (len(view.proto.output) - 1)]


Sources = dict[str, LocalOperand | Constant]
"""Values that new nodes read, by name."""


def on_shard(
    node: onnx.NodeProto,
    original: onnx.NodeProto,
    prefix: str,
    specs: Mapping[str, TensorSpec],
    positions: int,
) -> tuple[list[onnx.NodeProto], Sources]:
    """Return nodes that compute a shard of a grouped attention, and their inputs.

    Parameters are those of `query_shards.attention_on_shard`, for a node that only attends.
    """
    names = grouped_inputs(original)
    shape = specs[names[QUERY]].shape or ()
    rows, width = _size(shape[0]), _size(shape[2])
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    bias = specs[names[BIAS]].shape if names[BIAS] else None
    writer = _ShardWriter(
        names=[*node.input, *[""] * (SINKS + 1 - len(node.input))],
        prefix=prefix,
        rows=rows,
        heads=int(attributes["kv_num_heads"]),
        head_size=width // int(attributes["num_heads"]),
        dtype=specs[names[QUERY]].dtype or np.dtype(np.float32),
        positions=positions,
        window=int(attributes.get("local_window_size", 0)),
        bias_rows=0 if bias is None else _size(bias[0]),
        node=node,
        nodes=[],
        sources={},
    )
    writer.write()
    return writer.nodes, writer.sources


def _size(dim: Any) -> int:
    return int(dim)


@dataclass(slots=True)
class _ShardWriter:
    """Writes the nodes of one attention on a shard."""

    names: list[str]
    """Names of the attention's inputs on the shard."""
    prefix: str
    rows: int
    heads: int
    """Heads of keys and values."""
    head_size: int
    dtype: np.dtype[Any]
    """Type of the queries."""
    positions: int
    window: int
    """Keys that a token sees; all before it if not positive."""
    bias_rows: int
    """Rows of the caller's bias; 0 without one."""
    node: onnx.NodeProto
    nodes: list[onnx.NodeProto]
    sources: Sources

    def write(self) -> None:
        """Write all nodes."""
        local = LocalOperand
        false, true = np.array([False]), np.array([True])
        self.sources |= {
            self._named("start"): local(0, np.array([0], np.int64), false, 1),
            self._named("stop"): local(0, np.array([self.positions], np.int64), true, 1),
            self._named("rows_shape"): local(
                0, np.array([1, 1, self.positions, 1]), np.array([False, False, True, False])
            ),
        }
        past = self._past()
        self._add("Add", [past, self._named("start")], "first")
        self._add("Add", [past, self._named("stop")], "end")
        self._add("Sub", [self._named("end"), self._vector(1)], "last")
        self._add("Cast", [self._named("last")], "lengths", to=6)
        self._add("Cast", [self._named("end")], "total", to=6)
        self._add("Squeeze", [self._named("end"), self._vector(0)], "end_scalar")
        self._add("Range", [self._scalar(0), self._named("end_scalar"), self._scalar(1)], "places")
        zeros = helper.make_tensor("value", helper.np_dtype_to_tensor_dtype(self.dtype), [1], [0])
        self._add("ConstantOfShape", [self._named("rows_shape")], "zeros", value=zeros)
        self._count_tokens()
        results = [self._row(row, past) for row in range(self.rows)]
        output = self.node.output[0]
        if len(results) == 1:
            self.nodes.append(helper.make_node("Identity", results, [output], name=output))
        else:
            self.nodes.append(helper.make_node("Concat", results, [output], name=output, axis=0))

    def _count_tokens(self) -> None:
        """Write the index of each token of the shard, shape (1, tokens, 1), for a window."""
        if self.window > 0:
            self._add("Squeeze", [self._named("first"), self._vector(0)], "first_scalar")
            scalars = [self._named("first_scalar"), self._named("end_scalar"), self._scalar(1)]
            self._add("Range", scalars, "tokens")
            column = self._constant("column", np.array([1, -1, 1]))
            self._add("Reshape", [self._named("tokens"), column], "token_column")

    def _past(self) -> str:
        """Return the number of tokens in the caller's cache, shape (1,)."""
        if not self.names[PAST_KEY]:
            return self._vector(0)
        length = self._add("Cast", [self.names[LENGTHS]], "given_lengths", to=7)
        length = self._add("Reshape", [length, self._vector(-1)], "given_length")
        total = self._add("Cast", [self.names[TOTAL]], "given_totals", to=7)
        total = self._add("Reshape", [total, self._vector(1)], "given_total")
        before = self._add("Sub", [length, self._vector(self.positions - 1)], "given_past")
        is_prompt = self._add("Equal", [total, self._vector(self.positions)], "is_prompt")
        past = self._add("Where", [is_prompt, self._vector(0), before], "pasts")
        # Several rows have a cache of one length, that of a prompt; the index fails otherwise.
        most = self._add("ReduceMax", [past], "most")
        spread = self._add("Sub", [most, self._add("ReduceMin", [past], "fewest")], "spread")
        return self._add("Gather", [most, spread], "past")

    def _row(self, row: int, past: str) -> str:
        """Write the attention of one row, and return its result."""
        query = self._of_row(self.names[QUERY], row, "query", self.rows)
        caches, new = [], []
        for place, cache in ((KEY, PAST_KEY), (VALUE, PAST_VALUE)):
            label = f"row{row}_{'key' if place == KEY else 'value'}"
            whole = self._of_row(self.names[place], row, label, self.rows)
            given = self.names[cache]
            given = self._of_row(given, row, f"{label}_given", self.rows) if given else ""
            caches.append(self._cache(whole, given, past, label))
            bounds = [self._named("start"), self._named("stop"), self._vector(1)]
            new.append(self._add("Slice", [whole, *bounds], f"{label}_new"))
        self._limit(row)
        given = self._given_bias(row) if self.names[BIAS] else ""
        inputs = [query, *new, *caches]
        plain = self._branch(
            f"row{row}_plain", lambda: self._attention(row, inputs, given, "plain")
        )
        padded = self._branch(f"row{row}_padded", lambda: self._padded(row, inputs, given))
        limit = self._named(f"row{row}_limit")
        is_padded = self._add("Less", [limit, self._named("end")], f"row{row}_is_padded")
        return self._add("If", [is_padded], f"row{row}", then_branch=padded, else_branch=plain)

    def _branch(self, name: str, write: Callable[[], str]) -> onnx.GraphProto:
        """Return a graph of the nodes that `write` appends, with the output that it returns."""
        outer, self.nodes = self.nodes, []
        try:
            output = write()
            element = helper.np_dtype_to_tensor_dtype(self.dtype)
            value = helper.make_tensor_value_info(output, element, None)
            return helper.make_graph(self.nodes, name, [], [value])
        finally:
            self.nodes = outer

    def _attention(self, row: int, inputs: Sequence[str], bias: str, label: str) -> str:
        """Append the attention of one row, and return its result."""
        attention = onnx.NodeProto(
            op_type=self.node.op_type, domain=self.node.domain, name=f"{self.node.name}@{row}"
        )
        names = [*inputs, self._named("lengths"), self._named("total"), "", "", ""]
        names += [bias, self.names[SINKS]]
        while not names[-1]:
            names.pop()
        attention.input.extend(names)
        results = ("y", "present_key", "present_value")
        attention.output.extend(self._named(f"row{row}_{label}_{each}") for each in results)
        attention.attribute.extend(self.node.attribute)
        self.nodes.append(attention)
        return str(attention.output[0])

    def _padded(self, row: int, inputs: Sequence[str], given: str) -> str:
        """Append the attention of a row that ends before the shard does, and return its result.

        A bias hides the keys that are padding. It is as large as all products of one head, so other
        rows do without it.
        """
        limit = self._named(f"row{row}_limit")
        later = self._add("GreaterOrEqual", [self._named("places"), limit], f"row{row}_later")
        hidden = [later, self._typed("never", -np.inf), self._named("zeros")]
        bias = self._add("Where", hidden, f"row{row}_bias")
        if given:
            bias = self._add("Add", [given, bias], f"row{row}_all_bias")
        result = self._attention(row, inputs, bias, "padded")
        return self._without_padding(row, result, limit) if self.window > 0 else result

    def _of_row(self, name: str, row: int, label: str, rows: int) -> str:
        """Return one row of a value of `rows` rows."""
        if rows == 1:
            return name
        bounds = [self._vector(row), self._vector(row + 1), self._vector(0)]
        return self._add("Slice", [name, *bounds], f"{label}_{row}")

    def _cache(self, whole: str, cache: str, past: str, label: str) -> str:
        """Return the keys or values before the shard, shape (1, heads, tokens, size)."""
        before = self._add(
            "Slice", [whole, self._vector(0), self._named("start"), self._vector(1)], f"{label}_old"
        )
        split = self._constant("split", np.array([0, 0, self.heads, self.head_size]))
        apart = self._add("Reshape", [before, split], f"{label}_heads")
        own = self._add("Transpose", [apart], f"{label}_cache", perm=[0, 2, 1, 3])
        if not cache:
            return own
        kept = self._add("Slice", [cache, self._vector(0), past, self._vector(2)], f"{label}_kept")
        return self._add("Concat", [kept, own], f"{label}_all", axis=2)

    def _limit(self, row: int) -> None:
        """Write the number of tokens of a row, cached ones included, shape (1,)."""
        length = self._add("Cast", [self.names[LENGTHS]], f"row{row}_lengths", to=7)
        length = self._add("Reshape", [length, self._vector(-1)], f"row{row}_length_row")
        bounds = [self._vector(row), self._vector(row + 1), self._vector(0)]
        length = self._add("Slice", [length, *bounds], f"row{row}_length")
        self._add("Add", [length, self._vector(1)], f"row{row}_limit")

    def _given_bias(self, row: int) -> str:
        """Return the caller's bias for the keys before the end of the shard."""
        own = self._of_row(self.names[BIAS], row, "bias", self.bias_rows)
        bounds = [self._vector(0), self._named("end"), self._vector(3)]
        return self._add("Slice", [own, *bounds], f"row{row}_given_bias")

    def _without_padding(self, row: int, result: str, limit: str) -> str:
        """Return a result with zeros where a window holds padding alone, as ONNX Runtime gives."""
        stop = self._add("Add", [limit, self._vector(self.window - 1)], f"row{row}_stop")
        has_keys = self._add("Less", [self._named("token_column"), stop], f"row{row}_has_keys")
        zero = self._typed("nothing", 0)
        return self._add("Where", [has_keys, result, zero], f"row{row}_kept")

    def _named(self, text: str) -> str:
        return f"{self.prefix}.{text}"

    def _add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        name = self._named(output)
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def _constant(self, text: str, array: np.ndarray) -> str:
        name = self._named(text)
        self.sources.setdefault(name, Constant(array))
        return name

    def _vector(self, number: int) -> str:
        return self._constant(f"vector{number}", np.array([number], np.int64))

    def _scalar(self, number: int) -> str:
        return self._constant(f"scalar{number}", np.array(number, np.int64))

    def _typed(self, text: str, number: float) -> str:
        return self._constant(text, np.array(number, self.dtype))
