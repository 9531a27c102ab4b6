"""Hand-made predictions on tables, in a module that workers import; sessions are cached."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnxruntime
import pandas as pd
import tokenizers
from imported_session import one_thread_session

COLUMNS = ["probabilities_0", "probabilities_1"]


@functools.cache
def session(path: str) -> onnxruntime.InferenceSession:
    return one_thread_session(path)


@functools.cache
def estimator(path: str) -> Any:
    return joblib.load(path)


def feeds_of(part: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return each column as skl2onnx declares its input: shape (rows, 1), float32 or strings."""
    return {
        name: (
            column.to_numpy(np.float32)
            if pd.api.types.is_numeric_dtype(column.dtype)
            else column.to_numpy(object)
        ).reshape(-1, 1)
        for name, column in part.items()
    }


def probabilities(
    running: onnxruntime.InferenceSession, part: pd.DataFrame, per_run: int
) -> pd.DataFrame:
    """Return the probabilities of the two classes, `per_run` rows a run."""
    feeds = feeds_of(part)
    found = [
        running.run(
            ["probabilities"], {name: array[s : s + per_run] for name, array in feeds.items()}
        )[0]
        for s in range(0, len(part), per_run)
    ]
    return pd.DataFrame(np.concatenate(found), columns=COLUMNS, index=part.index)


def with_session(part: pd.DataFrame, path: str, per_run: int) -> pd.DataFrame:
    return probabilities(session(path), part, per_run)


def with_model(part: pd.DataFrame, model: bytes, per_run: int) -> pd.DataFrame:
    """Predict with a model passed as an argument: a new session for each partition."""
    return probabilities(one_thread_session(model), part, per_run)


def with_estimator(part: pd.DataFrame, path: str) -> pd.DataFrame:
    found = estimator(path).predict_proba(part)
    return pd.DataFrame(found.astype(np.float32), columns=COLUMNS, index=part.index)


@functools.cache
def tokenizer(path: str, length: int) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_file(path)
    made.no_padding()
    made.enable_truncation(length)
    return made


def embed(texts: list[str], model: str, tokens: str, per_run: int, *, by_length: bool) -> Any:
    """Return mean vectors, `per_run` texts a run, each run padded to its longest text."""
    encodings = tokenizer(tokens, 256).encode_batch(texts)
    order = np.arange(len(texts))
    if by_length:
        order = np.argsort([len(e.ids) for e in encodings], kind="stable")
    vectors = np.empty((len(texts), 384), np.float32)
    running = session(model)
    for start in range(0, len(order), per_run):
        places = order[start : start + per_run]
        width = max(len(encodings[p].ids) for p in places)
        arrays = {
            name: np.array(
                [
                    list(getattr(encodings[p], what)) + [0] * (width - len(encodings[p].ids))
                    for p in places
                ]
            )
            for name, what in (
                ("input_ids", "ids"),
                ("attention_mask", "attention_mask"),
                ("token_type_ids", "type_ids"),
            )
        }
        values = running.run(None, arrays)[0]
        weight = arrays["attention_mask"][..., None].astype(np.float32)
        vectors[places] = (values * weight).sum(axis=1) / weight.sum(axis=1)
    return vectors


def embed_series(texts: pd.Series, model: str, tokens: str, per_run: int) -> pd.Series:
    """Embed texts in batches in their given order, as hand-written code usually does."""
    found = embed(list(texts), model, tokens, per_run, by_length=False)
    return pd.Series(list(found), index=texts.index, dtype=object)


def halves(folder: str) -> tuple[list[Path], list[Path]]:
    files = sorted(Path(folder).glob("*.parquet"))
    return files[::2], files[1::2]
