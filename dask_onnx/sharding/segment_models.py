"""Model of a sequence plan: one stage for each segment, with shards as values of their own."""

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
from dask_onnx.planning.stage_labels import identifier
from dask_onnx.planning.stages import Stage, StageCost
from dask_onnx.sharding.key_blocks import PARTIAL, BlockedAttention, BlockForm, partial_softmax
from dask_onnx.sharding.query_shards import attention_on_shard
from dask_onnx.sharding.segment_costs import working_bytes
from dask_onnx.sharding.segments import (
    Form,
    NodeInstance,
    Segment,
    SegmentPlan,
    forms_of,
    forms_written,
)
from dask_onnx.sharding.shard_operands import Constant, LocalOperand

_SHARD_SIZE = "shard_length"
"""Name of the open dimension for the sharded axis in the rewritten model."""

Specs = Mapping[str, TensorSpec]


Source = Form | BlockForm | LocalOperand | Constant
"""Origin of a submodel's input."""


@dataclass(frozen=True, slots=True)
class Submodel:
    """Segment as a stage of the rewritten model."""

    segment: Segment
    stage: Stage
    """Stage with the cost of one shard."""
    sources: tuple[Source, ...]
    """Origin of each input of the stage."""
    output_forms: tuple[Form, ...]
    """Form of each output of the stage; for a block of keys the value that blocks are combined
    to."""
    attention: BlockedAttention | None = None
    """Attention that the stage computes one block of; None for a segment."""


def forms_read(submodel: Submodel) -> Iterator[Form]:
    """Yield the forms that a submodel reads; of keys in blocks, those that are joined to them."""
    for source in submodel.sources:
        if isinstance(source, BlockForm):
            yield source.name, source.keys
        elif isinstance(source, tuple):
            yield source


@dataclass(frozen=True, slots=True, eq=False)
class PartitionedModel:
    """Model whose stages are the segments of a plan."""

    model: OnnxModel
    submodels: tuple[Submodel, ...]


def form_name(form: Form) -> str:
    """Return the name of a form in the rewritten model."""
    name, layout = form
    return name if layout is None else f"{name}@{layout.label}"


def build_submodels(
    plan: SegmentPlan, declared: Specs, costs: CostTable, node_costs: list[NodeCost]
) -> PartitionedModel:
    """Return the model of a plan's segments. Reads no weights.

    Parameters
    ----------
    declared : mapping of value to TensorSpec
        Specs from the model alone, with open axes by name.
    node_costs : list of NodeCost
        Costs of all nodes of the graph, in its order.
    """
    writer = _Writer(plan, declared, costs, node_costs)
    writer.write()
    return writer.result()


class _Writer:
    """Writes the rewritten model, one segment after the other."""

    def __init__(
        self, plan: SegmentPlan, declared: Specs, costs: CostTable, node_costs: list[NodeCost]
    ) -> None:
        self.plan, self.declared = plan, declared
        self.costs, self.node_costs = costs, node_costs
        self.facts = plan.candidates.facts
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(self.facts.proto)
        self.constants = {
            node: place for place, node in enumerate(sorted(plan.candidates.constants))
        }
        """Nodes that depend on weights only, to their position in the rewritten model: they come
        first."""
        self.nodes: list[onnx.NodeProto] = [self.facts.proto.graph.node[i] for i in self.constants]
        self.submodels: list[Submodel] = []
        self.sources: dict[str, Source] = {}
        self.weights = initializer_bytes(self.facts)

    def write(self) -> None:
        """Write the nodes of all segments."""
        for segment in self.plan.segments:
            start = len(self.nodes)
            for instance in segment.instances:
                self.nodes += self._rewritten(instance)
            self.submodels.append(self._submodel(segment, range(start, len(self.nodes))))
        for attention in self.plan.blocks.attentions:
            self.submodels.append(self._attention(attention))
        self._close()

    def _node(self, instance: NodeInstance) -> onnx.NodeProto:
        """Return a node that reads and writes the forms of its instance."""
        node = onnx.NodeProto()
        node.CopyFrom(self.facts.proto.graph.node[instance.node])
        if instance.candidate is None:
            return node
        for place, layout in enumerate(instance.candidate.input_layouts):
            if layout is not None:
                node.input[place] = form_name((node.input[place], layout))
        for operand in instance.candidate.operands:
            while len(node.input) <= operand.index:
                node.input.append("")
            name = f"{node.input[operand.index]}@{len(self.nodes)}.{operand.index}"
            node.input[operand.index] = name
            self.sources[name] = operand
        for place, layout in enumerate(instance.candidate.output_layouts):
            if node.output[place]:
                unused = f"{node.output[place]}@unused{len(self.nodes)}"
                given = layout and form_name((node.output[place], layout))
                node.output[place] = given or unused
        return node

    def _rewritten(self, instance: NodeInstance) -> list[onnx.NodeProto]:
        """Return the nodes of an instance: one, except for attentions that count positions."""
        node = self._node(instance)
        if instance.candidate is None:
            return [node]
        original = self.facts.proto.graph.node[instance.node]
        prefix = f"{node.name or node.op_type}@{len(self.nodes)}"
        specs, positions = self.plan.candidates.specs, self.plan.bounds.positions
        nodes, sources = attention_on_shard(node, original, prefix, specs, positions)
        self.sources.update(sources)
        return nodes

    def _submodel(self, segment: Segment, places: range) -> Submodel:
        made = {name for i in places for name in self.nodes[i].output}
        constant_nodes = self._constants_of(segment)
        made |= {name for node in constant_nodes for name in self.facts.nodes[node].outputs}
        forms = {
            form_name(f): f for instance in segment.instances for f in forms_of(self.plan, instance)
        }
        reads = dict.fromkeys(
            name
            for i in places
            for name in (*self.nodes[i].input, *captured_names(self.nodes[i]))
            if name and name not in made and name not in self.facts.initializers
        )
        sources = {name: self._source(name, forms) for name in reads}
        stage = Stage(
            label=self._label(segment),
            nodes=(*(self.constants[node] for node in constant_nodes), *places),
            inputs=tuple(self._spec(name, source) for name, source in sources.items()),
            outputs=(),
            cost=self._cost(segment, constant_nodes),
        )
        return Submodel(segment, stage, tuple(sources.values()), ())

    def _attention(self, attention: BlockedAttention) -> Submodel:
        """Write the submodel of one block of keys for one shard of queries."""
        start = len(self.nodes)
        facts, candidates = self.facts, self.plan.chosen.candidates
        sources: dict[str, Source] = {}

        def named(node: int, place: int) -> str:
            name, candidate = facts.nodes[node].inputs[place], candidates[node]
            assert candidate is not None
            rows, keys = candidate.input_layouts[place], attention.key_layouts[node][place]
            known = self.plan.candidates.known(name)
            if name in made:
                return f"{name}@block"
            if known is not None:
                sources[name] = Constant(known)
                return name
            if not name or self.plan.candidates.is_given(name):
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
    ) -> Submodel:
        """Append the partial softmax of a block and return its submodel."""
        scores = self.facts.nodes[attention.softmax].inputs[0]
        spec = self.plan.candidates.specs[scores]
        dtype = np.dtype(np.float32) if spec.dtype is None else spec.dtype
        prefix = f"{scores}@block"
        opset = self.plan.candidates.opset
        nodes, constants = partial_softmax(prefix, values, prefix, dtype, opset)
        self.nodes += nodes
        sources.update(constants)
        read = {name for node in self.nodes[start:] for name in node.input}
        constant_nodes = self._constants_before(sorted(read))
        shape = None if spec.shape is None else (None,) * len(spec.shape)
        instances = tuple(
            NodeInstance(node, self.plan.chosen.candidates[node])
            for node in sorted(attention.nodes)
        )
        segment = Segment(0, True, instances)
        stage = Stage(
            label=f"partial_{identifier(self.facts.nodes[attention.softmax].name)}",
            nodes=(
                *(self.constants[node] for node in constant_nodes),
                *range(start, len(self.nodes)),
            ),
            inputs=tuple(self._spec(name, source) for name, source in sources.items()),
            outputs=tuple(TensorSpec(f"{prefix}.{each}", dtype, shape) for each in PARTIAL),
            cost=self._block_cost(segment, constant_nodes),
        )
        name = self.facts.nodes[attention.mix].outputs[0]
        output_forms = ((name, self.plan.chosen.layouts[name]),)
        return Submodel(segment, stage, tuple(sources.values()), output_forms, attention)

    def _block_cost(self, segment: Segment, constants: list[int]) -> StageCost:
        cost, count = self._cost(segment, constants), self.plan.blocks.count
        return replace(
            cost,
            flops=cost.flops // count,
            seconds=cost.seconds / count,
            working_bytes=cost.working_bytes // count,
        )

    def _constants_of(self, segment: Segment) -> list[int]:
        """Return the nodes on weights alone that a segment reads."""
        pending = [
            name
            for instance in segment.instances
            for name, layout in forms_of(self.plan, instance)
            if name and layout is None
        ]
        return self._constants_before(pending)

    def _constants_before(self, names: list[str]) -> list[int]:
        """Return the nodes on weights alone that some values follow from."""
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
        known = self.plan.candidates.known(form[0])
        return Constant(known) if known is not None else form

    def _label(self, segment: Segment) -> str:
        names = [identifier(self.facts.nodes[instance.node].name) for instance in segment.instances]
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
        """Return dtype and shape of a form, with open axes by name."""
        value, layout = form
        spec, declared = self.plan.candidates.specs.get(value), self.declared.get(value)
        if spec is None:
            return TensorSpec(form_name(form), None, None)
        shape: tuple[Dim, ...] | None = None if declared is None else declared.shape
        if shape is None and spec.shape is not None:
            shape = (None,) * len(spec.shape)
        if shape is not None and layout is not None and not layout.combine:
            size = _SHARD_SIZE if layout.blocks == 1 else None
            shape = tuple(size if i == layout.axis else dim for i, dim in enumerate(shape))
        return TensorSpec(form_name(form), spec.dtype, shape, spec.kind)

    def _close(self) -> None:
        """Set the outputs of every submodel, once all consumers are known."""
        made = [
            {
                form
                for instance in submodel.segment.instances
                for form in forms_written(self.plan.candidates, instance)
            }
            for submodel in self.submodels
        ]
        read = {form for submodel in self.submodels for form in self._read(submodel)}
        read |= set(self.plan.outputs)
        in_shards = set[Form]().union(*made)
        sliced = {
            (name, None) for name, layout in read if layout and (name, layout) not in in_shards
        }
        gathered = {(name, self.plan.chosen.layouts[name]) for name in self.plan.gathers}
        for number, (submodel, written) in enumerate(zip(self.submodels, made, strict=True)):
            if submodel.attention is not None:
                continue
            output_forms = sorted(written & (read | sliced | gathered), key=form_name)
            stage = replace(submodel.stage, outputs=tuple(map(self._form_spec, output_forms)))
            self.submodels[number] = replace(
                submodel, stage=stage, output_forms=tuple(output_forms)
            )
        candidates = self.plan.candidates
        wanted = {name for name, _ in sliced | set(self.plan.outputs) if candidates.is_given(name)}
        self._add_weight_outputs(sorted(name for name in wanted if candidates.known(name) is None))

    def _read(self, submodel: Submodel) -> Iterator[Form]:
        """Yield the forms that a submodel reads.

        For a block of keys these are the shards that it is joined from.
        """
        for source in submodel.sources:
            if isinstance(source, BlockForm):
                native = self.plan.chosen.layouts.get(source.name)
                is_native = source.rows is None and native == source.keys
                yield source.name, native if is_native else source.rows
            elif isinstance(source, tuple):
                yield source

    def _add_weight_outputs(self, names: list[str]) -> None:
        """Add a submodel that returns values which follow from weights alone."""
        if not names:
            return
        output_forms: tuple[Form, ...] = tuple((name, None) for name in names)
        outputs = tuple(map(self._form_spec, output_forms))
        nodes = self._constants_before(names)
        size = sum(value_bytes(self.plan.candidates.specs.get(name)) for name in names)
        places = tuple(self.constants[node] for node in nodes)
        stage = Stage("weights", places, (), outputs, StageCost(0, 0.0, size, size))
        self.submodels.insert(0, Submodel(Segment(0, False, ()), stage, (), output_forms))

    def _cost(self, segment: Segment, constants: list[int]) -> StageCost:
        share = max(self.plan.bounds.sizes) / max(self.plan.bounds.positions, 1)
        share = share if segment.is_sharded else 1.0
        nodes = [instance.node for instance in segment.instances]
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

    def result(self) -> PartitionedModel:
        """Return the rewritten model and its submodels."""
        graph = self.proto.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.value_info[:]
        data = self.proto.SerializeToString(deterministic=True)
        model = replace(
            self.facts.model,
            proto=data,
            token=hashlib.sha256(data).hexdigest()[:32],
            # The proto is no longer that of the file; the locations of the weights still hold.
            source=None,
        )
        return PartitionedModel(model, tuple(self.submodels))
