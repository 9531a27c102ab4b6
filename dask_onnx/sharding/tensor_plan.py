"""Plan of a model whose weights are sharded (tensor parallelism)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.extraction import with_fed_defaults
from dask_onnx.collections.kinds import is_bag, is_dataarray, is_table, kind_of
from dask_onnx.collections.request_checks import resolve_feeds, resolve_outputs
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core.errors import InputError, PlanError, Suggestion
from dask_onnx.core.specs import SessionSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.model_files import read_stored_proto
from dask_onnx.modelio.onnx_model import with_weights
from dask_onnx.sharding.heads import HeadSharding, shard_heads
from dask_onnx.sharding.sharding_specs import Annotated, AnnotatedSharding, shard_as_annotated
from dask_onnx.sharding.spec_protos import write_shardings
from dask_onnx.sharding.strategy import Sharded
from dask_onnx.sharding.tensor_requests import RUN, TensorRequest
from dask_onnx.sharding.tensor_submodels import TensorPartition

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class TensorPlan:
    """Plan that runs a model on shards of its weights. Made by `Model.plan`.

    Examples
    --------
    >>> model = dx.load("encoder.onnx")
    >>> plan = model.plan(dx.Sharded("heads", n=2))
    >>> print(plan.explain())
    >>> y = plan.predict(x)
    """

    facts: ModelFacts
    strategy: Sharded | Annotated
    outputs: tuple[str, ...]
    """Outputs that `explain` describes; `predict` may return others."""
    shapes: Shapes | None
    """Input shapes that costs and bytes are predicted for; one row by default."""
    session: SessionSpec
    _shardings: dict[tuple[str, ...], HeadSharding | AnnotatedSharding] = field(
        default_factory=dict, repr=False
    )

    def sharding(self, outputs: tuple[str, ...] = ()) -> HeadSharding | AnnotatedSharding:
        """Return how the nodes that some outputs need run on shards. Cached; reads no weights.

        Raises
        ------
        PlanError
            Nothing can be sharded; the number of shards does not divide the heads; annotations
            cannot be followed; a node has a Python kernel.
        """
        outputs = outputs or self.outputs
        if outputs not in self._shardings:
            facts = self.facts
            _check_kernels(facts, outputs)
            if isinstance(self.strategy, Sharded):
                sharding: Any = shard_heads(facts, self.shapes, self.strategy.n, outputs)
            else:
                sharding = shard_as_annotated(facts, self.shapes, self.strategy, outputs)
            self._shardings[outputs] = sharding
        return self._shardings[outputs]

    def partition(self, outputs: tuple[str, ...] = ()) -> TensorPartition:
        """Return the submodels of a request; see `sharding`."""
        return self.sharding(outputs).partition

    def explain(self) -> str:
        """Return the plan as text: what is sharded, exchanged and left whole.

        Runs nothing and reads no weights.

        Returns
        -------
        str
            For each group of nodes its label, the products whose columns are cut, the bytes of
            weights of each shard, and the bytes of the values that are added or concatenated after
            it; then the products that run whole, with the node that prevents sharding and the
            reason.

        Examples
        --------
        >>> print(model.plan(dx.Sharded("heads", n=2)).explain())
        """
        return self.sharding().explain(self.facts.onnx.parameter_bytes)

    def annotate(self, model: Any = None, *, configuration: str = "dask_onnx") -> onnx.ModelProto:
        """Return a model with this plan as ONNX sharding annotations.

        Nodes that run on shards get a `sharding_spec` in a device configuration with one device for
        each shard (IR version 11). `dask_onnx.from_annotations` reads them; ONNX Runtime ignores
        them.

        Parameters
        ----------
        model : path, ModelProto, or another argument of `load`; optional
            Model that the plan's model was loaded from, to annotate as it is stored. By default the
            loaded model with functions inlined and all weights included.
        configuration : str
            Name of the device configuration. One of that name is replaced; others are kept.

        Returns
        -------
        onnx.ModelProto

        Raises
        ------
        PlanError
            `model` is another model, or the plan cuts a node inside a function of it.
        ModelError
            `model` cannot be read; or the weights exceed the 2 GiB that a proto can hold.

        Examples
        --------
        >>> plan = model.plan(dx.Sharded("heads", n=2))
        >>> onnx.save(plan.annotate(), "sharded.onnx")
        >>> again = dx.load("sharded.onnx")
        >>> again.plan(dx.from_annotations())
        """
        facts = self.facts
        written = with_weights(facts.onnx) if model is None else read_stored_proto(model)
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
            A dask.array may have several chunks of rows if these are independent: each chunk is one
            request.
        outputs : str or sequence of str, optional
            Wanted values, as in `Model.predict`.
        retries : int, optional
            Attempts of a task after a failure.

        Returns
        -------
        ndarray, dask.array or Delayed; or a dict of them by output name
            The kind of `x`; dask arrays and Delayed are lazy.

        Raises
        ------
        InputError
            `x` does not fit the model, or is a table or a bag.

        Examples
        --------
        >>> plan = model.plan(dx.Sharded("heads", n=2))
        >>> y = plan.predict(da.from_array(x, chunks=(1, -1, -1)))
        """
        if is_table(x) or is_bag(x) or is_dataarray(x):
            raise InputError(
                f"a sharded plan runs on arrays, not on a {type(x).__name__}",
                "pass numpy or dask arrays, or Delayed",
            )
        facts = with_fed_defaults(self.facts, x)
        if facts is not self.facts:
            again = dataclasses.replace(self, facts=facts, _shardings={})
            return again.predict(x, outputs=outputs, retries=retries)
        wanted = resolve_outputs(outputs, facts.graph.outputs, facts.known_values)
        feeds = resolve_feeds(x, facts.inputs, [s.name for s in facts.inputs_of(wanted.names)])
        sharding = self.sharding(wanted.names)
        request = TensorRequest(
            facts,
            sharding.partition,
            self.session,
            feeds,
            wanted.names,
            effective_retries(retries),
        )
        return wanted.shape_result(RUN[kind_of(feeds)](request))


def _check_kernels(facts: ModelFacts, outputs: tuple[str, ...]) -> None:
    """Raise if a node has a Python kernel, which sharded plans do not run."""
    for index in facts.graph.ancestors(outputs):
        if facts.kernels[index].kernel != "onnxruntime":
            raise PlanError(
                f"node {facts.graph.nodes[index].name!r} runs on the kernel "
                f"{facts.kernels[index].kernel!r}, which sharded plans do not support",
                "use another strategy, such as 'whole'",
                node=facts.graph.nodes[index].name,
                option="strategy",
                suggestions=[Suggestion("strategy", "whole")],
            )
