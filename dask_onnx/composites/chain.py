"""`chain`: models one after the other, with Python functions between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from dask.base import tokenize
from dask.delayed import Delayed, delayed

from dask_onnx.api.image_model import ImageModel
from dask_onnx.api.model import Model
from dask_onnx.cluster.current_scheduler import compute_now, current_client, using_client
from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.images.picture_collections import RunGiven
from dask_onnx.collections.kinds import is_bag, is_table
from dask_onnx.collections.request_steps import synchronous_client
from dask_onnx.collections.run_options import BatchSize, RowOptions
from dask_onnx.composites.chain_steps import (
    ChainRunner,
    FunctionStep,
    ModelStep,
    PictureStep,
    PlacedStep,
    RunFrame,
    Runnable,
    RunPartition,
)
from dask_onnx.composites.composite import Composite
from dask_onnx.composites.item_runs import item_model
from dask_onnx.composites.prepared_chain import PreparedChain
from dask_onnx.composites.step_definitions import (
    MODELS,
    StepDefinition,
    define_steps,
    kept_values,
)
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.planning.stage_labels import identifier
from dask_onnx.runtime.cores import available_cores
from dask_onnx.streams.dispatcher import threads_of
from dask_onnx.streams.running_stream import Stream
from dask_onnx.streams.stream import stream

_MOST_FRAMES_PER_TASK = 8
"""Frames of a task, at most, for collections in memory, where the caller leaves it open."""
_TASKS_PER_THREAD = 4
"""Tasks for each thread, at least, of which the last ones may take longer than others."""


class Chain:
    """Models one after the other with Python functions between. Made by `dask_onnx.chain`.

    Examples
    --------
    >>> read = dx.chain(detector, crop_boxes, recogniser)
    >>> texts = read.predict(pages)
    """

    def __init__(self, steps: tuple[StepDefinition, ...], batch_size: BatchSize, name: str) -> None:
        self._steps, self._batch_size = steps, batch_size
        self.name = name
        """Name that dashboards and messages show."""

    @property
    def steps(self) -> Mapping[str, Any]:
        """Models and functions by their names, in order."""
        return {step.name: step.work for step in self._steps}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of the first step; empty if that is a function or takes pictures."""
        work = self._steps[0].work
        return work.inputs if isinstance(work, Model | Composite) else ()

    @property
    def token(self) -> str:
        """Digest of the models with their kernels, of the functions and of the options."""
        own = [(step.name, step.work, step.asked) for step in self._steps]
        return str(tokenize(own, self._batch_size))

    def explain(self) -> str:
        """Return the steps as text. Runs nothing.

        Examples
        --------
        >>> print(read.explain())
        """
        lines = [
            f"chain {self.name!r}: a task runs all steps of its frames; items of equal shape run "
            f"together, {self._rows_in_words()}"
        ]
        for step in self._steps:
            if isinstance(step.work, MODELS):
                lines.append(f"  model {step.name}: {step.work!r}")
            else:
                takes = ", ".join(["the result before", *step.asked])
                lines.append(f"  function {step.name}, which takes {takes}")
        return "\n".join(lines)

    def _rows_in_words(self) -> str:
        if self._batch_size == "auto":
            return "as many rows as run fastest"
        return f"up to {self._batch_size} rows"

    def predict(
        self,
        x: Any,
        *,
        frames_per_task: int | Literal["auto"] = "auto",
        retries: int | None = None,
    ) -> Any:
        """Run the chain on each of many frames.

        Parameters
        ----------
        x : collection of frames
            - A list or other iterable, or an array along its first axis: runs now.
            - A bag; a dask.array along its first axis: lazy.
            - A Delayed of one frame.
        frames_per_task : int or "auto"
            Frames of a task, for collections in memory; their items share runs. "auto": 8, and
            fewer where every thread would otherwise have less than four tasks.
        retries : int, optional
            Times that a cluster repeats a task that raised, for collections in memory;
            ``onnx.retries`` by default.

        Returns
        -------
        list, Bag or Delayed
            The result of the last step for each frame: a list for a collection in memory, a bag for
            a bag or dask.array, a Delayed for a Delayed.

        Raises
        ------
        InputError
            `x` is no collection of frames; or a value does not fit a model.
        StageError
            A function raised, or a model failed: ``stage`` is the step, ``numbers["frame"]`` the
            frame. Frames of a bag are numbered in each partition.

        Examples
        --------
        >>> read.predict([page_1, page_2])
        """
        _check_rows("frames_per_task", frames_per_task)
        self._refuse(x)
        runner, supplies = self._runner()
        if is_bag(x):
            return x.map_partitions(RunPartition(runner), *supplies)
        if isinstance(x, Delayed):
            return delayed(RunFrame(runner), pure=False, traverse=False)(x, *supplies)
        if hasattr(x, "dask") and hasattr(x, "to_delayed"):
            return _bag_of_frames(x).map_partitions(RunPartition(runner), *supplies)
        frames = list(x)
        run = delayed(runner, pure=False, traverse=False)
        size = _frames_of_a_task(len(frames)) if frames_per_task == "auto" else frames_per_task
        starts = range(0, len(frames), size)
        parts = [frames[start : start + size] for start in starts]
        lazy = [
            run(start, delayed(part, traverse=False), *supplies)
            for start, part in zip(starts, parts, strict=True)
        ]
        return [result for part in compute_now(lazy, retries) for result in part] if lazy else []

    def prepare(self, client: Any = None, *, retries: int | None = None) -> PreparedChain:
        """Return a request for single frames that is prepared once.

        Parameters
        ----------
        client : distributed.Client, optional
            Client of the cluster, synchronous; by default the one that Dask would use.
        retries : int, optional
            Times that Dask repeats a task that raised; ``onnx.retries`` by default.

        Raises
        ------
        InputError
            There is no client, or it is asynchronous.

        Examples
        --------
        >>> request = read.prepare(client)
        >>> texts = request(page)
        """
        client = synchronous_client(client)
        with using_client(client):
            runner, supplies = self._runner()
        return PreparedChain(
            runner,
            client,
            name=self.name,
            token=self.token,
            inputs=self.inputs,
            supplies=client.compute(supplies),
            retries=effective_retries(retries),
        )

    def stream(self, source: Any, client: Any = None, **options: Any) -> Stream:
        """Run the chain on a stream of frames; a frame is a task.

        Parameters
        ----------
        source, client, **options
            As for `dask_onnx.stream`. With ``micro_batch=4`` up to four frames are a task, whatever
            their shapes: their items of equal shapes run together.

        Raises
        ------
        ClusterError, InputError
            As for `dask_onnx.stream`.

        Examples
        --------
        >>> for index, texts in read.stream(pages, client):
        ...     print(index, texts)
        """
        return stream(self, source, client, **options)

    def _refuse(self, x: Any) -> None:
        what = ""
        if is_table(x):
            what = "a table"
        elif not _is_collection(x):
            what = f"a {type(x).__name__}"
        if what:
            raise InputError(
                f"x is {what}, which is no collection of frames",
                "pass a list, an array, a bag or a Delayed; of a single frame [frame]",
                option="x",
            )

    def _runner(self) -> tuple[ChainRunner, list[Delayed]]:
        steps: list[PlacedStep] = []
        supplies: list[Delayed] = []
        for step, kept in zip(self._steps, kept_values(self._steps), strict=True):
            runnable, own = _runnable(step, self._batch_size)
            steps.append(PlacedStep(runnable, len(own), kept))
            supplies += own
        return ChainRunner(tuple(steps), identifier(self.name)), supplies

    def __repr__(self) -> str:
        return f"<dask_onnx.Chain {self.name!r}: {' -> '.join(s.name for s in self._steps)}>"


def _runnable(step: StepDefinition, batch_size: BatchSize) -> tuple[Runnable, list[Delayed]]:
    """Return a step as the function of a task, and what brings its models to workers."""
    work = step.work
    if isinstance(work, ImageModel):
        runner, supplies = work._runner(None, RowOptions())
        return PictureStep(step.name, RunGiven(runner)), supplies
    if not isinstance(work, Model | Composite):
        return FunctionStep(step.name, work, step.asked), []
    parts = [work] if isinstance(work, Model) else work.runs
    models, supplies = [], []
    for part in parts:
        model, own = item_model(part._facts, work.inputs, batch_size)
        models.append(model)
        supplies += own
    outputs = tuple(spec.name for spec in work.outputs)
    return ModelStep(step.name, tuple(models), outputs), supplies


def _is_collection(x: Any) -> bool:
    """Return whether a value holds frames: it has items, or is a Delayed."""
    if isinstance(x, Delayed) or is_bag(x):
        return True
    is_one = isinstance(x, str | bytes | Mapping) or getattr(x, "ndim", 1) == 0
    return isinstance(x, Iterable) and not is_one


def _bag_of_frames(array: Any) -> Any:
    """Return a dask.array as a bag of its items along axis 0, a partition for each chunk."""
    from dask.bag import from_delayed

    whole = array.rechunk(dict.fromkeys(range(1, array.ndim), -1))
    return from_delayed([delayed(list)(block) for block in whole.to_delayed().ravel()])


def chain(
    *steps: Any, batch_size: int | Literal["auto"] = "auto", name: str | None = None, **named: Any
) -> Chain:
    """Return models one after the other with Python functions between, as one. Runs nothing.

    Each step takes the result of the one before; the first takes the frame.

    - A model takes an array, or a mapping by input, as it is or as one row without batch axis. Of
      a list it takes each item (fan-out), and its result is a list in the same order: the number of
      items may differ from frame to frame, and be 0. Items of equal shapes run together, those of
      other frames of the task too. It leaves out None, whose result is None: a function decides
      so what runs. Several outputs are a mapping by name.
    - An `ImageModel` takes pictures in the same way.
    - A function takes the result before as its first argument, and the frame or results of earlier
      steps by the names of its other parameters: ``def crops(maps, frame)``.

    Parameters
    ----------
    *steps : Model, Composite, ImageModel or callable
        Steps in order, named by function or model.
    batch_size : int or "auto"
        Rows of one run of a model, at most. "auto": the number that runs fastest on the worker, as
        for `Model.predict`; more rows are not always faster.
    name : str, optional
        Name in dashboards and messages; by default those of the steps.
    **named : Model, Composite, ImageModel or callable
        Further steps with names of their own.

    Returns
    -------
    Chain

    Raises
    ------
    InputError
        There are no steps; one is neither a model nor a function; a function takes no argument, or
        asks for a value that no earlier step has.

    See Also
    --------
    compose : Models on the same inputs.

    Examples
    --------
    >>> read = dx.chain(detector, crop_boxes, recogniser)
    >>> read.predict(pages), list(read.stream(pages, client))
    """
    _check_rows("batch_size", batch_size)
    found = define_steps(steps, named)
    return Chain(found, batch_size, name or "-".join(step.name for step in found))


def _check_rows(option: str, value: Any) -> None:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value != "auto" and not (is_number and value >= 1):
        raise InputError(
            f"{option} is {value!r}",
            "give a whole number from 1 on, or 'auto'",
            option=option,
            suggestions=[Suggestion(option, "auto")],
        )


def _frames_of_a_task(frames: int) -> int:
    """Return the number of frames of a task, so that every thread has several tasks."""
    client = current_client()
    threads = available_cores() if client is None else max(1, threads_of(client))
    return max(1, min(_MOST_FRAMES_PER_TASK, frames // (_TASKS_PER_THREAD * threads)))
