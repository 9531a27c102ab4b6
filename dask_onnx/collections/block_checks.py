"""Check of the blocks of a dask.array against the dtype and shape that it was built with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.core.errors import StageError
from dask_onnx.core.specs import dtype_name, format_shape


@dataclass(frozen=True, slots=True)
class BlockType:
    """Declared dtype and shape of the blocks of a dask.array."""

    output: str
    """Name of the output."""
    stage: str
    """Label of the stage that makes it."""
    dtype: np.dtype[Any] | None
    """Dtype; None if it is unknown while the graph is built."""
    sizes: tuple[float, ...]
    """Size of each axis; NaN where it is unknown, or differs from block to block."""

    def checked(self, block: Any) -> Any:
        """Return a block, if it is as it should be.

        Raises
        ------
        StageError
            Its dtype, rank or a size is another one: numbers that are computed from the array's
            shape would be wrong.
        """
        if not isinstance(block, np.ndarray) or self._fits(block):
            return block
        dims = tuple(None if math.isnan(size) else int(size) for size in self.sizes)
        expected = "" if self.dtype is None else f"{dtype_name(self.dtype)} "
        raise StageError(
            f"stage {self.stage} gives output {self.output!r} as {dtype_name(block.dtype)} "
            f"{block.shape}; the model says {expected}{format_shape(dims)}, and the dask.array was "
            "built for that",
            "correct the output's type in the model, or pass Delayed instead of a dask.array",
            stage=self.stage,
            numbers={"rank": block.ndim, "expected_rank": len(self.sizes)},
        )

    def _fits(self, block: np.ndarray) -> bool:
        is_text = block.dtype.kind in "OUST" and self.dtype == object
        if self.dtype is not None and block.dtype != self.dtype and not is_text:
            return False
        return block.ndim == len(self.sizes) and all(
            math.isnan(size) or size == own
            for size, own in zip(self.sizes, block.shape, strict=True)
        )
