"""A chain that is prepared for many frames, each in a task of its own or several in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dask_onnx.collections.prepared_function import PreparedFunction
from dask_onnx.collections.request_steps import Step
from dask_onnx.composites.chain_steps import ChainRunner, RunFrame, RunFrames
from dask_onnx.core.specs import TensorSpec


class PreparedChain(PreparedFunction):
    """A chain as a request for single frames. Made by ``Chain.prepare``.

    Frames may share a task whatever their shapes: the items of all of them that have one shape run
    together.

    Parameters
    ----------
    runner : ChainRunner
        Steps of the chain.
    client, name, token, inputs, supplies, retries
        As for `PreparedFunction`.
    """

    def __init__(
        self,
        runner: ChainRunner,
        client: Any,
        *,
        name: str,
        token: str,
        inputs: tuple[TensorSpec, ...],
        supplies: Sequence[Any],
        retries: int,
    ) -> None:
        super().__init__(
            RunFrame(runner),
            client,
            name=name,
            token=token,
            inputs=inputs,
            supplies=supplies,
            retries=retries,
        )
        self._of_many = RunFrames(runner)

    @property
    def sharing_key(self) -> tuple[Any, ...]:
        """Key that requests share whose frames may share a task."""
        return self.token, self._retries

    def start_together(self, frames: Sequence[Any], *, priority: int = 0) -> Step:
        """Submit one task for several frames, and return a step to the list of their results.

        Parameters
        ----------
        frames : sequence
        priority : int
            Dask's priority; work of a larger one runs first.
        """
        return self._start(self._of_many, list(frames), priority)
