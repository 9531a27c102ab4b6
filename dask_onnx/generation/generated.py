"""Results of one prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

from dask_onnx.generation.batch_loop import FinishReason


@dataclass(frozen=True, slots=True)
class Generation:
    """Text and tokens that a decoder has written after one prompt."""

    text: str | None
    """Text without special tokens, up to a stop string; None without a tokenizer."""
    tokens: tuple[int, ...]
    """Tokens written, an end token and those of a stop string included."""
    finish_reason: FinishReason | None
    """Reason of the end: "eos" an end token, "stop" a stop string, "length" the limit of new
    tokens, "context" the end of the model's context, "complete" the end of the only text that
    `choices`, `json_schema` or `regex` still allow. None for a prompt that could not be used."""
    prompt_tokens: int
    """Tokens of the prompt, special tokens included."""
    error: str | None = None
    """Message about a prompt that could not be used, where those are no errors."""
    score: float | None = field(default=None, compare=False)
    """Sum of the log-probabilities of the tokens, divided by a power of their number, by which a
    beam search has chosen them; None without beams. Left out of comparisons: it is rounded."""

    @property
    def new_tokens(self) -> int:
        """Number of tokens written."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One token of a stream."""

    token: int
    """Number of the token."""
    text: str
    """Text that it adds: empty for a special token, or until a character is complete. All texts
    of a stream together are the text of the row."""
    finish_reason: FinishReason | None
    """Reason of the end with the last token, otherwise None; see `Generation`."""
