"""Strategy object that requests a sharded plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dask_onnx.core.errors import PlanError, Suggestion


@dataclass(frozen=True)
class Sharded:
    """Strategy that splits one request along an axis of its tensors, for `Model.plan`.

    Sharding shortens a single request, or lets it fit into the memory of the workers. For many
    requests, batches that run side by side are faster.

    Parameters
    ----------
    axis : {"sequence", "heads"} or mapping of input name to int
        "sequence": the axis of the inputs that holds tokens, found by what attention works over.
        "heads": tensor parallelism over attention heads and over the columns of weight matrices.
        A mapping names one axis of each input, counted from 0, such as
        ``{"input_ids": 1, "attention_mask": 1}``.
    n : int
        Number of shards, positive.
    key_blocks : int, optional
        For a sequence: number of blocks that the keys of each attention are split into. Each block
        is a task with a partial softmax, so that no task holds all scores. By default each shard
        computes attention over all keys at once.

    Raises
    ------
    PlanError
        `axis` is unknown; `n` or `key_blocks` is not a positive integer; `key_blocks` is given with
        ``axis="heads"``. Field `option` has the parameter's name.

    Examples
    --------
    >>> import dask_onnx as dx
    >>> model = dx.load("encoder.onnx")
    >>> strategy = dx.Sharded("sequence", n=4)
    >>> plan = model.plan(strategy, shapes={"x": (1, 64, 32)})
    >>> y = model.predict(x, plan=plan)
    """

    axis: str | Mapping[str, int]
    """"sequence", "heads", or input name to its axis."""
    n: int
    """Number of shards."""
    key_blocks: int | None = None
    """Blocks of keys for each attention; None for one block."""

    def __post_init__(self) -> None:
        if isinstance(self.axis, str):
            if self.axis not in NAMED_AXES:
                raise PlanError(
                    f"axis={self.axis!r} is not a named axis",
                    'give axis="sequence", axis="heads", or an axis of each input: {"ids": 1}',
                    option="axis",
                    suggestions=[Suggestion("axis", name) for name in NAMED_AXES],
                )
        else:
            _check_mapping(self.axis)
        _check_count("n", self.n)
        if self.key_blocks is not None:
            _check_count("key_blocks", self.key_blocks)
            if self.axis == "heads":
                raise PlanError(
                    f"key_blocks={self.key_blocks} does not apply to heads",
                    'leave it out, or shard along axis="sequence"',
                    option="key_blocks",
                    suggestions=[Suggestion("axis", "sequence")],
                )


NAMED_AXES = ("sequence", "heads")
"""Axes that are inferred from the graph."""


def _check_mapping(axis: object) -> None:
    if not isinstance(axis, Mapping) or not axis:
        raise PlanError(
            f"axis={axis!r} is neither a named axis nor a mapping of input to axis",
            'give axis="sequence", axis="heads", or an axis of each input: {"ids": 1}',
            option="axis",
        )
    for name, index in axis.items():
        if not isinstance(name, str) or isinstance(index, bool) or not isinstance(index, int):
            raise PlanError(
                f"axis has the entry {name!r}: {index!r}",
                'give the name of an input and the number of its axis: {"ids": 1}',
                option="axis",
            )
        if index < 0:
            raise PlanError(
                f"axis {index} of input {name} is negative",
                "count axes from 0, such as 1",
                option="axis",
                input=name,
                axis=index,
            )


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PlanError(
            f"{name}={value!r} is not a positive integer",
            "give a positive integer, such as 4",
            option=name,
            suggestions=[Suggestion(name, 4)],
        )
