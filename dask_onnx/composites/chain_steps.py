"""Steps of a chain as functions of tasks: each takes the values of many frames at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dask_onnx.composites.chain_errors import at_step
from dask_onnx.composites.item_runs import ItemModel

FRAME = "frame"
"""Name by which functions of a chain ask for the frame."""


@dataclass(frozen=True, slots=True)
class FrameValues:
    """Results known so far of one frame in a chain."""

    number: int | None
    """Number of the frame; None if it runs alone."""
    values: dict[str, Any]
    """The frame, and the results of the steps so far, by name."""
    last: str
    """Name of the value that the next step takes."""

    def after(self, step: str, result: Any, kept: frozenset[str]) -> FrameValues:
        """Return the values after a step: its result, and those earlier ones that are needed."""
        earlier = {name: value for name, value in self.values.items() if name in kept}
        return FrameValues(self.number, {**earlier, step: result}, step)


class Runnable(Protocol):
    """A step of a chain in a task."""

    @property
    def name(self) -> str:
        """Name of the step."""

    def run(self, frames: Sequence[FrameValues], supplies: Sequence[Any]) -> list[Any]:
        """Return the step's result for each frame."""


@dataclass(frozen=True, slots=True)
class FunctionStep:
    """A Python function, called for each frame."""

    name: str
    function: Any
    """Takes the result of the step before, and others by name."""
    asked: tuple[str, ...]
    """Names of the values that it takes beside the first."""

    def run(self, frames: Sequence[FrameValues], supplies: Sequence[Any]) -> list[Any]:
        """Return what the function returns for each frame.

        Raises
        ------
        StageError
            The function raised; the error has its name and the number of the frame.
        """
        found = []
        for frame in frames:
            others = {name: frame.values[name] for name in self.asked}
            try:
                found.append(self.function(frame.values[frame.last], **others))
            except Exception as error:  # whatever the caller's code raises
                raise at_step(error, self.name, frame.number) from error
        return found


@dataclass(frozen=True, slots=True)
class ModelStep:
    """One model or several, run on the value of each frame or on each item of a list."""

    name: str
    models: tuple[ItemModel, ...]
    outputs: tuple[str, ...]
    """Outputs of a result; a single one is bare."""

    def run(self, frames: Sequence[FrameValues], supplies: Sequence[Any]) -> list[Any]:
        """Return the results of each frame: a list for a list, None where there is None.

        Items of equal shapes run together, those of other frames included.
        """
        fans = [_items(frame.values[frame.last]) for frame in frames]
        items = [item for fan in fans for item in fan if item is not None]
        numbers = [
            frame.number
            for frame, fan in zip(frames, fans, strict=True)
            for item in fan
            if item is not None
        ]
        found: list[dict[str, Any]] = [{} for _ in items]
        start = 0
        for model in self.models:
            stop = start + model.n_supplies
            for result, own in zip(
                found, model.run(self.name, items, numbers, supplies[start:stop]), strict=True
            ):
                result.update(own)
            start = stop
        results = iter(each[self.outputs[0]] if len(self.outputs) == 1 else each for each in found)
        return _fanned_in(frames, fans, results)


@dataclass(frozen=True, slots=True)
class PictureStep:
    """A model of pictures with its preparation, run on a picture or each of a list."""

    name: str
    runner: Any
    """Function of pictures and supplies that returns results in order."""

    def run(self, frames: Sequence[FrameValues], supplies: Sequence[Any]) -> list[Any]:
        """Return the results of each frame: a list for a list, None where there is None."""
        fans = [_items(frame.values[frame.last]) for frame in frames]
        pictures = [item for fan in fans for item in fan if item is not None]
        results: list[Any] = []
        try:
            results = self.runner(pictures, *supplies) if pictures else []
        except Exception as error:  # it is raised again, with the step and the frame
            self._raise_at_frame(frames, fans, supplies)
            raise at_step(error, self.name, None) from error
        return _fanned_in(frames, fans, iter(results))

    def _raise_at_frame(
        self,
        frames: Sequence[FrameValues],
        fans: Sequence[Sequence[Any]],
        supplies: Sequence[Any],
    ) -> None:
        """Run frame by frame, and raise the first error with the number of its frame."""
        for frame, fan in zip(frames, fans, strict=True):
            pictures = [item for item in fan if item is not None]
            try:
                if pictures:
                    self.runner(pictures, *supplies)
            except Exception as error:  # whatever decoding or the model raises
                raise at_step(error, self.name, frame.number) from error


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _fanned_in(
    frames: Sequence[FrameValues], fans: Sequence[Sequence[Any]], results: Any
) -> list[Any]:
    """Return the results of items by frame: a list where the frame has a list."""
    joined = []
    for frame, fan in zip(frames, fans, strict=True):
        own = [None if item is None else next(results) for item in fan]
        is_fan = isinstance(frame.values[frame.last], list | tuple)
        joined.append(own if is_fan else own[0])
    return joined


@dataclass(frozen=True, slots=True)
class PlacedStep:
    """A step at its place in a chain."""

    runnable: Runnable
    n_supplies: int
    """Tasks that bring its models to workers."""
    kept: frozenset[str]
    """Earlier values that functions after the step ask for; others are dropped."""


@dataclass(frozen=True, slots=True)
class ChainRunner:
    """Function of a task: all steps of a chain on some frames."""

    steps: tuple[PlacedStep, ...]
    label: str
    """Name of the tasks on Dask's dashboard."""

    @property
    def __name__(self) -> str:
        """Name of the task on Dask's dashboard."""
        return self.label

    def __call__(self, start: int | None, frames: Sequence[Any], *supplies: Any) -> list[Any]:
        """Return the result of each frame.

        Parameters
        ----------
        start : int or None
            Number of the first frame; None if frames have no numbers here.
        frames : sequence
        supplies
            Results of the tasks that bring the models here, step by step.
        """
        known = [
            FrameValues(None if start is None else start + place, {FRAME: frame}, FRAME)
            for place, frame in enumerate(frames)
        ]
        first = 0
        for step in self.steps:
            results = step.runnable.run(known, supplies[first : first + step.n_supplies])
            first += step.n_supplies
            known = [
                frame.after(step.runnable.name, result, step.kept)
                for frame, result in zip(known, results, strict=True)
            ]
        return [frame.values[frame.last] for frame in known]


@dataclass(frozen=True, slots=True)
class RunFrame:
    """Function of the task of one frame."""

    runner: ChainRunner

    @property
    def __name__(self) -> str:
        """Name of the task on Dask's dashboard."""
        return self.runner.label

    def __call__(self, frame: Any, *supplies: Any) -> Any:
        """Return the result of the frame."""
        return self.runner(None, [frame], *supplies)[0]


@dataclass(frozen=True, slots=True)
class RunFrames:
    """Function of the task of several frames of a stream."""

    runner: ChainRunner

    def __call__(self, frames: Sequence[Any], *supplies: Any) -> list[Any]:
        """Return the result of each frame."""
        return self.runner(None, frames, *supplies)


@dataclass(frozen=True, slots=True)
class RunPartition:
    """Function on a partition of a bag, whose frames are numbered from 0 on."""

    runner: ChainRunner

    @property
    def __name__(self) -> str:
        """Name of the task on Dask's dashboard."""
        return self.runner.label

    def __call__(self, frames: Any, *supplies: Any) -> list[Any]:
        """Return the results of the partition's frames."""
        return self.runner(0, list(frames), *supplies)
