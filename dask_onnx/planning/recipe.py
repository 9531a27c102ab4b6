"""Recipe of a plan: the strategy and options that it was asked for, to cut other outputs alike."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask_onnx.core import config
from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.specs import SessionSpec
from dask_onnx.planning.cutting import CutInputs
from dask_onnx.planning.partition import STRATEGIES
from dask_onnx.planning.plan_options import meaning_of
from dask_onnx.planning.resources import Link
from dask_onnx.planning.stages import StageGraph

_NEED_OPTIONS = ("at_values",)
"""Strategies that cannot be named alone, since they need their options."""


@dataclass(frozen=True)
class Strategy:
    """Strategy together with its options, for `Model.plan`."""

    name: str
    """Name of the strategy."""
    options: Mapping[str, Any]
    """Keyword arguments of the strategy's function."""


def at_values(values: Sequence[str | Sequence[str]]) -> Strategy:
    """Cut at given values: a stage ends where a value, or each of several, has been produced.

    Parameters
    ----------
    values : sequence of str or of sequence of str
        Names of values, in the order of the stages; a sequence of names ends one stage together.
        The last stage has the rest. The names of a model's values are in
        ``plan("per_node").explain()``.

    Raises
    ------
    PlanError
        `values` has something else than names, or an empty sequence.
    """
    ends = [values] if isinstance(values, str) else values
    groups = [
        [end] if isinstance(end, str) else list(end) if isinstance(end, Iterable) else [end]
        for end in (ends if isinstance(ends, Iterable) else [ends])
    ]
    wrong = [name for group in groups for name in group if not isinstance(name, str)]
    if wrong or not all(groups):
        raise PlanError(
            f"a cut is at names of values, not at {wrong[0]!r}"
            if wrong
            else "one of the cuts has no names of values",
            'give dx.at_values(["a", "b"]), or ["a", "b"] in it for two that end a stage together',
            option="values",
            suggestions=[Suggestion("values")],
        )
    return Strategy("at_values", {"values": tuple(map(tuple, groups))})


def from_annotations(configuration: str | None = None) -> Strategy:
    """Cut into the stages that the model's ONNX annotations give (IR 11, `pipeline_stage`).

    Nodes of one number are a stage, in ascending order. A node without a number belongs to the
    latest stage of the nodes before it; where none of these has one, to the earliest stage of its
    consumers. Nodes that depend on weights alone belong to their earliest consumer too. Where the
    configuration has several devices, stages keep to as many worker groups of the cluster, in
    turns; ``plan.with_placement(None)`` lets each run anywhere. Where nodes declare how their
    tensors are sharded (`sharding_spec`), each shard is a task.

    Parameters
    ----------
    configuration : str, optional
        Name of the device configuration; may be omitted where only one has stages.
    """
    return Strategy("from_annotations", {"configuration": configuration})


@dataclass(frozen=True, eq=False)
class Recipe:
    """Strategy, shapes and options of a plan."""

    strategy: str
    """Name of the strategy."""
    shapes: Mapping[str, tuple[int, ...]] | None
    """Shapes of inputs that the plan is for, by name; None for assumed ones."""
    session: SessionSpec
    """Options of the ONNX Runtime sessions that run the stages."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the strategy's function; None stands for an option not given."""
    link: Link | None = None
    """Measured cost of hops on the cluster; None stands for the defaults of `CostTable`."""

    def strategy_function(self) -> Callable[[CutInputs], StageGraph]:
        """Return the strategy's function with its options bound.

        Raises
        ------
        PlanError
            The strategy does not exist, or does not take an option.
        """
        check_strategy_name(self.strategy)
        function = STRATEGIES[self.strategy]
        given = {name: value for name, value in self.options.items() if value is not None}
        wrong = [name for name in given if name not in options_of(self.strategy)]
        if wrong:
            takers = [name for name in STRATEGIES if wrong[0] in options_of(name)]
            raise PlanError(
                f"strategy {self.strategy!r} does not use {meaning_of(wrong[0])}",
                f"leave out {wrong[0]}"
                + (f", or use strategy {' or '.join(map(repr, takers))}" if takers else ""),
                option=wrong[0],
                suggestions=[
                    Suggestion(wrong[0]),
                    *(Suggestion("strategy", name) for name in takers),
                ],
            )
        if self.strategy == "fused":
            given.setdefault("min_seconds", float(config.get("plan.min-seconds")))
        return functools.partial(function, **given)


def check_strategy_name(strategy: str) -> None:
    """Check that a strategy of this name exists.

    Raises
    ------
    PlanError
        It does not.
    """
    if strategy not in STRATEGIES:
        names = ["auto", *(name for name in STRATEGIES if name not in _NEED_OPTIONS)]
        raise PlanError(
            f"there is no strategy {strategy!r}",
            f"choose one of {', '.join(names)}, dx.at_values([...]) or dx.from_annotations()",
            option="strategy",
            suggestions=[Suggestion("strategy", name) for name in names],
        )


def options_of(strategy: str) -> list[str]:
    """Return the names of the options that a strategy's function takes."""
    parameters = inspect.signature(STRATEGIES[strategy]).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
