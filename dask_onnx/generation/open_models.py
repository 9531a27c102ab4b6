"""Models of a generation in a process: one session, addressed by the names of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_onnx.runtime.session import Session
from dask_onnx.runtime.session_runs import run_session_bound
from dask_onnx.runtime.stage_refs import StageRef
from dask_onnx.runtime.stage_sessions import in_model_names


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model that runs as one stage, with its session in this process."""

    stage: StageRef
    """Stage that holds the whole model."""
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
