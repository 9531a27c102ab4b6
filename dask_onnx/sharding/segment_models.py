"""The model of a sharded plan: each segment a stage, shards under names of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from dask_onnx.analysis.cost import CostTable, NodeCost, initializer_bytes, value_bytes
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.normalise import captured_names
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.planning.cutting import identifier
from dask_onnx.planning.stages import Stage, StageCost
from dask_onnx.sharding.key_blocks import PARTIAL, BlockedAttention, BlockForm, partial_softmax
from dask_onnx.sharding.query_rules import is_causal, with_causal_mask
from dask_onnx.sharding.segment_costs import working_bytes
from dask_onnx.sharding.segments import Copy, Form, Segment, SegmentPlan, forms_of, given_forms
from dask_onnx.sharding.shard_operands import Constant, LocalOperand

_SHARD_SIZE = "shard_length"
"""Name of the size of the sharded axis, in the model that runs on shards."""

Specs = Mapping[str, TensorSpec]


Source = Form | BlockForm | LocalOperand | Constant
"""Where an input of a part comes from."""


@dataclass(frozen=True, slots=True)
class Part:
    """A segment as a stage of the model."""

    segment: Segment
    stage: Stage
    """Its cost is that of one shard."""
    sources: tuple[Source, ...]
    """For each input of the stage."""
    gives: tuple[Form, ...]
    """For each output of the stage; of an attention in blocks of keys the value that these are
    combined to."""
    attention: BlockedAttention | None = None
    """What the stage is one block of."""


@dataclass(frozen=True, slots=True, eq=False)
class PartedModel:
    """A model whose stages are the segments of a plan."""

    model: OnnxModel
    parts: tuple[Part, ...]


def form_name(form: Form) -> str:
    """Return the name of a form in the model of the parts."""
    name, layout = form
    return name if layout is None else f"{name}@{layout.label}"


def make_parts(
    plan: SegmentPlan, declared: Specs, costs: CostTable, node_costs: list[NodeCost]
) -> PartedModel:
    """Return the model of a plan's segments. Reads no weights.

    Parameters
    ----------
    declared : mapping of value to TensorSpec
        As they follow from the model alone, sizes of its open axes by name.
    """
    writer = _Writer(plan, declared, costs, node_costs)
    writer.write()
    return writer.result()


class _Writer:
    def __init__(
        self, plan: SegmentPlan, declared: Specs, costs: CostTable, node_costs: list[NodeCost]
    ) -> None:
        self.plan, self.declared = plan, declared
        self.costs, self.node_costs = costs, node_costs
        self.facts = plan.ways.facts
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(self.facts.proto)
        self.constants = {node: place for place, node in enumerate(sorted(plan.ways.constants))}
        """Nodes that follow from weights alone: they come first."""
        self.nodes: list[onnx.NodeProto] = [self.facts.proto.graph.node[i] for i in self.constants]
        self.parts: list[Part] = []
        self.sources: dict[str, Source] = {}
        self.weights = initializer_bytes(self.facts)

    def write(self) -> None:
        """Write the nodes of all segments, one after the other."""
        for segment in self.plan.segments:
            start = len(self.nodes)
            for copy in segment.copies:
                self.nodes += self._rewritten(copy)
            self.parts.append(self._part(segment, range(start, len(self.nodes))))
        for attention in self.plan.blocks.attentions:
            self.parts.append(self._attention(attention))
        self._close()

    def _node(self, copy: Copy) -> onnx.NodeProto:
        """A node with the names of the forms that it reads and makes."""
        node = onnx.NodeProto()
        node.CopyFrom(self.facts.proto.graph.node[copy.node])
        if copy.way is None:
            return node
        for place, layout in enumerate(copy.way.takes):
            if layout is not None:
                node.input[place] = form_name((node.input[place], layout))
        for operand in copy.way.operands:
            while len(node.input) <= operand.index:
                node.input.append("")
            name = f"{node.input[operand.index]}@{len(self.nodes)}.{operand.index}"
            node.input[operand.index] = name
            self.sources[name] = operand
        for place, layout in enumerate(copy.way.gives):
            if node.output[place]:
                unused = f"{node.output[place]}@unused{len(self.nodes)}"
                given = layout and form_name((node.output[place], layout))
                node.output[place] = given or unused
        return node

    def _rewritten(self, copy: Copy) -> list[onnx.NodeProto]:
        """The nodes that stand for a copy: one, but where a mask is written out."""
        node = self._node(copy)
        if copy.way is None or not is_causal(node):
            return [node]
        spec = self.plan.ways.specs[self.facts.nodes[copy.node].inputs[0]]
        prefix = f"{node.name or node.op_type}@{len(self.nodes)}"
        dtype = np.dtype(np.float32) if spec.dtype is None else spec.dtype
        nodes, sources = with_causal_mask(node, prefix, dtype, self.plan.bounds.positions)
        self.sources.update(sources)
        return nodes

    def _part(self, segment: Segment, places: range) -> Part:
        made = {name for i in places for name in self.nodes[i].output}
        own = self._constants_of(segment)
        made |= {name for node in own for name in self.facts.nodes[node].outputs}
        forms = {form_name(f): f for copy in segment.copies for f in forms_of(self.plan, copy)}
        reads = dict.fromkeys(
            name
            for i in places
            for name in (*self.nodes[i].input, *captured_names(self.nodes[i]))
            if name and name not in made and name not in self.facts.initializers
        )
        sources = {name: self._source(name, forms) for name in reads}
        stage = Stage(
            label=self._label(segment),
            nodes=(*(self.constants[node] for node in own), *places),
            inputs=tuple(self._spec(name, source) for name, source in sources.items()),
            outputs=(),
            cost=self._cost(segment, own),
        )
        return Part(segment, stage, tuple(sources.values()), ())

    def _attention(self, attention: BlockedAttention) -> Part:
        """One block of keys for one shard of queries."""
        start = len(self.nodes)
        facts, ways = self.facts, self.plan.chosen.ways
        sources: dict[str, Source] = {}

        def named(node: int, place: int) -> str:
            name, way = facts.nodes[node].inputs[place], ways[node]
            assert way is not None
            rows, keys = way.takes[place], attention.key_takes[node][place]
            known = self.plan.ways.known(name)
            if name in made:
                return f"{name}@block"
            if known is not None:
                sources[name] = Constant(known)
                return name
            if not name or self.plan.ways.is_given(name):
                return name
            form = (name, rows) if keys is None else BlockForm(name, rows, keys)
            label = form.label if isinstance(form, BlockForm) else form_name(form)
            sources[label] = form
            return label

        made: set[str] = set()
        for node in attention.before:
            proto = onnx.NodeProto()
            proto.CopyFrom(facts.proto.graph.node[node])
            inputs = [named(node, place) for place in range(len(proto.input))]
            del proto.input[:]
            proto.input.extend(inputs)
            made.update(facts.nodes[node].outputs)
            for place, name in enumerate(proto.output):
                proto.output[place] = f"{name}@block"
            self.nodes.append(proto)
        return self._partial(attention, start, named(attention.mix, 1), sources)

    def _partial(
        self, attention: BlockedAttention, start: int, values: str, sources: dict[str, Source]
    ) -> Part:
        scores = self.facts.nodes[attention.softmax].inputs[0]
        spec = self.plan.ways.specs[scores]
        dtype = np.dtype(np.float32) if spec.dtype is None else spec.dtype
        prefix = f"{scores}@block"
        opset = self.plan.ways.opset
        nodes, constants = partial_softmax(prefix, values, prefix, dtype, opset)
        self.nodes += nodes
        sources.update(constants)
        read = {name for node in self.nodes[start:] for name in node.input}
        own = self._constants_before(sorted(read))
        shape = None if spec.shape is None else (None,) * len(spec.shape)
        copies = tuple(Copy(node, self.plan.chosen.ways[node]) for node in sorted(attention.nodes))
        segment = Segment(0, True, copies)
        stage = Stage(
            label=f"partial_{identifier(self.facts.nodes[attention.softmax].name)}",
            nodes=(*(self.constants[node] for node in own), *range(start, len(self.nodes))),
            inputs=tuple(self._spec(name, source) for name, source in sources.items()),
            outputs=tuple(TensorSpec(f"{prefix}.{each}", dtype, shape) for each in PARTIAL),
            cost=self._block_cost(segment, own),
        )
        name = self.facts.nodes[attention.mix].outputs[0]
        gives = ((name, self.plan.chosen.layouts[name]),)
        return Part(segment, stage, tuple(sources.values()), gives, attention)

    def _block_cost(self, segment: Segment, constants: list[int]) -> StageCost:
        cost, count = self._cost(segment, constants), self.plan.blocks.count
        return replace(
            cost,
            flops=cost.flops // count,
            seconds=cost.seconds / count,
            working_bytes=cost.working_bytes // count,
        )

    def _constants_of(self, segment: Segment) -> list[int]:
        """Nodes that follow from weights alone and that a segment's nodes read, sliced or not."""
        pending = [
            name
            for copy in segment.copies
            for name, layout in forms_of(self.plan, copy)
            if name and layout is None
        ]
        return self._constants_before(pending)

    def _constants_before(self, names: list[str]) -> list[int]:
        found: set[int] = set()
        pending = list(names)
        while pending:
            index = self.facts.producer.get(pending.pop())
            if index in self.constants and index not in found:
                found.add(index)
                pending += self.facts.nodes[index].reads
        return sorted(found)

    def _source(self, name: str, forms: Mapping[str, Form]) -> Source:
        if name in self.sources:
            return self.sources[name]
        form = forms[name]
        known = self.plan.ways.known(form[0])
        return Constant(known) if known is not None else form

    def _label(self, segment: Segment) -> str:
        names = [identifier(self.facts.nodes[copy.node].name) for copy in segment.copies]
        ends = names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"
        return ends if segment.is_sharded else f"whole_{ends}"

    def _spec(self, name: str, source: Source) -> TensorSpec:
        if isinstance(source, LocalOperand):
            return TensorSpec(name, source.whole.dtype, source.whole.shape)
        if isinstance(source, Constant):
            return TensorSpec(name, source.array.dtype, source.array.shape)
        if isinstance(source, BlockForm):
            spec = self._form_spec((source.name, source.rows))
            shape = None if spec.shape is None else (None,) * len(spec.shape)
            return replace(spec, name=name, shape=shape)
        return self._form_spec(source)

    def _form_spec(self, form: Form) -> TensorSpec:
        """A form's dtype, and its shape with open axes by name."""
        value, layout = form
        spec, own = self.plan.ways.specs.get(value), self.declared.get(value)
        if spec is None:
            return TensorSpec(form_name(form), None, None)
        shape: tuple[Dim, ...] | None = None if own is None else own.shape
        if shape is None and spec.shape is not None:
            shape = (None,) * len(spec.shape)
        if shape is not None and layout is not None:
            size = _SHARD_SIZE if layout.blocks == 1 else None
            shape = tuple(size if i == layout.axis else dim for i, dim in enumerate(shape))
        return TensorSpec(form_name(form), spec.dtype, shape, spec.kind)

    def _close(self) -> None:
        """Find the outputs of every part, once all readers are known."""
        made = [
            {form for copy in part.segment.copies for form in given_forms(self.plan.ways, copy)}
            for part in self.parts
        ]
        read = {form for part in self.parts for form in self._read(part)}
        read |= set(self.plan.outputs)
        in_shards = set[Form]().union(*made)
        sliced = {
            (name, None) for name, layout in read if layout and (name, layout) not in in_shards
        }
        gathered = {(name, self.plan.chosen.layouts[name]) for name in self.plan.gathers}
        for number, (part, own) in enumerate(zip(self.parts, made, strict=True)):
            if part.attention is not None:
                continue
            gives = sorted(own & (read | sliced | gathered), key=form_name)
            stage = replace(part.stage, outputs=tuple(map(self._form_spec, gives)))
            self.parts[number] = replace(part, stage=stage, gives=tuple(gives))
        ways = self.plan.ways
        wanted = {name for name, _ in sliced | set(self.plan.outputs) if ways.is_given(name)}
        self._hand_out(sorted(name for name in wanted if ways.known(name) is None))

    def _read(self, part: Part) -> Iterator[Form]:
        """Forms that a part is given, and those that its blocks of keys are made of."""
        for source in part.sources:
            if isinstance(source, BlockForm):
                native = self.plan.chosen.layouts.get(source.name)
                is_native = source.rows is None and native == source.keys
                yield source.name, native if is_native else source.rows
            elif isinstance(source, tuple):
                yield source

    def _hand_out(self, names: list[str]) -> None:
        """Add a part that gives weights, or what follows from them, to be sliced or handed on."""
        if not names:
            return
        gives: tuple[Form, ...] = tuple((name, None) for name in names)
        outputs = tuple(map(self._form_spec, gives))
        nodes = self._constants_before(names)
        size = sum(value_bytes(self.plan.ways.specs.get(name)) for name in names)
        places = tuple(self.constants[node] for node in nodes)
        stage = Stage("weights", places, (), outputs, StageCost(0, 0.0, size, size))
        self.parts.insert(0, Part(Segment(0, False, ()), stage, (), gives))

    def _cost(self, segment: Segment, constants: list[int]) -> StageCost:
        share = max(self.plan.bounds.sizes) / max(self.plan.bounds.positions, 1)
        share = share if segment.is_sharded else 1.0
        nodes = [copy.node for copy in segment.copies]
        weights = {
            name
            for i in (*nodes, *constants)
            for name in self.facts.nodes[i].reads
            if name in self.weights
        }
        return StageCost(
            flops=int(sum(self.node_costs[i].flops for i in nodes) * share),
            seconds=sum(self.costs.seconds(self.node_costs[i]) for i in nodes) * share,
            parameter_bytes=sum(self.weights[name] for name in weights),
            activation_bytes=0,
            working_bytes=working_bytes(self.plan, segment),
        )

    def result(self) -> PartedModel:
        graph = self.proto.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.value_info[:]
        data = self.proto.SerializeToString(deterministic=True)
        model = replace(
            self.facts.model,
            proto=data,
            token=hashlib.sha256(data).hexdigest()[:32],
            source=None,
        )
        return PartedModel(model, tuple(self.parts))
