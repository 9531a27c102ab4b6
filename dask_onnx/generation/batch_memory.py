"""Memory of a batch: the bytes of its cache and logits, and the rows that fit."""

from __future__ import annotations

from dataclasses import dataclass

from dask_onnx.generation.batch_loop import Limits
from dask_onnx.generation.decoder_form import DecoderForm
from dask_onnx.generation.generation_options import MAX_ROWS

_COPIES = 3
"""Copies of a cache at a time: the past, the present, and that of a batch that rows join."""
_LOGIT_BYTES = 4
_PREFILL_LOGITS = 2**28
"""Bytes of the logits of one run over prompts at most, where these have several."""
_PREFILL_TOKENS = 4096
"""Tokens of one run over prompts at most, where these have several."""


@dataclass(frozen=True, slots=True)
class BatchMemory:
    """Bytes of the rows of a batch."""

    tokens: int
    """Tokens of a row: those of the longest prompt, and all new ones."""
    cache_bytes: int
    """Bytes of the cache of one row of so many tokens."""
    row_bytes: int
    """Bytes of a row with the copies of its cache and its logits."""
    prefill_tokens: int
    """Tokens of one run over several prompts at most, padding included."""

    @classmethod
    def of(
        cls, form: DecoderForm, prompt_tokens: int, limits: Limits, *, in_parts: bool = False
    ) -> BatchMemory:
        """Return the memory of rows.

        Parameters
        ----------
        form : DecoderForm
        prompt_tokens : int
            Tokens of the longest prompt.
        limits : Limits
        in_parts : bool
            True if a long prompt may run in parts, so that only these have logits at a time.
        """
        if form.states is not None:
            return cls._with_source(form, prompt_tokens, limits)
        tokens = prompt_tokens + limits.max_new_tokens
        if limits.context is not None:
            tokens = min(tokens, limits.context)
        cache = form.cache_bytes(tokens)
        of_logits = (form.vocabulary or 1) * _LOGIT_BYTES
        # Without a cache each run takes all tokens, and returns the logits of all.
        prefill = min(_PREFILL_TOKENS, max(1, _PREFILL_LOGITS // of_logits))
        at_once = min(prompt_tokens, prefill) if in_parts else prompt_tokens
        logits = of_logits * (at_once if form.cache else tokens)
        return cls(tokens, cache, _COPIES * cache + logits, prefill)

    @classmethod
    def _with_source(cls, form: DecoderForm, prompt_tokens: int, limits: Limits) -> BatchMemory:
        """Return the memory of rows that attend to an encoder's states."""
        tokens = 1 + limits.max_new_tokens
        source = sum(each.bytes_per_token for each in form.cache if each.is_source)
        own = form.cache_bytes_per_token - source
        cache = source * prompt_tokens + own * tokens
        logits = (form.vocabulary or 1) * _LOGIT_BYTES * (1 if form.cache else tokens)
        return cls(prompt_tokens + tokens, cache, _COPIES * cache + logits, _PREFILL_TOKENS)

    def rows(self, room: int, wanted: int | None) -> int:
        """Return the rows of a batch.

        Parameters
        ----------
        room : int
            Bytes that they may take.
        wanted : int or None
            Rows at most, as the caller wants; `MAX_ROWS` by default.
        """
        return self.prompts(room, wanted, 1)

    def prompts(self, room: int, wanted: int | None, rows_each: int) -> int:
        """Return the prompts of a batch, each of which takes some rows; see `rows`."""
        most = MAX_ROWS if wanted is None else wanted
        return max(1, min(most, room // max(1, self.row_bytes)) // rows_each)
