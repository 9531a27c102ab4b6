"""The model of a stream: prepared for frames, with its state and its constant inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.api.model import Model
from dask_onnx.collections.prepared_request import prepare
from dask_onnx.collections.request_checks import resolve_outputs
from dask_onnx.collections.request_steps import Prepared
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.streams.replaced_models import check_replacement
from dask_onnx.streams.shared_runs import can_share
from dask_onnx.streams.state_keeper import StateKeeper, initial_state
from dask_onnx.streams.stream_options import StateOptions


@dataclass(frozen=True, slots=True)
class _Settings:
    """Options with which a model, and one that replaces it, are prepared."""

    outputs: Outputs
    retries: int | None
    states: StateOptions
    constants: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelRequests:
    """Prepared request of a stream, and what its frames need besides their own values."""

    client: Any
    prepared: Prepared
    settings: _Settings
    keeper: StateKeeper | None
    """State between frames; None if there is none."""
    frame_input: str | None
    """Input of a frame that is no mapping, where there are constants or a state."""

    @property
    def constants(self) -> Mapping[str, Any]:
        """Inputs that are the same for every frame."""
        return self.settings.constants

    @classmethod
    def of(
        cls,
        model: Any,
        client: Any,
        plan: Any,
        outputs: Outputs,
        retries: int | None,
        states: StateOptions,
        constants: Mapping[str, Any],
        micro_batch: int,
    ) -> ModelRequests:
        """Prepare a model for a stream.

        Raises
        ------
        InputError, PlanError, ClusterError
            See `dask_onnx.stream`.
        """
        # Masks are kept: each task converts its inputs.
        arrays = {
            name: value if isinstance(value, np.ma.MaskedArray) else np.asarray(value)
            for name, value in constants.items()
        }
        settings = _Settings(outputs, retries, states, arrays)
        prepared = _prepared(model, client, plan, settings)
        specs = {spec.name: spec for spec in prepared.inputs}
        _check_names("feeds", constants, specs)
        keeper = None
        if states.links:
            _check_state(model, states, specs)
            current = initial_state(states.links, states.initial, specs)
            keeper = StateKeeper(states.links, states.every, current)
        elif states.initial:
            raise InputError(
                "initial has values, and there is no state",
                "name what is fed back, as state={'stateN': 'state'}",
                option="initial",
                suggestions=[Suggestion("state")],
            )
        if micro_batch > 1:
            _check_sharing(prepared, keeper)
        is_named = bool(constants) or keeper is not None
        frame_input = _frame_input(specs, states, constants) if is_named else None
        return cls(client, prepared, settings, keeper, frame_input)

    def prepare_next(self, model: Any, plan: Any = None) -> Prepared:
        """Prepare a model that replaces the first one.

        Raises
        ------
        InputError
            It has other inputs or outputs.
        """
        prepared = _prepared(model, self.client, plan, self.settings)
        old, new = self.prepared, prepared
        # A chain that begins with a function does not tell what it takes.
        are_known = bool(old.inputs and new.inputs)
        check_replacement(
            (old.inputs if are_known else (), _outputs_of(old)),
            (new.inputs if are_known else (), _outputs_of(new)),
        )
        return prepared


def _prepared(model: Any, client: Any, plan: Any, settings: _Settings) -> Prepared:
    states = settings.states
    if isinstance(model, Model):
        facts = model._facts
        _check_links(states)
        known = facts.known_values
        resolve_outputs(list(states.links) or None, facts.graph.outputs, known)
        outputs = settings.outputs
        if outputs is None and states.links:
            left = [name for name in facts.graph.outputs if name not in states.links]
            if not left:
                raise InputError(
                    "every output of the model is a state, and none is left for the results",
                    f"name those that are wanted: outputs={list(facts.graph.outputs)}",
                    option="outputs",
                )
            outputs = left[0] if len(left) == 1 else left
        prepared: Prepared = prepare(
            facts,
            client,
            plan=plan,
            outputs=outputs,
            retries=settings.retries,
            also=tuple(states.links),
        )
        return prepared
    if not hasattr(model, "prepare"):
        raise InputError(
            f"model is a {type(model).__name__}, which cannot be prepared for a stream",
            "pass what dask_onnx.load, compose or chain returns, or an ImageModel",
            option="model",
        )
    if states.links:
        raise InputError(
            f"a state is kept for models of dask_onnx.load; {type(model).__name__} was given",
            "leave state out",
            option="state",
        )
    every = {"plan": plan, "outputs": settings.outputs, "retries": settings.retries}
    given = {name: value for name, value in every.items() if value is not None}
    parameters = inspect.signature(model.prepare).parameters
    for name in given:
        if name not in parameters:
            raise InputError(
                f"{name} is no option of a {type(model).__name__} on a stream",
                "leave it out",
                option=name,
            )
    found: Prepared = model.prepare(client, **given)
    return found


def _check_names(option: str, given: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> None:
    for name in given:
        if name not in specs:
            raise InputError(
                f"{option} names {name!r}, which is no input that the outputs need",
                f"name one of {_listed(specs)}",
                option=option,
                input=name,
            )


def _check_links(states: StateOptions) -> None:
    every = states.every
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InputError(
            f"checkpoint_every is {states.every!r}", "give 1 or more", option="checkpoint_every"
        )
    if len(set(states.links.values())) < len(states.links):
        raise InputError(
            "state feeds two outputs to one input", "give each output an input", option="state"
        )


def _check_state(model: Model, states: StateOptions, specs: Mapping[str, TensorSpec]) -> None:
    """Refuse a state whose outputs cannot be the inputs that they are linked to."""
    declared = model._facts.declared
    for output, name in states.links.items():
        spec = specs.get(name)
        if spec is None:
            raise InputError(
                f"state feeds output {output!r} to {name!r}, which is no input that the outputs "
                "need",
                f"name one of {_listed(specs)}",
                option="state",
                input=name,
            )
        made = declared.get(output)
        if made is not None and made.dtype is not None and made.dtype != spec.dtype:
            raise InputError(
                f"state feeds {made} to {spec}: their types differ",
                "link an output to an input of its type",
                option="state",
                input=name,
            )


def _check_sharing(prepared: Prepared, keeper: StateKeeper | None) -> None:
    if keeper is not None or not can_share(prepared):
        what = "of a stream with a state" if keeper is not None else f"of {prepared.name!r}"
        raise InputError(
            f"frames {what} cannot share a run",
            "leave micro_batch out",
            option="micro_batch",
            suggestions=[Suggestion("micro_batch", 1)],
        )


def _frame_input(
    specs: Mapping[str, TensorSpec], states: StateOptions, constants: Mapping[str, Any]
) -> str:
    """Return the input that a frame feeds which is no mapping; the first of several.

    Raises
    ------
    InputError
        Nothing is left for frames; or a state is no input or output of the model.
    """
    left = [n for n in specs if n not in states.links.values() and n not in constants]
    if not left:
        raise InputError(
            "feeds and state leave no input of the model to the frames",
            f"its inputs are {_listed(specs)}",
            option="feeds",
        )
    return left[0]


def _outputs_of(prepared: Prepared) -> tuple[str, ...]:
    return tuple(getattr(prepared, "outputs", ()))


def _listed(names: Any) -> str:
    return ", ".join(repr(str(name)) for name in names) or "none"
