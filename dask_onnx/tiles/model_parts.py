"""Parts of a model that the tasks of a tile plan run, as models of their own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import numpy_helper

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.api.model import Model
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.onnx_model import extract_onnx
from dask_onnx.tiles.flow import CAPTURE, Step
from dask_onnx.tiles.graph_rewrites import rename_captures, replace_proto
from dask_onnx.tiles.groups import Component, Feed, UntiledTask, feed_name
from dask_onnx.tiles.local_shapes import shape_input_length, shape_input_name, shape_inputs
from dask_onnx.tiles.tile_plan import TilePlan

_INT64 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT64)


class Parts:
    """Extraction of the parts of one model that a plan runs.

    Parameters
    ----------
    plan : TilePlan
    model : Model
        The caller's model; custom operators are taken from it.
    """

    def __init__(self, plan: TilePlan, model: Model) -> None:
        self.plan, self.model = plan, model
        self.shape_inputs: dict[int, list[TensorSpec]] = {}
        """Index of a node to its inputs that receive shapes on each tile; see `local_shapes`."""
        self._added: set[str] = set()
        proto = onnx.ModelProto()
        proto.CopyFrom(plan.flow.facts.proto)
        del proto.graph.value_info[:]
        self._rename(proto)
        self.onnx = replace_proto(plan.flow.facts.model, proto)
        self.facts = GraphFacts(self.onnx)

    def _rename(self, proto: onnx.ModelProto) -> None:
        """Rename inputs so that tiles differ from whole values, and add what follows from sizes."""
        flow = self.plan.flow
        for index, node in enumerate(proto.graph.node):
            step = flow.steps.get(index)
            given = {}
            if step is not None:
                named = [(e, feed_name(flow, step, e)) for e in step.edges]
                given = {e.input_index: name for e, name in named if e.input_index != CAPTURE}
                captured = {e.value: name for e, name in named if e.input_index == CAPTURE}
                captured |= {name: self._known(name, proto) for name in self._known_captures(step)}
                rename_captures(node, captured)
                indices = shape_inputs(flow, step)
                given |= {i: shape_input_name(step, i) for i in indices}
                self.shape_inputs[index] = [
                    TensorSpec(given[i], _INT64, (shape_input_length(flow, step, i),))
                    for i in indices
                ]
            for i, name in enumerate(node.input):
                if i in given:
                    node.input[i] = given[i]
                elif name in flow.known:
                    node.input[i] = self._known(name, proto)

    def _known_captures(self, step: Step) -> list[str]:
        """Return what a body of a node captures of the values that follow from sizes."""
        return [name for name in step.node.captures if name in self.plan.flow.known]

    def _known(self, name: str, proto: onnx.ModelProto) -> str:
        """Return the name of the initializer with a value that follows from sizes; add it once."""
        constant = f"{name}::known"
        if name not in self._added:
            self._added.add(name)
            array = self.plan.flow.known[name].array
            proto.graph.initializer.append(numpy_helper.from_array(array, constant))
        return constant

    def of_tiles(self, part: Component) -> Model | None:
        """Return the part that computes a component's tiles; None if all of them are feeds."""
        if not part.nodes:
            return None
        inputs = [self._spec(feed.name, feed) for feed in part.feeds]
        inputs += [spec for index in part.nodes for spec in self.shape_inputs.get(index, ())]
        given = {feed.value for feed in part.feeds if feed.places}
        return self._part(inputs, [name for name in part.targets if name not in given])

    def of_untiled(self, task: UntiledTask) -> Model:
        """Return the part that a task runs on untiled values."""
        return self._part([self._spec(feed.name, feed) for feed in task.feeds], task.wanted)

    def _part(self, inputs: Sequence[TensorSpec], wanted: Sequence[str]) -> Model:
        nodes, read = self.facts.between([spec.name for spec in inputs], wanted)
        kept = [spec for spec in inputs if spec.name in read]
        outputs = [self._spec(name, None) for name in wanted]
        part = extract_onnx(self.onnx, nodes, kept, outputs)
        facts = self.model._facts
        return Model(part, facts.custom, facts.libraries)

    def _spec(self, name: str, feed: Feed | None) -> TensorSpec:
        """Return type and shape of an input or output, open along tiled axes and the batch axis."""
        value = name if feed is None else feed.value
        spec = self.plan.flow.specs.get(value)
        if spec is None or spec.dtype is None:
            raise InputError(
                f"cannot infer the dtype of value {value!r}",
                "declare it in the model's value_info",
                input=value,
            )
        if spec.shape is None:
            return TensorSpec(name, spec.dtype, None)
        places = self.plan.places(value)
        tiled = {place.axis for place in places.values()}
        dims: list[Dim] = [
            None if axis in tiled or axis == 0 else dim for axis, dim in enumerate(spec.shape)
        ]
        return TensorSpec(name, spec.dtype, tuple(dims))
