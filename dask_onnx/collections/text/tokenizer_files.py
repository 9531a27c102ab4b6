"""Tokenizers: the content of a tokenizer.json, and the tokenizer made from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import tokenizers

from dask_onnx.core.errors import ModelError


def tokenizer_content(tokenizer: Any) -> bytes:
    """Return the content of a tokenizer's JSON file.

    Parameters
    ----------
    tokenizer : path, bytes or tokenizers.Tokenizer

    Raises
    ------
    ModelError
        The file does not exist.
    """
    if isinstance(tokenizer, tokenizers.Tokenizer):
        return str(tokenizer.to_str()).encode()
    if isinstance(tokenizer, bytes):
        return tokenizer
    path = Path(tokenizer)
    if not path.is_file():
        raise ModelError(
            f"the tokenizer {path} does not exist",
            "name the tokenizer.json of the model",
            option="tokenizer",
        )
    return path.read_bytes()


def load_tokenizer(content: bytes) -> tokenizers.Tokenizer:
    """Return the tokenizer of a JSON file, without padding.

    Raises
    ------
    ModelError
        The content is not that of a tokenizer.
    """
    # By default the package starts a thread for each core beside Dask's own threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        made = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the package raises plain Exceptions
        raise ModelError(
            f"the tokenizer cannot be read: {str(error)[:200]}",
            "pass a tokenizer.json",
            option="tokenizer",
            reason=str(error),
        ) from None
    made.no_padding()
    return made
