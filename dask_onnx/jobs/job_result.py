"""Result of a finished job over files."""

from __future__ import annotations

from dataclasses import dataclass

from dask_onnx.collections.run_options import BatchSize


@dataclass(frozen=True, slots=True)
class ModelSwap:
    """Replacement of a job's model."""

    block: int
    """First block that the new model ran, of those that had not started."""
    old_token: str
    """Token of the model that ran blocks before."""
    new_token: str
    """Token of the model that runs this block."""


@dataclass(frozen=True, slots=True)
class FilePrediction:
    """Numbers of a finished job of `predict_files`."""

    files: tuple[str, ...]
    """Paths or URLs that were written: the output and, with a quarantine, the bad rows."""
    seconds: float
    """Time of reading, computing and writing, without the start of the cluster."""
    workers: int
    """Workers of the cluster."""
    blocks: int
    """Blocks, partitions or tiles that were written."""
    resumed_blocks: int = 0
    """Blocks that an earlier run had completed, and that were not computed again."""
    rows: int | None = None
    """Rows that were written; None for a raster."""
    bad_rows: int | None = None
    """Rows that were written to the quarantine; None without one."""
    block_rows: int | None = None
    """Rows of each block; None for tables and rasters."""
    batch_size: BatchSize = None
    """Rows of a run of the model, or "auto"; None for tables and rasters."""
    shape: tuple[int, ...] | None = None
    """Shape of the output of a raster; None for rows."""
    pictures: int | None = None
    """Pictures that were read; None for others."""
    tokens: int | None = None
    """Tokens that were written after prompts; None for other jobs."""
    swaps: tuple[ModelSwap, ...] = ()
    """Replacements of a watched model while the job ran."""
    was_complete: bool = False
    """True if an earlier run had completed the output, so that nothing was left to do."""

    @property
    def pixels(self) -> int | None:
        """Pixels of the output of a raster, in each band; None for rows."""
        return None if self.shape is None else self.shape[-2] * self.shape[-1]
