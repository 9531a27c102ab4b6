"""`chain`: models one after the other, with Python functions between."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dask.base import tokenize
from dask.delayed import Delayed, delayed

from dask_onnx.api.image_model import ImageModel
from dask_onnx.api.model import Model
from dask_onnx.cluster.current_scheduler import compute_now
from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.images.picture_collections import RunGiven
from dask_onnx.collections.kinds import is_bag, is_table
from dask_onnx.collections.prepared_function import PreparedFunction
from dask_onnx.collections.request_steps import synchronous_client
from dask_onnx.collections.run_options import RowOptions
from dask_onnx.composites.chain_steps import (
    FRAME,
    ChainRunner,
    FunctionStep,
    ModelStep,
    PictureStep,
    RunFrame,
    Runnable,
    RunPartition,
    as_names,
)
from dask_onnx.composites.composite import Composite
from dask_onnx.composites.item_runs import item_model
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.streams.running_stream import Stream
from dask_onnx.streams.stream import stream

_MODELS = (Model, Composite, ImageModel)


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    work: Any
    """Model, composite, model of pictures, or function."""
    asked: tuple[str, ...] = ()
    """Values that a function takes beside the result of the step before."""


class Chain:
    """Models one after the other with Python functions between. Made by `dask_onnx.chain`.

    Examples
    --------
    >>> read = dx.chain(detector, crop_boxes, recogniser)  # doctest: +SKIP
    >>> texts = read.predict(pages)  # doctest: +SKIP
    """

    def __init__(self, steps: tuple[_Step, ...], batch_size: int, name: str) -> None:
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
        """Digest of the models' tokens, the functions and the options."""
        own = [(s.name, getattr(s.work, "token", s.work), s.asked) for s in self._steps]
        return str(tokenize(own, self._batch_size))

    def explain(self) -> str:
        """Return the steps as text. Runs nothing.

        Examples
        --------
        >>> print(read.explain())  # doctest: +SKIP
        """
        lines = [
            f"chain {self.name!r}: a task runs all steps of a frame; items of equal shape run "
            f"together, up to {self._batch_size} rows"
        ]
        for step in self._steps:
            if isinstance(step.work, _MODELS):
                lines.append(f"  model {step.name}: {step.work!r}")
            else:
                takes = ", ".join(["the result before", *step.asked])
                lines.append(f"  function {step.name}, which takes {takes}")
        return "\n".join(lines)

    def predict(self, x: Any, *, frames_per_task: int = 8, retries: int | None = None) -> Any:
        """Run the chain on each of many frames.

        Parameters
        ----------
        x : collection of frames
            - A list or other iterable, or an array along its first axis: runs now.
            - A bag; a dask.array along its first axis: lazy.
            - A Delayed of one frame.
        frames_per_task : int
            Frames of a task, for collections in memory; their items share runs.
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
        >>> read.predict([page_1, page_2])  # doctest: +SKIP
        """
        if isinstance(frames_per_task, bool) or frames_per_task < 1:
            raise InputError(
                f"frames_per_task is {frames_per_task!r}",
                "give 1 or more",
                option="frames_per_task",
            )
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
        starts = range(0, len(frames), frames_per_task)
        parts = [frames[start : start + frames_per_task] for start in starts]
        lazy = [
            run(start, delayed(part, traverse=False), *supplies)
            for start, part in zip(starts, parts, strict=True)
        ]
        return [result for part in compute_now(lazy, retries) for result in part] if lazy else []

    def prepare(self, client: Any = None, *, retries: int | None = None) -> PreparedFunction:
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
        >>> request = read.prepare(client)  # doctest: +SKIP
        >>> texts = request(page)  # doctest: +SKIP
        """
        client = synchronous_client(client)
        with client.as_current():
            runner, supplies = self._runner()
        return PreparedFunction(
            RunFrame(runner),
            client,
            name=self.name,
            token=self.token,
            supplies=client.compute(supplies),
            retries=effective_retries(retries),
        )

    def stream(self, source: Any, client: Any = None, **options: Any) -> Stream:
        """Run the chain on a stream of frames; a frame is a task.

        Parameters
        ----------
        source, client, **options
            As for `dask_onnx.stream`.

        Raises
        ------
        ClusterError, InputError
            As for `dask_onnx.stream`.

        Examples
        --------
        >>> for index, texts in read.stream(pages, client):  # doctest: +SKIP
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
        steps: list[tuple[Runnable, int]] = []
        supplies: list[Delayed] = []
        for step in self._steps:
            runnable, own = _runnable(step, self._batch_size)
            steps.append((runnable, len(own)))
            supplies += own
        return ChainRunner(tuple(steps)), supplies

    def __repr__(self) -> str:
        return f"<dask_onnx.Chain {self.name!r}: {' -> '.join(s.name for s in self._steps)}>"


def _runnable(step: _Step, batch_size: int) -> tuple[Runnable, list[Delayed]]:
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


def chain(*steps: Any, batch_size: int = 16, name: str | None = None, **named: Any) -> Chain:
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
    batch_size : int
        Rows of one run of a model, at most.
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
    >>> read = dx.chain(detector, crop_boxes, recogniser)  # doctest: +SKIP
    >>> read.predict(pages), list(read.stream(pages, client))  # doctest: +SKIP
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(
            f"batch_size is {batch_size!r}", "give a number of rows above 0", option="batch_size"
        )
    every = [(_own_name(step), step) for step in steps] + list(named.items())
    if not every:
        raise InputError("the chain has no steps", "give models and functions", option="steps")
    found: list[_Step] = []
    for own, work in every:
        known = {FRAME, *(step.name for step in found)}
        unique = _unique(own, known)
        if isinstance(work, _MODELS):
            found.append(_Step(unique, work))
        else:
            found.append(_Step(unique, work, _asked(unique, work, known)))
    return Chain(tuple(found), batch_size, name or "-".join(step.name for step in found))


def _own_name(step: Any) -> str:
    for attribute in ("name", "__name__"):
        found = getattr(step, attribute, None)
        if isinstance(found, str) and found:
            return found
    return type(step).__name__


def _unique(name: str, known: set[str]) -> str:
    """Return a name that no step has: ``det``, ``det_2``, ``det_3``."""
    numbers = iter(range(2, len(known) + 3))
    found = name
    while found in known:
        found = f"{name}_{next(numbers)}"
    return found


def _asked(name: str, function: Any, known: set[str]) -> tuple[str, ...]:
    """Return the names of the values that a function takes beside the result before.

    Raises
    ------
    InputError
        It cannot be called so.
    """
    if not callable(function):
        raise InputError(
            f"step {name!r} is a {type(function).__name__}",
            "pass a Model, Composite, ImageModel or function",
            option="steps",
        )
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # built-in functions without a signature
        return ()
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if not parameters or parameters[0].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    ):
        raise InputError(
            f"function {name!r} takes no positional argument",
            "let it take the result of the step before",
            option="steps",
            stage=name,
        )
    asked = []
    for parameter in parameters[1:]:
        if parameter.kind in many:
            continue
        if parameter.name in known and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
            asked.append(parameter.name)
        elif parameter.default is inspect.Parameter.empty:
            raise InputError(
                f"function {name!r} asks for {parameter.name!r}, which is no earlier step",
                f"parameters after the first are named as {as_names(dict.fromkeys(known))}",
                option="steps",
                stage=name,
                suggestions=[Suggestion(each) for each in sorted(known)],
            )
    return tuple(asked)
