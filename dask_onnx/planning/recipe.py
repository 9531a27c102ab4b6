"""How a plan was asked for, so that it can be made again for other outputs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask_onnx.core import config
from dask_onnx.core.errors import PlanError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.planning.cutting import CutInputs
from dask_onnx.planning.partition import STRATEGIES
from dask_onnx.planning.resources import Link
from dask_onnx.planning.stages import StageGraph


@dataclass(frozen=True)
class Strategy:
    """A strategy together with what it needs, for `Model.plan`."""

    name: str
    options: Mapping[str, Any]


def at_values(values: Sequence[str | Sequence[str]]) -> Strategy:
    """Cut where you say: a stage ends where a value has been made, or several together.

    Parameters
    ----------
    values : names of values, or sequences of names, in the order of the stages
        The last stage makes what is left. A model's values: ``plan("per_node").explain()``.

    Raises
    ------
    PlanError
        These are not names.
    """
    ends = [values] if isinstance(values, str) else values
    groups = [
        [end] if isinstance(end, str) else list(end) if isinstance(end, Iterable) else [end]
        for end in (ends if isinstance(ends, Iterable) else [ends])
    ]
    wrong = [name for group in groups for name in group if not isinstance(name, str)]
    if wrong or not all(groups):
        raise PlanError(
            f"at_values takes names of values, not {wrong[0]!r}" if wrong else "no name in a list",
            'give dx.at_values(["a", "b"]), or ["a", "b"] in it for two that end a stage together',
        )
    return Strategy("at_values", {"values": tuple(map(tuple, groups))})


def from_annotations(configuration: str | None = None) -> Strategy:
    """The stages that the model itself says, in ONNX's own annotations (IR 11, `pipeline_stage`).

    Nodes of one number are a stage, in ascending order. A node without a number is in the latest
    stage that a node before it says, or, where none does, in the earliest of those that read it;
    there too is what follows from weights alone. Where the configuration has more than one device,
    stages keep to so many worker groups of the cluster, in turns; ``plan.with_placement(None)``
    lets each run anywhere. Where nodes
    say how their tensors are sharded (`sharding_spec`), each shard is a task.

    Parameters
    ----------
    configuration : str, optional
        Name of the device configuration; may be left out where only one has stages.
    """
    return Strategy("from_annotations", {"configuration": configuration})


@dataclass(frozen=True, eq=False)
class Recipe:
    """A strategy with its options; `strategy_function` says whether they go together."""

    strategy: str
    shapes: Mapping[str, tuple[int, ...]] | None
    session: SessionSpec
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the strategy's function takes besides the model."""
    link: Link | None = None
    """What hops were measured to cost on the cluster; None goes by what they usually do."""

    def strategy_function(self) -> Callable[[CutInputs], StageGraph]:
        """
        Raises
        ------
        PlanError
            No such strategy, or it does not take an option.
        """
        check_name(self.strategy)
        function = STRATEGIES[self.strategy]
        given = {name: value for name, value in self.options.items() if value is not None}
        wrong = [name for name in given if name not in options_of(self.strategy)]
        if wrong:
            takers = [name for name in STRATEGIES if wrong[0] in options_of(name)]
            raise PlanError(
                f"strategy {self.strategy!r} takes no {wrong[0]}",
                f"leave it out, or use strategy {' or '.join(map(repr, takers))}",
            )
        if self.strategy == "fused":
            given.setdefault("min_seconds", float(config.get("plan.min-seconds")))
        return functools.partial(function, **given)


def check_name(strategy: str) -> None:
    """
    Raises
    ------
    PlanError
        There is no such strategy.
    """
    if strategy not in STRATEGIES:
        names = ["auto", *(name for name in STRATEGIES if name not in _WITH_VALUES)]
        raise PlanError(
            f"there is no strategy {strategy!r}",
            f"choose one of {', '.join(names)}, dx.at_values([...]) or dx.from_annotations()",
        )


_WITH_VALUES = ("at_values",)
"""Strategies that mean nothing without their options."""


def options_of(strategy: str) -> list[str]:
    """Names of what a strategy takes besides the model."""
    parameters = inspect.signature(STRATEGIES[strategy]).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
