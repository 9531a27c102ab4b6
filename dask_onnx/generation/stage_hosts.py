"""Places of the stages of a decoder: this process, or an actor on a worker for each."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from distributed import worker_client

from dask_onnx.core.errors import DaskOnnxError, StageError
from dask_onnx.core.peers import current_worker
from dask_onnx.core.structured_logs import log_event
from dask_onnx.generation.decoder_form import DecoderForm
from dask_onnx.generation.stage_caches import BatchGoneError, DecoderStage, StageCaches

log = logging.getLogger(__name__)
_running = threading.Lock()
"""Held by the generation that is under way in this worker. One of the cluster would outlive a
worker that dies with it until its lease ends."""
_LOOK_SECONDS = 5.0
"""Seconds of a run after which it is looked whether its worker is still there."""


class StageLostError(Exception):
    """A stage is gone with its worker, or does not hold a batch any more."""


class StageHosts(Protocol):
    """Places of the stages of one generation."""

    def call(self, place: int, method: str, *args: Any) -> Any:
        """Call a method of the stage at a position.

        Raises
        ------
        StageLostError
            Its worker is gone, or it does not hold the batch.
        """

    def restore(self) -> None:
        """Put a new stage, without batches, in place of each one that is lost."""


@dataclass(slots=True)
class LocalStages:
    """Stages in this process."""

    stages: Sequence[StageCaches]
    """The stages, in their order."""

    def call(self, place: int, method: str, *args: Any) -> Any:
        """Call a method of a stage; see `StageHosts.call`."""
        try:
            return getattr(self.stages[place], method)(*args)
        except BatchGoneError as error:
            raise StageLostError(str(error)) from error

    def restore(self) -> None:
        """Do nothing: stages of this process are not lost alone."""


@dataclass(frozen=True, slots=True)
class _Actor:
    """A stage on a worker."""

    proxy: Any
    """Dask's actor."""
    future: Any
    """Future of the actor."""
    address: str
    """Address of its worker."""
    is_lost: bool = False
    """True if its worker did not answer."""


@dataclass(slots=True)
class ActorStages:
    """Stages as actors of Dask, each on a worker of its own as far as there are enough."""

    client: Any
    """Client of the task that writes."""
    form: DecoderForm
    """Roles of the whole model's inputs and outputs."""
    stages: Sequence[DecoderStage]
    """The stages, in their order."""
    supplies: Sequence[Any] = field(repr=False)
    """Results of the tasks that bring the model to workers."""
    _actors: list[_Actor] = field(default_factory=list, repr=False)

    def call(self, place: int, method: str, *args: Any) -> Any:
        """Call a method of a stage; see `StageHosts.call`."""
        if len(self._actors) <= place:
            self.restore()
        try:
            return self._waited(getattr(self._actors[place].proxy, method)(*args), place)
        except BatchGoneError as error:
            raise StageLostError(str(error)) from None
        except DaskOnnxError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            if "Actor" not in str(error):  # Dask names a lost actor in words only
                raise
            self._actors[place] = replace(self._actors[place], is_lost=True)
            raise StageLostError(str(error)) from None

    def _waited(self, pending: Any, place: int) -> Any:
        """Return the result of a call, unless its worker goes meanwhile."""
        while True:
            try:
                return pending.result(timeout=_LOOK_SECONDS)
            except TimeoutError:
                if self._actors[place].address in self.client.nthreads():
                    continue
                self._actors[place] = replace(self._actors[place], is_lost=True)
                raise StageLostError("its worker left the cluster") from None

    def restore(self) -> None:
        """Put a new stage in place of each one whose worker is gone.

        Raises
        ------
        StageError
            No worker is left, or a stage cannot be built.
        """
        gone = {each.address for each in self._actors if each.is_lost}
        alive = sorted(set(self.client.nthreads()) - gone)
        if not alive:
            raise StageError(
                "no worker is left for the stages of the decoder", "start workers and try again"
            )
        for place, stage in enumerate(self.stages):
            is_new = place == len(self._actors)
            if not is_new and self._actors[place].address in alive:
                continue
            used = {each.address for each in self._actors}
            free = [address for address in alive if address not in used] or alive
            made = self._made(stage, free[place % len(free)])
            if is_new:
                self._actors.append(made)
                continue
            log_event(log, logging.WARNING, "decoder stage lost", stage=stage.call.stage.label)
            self._actors[place] = made

    def close(self) -> None:
        """Let the workers drop the stages, whoever still refers to them."""
        self.client.cancel([actor.future for actor in self._actors], force=True)
        self._actors.clear()

    def _made(self, stage: DecoderStage, address: str) -> _Actor:
        """Return a stage on a worker, or on another one if that has gone meanwhile."""
        future = self.client.submit(
            StageCaches,
            self.form,
            stage,
            list(self.supplies),
            key=f"{stage.call.stage.label}-cache-{uuid.uuid4().hex}",
            workers=[address],
            allow_other_workers=True,
            actor=True,
            pure=False,
        )
        proxy = future.result()
        holders = self.client.who_has([future]).get(future.key) or [address]
        return _Actor(proxy, future, holders[0])


@contextmanager
def hosted_stages(
    form: DecoderForm, stages: Sequence[DecoderStage], supplies: Sequence[Any]
) -> Iterator[StageHosts]:
    """Hold the stages of a decoder for one generation.

    In a task of Dask's workers each stage is an actor on a worker of its own. The task leaves its
    thread meanwhile, and each worker has one generation under way at a time. Elsewhere all stages
    are in this process.

    Parameters
    ----------
    form : DecoderForm
        Roles of the whole model's inputs and outputs.
    stages : sequence of DecoderStage
    supplies : sequence
        Results of the tasks that bring the model to workers.
    """
    if current_worker() is None:
        yield LocalStages([StageCaches(form, stage, supplies) for stage in stages])
        return
    # Only then the lock: a task that waited for it in its thread could keep a stage from starting.
    with worker_client() as client, _running:
        hosts = ActorStages(client, form, stages, supplies)
        try:
            yield hosts
        finally:
            hosts.close()
