"""Tokenizers of generators: their codec, their digest, and whether they fit the model."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from dask_onnx.core.errors import ModelError

if TYPE_CHECKING:
    from dask_onnx.generation.text_codec import TextCodec


def codec_of(content: bytes | None) -> TextCodec | None:
    """Return the codec of a tokenizer's content; None for None."""
    if content is None:
        return None
    from dask_onnx.generation.text_codec import text_codec  # needs tokenizers

    return text_codec(content)


def tokenizer_name(content: bytes | None) -> str:
    """Return the digest of a tokenizer's content; empty for None."""
    return "" if content is None else hashlib.sha256(content).hexdigest()


def check_vocabulary(tokenizer: int, model: int | None) -> None:
    """Refuse a tokenizer with tokens that the model does not have.

    Parameters
    ----------
    tokenizer, model : int
        Sizes of the vocabularies; None if the model's is not known yet. A model may have more
        tokens: exporters round sizes up.

    Raises
    ------
    ModelError
        The tokenizer's vocabulary is larger.
    """
    if model is not None and tokenizer > model:
        raise ModelError(
            f"the tokenizer has {tokenizer:,} tokens, and the model's logits {model:,}",
            "give the tokenizer.json that belongs to the model",
            option="tokenizer",
            numbers={"tokenizer_tokens": tokenizer, "model_tokens": model},
        )
