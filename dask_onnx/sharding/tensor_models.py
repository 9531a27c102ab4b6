"""The model that one shard runs: nodes on slices of their weights."""

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
from dask_onnx.sharding.node_cuts import EVERY, Step
from dask_onnx.sharding.tensor_walk import TensorGraph
from dask_onnx.sharding.weight_slices import Piece, SlicedBlobs, WeightSlicer

Pieces = tuple[Piece, ...]
"""One shard along one or several axes."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A shard of a value that is there whole."""

    value: str
    pieces: Pieces

    @property
    def name(self) -> str:
        """What it is called in a shard's model."""
        return f"{self.value}~{'.'.join(piece.layout.label for piece in self.pieces)}"


@dataclass(frozen=True, slots=True)
class Made:
    """A shard of a value as another part has made it."""

    value: str
    part: int
    pieces: Pieces

    @property
    def name(self) -> str:
        """What it is called in a shard's model."""
        return f"{self.value}~made"


Source = str | Slice | Made
"""What an input of a part is: a whole value by name, or a shard of one."""


@dataclass(frozen=True, slots=True)
class NodeWork:
    """What differs of a node on one shard."""

    cuts: Mapping[int, Pieces] = field(default_factory=dict)
    """Inputs by position of which the shard has its own slice."""
    made: Mapping[int, Made] = field(default_factory=dict)
    """Inputs that another part has made for this shard."""
    dropped: frozenset[int] = frozenset()
    """Inputs that only another shard is given."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    divided: tuple[tuple[int, int, int], ...] = ()
    """Inputs that are sizes: position, element (or `EVERY`), by how much it is divided."""
    scaled: tuple[tuple[int, int], ...] = ()
    """Elements (or `EVERY`) of the output, by how much they are multiplied."""


AS_IT_IS = NodeWork()
"""The work of a node that every shard repeats."""


def work_of(step: Step | None, shard: int, shards: int) -> NodeWork:
    """Return the work of a node on one of some shards along one axis."""
    if step is None:
        return AS_IT_IS
    return NodeWork(
        {place: (Piece(layout, shard, shards),) for place, layout in step.cuts.items()},
        dropped=step.once if shard else frozenset(),
        attributes=step.attributes,
        divided=tuple((place, element, shards) for place, element in step.divided.items()),
    )


@dataclass(frozen=True, slots=True, eq=False)
class ShardModel:
    """What one shard runs."""

    onnx: OnnxModel
    sources: tuple[Source, ...]
    """For each input of the model."""
    sliced_bytes: int
    """Bytes of the weights that are cut: those of this shard."""


class ShardWriter:
    """Writes the models of shards; reads no weights."""

    def __init__(self, graph: TensorGraph) -> None:
        self.graph, self.specs, self.facts = graph, graph.declared, graph.facts
        self.tensors = {tensor.name: tensor for tensor in self.facts.proto.graph.initializer}
        self.blank = StageExtractor(self.facts.proto).extract([], [], [])
        self._cuts: dict[int, ConstantCuts] = {graph.shards: graph.constant_cuts}

    def write(self, nodes: Mapping[int, NodeWork], outputs: Mapping[str, Pieces]) -> ShardModel:
        """Return the model of some nodes, in their order.

        Parameters
        ----------
        outputs : mapping of value to what of it this shard makes
        """
        return _Shard(self, nodes, outputs).write()

    def constant_cuts(self, shards: int) -> ConstantCuts:
        """How constants are cut into so many shards."""
        if shards not in self._cuts:
            self._cuts[shards] = self.graph.with_shards(shards).constant_cuts
        return self._cuts[shards]

    def spec_of(self, value: str, pieces: Pieces, name: str) -> TensorSpec:
        """Return the spec of a shard, the sizes of cut axes divided where they are known."""
        spec = self.specs[value]
        if spec.shape is None:
            return TensorSpec(name, spec.dtype, None, spec.kind)
        sizes: list[Dim] = list(spec.shape)
        for piece in pieces:
            size = sizes[piece.layout.axis]
            sizes[piece.layout.axis] = size // piece.shards if isinstance(size, int) else None
        return TensorSpec(name, spec.dtype, tuple(sizes), spec.kind)


class _Shard:
    """The model of one shard while it is written."""

    def __init__(
        self, writer: ShardWriter, works: Mapping[int, NodeWork], outputs: Mapping[str, Pieces]
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
        """Let a node read and be what it is on this shard."""
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

    def _shard_of(self, name: str, pieces: Pieces) -> str:
        """The name of this shard of an operand that is whole until here."""
        part = Slice(name, pieces)
        if name not in self.constants:
            self.sources[part.name] = part
        elif part.name not in self.made:
            self.made.add(part.name)
            if name in self.tensors:
                tensor = self.slicer.cut(self.tensors[name], pieces, part.name)
                self.initializers[part.name] = tensor
                self.cut.add(part.name)
            else:
                self._shard_of_constant(part)
        return part.name

    def _shard_of_constant(self, part: Slice) -> None:
        """Write the node that makes a shard of a constant, of shards of its inputs."""
        index = self.facts.producer[part.value]
        cuts: dict[int, Pieces] = {}
        attributes: dict[str, Any] = {}
        divided: list[tuple[int, int, int]] = []
        for piece in part.pieces:
            found = self.writer.constant_cuts(piece.shards).of(part.value, piece.layout)
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
        proto.output[0] = part.name
        proto.name = f"{proto.name}~{part.name}" if proto.name else ""
        self.nodes.append(proto)

    def _read(self, names: Iterable[str]) -> None:
        """See to it that the values that a node reads are there."""
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
        """The name of sizes divided by the number of shards, one of them or all."""
        whole = self.facts.proto.graph.node[index].input[place]
        shape = self.writer.graph.specs[whole].shape
        assert shape is not None and isinstance(shape[0], int)
        divisor = np.ones(shape[0], np.int64)
        divisor[slice(None) if element == EVERY else element] = shards
        result = f"{name}~{index}.{element}"
        if result not in self.made:
            by = f"{result}/shards"
            self._read((name,))
            self.made.update((result, by))
            self.initializers[by] = numpy_helper.from_array(divisor, by)
            self.nodes.append(helper.make_node("Div", [name, by], [result]))
        return result

    def _scale(self, proto: onnx.NodeProto, scaled: Iterable[tuple[int, int]]) -> None:
        """Multiply sizes of a shard that a node makes, so that they are those of the whole."""
        name = proto.output[0]
        shape = self.writer.graph.specs[name].shape
        assert shape is not None
        factors = np.ones([size for size in shape if isinstance(size, int)], np.int64)
        for element, shards in scaled:
            factors[... if element == EVERY else element] *= shards
        own, by = f"{name}~own", f"{name}~shards"
        proto.output[0] = own
        self.made.add(by)
        self.initializers[by] = numpy_helper.from_array(factors, by)
        self.nodes.append(helper.make_node("Mul", [own, by], [name]))

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
            # Its proto is in no file, so it travels as one that was given as bytes.
            source=None,
            blobs=SlicedBlobs(blobs, self.slicer.packs) if self.slicer.packs else blobs,
            places=dict(self.slicer.places),
        )


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Return the bytes of an initializer's elements."""
    if is_external(tensor):
        return blob_of(tensor)[2]
    return len(tensor.raw_data) if tensor.HasField("raw_data") else int(tensor.ByteSize())
