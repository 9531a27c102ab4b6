"""A graph that is being written anew with an open batch, and what is known of it on the way.

Every value has two shapes here: the one at the exported number of rows, and the one at `PROBE`
rows, which is how the new graph is followed node by node. The algebra of axes says where the rows
lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.propagate import Walk
from dask_onnx.analysis.axes.table import NAMES_SHAPES, CustomAxes
from dask_onnx.analysis.axes.view import Known
from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.analysis.shapes import is_standard
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.value_types import parse_type, spec_of, value_info
from dask_onnx.modelio.weights import graphs_of, subgraphs_of

PROBE = 37
"""Number of rows at which the new graph is followed: a prime that real dimensions seldom are."""
_MOST_OPERAND = 64
"""Elements of an input that inference may want to read: shapes, axes, bounds."""

Layout = tuple[int, int, int]
"""Axis of a value that carries rows, outer blocks, inner elements (see `Dependence`)."""


class NotOpenedError(Exception):
    """A node stands in the way of an open batch. Never leaves `opening`."""

    def __init__(self, node: str, kind: Kind, how: str) -> None:
        super().__init__(node, kind, how)
        self.node, self.kind, self.how = node, kind, how


@dataclass(frozen=True, slots=True)
class Rows:
    """A multiple of the number of rows, as an element of a shape."""

    factor: int = 1


class Mark(NamedTuple):
    """A point that a draft can be rolled back to."""

    nodes: int
    tensors: int


class Draft:
    """The nodes written so far, with the dependence and the shape of each value."""

    def __init__(
        self,
        facts: GraphFacts,
        specs: Mapping[str, TensorSpec],
        axes: Mapping[str, int],
        rows: int,
        custom: CustomAxes,
        *,
        is_definite: bool,
    ) -> None:
        self.facts, self.rows, self.axes = facts, rows, axes
        self.exported = specs
        """Specs at the exported number of rows, of values of the original graph."""
        self.is_definite = is_definite
        """Whether all sizes but the number of rows are fixed in the graph."""
        self.opset = facts.model.opsets.get("", 1)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.notes: dict[str, str] = {}
        """What was changed at which node, in words."""
        self.made: dict[object, str] = {}
        """Helper values by what they are, so that each is made once."""
        self._specs: dict[str, TensorSpec] = dict(specs)
        for name, axis in axes.items():
            self._specs[name] = self._grown(specs[name], axis)
        given = {name: Dependence(Kind.INDEPENDENT, axis) for name, axis in axes.items()}
        self._walk = Walk(facts, self._specs, given, PROBE, {}, custom)
        self._names = {*specs, *facts.inputs, *facts.initializers}
        for graph in graphs_of(facts.proto):
            self._names |= {value.name for value in graph.input}
            self._names |= {tensor.name for tensor in graph.initializer}
            self._names |= {name for node in graph.node for name in (node.name, *node.output)}
        self._imports = list(facts.proto.opset_import)
        self._needed = {*facts.outputs} | {
            name
            for index in facts.live
            if facts.nodes[index].op_type not in ("Shape", "Size")
            for name in facts.nodes[index].reads
        }

    # What is known.

    def dep(self, name: str) -> Dependence:
        """How a value depends on the rows."""
        return self._walk.deps.get(name, FREE)

    def known(self, name: str) -> Known | None:
        """A small value that follows from the graph, at `PROBE` rows."""
        return self._walk.constant(name) if name else None

    def fixed(self, name: str) -> Known | None:
        """The same, if it holds whatever the sizes of other open axes are."""
        known = self.known(name)
        return known if known is not None and self.is_fixed(name) else None

    def is_fixed(self, name: str) -> bool:
        """Whether a value does not depend on the sizes of open axes beside the rows."""
        made = self.facts.producer.get(name)
        return self.is_definite or made is None or made in self.facts.constant_nodes

    def exported_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape at the exported number of rows, where it is known."""
        return _definite(self.exported.get(name))

    def probe_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape at `PROBE` rows, where it is known."""
        return _definite(self._specs.get(name))

    def grown_shape(self, shape: Sequence[int], axis: int) -> tuple[int, ...]:
        """A shape at `PROBE` rows of a value that has them on an axis."""
        return tuple(
            size // self.rows * PROBE if i == axis else size for i, size in enumerate(shape)
        )

    def _grown(self, spec: TensorSpec, axis: int) -> TensorSpec:
        if spec.shape is None:
            return spec
        dims = tuple(
            dim // self.rows * PROBE if i == axis and isinstance(dim, int) else dim
            for i, dim in enumerate(spec.shape)
        )
        return replace(spec, shape=dims)

    def inferred(self, proto: onnx.NodeProto) -> list[TensorSpec] | None:
        """Specs of a node's outputs at `PROBE` rows by ONNX's inference; None where that says
        nothing, or that the inputs do not fit together."""
        if not is_standard(proto.domain) or subgraphs_of(proto):
            return None
        version = next((o.version for o in self._imports if o.domain == proto.domain), self.opset)
        types, data = {}, {}
        for name in filter(None, proto.input):
            spec = self._specs.get(name)
            if spec is None or (spec.dtype is None and spec.kind is None):
                return None
            types[name] = value_info(spec).type if spec.kind is None else parse_type(spec.kind)
            known = self.known(name)
            if known is not None and known.array.size <= _MOST_OPERAND:
                data[name] = numpy_helper.from_array(np.asarray(known.array), name)
        try:
            schema = onnx.defs.get_schema(proto.op_type, version, proto.domain)
            found = shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=self._imports
            )
        except (onnx.defs.SchemaError, shape_inference.InferenceError, ValueError, RuntimeError):
            return None
        specs = []
        for name in proto.output:
            value = onnx.ValueInfoProto(name=name)
            if name in found:
                value.type.CopyFrom(found[name])
            specs.append(spec_of(value))
        return specs

    # Writing.

    def mark(self) -> Mark:
        """Where the draft stands."""
        return Mark(len(self.nodes), len(self.tensors))

    def roll_back(self, mark: Mark) -> None:
        """Forget everything that was written since a mark."""
        gone = {name for node in self.nodes[mark.nodes :] for name in node.output}
        for node in self.nodes[mark.nodes :]:
            self.notes.pop(node.name, None)
        gone |= {tensor.name for tensor in self.tensors[mark.tensors :]}
        del self.nodes[mark.nodes :], self.tensors[mark.tensors :]
        for name in gone:
            self._walk.deps.pop(name, None)
            self._walk.known.pop(name, None)
            self._set_spec(name, self.exported.get(name))
        self.made = {what: name for what, name in self.made.items() if name not in gone}

    def emit(self, proto: onnx.NodeProto, note: str = "") -> None:
        """Write a node whose inputs are all written.

        Raises
        ------
        NotOpenedError
            An output that is needed does not have the rows as the algebra can follow them.
        """
        for name, spec in zip(proto.output, self._output_specs(proto), strict=True):
            self._set_spec(name, spec)
        node = _facts_of(proto, self.facts)
        walk = self._walk
        if any(name in walk.deps for name in node.reads):
            walk._visit(node, proto)
        elif node.op_type in NAMES_SHAPES:
            walk._fold(node, proto)
        self.nodes.append(proto)
        if note:
            self.notes[proto.name] = note
        for name in filter(None, proto.output):
            dep = walk.deps.get(name)
            if dep is not None:
                self._settle(proto, name, dep)

    def _output_specs(self, proto: onnx.NodeProto) -> list[TensorSpec]:
        found = self.inferred(proto)
        specs = []
        for index, name in enumerate(proto.output):
            was = self.exported.get(name)
            spec = found[index] if found is not None else TensorSpec(name, None, None)
            if spec.dtype is None and spec.kind is None and was is not None:
                # The rank is the same at any number of rows.
                rank = None if was.shape is None else (None,) * len(was.shape)
                spec = replace(was, name=name, shape=rank)
            specs.append(spec)
        return specs

    def _settle(self, proto: onnx.NodeProto, name: str, dep: Dependence) -> None:
        """Check what a node makes of the rows, and note the shape that follows."""
        is_needed = name in self._needed or name not in self.exported
        if is_needed and not self._is_sound(name, dep):
            raise NotOpenedError(dep.node or proto.name, dep.kind, dep.how)
        if dep.is_uniform and proto.op_type == "Reshape" and not _is_aligned(self, proto, dep):
            # All positions hold the same, but what they were merged with need not.
            self._walk.deps[name] = replace(dep, is_uniform=False)
        spec = self._specs[name]
        was = self.exported.get(name)
        if was is None or _definite(spec) is not None or spec.kind is not None:
            return
        grown = self._grown(was, dep.axis) if dep.axis is not None else was
        if spec.shape is not None and grown.shape and len(grown.shape) == len(spec.shape):
            both = zip(spec.shape, grown.shape, strict=True)
            grown = replace(grown, shape=tuple(a if isinstance(a, int) else b for a, b in both))
        self._set_spec(name, grown)

    def _set_spec(self, name: str, spec: TensorSpec | None) -> None:
        """Note what a value is at `PROBE` rows, also where the algebra has looked it up before."""
        if spec is None:
            self._specs.pop(name, None)
        else:
            self._specs[name] = spec
        self._walk._shapes.pop(name, None)

    def _is_sound(self, name: str, dep: Dependence) -> bool:
        if dep.kind <= Kind.INDEPENDENT:
            return True
        if dep.kind != Kind.LENGTH:
            return False
        return self.known(name) is not None or dep.index is not None or dep.how == "own index"

    # Helper values.

    def fresh(self, base: str) -> str:
        """A name that no value has."""
        name, number = base, 1
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name

    def constant(self, array: np.ndarray, base: str) -> str:
        """Name of an initializer with these elements."""
        what = ("constant", array.dtype.str, array.shape, array.tobytes())
        if what not in self.made:
            name = self.fresh(f"{base}/open")
            self.tensors.append(numpy_helper.from_array(array, name))
            self._walk.known[name] = Known(array)
            self._set_spec(name, TensorSpec(name, array.dtype, array.shape))
            self.made[what] = name
        return self.made[what]

    def numbers(self, values: Sequence[int], base: str) -> str:
        """Name of an int64 vector."""
        return self.constant(np.array(values, np.int64), base)

    def helper(self, op_type: str, inputs: Sequence[str], base: str, **attributes: Any) -> str:
        """Write a node of one output; return the name of that."""
        what = (op_type, tuple(inputs), tuple(sorted(map(repr, attributes.items()))))
        if what not in self.made:
            name = self.fresh(f"{base}/{op_type}")
            self.emit(helper.make_node(op_type, list(inputs), [name], name, **attributes))
            self.made[what] = name
        return self.made[what]

    def shape_vector(self, parts: Sequence[int | Rows], base: str) -> str:
        """Name of a shape of fixed numbers and multiples of the number of rows."""
        if not any(isinstance(part, Rows) for part in parts):
            return self.numbers([p for p in parts if isinstance(p, int)], base)
        pieces: list[str] = []
        fixed: list[int] = []
        for part in parts:
            if isinstance(part, int):
                fixed.append(part)
                continue
            if fixed:
                pieces.append(self.numbers(fixed, base))
                fixed = []
            pieces.append(self.count(part.factor))
        if fixed:
            pieces.append(self.numbers(fixed, base))
        return pieces[0] if len(pieces) == 1 else self.helper("Concat", pieces, base, axis=0)

    def count(self, factor: int = 1) -> str:
        """Name of a vector of one number: a multiple of the number of rows."""
        source, axis = next(iter(self.axes.items()))
        shape = self.helper("Shape", [source], "rows")
        rows = self.helper("Gather", [shape, self.numbers([axis], "rows")], "rows", axis=0)
        if factor == 1:
            return rows
        return self.helper("Mul", [rows, self.numbers([factor], "rows")], "rows")

    def reshape(self, name: str, parts: Sequence[int | Rows], base: str) -> str:
        """Name of a value in another shape."""
        return self.helper("Reshape", [name, self.shape_vector(parts, base)], base)


def _facts_of(proto: onnx.NodeProto, facts: GraphFacts) -> NodeFacts:
    """Facts of a node that may have been rewritten."""
    made = facts.producer.get(next(filter(None, proto.output), ""))
    inputs, outputs = tuple(proto.input), tuple(filter(None, proto.output))
    if made is not None and facts.nodes[made].op_type == proto.op_type:
        return replace(facts.nodes[made], inputs=inputs, outputs=outputs)
    return NodeFacts(-1, proto.name, proto.op_type, proto.domain, inputs, outputs, ())


def _definite(spec: TensorSpec | None) -> tuple[int, ...] | None:
    if spec is None or spec.shape is None:
        return None
    sizes = tuple(dim for dim in spec.shape if isinstance(dim, int))
    return sizes if len(sizes) == len(spec.shape) else None


def _is_aligned(draft: Draft, proto: onnx.NodeProto, dep: Dependence) -> bool:
    """Whether a Reshape left the axis of the rows unmerged with others."""
    before = draft.probe_shape(proto.input[0])
    after = draft.probe_shape(proto.output[0])
    was = draft.dep(proto.input[0]).axis
    if before is None or after is None or was is None or dep.axis is None:
        return False
    return after[dep.axis] <= before[was]


def content_token(proto: bytes) -> str:
    """The digest that names a model."""
    return hashlib.sha256(proto).hexdigest()[:32]


def opened_dims(shape: Sequence[Dim], dep: Dependence, symbol: str) -> tuple[Dim, ...]:
    """A shape with its number of rows open: by name where they are alone on their axis."""
    if dep.axis is None or dep.axis >= len(shape):
        return tuple(shape)
    is_alone = (dep.outer, dep.inner) == (1, 1)
    return tuple(
        (symbol if is_alone else None) if i == dep.axis else dim for i, dim in enumerate(shape)
    )
