"""Predictions for pictures in any collection; the result is a collection of the same kind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dask.base import tokenize
from dask.delayed import Delayed, delayed

from dask_onnx.collections.bad_rows import bad_items
from dask_onnx.collections.images.image_runner import (
    ImageRunner,
    in_order,
    name_of,
    results_of,
)
from dask_onnx.collections.images.image_settings import ImageSettings
from dask_onnx.collections.images.picture_batches import make_runner, result_ranks
from dask_onnx.collections.images.picture_collections import (
    RunGiven,
    as_bag,
    as_list,
    compute_pictures,
    is_many,
    is_picture,
    is_text,
    predict_bag_of_pictures,
)
from dask_onnx.collections.kept_predictions import KeptPrediction
from dask_onnx.collections.kinds import is_bag, is_table
from dask_onnx.collections.run_options import BatchSize, RowOptions
from dask_onnx.core.errors import InputError
from dask_onnx.facts.model_facts import ModelFacts


@dataclass(frozen=True, slots=True)
class PictureOptions:
    """Options of a prediction for pictures, besides the settings of the model."""

    column: Any = None
    """Label of a table's column of pictures; None for a Series, and for other collections."""
    append: bool | Sequence[Any] = False
    """True to keep a table's columns in the result, or the labels of those to keep."""
    batch_size: BatchSize = "auto"
    """Pictures of a run, among those of one size."""
    rows: RowOptions = field(default_factory=RowOptions)
    """Treatment of pictures that cannot be read."""


def predict_any_pictures(
    facts: ModelFacts, settings: ImageSettings, x: Any, options: PictureOptions
) -> Any:
    """Run a model on a picture or a collection of pictures; see `ImageModel.predict`.

    Raises
    ------
    InputError
        Options do not fit `x`, or a picture cannot be read.
    """
    column, append, rows = options.column, options.append, options.rows
    if not is_table(x) and (column is not None or append):
        raise InputError(
            f"column and append are for tables; {type(x).__name__} was given",
            "leave them out",
            option="column" if column is not None else "append",
        )
    runner, supplies = make_runner(facts, settings, options.batch_size, rows)
    if is_table(x):
        return _of_table(facts, settings, x, runner, supplies, options)
    if is_bag(x):
        return predict_bag_of_pictures(x, runner, supplies)
    if isinstance(x, Delayed):
        return delayed(RunGiven(runner), pure=True, traverse=False)(x, *supplies)
    if hasattr(x, "dask") and hasattr(x, "to_delayed"):
        return predict_bag_of_pictures(as_bag(x), runner, supplies)
    if not _is_collection(x):
        found = compute_pictures(runner, supplies, [x])
        runner.raise_first(found, lambda place: name_of(x, place, 1), 1)
        return in_order(found)[0]
    sources = as_list(x)
    found = compute_pictures(runner, supplies, sources)
    if rows.on_error == "split":
        return results_of(found), bad_items(sources, found)
    count = len(sources)
    runner.raise_first(found, lambda place: name_of(sources[place], place, count), count)
    return in_order(found)


def predict_kept_pictures(
    facts: ModelFacts, settings: ImageSettings, x: Any, options: PictureOptions, checkpoint: Any
) -> Any:
    """Run a model on pictures and keep finished chunks; see ``checkpoint`` of `Model.predict`.

    Raises
    ------
    InputError
        As `predict_any_pictures`; besides, the chunks of such a collection cannot be kept, or the
        folder belongs to another prediction.
    """
    kept = KeptPrediction(
        "pictures",
        facts.__dask_tokenize__(),
        {
            "settings": tokenize(settings),
            "columns": [options.column, options.append],
            "batch_size": options.batch_size,
            "on_error": options.rows.on_error,
        },
    )
    return kept.keep(x, checkpoint, lambda: predict_any_pictures(facts, settings, x, options))


def predict_checked_pictures(
    facts: ModelFacts, settings: ImageSettings, x: Any, options: PictureOptions
) -> tuple[Any, Any]:
    """Return the results of the good pictures, and the bad pictures with their errors.

    The ``on_error`` of the options is "split"; see `ImageModel.predict_checked`.

    Raises
    ------
    InputError
        Options do not fit `x`, or it is a Delayed.
    """
    if isinstance(x, Delayed):
        raise InputError(
            "predict_checked is not for Delayed",
            "pass a list or a bag of pictures, or call predict with on_error='null'",
            option="x",
        )
    sources = x if _is_collection(x) else [x]
    good, bad = predict_any_pictures(facts, settings, sources, options)
    return good, bad


def _is_collection(x: Any) -> bool:
    return not is_picture(x) or (is_text(x) and is_many(os.fspath(x)))


def _of_table(
    facts: ModelFacts,
    settings: ImageSettings,
    x: Any,
    runner: ImageRunner,
    supplies: Sequence[Delayed],
    options: PictureOptions,
) -> Any:
    from dask_onnx.collections.images import image_tables as tables  # needs pandas

    has_names = bool(settings.results.labels)
    columns = tables.ResultColumns(settings.form, has_names, options.rows.on_error == "null")
    columns.check(result_ranks(facts, settings))
    new = list(columns.frame([])[0].columns)
    kept = tables.check_columns(x, options.column, options.append, new)
    part = tables.PictureColumn(runner, columns, options.column if x.ndim > 1 else None, kept)
    return tables.predict_pictures(
        x, part, lambda sources: compute_pictures(runner, supplies, sources), supplies
    )
