"""Model that one shard runs: nodes on slices of their weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel, StageExtractor
from dask_onnx.modelio.weights import blob_of, is_external
from dask_onnx.sharding.constant_cuts import ConstantCuts
from dask_onnx.sharding.node_cuts import ALL_ELEMENTS, Step
from dask_onnx.sharding.tensor_walk import TensorGraph
from dask_onnx.sharding.weight_slices import ShardSlice, SlicedBlobs, WeightSlicer

ShardSlices = tuple[ShardSlice, ...]
"""One shard along one or several axes."""


_SPLIT_COUNTS = 18
"""Version of ai.onnx from which on Split is told the number of its outputs."""


@dataclass(frozen=True, slots=True)
class InputSlice:
    """Shard of a value that is available whole."""

    value: str
    pieces: ShardSlices

    @property
    def name(self) -> str:
        """Name in the shard's model."""
        return f"{self.value}~{'.'.join(piece.layout.label for piece in self.pieces)}"


@dataclass(frozen=True, slots=True)
class SubmodelOutput:
    """Shard of a value that another submodel returns."""

    value: str
    submodel: int
    """Index of the submodel."""
    pieces: ShardSlices

    @property
    def name(self) -> str:
        """Name in the shard's model."""
        return f"{self.value}~made"


Source = str | InputSlice | SubmodelOutput
"""Origin of a submodel's input: a whole value by name, or a shard of one."""


@dataclass(frozen=True, slots=True)
class NodeWork:
    """Differences of a node on one shard from the unsharded node."""

    cuts: Mapping[int, ShardSlices] = field(default_factory=dict)
    """Inputs, by position, of which the shard reads a slice."""
    made: Mapping[int, SubmodelOutput] = field(default_factory=dict)
    """Inputs, by position, that another submodel returns for this shard."""
    dropped: frozenset[int] = frozenset()
    """Inputs that only another shard reads."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Attributes whose value differs."""
    divided: tuple[tuple[int, int, int], ...] = ()
    """Inputs that hold sizes: position, element (or `ALL_ELEMENTS`), divisor."""
    scaled: tuple[tuple[int, int], ...] = ()
    """Elements (or `ALL_ELEMENTS`) of the output, and their factors."""


UNCHANGED = NodeWork()
"""Work of a node that every shard repeats."""


def work_of(step: Step | None, shard: int, shards: int) -> NodeWork:
    """Return the work of a node on one shard along one axis."""
    if step is None:
        return UNCHANGED
    return NodeWork(
        {place: (ShardSlice(layout, shard, shards),) for place, layout in step.cuts.items()},
        dropped=step.first_shard_inputs if shard else frozenset(),
        attributes=step.attributes,
        divided=tuple((place, element, shards) for place, element in step.divided.items()),
    )


@dataclass(frozen=True, slots=True, eq=False)
class ShardModel:
    """Model of one shard."""

    onnx: OnnxModel
    sources: tuple[Source, ...]
    """Origin of each input of the model."""
    sliced_bytes: int
    """Bytes of this shard's slices of weights."""


class ShardWriter:
    """Writes the models of shards; reads no weights."""

    def __init__(self, graph: TensorGraph) -> None:
        self.graph, self.specs, self.facts = graph, graph.declared, graph.facts
        self.tensors = self.facts.tensors
        self.blank = StageExtractor(self.facts.proto).extract([], [], [])
        self._cuts: dict[int, ConstantCuts] = {graph.shards: graph.constant_cuts}

    def write(
        self, nodes: Mapping[int, NodeWork], outputs: Mapping[str, ShardSlices]
    ) -> ShardModel:
        """Return the model of some nodes.

        Parameters
        ----------
        nodes : mapping of node to NodeWork
            Nodes in execution order.
        outputs : mapping of value to ShardSlices
            Outputs, and which shard of each this model returns.
        """
        return _Shard(self, nodes, outputs).write()

    def constant_cuts(self, shards: int) -> ConstantCuts:
        """Return the cuts of constants into a number of shards."""
        if shards not in self._cuts:
            self._cuts[shards] = self.graph.with_shards(shards).constant_cuts
        return self._cuts[shards]

    def spec_of(self, value: str, pieces: ShardSlices, name: str) -> TensorSpec:
        """Return the spec of a shard, with known sizes of cut axes divided."""
        spec = self.specs[value]
        if spec.shape is None:
            return TensorSpec(name, spec.dtype, None, spec.kind)
        sizes: list[Dim] = list(spec.shape)
        for piece in pieces:
            size = sizes[piece.layout.axis]
            sizes[piece.layout.axis] = size // piece.shards if isinstance(size, int) else None
        return TensorSpec(name, spec.dtype, tuple(sizes), spec.kind)


class _Shard:
    """Model of one shard while it is written."""

    def __init__(
        self, writer: ShardWriter, works: Mapping[int, NodeWork], outputs: Mapping[str, ShardSlices]
    ) -> None:
        self.writer, self.works, self.outputs = writer, works, outputs
        self.facts, self.tensors = writer.facts, writer.tensors
        self.constants = writer.graph.constants
        self.slicer = WeightSlicer(self.facts.model)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.sources: dict[str, Source] = {}
        self.cut: set[str] = set()
        self.made = {n for i in works for n in self.facts.nodes[i].outputs}

    def write(self) -> ShardModel:
        """Return the model."""
        for index, work in self.works.items():
            proto = onnx.NodeProto()
            proto.CopyFrom(self.facts.proto.graph.node[index])
            del proto.device_configurations[:]
            self._change(proto, work, index)
            self._read((*proto.input, *self.facts.nodes[index].captures))
            self.nodes.append(proto)
            if work.scaled:
                self._scale(proto, work.scaled)
        self.slicer.close_pack()
        sliced = sum(tensor_bytes(self.initializers[name]) for name in self.cut)
        return ShardModel(self._model(), tuple(self.sources.values()), sliced)

    def _change(self, proto: onnx.NodeProto, work: NodeWork, index: int) -> None:
        """Apply the work of this shard to a node."""
        for place in work.dropped:
            proto.input[place] = ""
        for place, pieces in work.cuts.items():
            if proto.input[place]:
                proto.input[place] = self._shard_of(proto.input[place], pieces)
        for place, made in work.made.items():
            self.sources[made.name] = made
            proto.input[place] = made.name
        for place, element, shards in work.divided:
            proto.input[place] = self._divided(proto.input[place], index, place, element, shards)
        while proto.input and not proto.input[-1]:
            proto.input.pop()
        for name, value in work.attributes.items():
            for attribute in [a for a in proto.attribute if a.name == name]:
                proto.attribute.remove(attribute)
            proto.attribute.append(helper.make_attribute(name, value))

    def _shard_of(self, name: str, pieces: ShardSlices) -> str:
        """Return the name of this shard of an operand that is whole before the node."""
        submodel = InputSlice(name, pieces)
        if name in self.made and name not in self.constants:
            if submodel.name not in self.made:
                self._cut_inside(submodel)
        elif name not in self.constants:
            self.sources[submodel.name] = submodel
        elif submodel.name not in self.made:
            self.made.add(submodel.name)
            if name in self.tensors:
                tensor = self.slicer.cut(self.tensors[name], pieces, submodel.name)
                self.initializers[submodel.name] = tensor
                self.cut.add(submodel.name)
            else:
                self._shard_of_constant(submodel)
        return submodel.name

    def _cut_inside(self, submodel: InputSlice) -> None:
        """Write nodes that cut a value which this shard itself computes whole."""
        whole = submodel.value
        is_counted = self.facts.model.opsets.get("", 1) >= _SPLIT_COUNTS
        for number, piece in enumerate(submodel.pieces):
            axis, count = piece.layout.axis, piece.layout.outer * piece.shards
            options: dict[str, Any] = {"num_outputs": count} if is_counted else {}
            parts = [f"{submodel.name}/{number}.{i}" for i in range(count)]
            taken = f"{submodel.name}/{number}"
            if number == len(submodel.pieces) - 1:
                taken = submodel.name
            self.nodes += [
                helper.make_node("Split", [whole], parts, axis=axis, **options),
                helper.make_node("Concat", parts[piece.shard :: piece.shards], [taken], axis=axis),
            ]
            self.made.update((*parts, taken))
            whole = taken

    def _shard_of_constant(self, submodel: InputSlice) -> None:
        """Write the node that computes a shard of a constant from shards of its inputs."""
        index = self.facts.producer[submodel.value]
        cuts: dict[int, ShardSlices] = {}
        attributes: dict[str, Any] = {}
        divided: list[tuple[int, int, int]] = []
        for piece in submodel.pieces:
            found = self.writer.constant_cuts(piece.shards).of(submodel.value, piece.layout)
            assert found is not None
            for place, layout in found.cuts.items():
                cuts[place] = (*cuts.get(place, ()), replace(piece, layout=layout))
            attributes |= found.attributes
            divided += [(p, e, piece.shards) for p, e in found.divided.items()]
        proto = onnx.NodeProto()
        proto.CopyFrom(self.facts.proto.graph.node[index])
        work = NodeWork(cuts, attributes=attributes, divided=tuple(divided))
        self._change(proto, work, index)
        self._read(proto.input)
        proto.output[0] = submodel.name
        proto.name = f"{proto.name}~{submodel.name}" if proto.name else ""
        self.nodes.append(proto)

    def _read(self, names: Iterable[str]) -> None:
        """Add initializers, constant nodes or inputs for the values that a node reads."""
        for name in names:
            if not name or name in self.made or name in self.sources:
                continue
            if name not in self.constants:
                self.sources[name] = name
                continue
            self.made.add(name)
            if name in self.tensors:
                self.initializers[name] = self.slicer.whole(self.tensors[name])
            elif name in self.facts.producer:
                node = self.facts.nodes[self.facts.producer[name]]
                self.made.update(node.outputs)
                self._read(node.reads)
                self.nodes.append(self.facts.proto.graph.node[node.index])

    def _divided(self, name: str, index: int, place: int, element: int, shards: int) -> str:
        """Return the name of sizes divided by the number of shards, one element or all."""
        whole = self.facts.proto.graph.node[index].input[place]
        shape = self.writer.graph.specs[whole].shape
        assert shape is not None and isinstance(shape[0], int)
        divisor = np.ones(shape[0], np.int64)
        divisor[slice(None) if element == ALL_ELEMENTS else element] = shards
        result = f"{name}~{index}.{element}"
        if result not in self.made:
            divisor_name = f"{result}/shards"
            self._read((name,))
            self.made.update((result, divisor_name))
            self.initializers[divisor_name] = numpy_helper.from_array(divisor, divisor_name)
            self.nodes.append(helper.make_node("Div", [name, divisor_name], [result]))
        return result

    def _scale(self, proto: onnx.NodeProto, scaled: Iterable[tuple[int, int]]) -> None:
        """Multiply sizes of a shard, so that they are those of the whole."""
        name = proto.output[0]
        shape = self.writer.graph.specs[name].shape
        assert shape is not None
        factors = np.ones([size for size in shape if isinstance(size, int)], np.int64)
        for element, shards in scaled:
            factors[... if element == ALL_ELEMENTS else element] *= shards
        shard_sizes, factor_name = f"{name}~shard", f"{name}~shards"
        proto.output[0] = shard_sizes
        self.made.add(factor_name)
        self.initializers[factor_name] = numpy_helper.from_array(factors, factor_name)
        self.nodes.append(helper.make_node("Mul", [shard_sizes, factor_name], [name]))

    def _model(self) -> OnnxModel:
        whole, spec_of = self.facts.model, self.writer.spec_of
        inputs = [
            spec_of(source, (), name)
            if isinstance(source, str)
            else spec_of(source.value, source.pieces, name)
            for name, source in self.sources.items()
        ]
        outputs = [spec_of(name, pieces, name) for name, pieces in self.outputs.items()]
        proto = onnx.ModelProto()
        proto.CopyFrom(self.writer.blank)
        proto.graph.node.extend(self.nodes)
        tensors = list(self.initializers.values())
        proto.graph.initializer.extend(tensors)
        data = proto.SerializeToString(deterministic=True)
        read = {blob_of(t)[0] for t in tensors if is_external(t)} | self.slicer.parents
        blobs = {key: whole.blobs[key] for key in sorted(read) if key in whole.blobs}
        return replace(
            whole,
            proto=data,
            token=hashlib.sha256(data).hexdigest()[:32],
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            defaults=(),
            parameters=sum(math.prod(tensor.dims) for tensor in tensors),
            parameter_bytes=sum(map(tensor_bytes, tensors)),
            # Its proto is in no file: it is published like a model that was given as bytes.
            source=None,
            blobs=SlicedBlobs(blobs, self.slicer.packs) if self.slicer.packs else blobs,
            places=dict(self.slicer.places),
        )


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Return the bytes of an initializer's elements."""
    if is_external(tensor):
        return blob_of(tensor)[2]
    return len(tensor.raw_data) if tensor.HasField("raw_data") else int(tensor.ByteSize())
