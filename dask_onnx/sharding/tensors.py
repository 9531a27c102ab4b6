"""The plan that users hold of a model whose weights are sharded (tensor parallelism)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.kinds import is_bag, is_dataarray, is_table, kind_of
from dask_onnx.collections.planned_model import PlannedModel
from dask_onnx.collections.request_checks import resolve_feeds, resolve_outputs
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core.errors import InputError, PlanError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.onnx_model import read_written, with_weights
from dask_onnx.sharding.heads import HeadSharding, shard_heads
from dask_onnx.sharding.sharding_specs import Annotated, AnnotatedSharding, shard_as_annotated
from dask_onnx.sharding.spec_protos import write_shardings
from dask_onnx.sharding.strategy import Sharded
from dask_onnx.sharding.tensor_parts import TensorParts
from dask_onnx.sharding.tensor_requests import RUN, TensorRequest

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class TensorPlan:
    """A model that runs on shards of its weights. Made by `Model.plan`."""

    model: PlannedModel
    strategy: Sharded | Annotated
    outputs: tuple[str, ...]
    """What `explain` is about; others may be asked for."""
    shapes: Shapes | None
    """Sizes that costs and bytes are predicted for; one row by default."""
    session: SessionSpec
    _made: dict[tuple[str, ...], HeadSharding | AnnotatedSharding] = field(
        default_factory=dict, repr=False
    )

    def sharding(self, outputs: tuple[str, ...] = ()) -> HeadSharding | AnnotatedSharding:
        """Return what of the nodes that some outputs need runs on shards; remembered. Reads no
        weights.

        Raises
        ------
        PlanError
            Nothing can be sharded; heads do not come apart into so many shards; annotations that
            cannot be followed; a node has a kernel in Python.
        """
        outputs = outputs or self.outputs
        if outputs not in self._made:
            facts = self.model._facts
            _check_kernels(facts, outputs)
            if isinstance(self.strategy, Sharded):
                made: Any = shard_heads(facts, self.shapes, self.strategy.n, outputs)
            else:
                made = shard_as_annotated(facts, self.shapes, self.strategy, outputs)
            self._made[outputs] = made
        return self._made[outputs]

    def parts(self, outputs: tuple[str, ...] = ()) -> TensorParts:
        """Return the tasks of a request, as parts; see `sharding`."""
        return self.sharding(outputs).parts

    def explain(self) -> str:
        """Return what is sharded, the bytes of weights of each shard, what is added and joined
        between the groups, and what is left whole and why, as text."""
        return self.sharding().explain(self.model._facts.onnx.parameter_bytes)

    def annotate(self, model: Any = None, *, configuration: str = "dask_onnx") -> onnx.ModelProto:
        """Return a model that says these shards itself, in ONNX's own annotations: nodes that run
        on shards have a `sharding_spec` in a device configuration with as many devices as there are
        shards. `dask_onnx.from_annotations` reads them; ONNX Runtime ignores them.

        Parameters
        ----------
        model : path, ModelProto, or whatever `load` takes of a whole model; optional
            What the plan's model was loaded from: it is written as it is there. By default the
            model as it was loaded, functions inlined, with all weights in it.
        configuration : str
            Replaces one of that name; others are kept.

        Raises
        ------
        PlanError
            `model` is another one, or has a node in a function that the plan cuts.
        ModelError
            `model` cannot be read; the weights are more than the 2 GiB that a proto holds.
        """
        facts = self.model._facts
        written = with_weights(facts.onnx) if model is None else read_written(model)
        sharding = self.sharding()
        write_shardings(
            written, facts.graph, sharding.node_shardings(), configuration, sharding.devices
        )
        return written

    def predict(self, x: Any, *, outputs: Outputs = None, retries: int | None = None) -> Any:
        """Run the model; see `Model.predict`.

        Parameters
        ----------
        x : ndarray, dask.array or Delayed; or a dict of them by input name
            dask arrays may be chunked along their rows, if these are independent: each chunk is
            one request.

        Returns
        -------
        numpy of numpy; lazy dask arrays of dask arrays; Delayed of Delayed.

        Raises
        ------
        InputError
            What is given does not fit the model, or is a table or a bag.
        """
        if is_table(x) or is_bag(x) or is_dataarray(x):
            raise InputError(
                f"a plan on shards takes arrays; {type(x).__name__} was given",
                "pass numpy or dask arrays, or Delayed",
            )
        model = self.model._fed_with(x)
        if model is not self.model:
            again = dataclasses.replace(self, model=model, _made={})
            return again.predict(x, outputs=outputs, retries=retries)
        facts = model._facts
        wanted = resolve_outputs(outputs, facts.graph.outputs, facts.known_values)
        feeds = resolve_feeds(x, model.inputs, [s.name for s in facts.inputs_of(wanted.names)])
        sharding = self.sharding(wanted.names)
        request = TensorRequest(
            model,
            sharding.parts,
            self.session,
            feeds,
            wanted.names,
            effective_retries(retries),
        )
        return wanted.shape_result(RUN[kind_of(feeds)](request))


def _check_kernels(facts: ModelFacts, outputs: tuple[str, ...]) -> None:
    for index in facts.graph.ancestors(outputs):
        if facts.kernels[index].kernel != "onnxruntime":
            raise PlanError(
                f"node {facts.graph.nodes[index].name!r} runs on the kernel "
                f"{facts.kernels[index].kernel!r}, which plans on shards do not run",
                "use another strategy, such as 'whole'",
            )
