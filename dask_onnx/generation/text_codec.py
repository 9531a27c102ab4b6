"""Text to tokens and back, for prompts and what is written after them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tokenizers

from dask_onnx.collections.text.tokenizer_files import load_tokenizer, tokenizer_content

__all__ = ["TextCodec", "text_codec", "tokenizer_content"]

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""End of a text whose last character lacks bytes of tokens to come."""


@dataclass(frozen=True, slots=True)
class TextCodec:
    """Tokenizer of prompts, and of what is written after them."""

    tokenizer: tokenizers.Tokenizer
    """Tokenizer without padding and truncation."""
    size: int
    """Smallest size of a model's vocabulary that has all of its tokens."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt, with the special tokens that the tokenizer adds."""
        return list(self.tokenizer.encode(text).ids)

    def encode_alone(self, text: str) -> list[int]:
        """Return the tokens of a text without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    @property
    def tokens(self) -> Mapping[str, int]:
        """Vocabulary: token to its number."""
        return dict(self.tokenizer.get_vocab(with_added_tokens=True))

    def stop_place(self, tokens: Sequence[int], stop: Sequence[str]) -> int | None:
        """Return where the first stop string begins in the text of tokens; None if none does."""
        text = self.decode(tokens)
        places = [place for each in stop if (place := text.find(each)) >= 0]
        return min(places, default=None)

    def complete_text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens without a last character of which bytes are missing."""
        return self.decode(tokens).rstrip(_INCOMPLETE)


@functools.lru_cache(maxsize=8)
def text_codec(content: bytes) -> TextCodec:
    """Return the codec of a ``tokenizer.json``; its own padding and truncation are ignored.

    Raises
    ------
    ModelError
        The content is not that of a tokenizer.
    """
    made = load_tokenizer(content)
    made.no_truncation()
    numbers = made.get_vocab(with_added_tokens=True).values()
    return TextCodec(made, max(numbers, default=-1) + 1)
