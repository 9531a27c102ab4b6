"""The runs that a loop of batches needs of a decoder, whatever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dask_onnx.generation.decoder_runs import Batch, Padding


class DecoderSteps(Protocol):
    """A decoder whose runs take batches of rows; see the methods of `Decoder`."""

    @property
    def padding(self) -> Padding:
        """Padding of its batches."""

    @property
    def vocabulary(self) -> int | None:
        """Number of tokens that its logits have; None before a trial."""

    @property
    def takes_chunks(self) -> bool:
        """True if a prompt may run in several parts."""

    @property
    def takes_prefix(self) -> bool:
        """True if several prompts may go on from the cache of a prefix that they share."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, Batch]:
        """Run prompts from their first token on."""

    def prefill_chunks(self, prompt: Sequence[int], size: int) -> tuple[np.ndarray, Batch]:
        """Run one prompt in parts of so many tokens."""

    def prefill_after(
        self, prefix: Batch, prompts: Sequence[Sequence[int]]
    ) -> tuple[np.ndarray, Batch]:
        """Run prompts from the end of a prefix on that all of them share."""

    def step(self, batch: Batch, new: Sequence[int]) -> np.ndarray:
        """Feed one more token to each row, and return the logits after it."""

    def select(self, batch: Batch, rows: Sequence[int]) -> Batch:
        """Return a batch of some rows, in the order given."""

    def join(self, one: Batch, other: Batch) -> Batch:
        """Return a batch of the rows of both."""
