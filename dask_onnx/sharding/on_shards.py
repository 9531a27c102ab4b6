"""Entry points of `Model.plan` and `Model.predict` for sharded plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_onnx.collections.request_checks import resolve_outputs
from dask_onnx.collections.run_options import Outputs, RunOptions
from dask_onnx.core.errors import InputError, PlanError, Suggestion
from dask_onnx.core.specs import SessionSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.facts.session_choice import session_of
from dask_onnx.planning.recipe import Strategy
from dask_onnx.sharding.sequence_plan import SequencePlan
from dask_onnx.sharding.sharding_specs import Annotated, has_shardings
from dask_onnx.sharding.strategy import Sharded
from dask_onnx.sharding.tensor_plan import TensorPlan

ShardedPlan = SequencePlan | TensorPlan
"""Plans that run one request as shards."""


def plan_on_shards(
    facts: ModelFacts,
    strategy: Sharded,
    *,
    outputs: Outputs,
    shapes: Mapping[str, tuple[int, ...]] | None,
    session: SessionSpec | None,
    others: Mapping[str, Any],
) -> ShardedPlan:
    """Return the plan that a `Sharded` strategy requests.

    Parameters
    ----------
    others : mapping of name to value
        Options of `Model.plan` that sharded plans do not accept; None where not given.

    Raises
    ------
    PlanError
        One of `others` is given; the axis cannot be sharded.
    InputError
        `shapes` or `outputs` do not fit the model.
    """
    for name, value in others.items():
        if value is not None:
            raise PlanError(
                f"{name}={value!r} is not an option of sharded plans",
                "leave it out",
                option=name,
                suggestions=[Suggestion(name)],
            )
    wanted, spec = _resolved(facts, outputs, session)
    facts.bound_shapes(shapes)
    if strategy.axis == "heads":
        heads = TensorPlan(facts, strategy, wanted, shapes, spec)
        heads.sharding()
        return heads
    sequence = SequencePlan(facts, strategy, wanted, shapes, spec)
    sequence.at()
    return sequence


def plan_as_annotated(
    facts: ModelFacts,
    strategy: Strategy,
    *,
    outputs: Outputs,
    shapes: Mapping[str, tuple[int, ...]] | None,
    session: SessionSpec | None,
) -> TensorPlan | None:
    """Return the plan that a model's own sharding annotations describe, for `from_annotations`.

    Returns None if the model annotates pipeline stages only.

    Raises
    ------
    PlanError
        A sharding spec does not fit its node, or splitting that way would not be exact.
    """
    configuration = strategy.options.get("configuration")
    if not has_shardings(facts, configuration):
        return None
    wanted, spec = _resolved(facts, outputs, session)
    facts.bound_shapes(shapes)
    plan = TensorPlan(facts, Annotated(configuration), wanted, shapes, spec)
    plan.sharding()
    return plan


def _resolved(
    facts: ModelFacts, outputs: Outputs, session: SessionSpec | None
) -> tuple[tuple[str, ...], SessionSpec]:
    """Return the wanted outputs, and session options with what the model adds."""
    if not isinstance(session, SessionSpec | None):
        raise PlanError(
            f"session is a {type(session).__name__}, not a SessionSpec",
            "give session=dx.SessionSpec(intra_op_num_threads=1)",
            option="session",
        )
    wanted = resolve_outputs(outputs, facts.graph.outputs, facts.known_values).names
    return wanted, session_of(facts, session)


def refuse_checkpoint(checkpoint: Any) -> None:
    """Raise an InputError if a checkpoint is given: a sharded plan has no chunks to keep."""
    if checkpoint is not None:
        raise InputError(
            "checkpoint keeps chunks of rows, and a sharded plan runs all rows at once",
            "leave checkpoint out, or the plan",
            option="checkpoint",
            suggestions=[Suggestion("checkpoint")],
        )


def predict_on_shards(facts: ModelFacts, x: Any, plan: ShardedPlan, run: RunOptions) -> Any:
    """Run one request by a sharded plan; see `Model.predict`.

    Raises
    ------
    PlanError
        The plan belongs to another model.
    InputError
        A batch size is given, or `x` does not fit the plan.
    """
    if plan.facts.__dask_tokenize__() != facts.__dask_tokenize__():
        raise PlanError(
            "the plan belongs to another model", "make it with this model's plan()", option="plan"
        )
    if isinstance(run.batch_size, int):
        raise InputError(
            f"batch_size={run.batch_size} does not apply: a sharded plan runs all rows at once",
            "leave it out, or pass only the rows that should run at once",
            option="batch_size",
            numbers={"batch_rows": run.batch_size},
        )
    return plan.predict(x, outputs=run.outputs, retries=run.retries)
