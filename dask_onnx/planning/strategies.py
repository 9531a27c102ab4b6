"""Strategies as objects, each with the options that it takes: what `Model.plan` may be given."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dask_onnx.planning.recipe import Strategy


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """Cut the model into contiguous stages, the slowest of which is as fast as possible.

    Micro-batches follow one another through the stages. Without options it takes the fewest stages
    that fit the workers of the cluster, or else one for each worker.

    Parameters
    ----------
    n_stages : int, optional
        Number of stages.
    memory_limit : int or str, optional
        Bytes of weights and activations that a stage may need, such as "1.5GiB". Alone, it gives
        the fewest stages that keep within it.

    Examples
    --------
    >>> plan = model.plan(dx.Pipeline(n_stages=4))
    """

    n_stages: int | None = None
    memory_limit: int | str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fused:
    """Cut the model into convex regions of about equal predicted time.

    Parameters
    ----------
    n_stages : int, optional
        Number of regions.
    min_seconds : float, optional
        Without `n_stages`: predicted seconds that a region computes at least. By default the
        configuration's ``onnx.plan.min-seconds``.

    Examples
    --------
    >>> plan = model.plan(dx.Fused(min_seconds=0.2))
    """

    n_stages: int | None = None
    min_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Branches:
    """Run independent branches of the graph side by side.

    Parameters
    ----------
    n_workers : int, optional
        Largest number of stages side by side; 2 by default.

    Examples
    --------
    >>> plan = model.plan(dx.Branches(n_workers=3))
    """

    n_workers: int | None = None


StrategyObject = Pipeline | Fused | Branches
_NAMES = {Pipeline: "pipeline", Fused: "fused", Branches: "branches"}


def as_strategy(strategy: StrategyObject) -> Strategy:
    """Return the name of a strategy with those of its options that were given."""
    given = {field.name: getattr(strategy, field.name) for field in fields(strategy)}
    options = {name: value for name, value in given.items() if value is not None}
    return Strategy(_NAMES[type(strategy)], options)
