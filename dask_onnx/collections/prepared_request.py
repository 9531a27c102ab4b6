"""Requests that are prepared once and started for each of many small inputs, on a cluster."""

from __future__ import annotations

import functools
import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dask_onnx.cluster.current_scheduler import ensure_connected, using_client
from dask_onnx.cluster.delivery import hold
from dask_onnx.collections.callable_request import CallableRequest
from dask_onnx.collections.extraction import with_fed_defaults
from dask_onnx.collections.frame_tasks import (
    FrameTemplate,
    ResultAssembly,
    TaskValue,
    frame_template,
)
from dask_onnx.collections.kinds import is_empty, most_rows, shapes_of
from dask_onnx.collections.masked_rows import has_masks, mask_results
from dask_onnx.collections.output_forms import computed_values, output_forms
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_builder import build_request, check_run_options
from dask_onnx.collections.request_checks import check_arrays, resolve_outputs
from dask_onnx.collections.request_steps import Step, submit_graph, synchronous_client
from dask_onnx.collections.row_checks import check_joins
from dask_onnx.collections.run_options import BatchSize, Outputs, RunOptions
from dask_onnx.core.errors import InputError
from dask_onnx.core.process_caches import KeptResults
from dask_onnx.core.specs import TensorSpec
from dask_onnx.core.stage_tasks import Key
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.facts.staged_model import StagedModel, whole_model
from dask_onnx.runtime.input_values import as_input

_MAX_SIGNATURES = 64
"""Shapes and dtypes of inputs for which a request is kept prepared."""
_MAX_AGE_SECONDS = 60.0
"""Seconds after which a request is prepared anew, since workers may have joined that cannot read
the model's file."""

_Signature = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """The request as prepared for inputs of one signature."""

    template: FrameTemplate
    """Tasks of one input."""
    assembly: ResultAssembly
    """Function that makes the result of their results."""
    supplies: tuple[Any, ...]
    """Futures of the tasks that bring the model to workers."""


class PreparedRequest(CallableRequest):
    """A request for one model that is checked once and started many times. See `Model.prepare`.

    Shapes and dtypes that have not occurred before are compared with the model when they first
    occur; those that have cost little more than `distributed.Client.submit`.
    """

    def __init__(
        self, facts: ModelFacts, client: Any, run: RunOptions, also: tuple[str, ...] = ()
    ) -> None:
        self._facts, self._client, self._run = facts, client, run
        self._wanted = resolve_outputs(run.outputs, facts.graph.outputs, facts.known_values)
        self._forms = output_forms(facts, self._wanted.names)
        self.request = uuid.uuid4().hex
        """Part of the keys of all tasks."""
        self.also = also
        """Outputs that are computed beside those of the result."""
        self._numbers = itertools.count()
        self._variants: KeptResults[_Signature, Variant] = KeptResults(
            _MAX_SIGNATURES, max_age_seconds=_MAX_AGE_SECONDS
        )
        self._prepare_fixed()

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._facts.name

    @property
    def token(self) -> str:
        """Token of the model."""
        return self._facts.onnx.token

    @property
    def facts(self) -> ModelFacts:
        """Facts of the model."""
        return self._facts

    @property
    def client(self) -> Any:
        """Client of the cluster."""
        return self._client

    @property
    def requests(self) -> frozenset[str]:
        """Tokens with which the names of the request's groups of tasks end."""
        return frozenset({self.request})

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of a result."""
        return self._wanted.ordered

    @property
    def sharing_key(self) -> tuple[Any, ...]:
        """Key that requests share whose inputs may share a run."""
        options = self._run
        model = self._facts.__dask_tokenize__()  # its kernels included
        return model, id(options.plan), self.outputs, options.batch_size, options.retries

    @property
    def values(self) -> tuple[str, ...]:
        """Values of the graph that a result is made of."""
        return tuple(computed_values(self._forms))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that the outputs need, in the order of the graph."""
        return self._staged().stage_graph.inputs

    def start(self, frame: Any, *, priority: int = 0) -> Step:
        """Submit the tasks of one input, and return at once.

        Parameters
        ----------
        frame, priority
            As for `submit`. Values of a mapping may be `TaskValue`, which stay on the cluster.

        Returns
        -------
        Step
            Futures of the last tasks, and what makes a result of their values.

        Raises
        ------
        InputError
            The input does not fit the model.
        """
        variant, feeds = self.variant_of(frame)
        keys = variant.template.keys(self.request, self.next_number())
        tasks = variant.template.tasks(keys, feeds)
        stages = variant.template.result_stages(variant.assembly.values)
        wanted = [keys[stage] for stage in stages]
        futures = self.submit_tasks(variant, tasks, wanted, feeds, priority)
        return Step(futures, variant.assembly, variant.supplies)

    def next_number(self) -> int:
        """Return the number of the next input, which is part of its tasks' keys."""
        return next(self._numbers)

    def submit_tasks(
        self,
        variant: Variant,
        tasks: Mapping[Key, Any],
        keys: Sequence[Key],
        feeds: Mapping[str, Any],
        priority: int,
    ) -> tuple[Any, ...]:
        """Submit tasks of one input, and return the futures of some keys.

        Parameters
        ----------
        variant, feeds
            As `variant_of` returned them.
        tasks : mapping of key to Task
        keys : sequence of key
        priority : int
        """
        size = sum(v.nbytes for v in feeds.values() if isinstance(v, np.ndarray))
        retries = variant.template.retries
        return submit_graph(
            self._client, tasks, keys, retries=retries, priority=priority, size=size
        )

    def _computed(self) -> tuple[str, ...]:
        """Return the values that are computed, in the order of the graph."""
        names = dict.fromkeys([*computed_values(self._forms), *self.also])
        return resolve_outputs(
            list(names), self._facts.graph.outputs, self._facts.known_values
        ).names

    def _staged(self) -> StagedModel:
        plan = self._run.plan or whole_model(self._facts)
        staged: StagedModel = plan.for_outputs(self._computed())
        return staged

    def _prepare_fixed(self) -> None:
        """Prepare for the inputs of a model whose shapes are all fixed, before any is there."""
        specs = self.inputs
        if all(s.dtype is not None and s.shape and None not in _sizes(s.shape) for s in specs):
            zeros = {spec.name: np.zeros((), spec.dtype) for spec in specs}
            shapes = {s.name: _sizes(s.shape) for s in specs}
            self.variant_of({n: np.broadcast_to(zeros[n], shape) for n, shape in shapes.items()})

    def variant_of(self, frame: Any) -> tuple[Variant, dict[str, Any]]:
        """Return the request as prepared for an input, and its values in the model's types.

        Raises
        ------
        InputError
            The input does not fit the model.
        """
        variant, feeds = self._variant_of(frame)
        if not has_masks(frame):
            return variant, feeds
        facts = with_fed_defaults(self._facts, frame)
        mask = functools.partial(
            mask_results,
            x=frame,
            inputs=facts.inputs,
            needed=list(feeds),
            batch=facts.batch_at(tuple(variant.assembly.values), shapes_of(feeds, facts.inputs)),
        )
        return replace(variant, assembly=replace(variant.assembly, mask=mask)), feeds

    def _variant_of(self, frame: Any) -> tuple[Variant, dict[str, Any]]:
        signature = _signature(frame)
        variant = None if signature is None else self._variants.get(signature)
        if variant is not None:
            specs = variant.template.specs
            if isinstance(frame, Mapping):
                return variant, {s.name: _as_feed(frame[s.name], s) for s in specs}
            return variant, {specs[0].name: as_input(frame, specs[0])}
        variant, feeds = self._make_variant(frame)
        if signature is not None:
            self._variants.put(signature, variant)
        return variant, feeds

    def _make_variant(self, frame: Any) -> tuple[Variant, dict[str, Any]]:
        ensure_connected(self._client)
        linked = {}
        if isinstance(frame, Mapping):
            linked = {k: v for k, v in frame.items() if isinstance(v, TaskValue)}
            frame = {k: _placeholder(v) for k, v in frame.items()}
        with using_client(self._client):
            run = replace(self._run, outputs=self._computed())
            request, feeds, kind = build_request(self._facts, frame, run)
            if kind != "eager":
                raise InputError(
                    "a prepared request takes values in memory, not lazy collections",
                    "use model.predict(...), which stays lazy",
                    option="frame",
                )
            template = self._template(request, feeds)
            delivery = request.delivery
            held = () if delivery is None else tuple(hold(self._client, delivery).values())
        assembly = ResultAssembly(template, self._wanted, self._forms)
        return Variant(template, assembly, held), {**feeds, **linked}

    @staticmethod
    def _template(request: Request, feeds: Mapping[str, Any]) -> FrameTemplate:
        batch, per_run = request.batch, request.batching.rows_per_run
        names = [spec.name for spec in request.stages.outputs]
        has_no_rows = is_empty(feeds, batch.input_axes)
        cuts_rows = per_run is not None or request.batching.is_auto or has_no_rows
        axes = dict(batch.input_axes) if cuts_rows else dict.fromkeys(feeds)
        check_arrays(feeds, request.stages.inputs, axes)
        rows = most_rows(feeds, batch.input_axes)
        if per_run is not None and rows is not None and rows > per_run:
            token = request.model.token
            check_joins(batch, names, model=token, chunks=1, rows_per_run=per_run)
        return frame_template(request, axes, rows)


def prepare(
    facts: ModelFacts,
    client: Any,
    *,
    plan: Any = None,
    outputs: Outputs = None,
    batch_size: BatchSize = None,
    retries: int | None = None,
    also: tuple[str, ...] = (),
) -> PreparedRequest:
    """Return a request that is prepared for many small inputs; see `Model.prepare`.

    Outputs named by `also` are computed too, for `linked_requests.start_linked`.

    Raises
    ------
    ClusterError
        The connection to the cluster is lost.
    InputError
        There is no client, or it is asynchronous; an option is out of range.
    PlanError
        The plan is of another model, or not one of stages.
    """
    client = synchronous_client(client)
    run = RunOptions(outputs, batch_size, plan, retries)
    check_run_options(facts, run)
    return PreparedRequest(facts, client, run, also)


def _sizes(shape: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """Return the sizes of a shape, with None for those that are open."""
    return tuple(size if isinstance(size, int) else None for size in shape or ())


def _signature(frame: Any) -> _Signature | None:
    """Return shapes and dtypes of an input; None if some value is no array."""
    if isinstance(frame, Mapping):
        parts = []
        for name, value in frame.items():
            if not isinstance(value, np.ndarray | TaskValue):
                return None
            parts.append((name, type(value), value.shape, value.dtype))
        return tuple(parts)
    return (frame.shape, frame.dtype) if type(frame) is np.ndarray else None


def _as_feed(value: Any, spec: TensorSpec) -> Any:
    return value if isinstance(value, TaskValue) else as_input(value, spec)


def _placeholder(value: Any) -> Any:
    """Return an array of no memory with the shape and dtype of a value on the cluster."""
    if isinstance(value, TaskValue):
        return np.broadcast_to(np.zeros((), value.dtype), value.shape)
    return value
