"""Graph under construction with a dynamic batch axis, analysed as its nodes are written.

Each value has two shapes: one at the exported number of rows, and one at `PROBE` rows, at which the
new graph is analysed node by node. The axis analysis tells on which axis the rows lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from dask_onnx.analysis.axes.dependence import FREE, POSITION_VECTORS, Dependence, Kind
from dask_onnx.analysis.axes.propagate import Walk
from dask_onnx.analysis.axes.table import SHAPE_OPERATORS, CustomAxes
from dask_onnx.analysis.axes.view import Known
from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.operator_names import is_onnx_domain, operator_name, standard_op_type
from dask_onnx.modelio.value_types import parse_type, spec_of, value_info
from dask_onnx.modelio.weights import graphs_of, subgraphs_of

PROBE = 37
"""Number of rows at which the new graph is analysed: a prime that is rare as a real dimension."""
_MAX_OPERAND = 64
"""Elements of the largest input whose value is given to shape inference: shapes, axes, bounds."""

Layout = tuple[int, int, int]
"""Layout of rows in a value: axis, outer blocks and inner elements, see `Dependence`."""


class NotOpenedError(Exception):
    """A node cannot be rewritten for a dynamic batch; internal to `opening`.

    Attributes
    ----------
    node : str
        Name of the node.
    kind : Kind
        Kind of its dependence on the rows.
    how : str
        Reason in a few words.
    """

    def __init__(self, node: str, kind: Kind, how: str) -> None:
        super().__init__(node, kind, how)
        self.node, self.kind, self.how = node, kind, how


@dataclass(frozen=True, slots=True)
class Rows:
    """A multiple of the number of rows, as an element of a shape."""

    factor: int = 1
    """Factor of the number of rows."""


class Mark(NamedTuple):
    """A state of a draft that it can be rolled back to."""

    nodes: int
    """Number of nodes written."""
    tensors: int
    """Number of initializers added."""


class Draft:
    """Nodes written so far, with the dependence and the shape of each value.

    Parameters
    ----------
    facts : GraphFacts
        The original graph.
    specs : mapping of value to TensorSpec
        Specs of the original graph's values at the exported number of rows.
    axes : mapping of input to axis
        Axis of the rows in each input that has them.
    rows : int
        The exported number of rows.
    custom : mapping of (domain, op type) to axes
        Axes that custom operators declare, see `CustomAxes`.
    is_static : bool
        True if all sizes except the number of rows are fixed in the graph.
    """

    def __init__(
        self,
        facts: GraphFacts,
        specs: Mapping[str, TensorSpec],
        axes: Mapping[str, int],
        rows: int,
        custom: CustomAxes,
        *,
        is_static: bool,
    ) -> None:
        self.facts, self.rows, self.axes = facts, rows, axes
        self.exported = specs
        """Specs of the original graph's values at the exported number of rows."""
        self.is_static = is_static
        """True if all sizes except the number of rows are fixed in the graph."""
        self.opset = facts.model.opsets.get("", 1)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.notes: dict[str, str] = {}
        """Name of each rewritten node to a description of the change."""
        self.helpers: dict[object, str] = {}
        """Names of helper values by their definition, so that each is added once."""
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
            if standard_op_type(facts.nodes[index]) not in ("Shape", "Size")
            for name in facts.nodes[index].reads
        }

    # Results of the analysis.

    def dep(self, name: str) -> Dependence:
        """Return the dependence of a value on the rows."""
        return self._walk.deps.get(name, FREE)

    def known(self, name: str) -> Known | None:
        """Return a small value computed from constants and shapes at `PROBE` rows, or None."""
        return self._walk.constant(name) if name else None

    def fixed(self, name: str) -> Known | None:
        """Return the same if it does not depend on the sizes of other dynamic axes."""
        known = self.known(name)
        return known if known is not None and self.is_fixed(name) else None

    def is_fixed(self, name: str) -> bool:
        """Return whether a value is independent of the sizes of dynamic axes besides the rows."""
        made = self.facts.producer.get(name)
        return self.is_static or made is None or made in self.facts.constant_nodes

    def exported_shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape at the exported number of rows, or None."""
        return _static_shape(self.exported.get(name))

    def probe_shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape at `PROBE` rows, or None."""
        return _static_shape(self._specs.get(name))

    def grown_shape(self, shape: Sequence[int], axis: int) -> tuple[int, ...]:
        """Return a shape, given at the exported number of rows on `axis`, at `PROBE` rows."""
        return tuple(
            size // self.rows * PROBE if i == axis else size for i, size in enumerate(shape)
        )

    def _grown(self, spec: TensorSpec, axis: int) -> TensorSpec:
        """Return a spec at `PROBE` rows on `axis`."""
        if spec.shape is None:
            return spec
        dims = tuple(
            dim // self.rows * PROBE if i == axis and isinstance(dim, int) else dim
            for i, dim in enumerate(spec.shape)
        )
        return replace(spec, shape=dims)

    def inferred(self, proto: onnx.NodeProto) -> list[TensorSpec] | None:
        """Return the specs of a node's outputs at `PROBE` rows by ONNX's shape inference.

        None if it does not cover the operator, or finds that the inputs do not fit together.
        """
        if not is_onnx_domain(proto.domain) or subgraphs_of(proto):
            return None
        version = next((o.version for o in self._imports if o.domain == proto.domain), self.opset)
        types, data = {}, {}
        for name in filter(None, proto.input):
            spec = self._specs.get(name)
            if spec is None or (spec.dtype is None and spec.kind is None):
                return None
            types[name] = value_info(spec).type if spec.kind is None else parse_type(spec.kind)
            known = self.known(name)
            if known is not None and known.array.size <= _MAX_OPERAND:
                data[name] = numpy_helper.from_array(np.asarray(known.array), name)
        try:
            schema = onnx.defs.get_schema(proto.op_type, version, proto.domain)
            found = shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=self._imports
            )
        except (
            onnx.defs.SchemaError,
            onnx.checker.ValidationError,
            shape_inference.InferenceError,
            ValueError,
            RuntimeError,
        ):
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
        """Return the current state, for `roll_back`."""
        return Mark(len(self.nodes), len(self.tensors))

    def roll_back(self, mark: Mark) -> None:
        """Discard everything written since a mark."""
        gone = {name for node in self.nodes[mark.nodes :] for name in node.output}
        for node in self.nodes[mark.nodes :]:
            self.notes.pop(node.name, None)
        gone |= {tensor.name for tensor in self.tensors[mark.tensors :]}
        del self.nodes[mark.nodes :], self.tensors[mark.tensors :]
        for name in gone:
            self._walk.deps.pop(name, None)
            self._walk.known.pop(name, None)
            self._set_spec(name, self.exported.get(name))
        self.helpers = {what: name for what, name in self.helpers.items() if name not in gone}

    def emit(self, proto: onnx.NodeProto, note: str = "") -> None:
        """Append a node whose inputs are written, and analyse it.

        Parameters
        ----------
        proto : onnx.NodeProto
        note : str
            Description of the change; empty if the node is unchanged.

        Raises
        ------
        NotOpenedError
            An output that is needed mixes rows, or the analysis cannot follow them.
        """
        for name, spec in zip(proto.output, self._output_specs(proto), strict=True):
            self._set_spec(name, spec)
        node = _facts_of(proto, self.facts)
        walk = self._walk
        if any(name in walk.deps for name in node.reads):
            walk.visit(node, proto)
        elif standard_op_type(node) in SHAPE_OPERATORS:
            walk.fold(node, proto)
        self.nodes.append(proto)
        if note:
            self.notes[proto.name] = note
        for name in filter(None, proto.output):
            dep = walk.deps.get(name)
            if dep is not None:
                self._settle(proto, name, dep)

    def _output_specs(self, proto: onnx.NodeProto) -> list[TensorSpec]:
        """Return the specs of a node's outputs at `PROBE` rows, or else exported type and rank."""
        found = self.inferred(proto)
        specs = []
        for index, name in enumerate(proto.output):
            was = self.exported.get(name)
            spec = found[index] if found is not None else TensorSpec(name, None, None)
            if spec.dtype is None and spec.kind is None and was is not None:
                # The rank does not depend on the number of rows.
                rank = None if was.shape is None else (None,) * len(was.shape)
                spec = replace(was, name=name, shape=rank)
            specs.append(spec)
        return specs

    def _settle(self, proto: onnx.NodeProto, name: str, dep: Dependence) -> None:
        """Check the dependence of an output, and record the shape that it implies."""
        is_needed = name in self._needed or name not in self.exported
        if is_needed and not self._is_sound(name, dep):
            raise NotOpenedError(dep.node or proto.name, dep.kind, dep.how)
        if (
            dep.is_uniform
            and standard_op_type(proto) == "Reshape"
            and not _is_aligned(self, proto, dep)
        ):
            # Rows are equal, but the axis they were merged with may vary.
            self._walk.deps[name] = replace(dep, is_uniform=False)
        spec = self._specs[name]
        was = self.exported.get(name)
        if was is None or _static_shape(spec) is not None or spec.kind is not None:
            return
        grown = self._grown(was, dep.axis) if dep.axis is not None else was
        if spec.shape is not None and grown.shape and len(grown.shape) == len(spec.shape):
            both = zip(spec.shape, grown.shape, strict=True)
            grown = replace(grown, shape=tuple(a if isinstance(a, int) else b for a, b in both))
        self._set_spec(name, grown)

    def _set_spec(self, name: str, spec: TensorSpec | None) -> None:
        """Record the spec of a value at `PROBE` rows, and discard the analysis' cached shape."""
        if spec is None:
            self._specs.pop(name, None)
        else:
            self._specs[name] = spec
        self._walk.forget_shape(name)

    def _is_sound(self, name: str, dep: Dependence) -> bool:
        """Return whether rows are independent, or the value is a known function of their number."""
        if dep.kind <= Kind.INDEPENDENT:
            return True
        if dep.kind != Kind.LENGTH:
            return False
        return self.known(name) is not None or dep.index is not None or dep.how == POSITION_VECTORS

    # Helper values.

    def fresh(self, base: str) -> str:
        """Return a name that no value or node has: `base`, or `base` with a number."""
        name, number = base, 1
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name

    def constant(self, array: np.ndarray, base: str) -> str:
        """Return the name of an initializer with these elements, added if necessary."""
        what = ("constant", array.dtype.str, array.shape, array.tobytes())
        if what not in self.helpers:
            name = self.fresh(f"{base}/open")
            self.tensors.append(numpy_helper.from_array(array, name))
            self._walk.known[name] = Known(array)
            self._set_spec(name, TensorSpec(name, array.dtype, array.shape))
            self.helpers[what] = name
        return self.helpers[what]

    def numbers(self, values: Sequence[int], base: str) -> str:
        """Return the name of an int64 vector with these elements."""
        return self.constant(np.array(values, np.int64), base)

    def helper(self, op_type: str, inputs: Sequence[str], base: str, **attributes: Any) -> str:
        """Append a node with one output, unless an equal one exists; return the output's name."""
        what = (op_type, tuple(inputs), tuple(sorted(map(repr, attributes.items()))))
        if what not in self.helpers:
            name = self.fresh(f"{base}/{op_type}")
            self.emit(helper.make_node(op_type, list(inputs), [name], name, **attributes))
            self.helpers[what] = name
        return self.helpers[what]

    def shape_vector(self, parts: Sequence[int | Rows], base: str) -> str:
        """Return the name of a shape made of fixed sizes and multiples of the number of rows."""
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
        """Return the name of an int64 vector of shape (1,): `factor` times the number of rows."""
        source, axis = next(iter(self.axes.items()))
        shape = self.helper("Shape", [source], "rows")
        rows = self.helper("Gather", [shape, self.numbers([axis], "rows")], "rows", axis=0)
        if factor == 1:
            return rows
        return self.helper("Mul", [rows, self.numbers([factor], "rows")], "rows")

    def reshape(self, name: str, parts: Sequence[int | Rows], base: str) -> str:
        """Return the name of a value reshaped to `parts`."""
        return self.helper("Reshape", [name, self.shape_vector(parts, base)], base)


def _facts_of(proto: onnx.NodeProto, facts: GraphFacts) -> NodeFacts:
    """Return the facts of a node that may be rewritten or new."""
    made = facts.producer.get(next(filter(None, proto.output), ""))
    inputs, outputs = tuple(proto.input), tuple(filter(None, proto.output))
    if made is not None and operator_name(facts.nodes[made]) == operator_name(proto):
        return replace(facts.nodes[made], inputs=inputs, outputs=outputs)
    return NodeFacts(-1, proto.name, proto.op_type, proto.domain, inputs, outputs, ())


def _static_shape(spec: TensorSpec | None) -> tuple[int, ...] | None:
    """Return the shape of a spec; None if a size is not a number."""
    if spec is None or spec.shape is None:
        return None
    sizes = tuple(dim for dim in spec.shape if isinstance(dim, int))
    return sizes if len(sizes) == len(spec.shape) else None


def _is_aligned(draft: Draft, proto: onnx.NodeProto, dep: Dependence) -> bool:
    """Return whether a Reshape did not merge the axis of the rows with others."""
    before = draft.probe_shape(proto.input[0])
    after = draft.probe_shape(proto.output[0])
    was = draft.dep(proto.input[0]).axis
    if before is None or after is None or was is None or dep.axis is None:
        return False
    return after[dep.axis] <= before[was]
