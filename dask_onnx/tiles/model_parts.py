"""The parts of a model that tiles and passes run, as models of their own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import numpy_helper

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.api.model import Model
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.onnx_model import extract_onnx
from dask_onnx.tiles.groups import Component, Feed, Once, feed_name
from dask_onnx.tiles.local_shapes import told_inputs, told_length, told_name
from dask_onnx.tiles.primitives import remade
from dask_onnx.tiles.tile_plan import TilePlan

_INT64 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT64)


class Parts:
    """Cuts one model into the parts that a plan runs."""

    def __init__(self, plan: TilePlan, model: Model) -> None:
        self.plan, self.model = plan, model
        self.told: dict[int, list[TensorSpec]] = {}
        """Node to the inputs that it is told on each tile."""
        proto = onnx.ModelProto()
        proto.CopyFrom(plan.flow.facts.proto)
        del proto.graph.value_info[:]
        self._rename(proto)
        self.onnx = remade(plan.flow.facts.model, proto)
        self.facts = GraphFacts(self.onnx)

    def _rename(self, proto: onnx.ModelProto) -> None:
        """Call whole values and tiles apart, and write down what follows from sizes."""
        flow = self.plan.flow
        written: set[str] = set()
        for index, node in enumerate(proto.graph.node):
            step = flow.steps.get(index)
            given = {}
            if step is not None:
                given = {e.place: feed_name(flow, step, e) for e in step.edges}
                told = told_inputs(flow, step)
                given |= {i: told_name(step, i) for i in told}
                self.told[index] = [
                    TensorSpec(given[i], _INT64, (told_length(flow, step, i),)) for i in told
                ]
            for i, name in enumerate(node.input):
                if i in given:
                    node.input[i] = given[i]
                elif name in flow.known:
                    node.input[i] = f"{name}::known"
                    if name not in written:
                        written.add(name)
                        array = flow.known[name].array
                        proto.graph.initializer.append(
                            numpy_helper.from_array(array, f"{name}::known")
                        )

    def of_tiles(self, part: Component) -> Model | None:
        """The part that makes tiles; None if they are all given."""
        if not part.nodes:
            return None
        inputs = [self._spec(feed.name, feed) for feed in part.feeds]
        inputs += [spec for index in part.nodes for spec in self.told.get(index, ())]
        given = {feed.value for feed in part.feeds if feed.places}
        return self._part(inputs, [name for name in part.ends if name not in given])

    def of_once(self, once: Once) -> Model:
        """The part that makes whole values."""
        return self._part([self._spec(feed.name, feed) for feed in once.feeds], once.wanted)

    def _part(self, inputs: Sequence[TensorSpec], wanted: Sequence[str]) -> Model:
        nodes, read = self.facts.between([spec.name for spec in inputs], wanted)
        kept = [spec for spec in inputs if spec.name in read]
        outputs = [self._spec(name, None) for name in wanted]
        part = extract_onnx(self.onnx, nodes, kept, outputs)
        facts = self.model._facts
        return Model(part, facts.custom, facts.libraries)

    def _spec(self, name: str, feed: Feed | None) -> TensorSpec:
        """Type and shape of what goes in or out; open along tiled axes, and along the batch."""
        value = name if feed is None else feed.value
        spec = self.plan.flow.specs.get(value)
        if spec is None or spec.dtype is None:
            raise InputError(
                f"the type of {value!r} does not follow from the model",
                "declare it in the model's value_info",
            )
        if spec.shape is None:
            return TensorSpec(name, spec.dtype, None)
        places = self.plan.places(value)
        tiled = {place.axis for place in places.values()}
        dims: list[Dim] = [
            None if axis in tiled or axis == 0 else dim for axis, dim in enumerate(spec.shape)
        ]
        return TensorSpec(name, spec.dtype, tuple(dims))
