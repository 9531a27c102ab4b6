"""Options of a job over files, beside those that describe the cells of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.run_options import BatchSize
from dask_onnx.core.errors import InputError
from dask_onnx.jobs.job_shards import Shard
from dask_onnx.jobs.option_checks import check_count, check_mapping
from dask_onnx.jobs.table_request import TableRequest
from dask_onnx.planning.recipe import Strategy
from dask_onnx.planning.strategies import StrategyObject
from dask_onnx.tiles.predict import Tile


@dataclass(frozen=True, slots=True)
class JobOptions:
    """Options of `predict_files`; see there.

    Raises
    ------
    InputError
        A value that an option does not take.
    """

    table: TableRequest
    """Options of a table. `on_error` and `quarantine` are for pictures too."""
    batch_size: BatchSize
    block_rows: int | None
    strategy: str | Strategy | StrategyObject
    n_stages: int | None
    outputs: list[str] | None
    """Names of the outputs that are written; None for those of the model."""
    pre: Any
    post: Any
    retries: int | None
    overwrite: bool
    tile: Tile | None
    image: Mapping[str, Any] | None
    draw: str | None
    shard: Shard | None = None
    """The part of the input that this run takes; None for all of it."""

    def __post_init__(self) -> None:
        check_count(self.block_rows, "block_rows")
        check_count(self.n_stages, "n_stages")
        check_count(self.retries, "retries", least=0)
        if self.batch_size != "auto":
            check_count(self.batch_size, "batch_size")
        check_mapping(self.image, "image", "{'preset': 'yolo'}")

    def placed(self, target: str) -> tuple[str, JobOptions]:
        """Return the output of this run's shard, and the options with its further outputs.

        Parameters
        ----------
        target : str
            Output as the caller gave it; returned itself without shards.
        """
        if self.shard is None:
            return target, self
        place, bad, draw = self.shard.place, self.table.quarantine, self.draw
        table = replace(self.table, quarantine=None if bad is None else place(bad))
        draw = None if draw is None else place(draw)
        return place(target), replace(self, table=table, draw=draw)

    @property
    def repeats(self) -> int:
        """Times that a block is repeated if it raises."""
        return effective_retries(self.retries)

    @property
    def rows_of_run(self) -> int | None:
        """Rows of a run; None where they are tuned."""
        return None if self.batch_size in ("auto", None) else int(self.batch_size)

    @property
    def given(self) -> frozenset[str]:
        """Names of the options that were given, of those that some kinds of jobs do not take."""
        found = {
            "pre": self.pre is not None,
            "post": self.post is not None,
            "strategy": self.strategy != "whole",
            "n_stages": self.n_stages is not None,
            "batch_size": self.rows_of_run is not None,
            "block_rows": self.block_rows is not None,
            "image": bool(self.image),
            "draw": self.draw is not None,
            **dict.fromkeys(self.table.given, True),
        }
        return frozenset(name for name, is_given in found.items() if is_given)

    def refuse(self, names: Sequence[str], what: str, instead: str = "") -> None:
        """Raise an error if options were given that a kind of job does not take.

        Parameters
        ----------
        names : sequence of str
            Options.
        what : str
            Kind of the job, in the plural.
        instead : str, optional
            Next step; by default to leave them out.

        Raises
        ------
        InputError
            Some were given.
        """
        given = self.given
        if found := [name for name in names if name in given]:
            verb, rest = ("does", "it") if len(found) == 1 else ("do", "them")
            raise InputError(
                f"{' and '.join(found)} {verb} not apply to {what}",
                instead or f"leave {rest} out",
                option=found[0],
            )
