"""What `Model.plan` and `Model.predict` do with plans on shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dask_onnx.collections.planned_model import PlannedModel
from dask_onnx.collections.request_checks import resolve_outputs
from dask_onnx.collections.run_options import Outputs, RunOptions
from dask_onnx.core.errors import InputError, PlanError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.planning.recipe import Strategy
from dask_onnx.sharding.sequence_plan import SequencePlan
from dask_onnx.sharding.sharding_specs import Annotated, says_shardings
from dask_onnx.sharding.strategy import Sharded
from dask_onnx.sharding.tensors import TensorPlan

ShardedPlan = SequencePlan | TensorPlan


def plan_on_shards(
    model: PlannedModel,
    strategy: Sharded,
    *,
    outputs: Outputs,
    shapes: Mapping[str, tuple[int, ...]] | None,
    session: SessionSpec | None,
    others: Mapping[str, Any],
) -> ShardedPlan:
    """Return the plan that a `Sharded` strategy asks for.

    Parameters
    ----------
    others : mapping of name to value
        Options of `Model.plan` that sharded plans do not take; None where not given.

    Raises
    ------
    PlanError
        One of `others` is given; the axis cannot be sharded.
    InputError
        `shapes` or `outputs` do not fit the model.
    """
    for name, value in others.items():
        if value is not None:
            raise PlanError(f"dx.Sharded takes no {name}", "leave it out")
    wanted, spec = _resolved(model, outputs, session)
    model._facts.bound_shapes(shapes)
    if strategy.axis == "heads":
        heads = TensorPlan(model, strategy, wanted, shapes, spec)
        heads.sharding()
        return heads
    sequence = SequencePlan(model, strategy, wanted, shapes, spec)
    sequence.at()
    return sequence


def plan_as_annotated(
    model: PlannedModel,
    strategy: Strategy,
    *,
    outputs: Outputs,
    shapes: Mapping[str, tuple[int, ...]] | None,
    session: SessionSpec | None,
) -> TensorPlan | None:
    """Return the plan of `from_annotations` where a model says how its tensors are sharded.

    None where it says stages only.

    Raises
    ------
    PlanError
        A sharding that does not fit its node, or that the algebra of axes forbids.
    """
    configuration = strategy.options.get("configuration")
    if not says_shardings(model._facts, configuration):
        return None
    wanted, spec = _resolved(model, outputs, session)
    model._facts.bound_shapes(shapes)
    plan = TensorPlan(model, Annotated(configuration), wanted, shapes, spec)
    plan.sharding()
    return plan


def _resolved(
    model: PlannedModel, outputs: Outputs, session: SessionSpec | None
) -> tuple[tuple[str, ...], SessionSpec]:
    """The outputs that are wanted, and how sessions are built."""
    if not isinstance(session, SessionSpec | None):
        raise PlanError(
            f"session is a {type(session).__name__}",
            "give session=dx.SessionSpec(intra_op_num_threads=1), or the like",
        )
    facts = model._facts
    wanted = resolve_outputs(outputs, facts.graph.outputs, facts.known_values).names
    spec = session or SessionSpec()
    libraries = dict.fromkeys((*facts.libraries, *spec.custom_op_libraries))
    return wanted, dataclasses.replace(spec, custom_op_libraries=tuple(libraries))


def predict_on_shards(model: PlannedModel, x: Any, plan: ShardedPlan, run: RunOptions) -> Any:
    """Run a request by a sharded plan; see `Model.predict`.

    Raises
    ------
    PlanError
        The plan is of another model.
    InputError
        A batch size is given; what `x` is, or has, does not fit the plan.
    """
    if plan.model.__dask_tokenize__() != model.__dask_tokenize__():
        raise PlanError("the plan is of another model", "make it with this model's plan()")
    if isinstance(run.batch_size, int):
        raise InputError(
            f"batch_size is {run.batch_size}; a plan on shards runs all rows at once",
            "leave it out, or pass as many rows as are to run at once",
        )
    return plan.predict(x, outputs=run.outputs, retries=run.retries)
