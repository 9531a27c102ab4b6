"""The strategy object that asks for a sharded plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dask_onnx.core.errors import PlanError


@dataclass(frozen=True)
class Sharded:
    """Split one request along an axis of its tensors, for `Model.plan`.

    Parameters
    ----------
    axis : {"sequence", "heads"} or mapping of input name to int
        "sequence": the axis of tokens of the inputs. "heads": the heads of attention and the
        columns of the matrices between them. A mapping names an axis of the inputs, counted from
        0, such as ``{"input_ids": 1, "attention_mask": 1}``.
    n : int
        Number of shards.
    key_blocks : int, optional
        For a sequence: number of blocks of keys that each shard's attention is split into, each
        a task with a partial softmax of its own. None computes attention against all keys at once.

    Raises
    ------
    PlanError
        There is no such axis; `n` or `key_blocks` is no positive integer; `key_blocks` does not
        apply to heads.
    """

    axis: str | Mapping[str, int]
    n: int
    key_blocks: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.axis, str):
            if self.axis not in NAMED_AXES:
                raise PlanError(
                    f"there is no axis {self.axis!r} to shard along",
                    'give axis="sequence", axis="heads", or an axis of each input: {"ids": 1}',
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
                )


NAMED_AXES = ("sequence", "heads")
"""Axes that are found in the graph by what its operators do."""


def _check_mapping(axis: object) -> None:
    if not isinstance(axis, Mapping) or not axis:
        raise PlanError(
            f"the axis to shard along is {axis!r}",
            'give axis="sequence", axis="heads", or an axis of each input: {"ids": 1}',
        )
    for name, index in axis.items():
        if not isinstance(name, str) or isinstance(index, bool) or not isinstance(index, int):
            raise PlanError(
                f"the axis to shard along has the entry {name!r}: {index!r}",
                'give the name of an input and the number of its axis: {"ids": 1}',
            )
        if index < 0:
            raise PlanError(
                f"axis {index} of input {name} is negative", "count axes from 0, such as 1"
            )


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PlanError(f"{name} is {value!r}", "give a positive integer, such as 4")
