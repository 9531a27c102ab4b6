"""Models of a generation in a process: one session, addressed by the names of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_onnx.core.errors import ModelError
from dask_onnx.runtime.session import Session
from dask_onnx.runtime.session_runs import run_session_bound
from dask_onnx.runtime.stage_calls import StageCall
from dask_onnx.runtime.stage_refs import StageRef
from dask_onnx.runtime.stage_sessions import in_model_names, stage_session


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A stage of a model, with its session in this process."""

    stage: StageRef
    """Stage of a model, often the whole one."""
    session: Session
    """Session of the stage."""

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        """Return outputs in ONNX Runtime's memory, as `OrtValue`.

        Parameters
        ----------
        feeds : mapping of str to ndarray or OrtValue
            Inputs by the model's names; those that the session does not have are left out.
        outputs : sequence of str
            The model's names of the outputs to return.

        Raises
        ------
        RunError, TimeLimitError
            As for `run_session_bound`.
        """
        ours = [spec.name for spec in self.stage.inputs]
        theirs = dict(zip(ours, self.session.inputs, strict=True))
        made = [spec.name for spec in self.stage.outputs]
        names = dict(zip(made, self.session.outputs, strict=True))
        return run_session_bound(
            self.session,
            {theirs[name]: value for name, value in feeds.items() if name in theirs},
            [names[name] for name in outputs],
            self.stage.label,
            lambda text: in_model_names(self.stage, text),
        )


def open_model(call: StageCall, supplies: Sequence[Any]) -> OpenModel:
    """Return the stage of a call with its session in this process.

    Parameters
    ----------
    call : StageCall
    supplies : sequence
        Results of the tasks that bring the stage here.

    Raises
    ------
    ModelError
        ONNX Runtime does not run it.
    StageError, StoreError
        The session cannot be built here.
    """
    session = stage_session(call.stage, call.options.session, supplies)
    if not isinstance(session, Session):
        raise ModelError(
            f"stage {call.stage.label} runs on {call.stage.kernel} kernels, which have no memory "
            "of their own for a cache",
            "generation needs a model that onnxruntime runs as a whole",
            stage=call.stage.label,
        )
    return OpenModel(call.stage, session)
