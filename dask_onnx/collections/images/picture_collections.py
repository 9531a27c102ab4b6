"""Collections of pictures told from single ones, and the functions of tasks on bags and Delayed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.delayed import Delayed, delayed

from dask_onnx.cluster.current_scheduler import compute_now
from dask_onnx.collections.bad_rows import Found, bad_items, join_found
from dask_onnx.collections.images.image_results import ImageResult
from dask_onnx.collections.images.image_runner import (
    PICTURES_OF_A_TASK,
    ImageRunner,
    PictureTask,
    in_order,
    name_of,
    results_of,
)
from dask_onnx.core.errors import InputError
from dask_onnx.io.picture_files import find_pictures


def is_text(x: Any) -> bool:
    """Return whether a value is a path, URL or pattern."""
    return isinstance(x, str | os.PathLike)


def is_many(text: str) -> bool:
    """Return whether a text names several pictures: a folder or a pattern."""
    path = os.path.expanduser(text)  # noqa: PTH111 - text may be a URL
    if os.path.isfile(path):  # noqa: PTH113 - see above
        return False
    return os.path.isdir(path) or any(c in text for c in "*?[")  # noqa: PTH112 - see above


def is_picture(x: Any) -> bool:
    """Return whether a value is one picture rather than a collection."""
    if isinstance(x, bytes | bytearray | memoryview) or is_text(x):
        return True
    if isinstance(x, np.ndarray):
        return x.ndim < 4 and x.dtype.kind != "O" and x.dtype.kind not in "SU"
    return hasattr(x, "getbands") and hasattr(x, "mode")  # PIL.Image.Image


def as_list(x: Any) -> list[Any]:
    """Return a collection in memory, a folder or a pattern as a list of pictures.

    Raises
    ------
    InputError
        It is none, or no file is there.
    """
    if is_text(x):
        return list(find_pictures(os.fspath(x)).paths)
    if isinstance(x, Mapping):
        raise InputError(
            f"a {type(x).__name__} is no collection of pictures",
            "pass its pictures: list(x.values())",
            option="x",
        )
    if isinstance(x, Iterable):
        return list(x)
    raise InputError(
        f"{type(x).__name__} is no picture and no collection of pictures",
        "pass paths, bytes, images or arrays of uint8, or a list, table or bag of them",
        option="x",
    )


def as_bag(array: Any) -> Any:
    """Return a dask.array of pictures as a bag, a partition for each chunk of pictures."""
    from dask.bag import from_delayed  # loaded by those who use it

    if array.ndim != 4:
        raise InputError(
            f"the dask.array has shape {array.shape}",
            "pass (pictures, height, width, channels)",
            option="x",
            numbers={"axes": array.ndim},
        )
    whole = array.rechunk({1: -1, 2: -1, 3: -1})
    return from_delayed([delayed(list)(block) for block in whole.to_delayed().ravel()])


def compute_pictures(
    runner: ImageRunner, supplies: Sequence[Delayed], sources: Sequence[Any]
) -> Found:
    """Run pictures at once, on the scheduler that Dask chooses.

    Parameters
    ----------
    runner : ImageRunner
    supplies : sequence of Delayed
        Tasks that bring the model to the workers.
    sources : sequence
        Paths, URLs, bytes, images or arrays.
    """
    starts = range(0, max(len(sources), 1), PICTURES_OF_A_TASK)
    parts = [list(sources[start : start + PICTURES_OF_A_TASK]) for start in starts]
    # Without traverse=False, Dask would search the runner and the pictures for collections.
    run = delayed(runner, pure=False, traverse=False)
    lazy = [run(delayed(part, traverse=False), *supplies) for part in parts]
    return join_found(list(zip(starts, compute_now(lazy), strict=True)))


def predict_bag_of_pictures(x: Any, runner: ImageRunner, supplies: Sequence[Delayed]) -> Any:
    """Return a bag of results, or two bags of results and bad pictures, lazily."""
    lazy = x.map_partitions(BagPictures(runner), *supplies)
    if runner.rows.on_error != "split":
        return lazy
    return lazy.map_partitions(_good_results), lazy.map_partitions(_bad_pictures)


@dataclass(frozen=True, slots=True, eq=False)
class BagPictures(PictureTask):
    """Function that `Bag.map_partitions` calls: the model on the pictures of one partition."""

    def __call__(self, pictures: Iterable[Any], *supplies: Any) -> list[Any]:
        """Return the results, or for "split" one pair of results and bad pictures."""
        given = list(pictures)
        found = self.runner(given, *supplies)
        count = len(given)
        self.runner.raise_first(found, lambda place: name_of(given[place], place, count), count)
        if self.runner.rows.on_error == "split":
            return [(results_of(found), bad_items(given, found))]
        return in_order(found)


@dataclass(frozen=True, slots=True, eq=False)
class RunGiven(PictureTask):
    """Function of the task of a Delayed: the model on a picture or a sequence of pictures."""

    def __call__(self, given: Any, *supplies: Any) -> ImageResult | list[ImageResult | None] | None:
        """Return one result for a picture, a list for a sequence."""
        is_one = is_picture(given) and not (is_text(given) and is_many(os.fspath(given)))
        sources = [given] if is_one else as_list(given)
        found = self.runner(sources, *supplies)
        count = len(sources)
        self.runner.raise_first(found, lambda place: name_of(sources[place], place, count), count)
        results = in_order(found)
        return results[0] if is_one else results


def _good_results(parts: Iterable[Any]) -> list[Any]:
    return [result for good, _ in parts for result in good]


def _bad_pictures(parts: Iterable[Any]) -> list[Any]:
    return [item for _, bad in parts for item in bad]
