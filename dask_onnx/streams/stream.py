"""`stream`: run a model on a stream of frames."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from distributed import Client

from dask_onnx.cluster.current_scheduler import current_client
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core.errors import InputError
from dask_onnx.core.peers import is_inside_task
from dask_onnx.runtime.cores import available_cores
from dask_onnx.streams.flow_control import Late
from dask_onnx.streams.model_requests import ModelRequests
from dask_onnx.streams.running_stream import Stream
from dask_onnx.streams.stream_options import (
    Mode,
    OnFrameError,
    StateOptions,
    StreamOptions,
    check_names,
)

_numbers = itertools.count(1)


def stream(
    model: Any,
    source: Any,
    client: Any = None,
    *,
    plan: Any = None,
    outputs: Outputs = None,
    mode: Mode = "async",
    window: int | None = None,
    ordered: bool = True,
    deadline: float | None = None,
    late: Late = "keep",
    micro_batch: int = 1,
    max_delay: float = 0.005,
    on_error: OnFrameError = "raise",
    weight: float = 1.0,
    priority: int = 0,
    state: Mapping[str, str] | None = None,
    initial: Mapping[str, Any] | None = None,
    checkpoint_every: int = 32,
    feeds: Mapping[str, Any] | None = None,
    uniform: bool = False,
    require_finite: bool = False,
    frames: int | None = None,
    retries: int | None = None,
    name: str | None = None,
) -> Stream:
    """Run a model on a stream of frames, on a cluster. Nothing starts before the first result.

    A request is prepared once; a frame is a task, or one for each stage of a plan, so that several
    frames are in different stages at the same time. After the death of a worker, Dask repeats the
    frames that it had.

    Parameters
    ----------
    model : Model, ImageModel, Composite or Chain
        Model that each frame goes through.
    source : iterable, async iterable, path, URL, distributed.Queue or streamz.Stream
        Frames: arrays, or mappings of input to array. A folder is watched for new files
        (`dx.io.watch`), any other path and a URL is a video (`dx.io.video`). Items of a queue or a
        pipeline end with None.
    client : distributed.Client, optional
        Client of the cluster, synchronous; by default the one that Dask would use. Without one, the
        stream has a cluster of threads in this process until it ends.
    plan : Plan, optional
        As for `Model.predict`.
    outputs : str or sequence of str, optional
        As for `Model.predict`; by default without those in `state`.
    mode : {"async", "hybrid", "sync"}
        "async": a thread reads the source while frames run and results are used. "hybrid": the
        source is read in the consumer's thread when it asks for a result; frames run meanwhile.
        "sync": one frame is read, run and handed over before the next is read.
    window : int, optional
        Frames between the source and the consumer, at most; the source is not read ahead of it. By
        default three for each thread of the cluster, and at least eight, times `micro_batch`.
    ordered : bool
        True for results in the order of the frames; False for results as they come.
    deadline : float, optional
        Seconds from the arrival of a frame after which its result is late.
    late : {"keep", "drop", "latest"}
        "keep": late results are handed over and counted. "drop": a late frame is cancelled; its
        result is a `Dropped`. "latest": the source is read as fast as it gives, and of the frames
        that wait only the newest stays; the others, and late ones, are `Dropped`.
    micro_batch : int
        Frames that may share a run, those of other streams of an equal model included. Their rows
        must be proven independent; frames of a chain share a task whatever they are. Results may
        differ from those of single runs in the last digits.
    max_delay : float
        Seconds that a frame waits for others at most, where `micro_batch` is above 1.
    on_error : {"raise", "dead_letter"}
        Treatment of a frame that fails: its error ends the stream when it is due, or its result is
        a `DeadLetter`. A state goes on from the frame before it.
    weight : float
        Seconds of the cluster's threads for each second of a stream of weight 1, while this
        process's streams of one client compete. What a frame takes is asked of the scheduler;
        during the first seconds frames are taken to be equal.
    priority : int
        Streams of a larger one come first, also before other work of the cluster.
    state : mapping of str to str, optional
        Output to the input of the next frame that it becomes. It stays on the cluster.
    initial : mapping of str to array_like, optional
        Values of these inputs for the first frame; zeros where the model fixes the shape.
    checkpoint_every : int
        Frames after which the state is copied to this process; after a worker's death at most so
        many frames of a stream run again.
    feeds : mapping of str to array_like, optional
        Inputs that are the same for every frame.
    uniform : bool
        True if a frame is bad that has another shape or dtype than the first one.
    require_finite : bool
        True if a frame is bad that has a NaN or an infinity.
    frames : int, optional
        Frames to read. A source that ends before is an error; so it is for one with a length.
    retries : int, optional
        As for `Model.predict`.
    name : str, optional
        Name in statistics and errors.

    Returns
    -------
    Stream
        Iterator and asynchronous iterator of pairs: number of the frame, and its result as
        `Model.predict` gives it, a `Dropped` or a `DeadLetter`.

    Raises
    ------
    ClusterError
        The connection to the cluster is lost.
    InputError
        Options contradict each other or do not fit the model; while the stream runs, a frame does
        not fit (its number is ``numbers["frame"]``), or the source ended early.
    PlanError
        The plan is of another model, or does not fit the workers.

    See Also
    --------
    Model.prepare : Prepare a request for a loop of one's own.

    Examples
    --------
    >>> for index, boxes in dx.stream(detector, "in.mp4", client, window=16):
    ...     print(index, boxes)
    """
    options = StreamOptions(
        mode,
        window,
        ordered,
        deadline,
        late,
        micro_batch,
        max_delay,
        on_error,
        weight,
        priority,
        uniform,
        require_finite,
        frames,
    )
    states = StateOptions(
        check_names("state", state), check_names("initial", initial), checkpoint_every
    )
    if is_inside_task():
        raise InputError(
            "a stream was asked for inside a task, whose worker it would have to wait for",
            "call the model itself there: model(frame)",
            option="client",
        )
    own = None
    client = current_client() if client is None else client
    if client is None:
        client = own = own_client()
    try:
        request = ModelRequests.of(
            model, client, plan, outputs, retries, states, check_names("feeds", feeds), micro_batch
        )
        called = name or f"{request.prepared.name}-{next(_numbers)}"
        return Stream(request, source, options, called, own)
    except BaseException:
        if own is not None:
            own.close()
        raise


def own_client() -> Any:
    """Return a client of a cluster of threads in this process, which its owner closes."""
    return Client(
        processes=False,
        n_workers=1,
        threads_per_worker=available_cores(),
        dashboard_address=":0",
        set_as_default=False,
    )
