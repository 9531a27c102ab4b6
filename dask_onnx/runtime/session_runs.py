"""Runs of sessions, with errors in the words of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dask_onnx.core.errors import RunError, Suggestion, TimeLimitError
from dask_onnx.runtime.session import Session
from dask_onnx.runtime.session_cache import Runnable
from dask_onnx.runtime.time_limits import RunTimeoutError


def run_session(
    session: Runnable,
    arrays: list[Any],
    label: str,
    names: Sequence[str],
    in_model_names: Callable[[str], str] = str,
) -> list[Any]:
    """Run a session.

    Parameters
    ----------
    session : Runnable
        Session of the stage.
    arrays : list
        One array per input, in the order of the session's inputs.
    label : str
        Name of the stage in errors.
    names : sequence of str
        Names of the inputs in errors; those of the session may be shared with equal stages.
    in_model_names : function of str to str
        Replaces the session's own names in a message by those of the model.

    Raises
    ------
    RunError
        The kernels rejected the arrays, or failed on them.
    TimeLimitError
        The run took longer than the session's options allow.
    """
    try:
        return session.run(arrays)
    except RunTimeoutError as error:
        raise _too_long(error, label, _shapes_of(arrays, names)) from None
    except Exception as error:  # whatever ORT, the reference or a caller's kernel raises
        runtime = "onnxruntime" if isinstance(session, Session) else "its Python kernels"
        shapes = _shapes_of(arrays, names)
        raise _rejected(error, runtime, label, shapes, in_model_names) from None


def run_session_bound(
    session: Session,
    feeds: Mapping[str, Any],
    outputs: Sequence[str],
    label: str,
    in_model_names: Callable[[str], str] = str,
) -> list[Any]:
    """Run a session whose outputs stay in ONNX Runtime's memory; see `Session.run_bound`.

    Parameters
    ----------
    session : Session
        Session of the stage.
    feeds : mapping of str to ndarray or onnxruntime.OrtValue
        Inputs by the session's names.
    outputs : sequence of str
        The session's names of the outputs to return.
    label, in_model_names
        As for `run_session`.

    Raises
    ------
    RunError, TimeLimitError
        As for `run_session`.
    """
    try:
        return session.run_bound(feeds, outputs)
    except RunTimeoutError as error:
        shapes = _shapes_of(list(feeds.values()), list(feeds))
        raise _too_long(error, label, in_model_names(shapes)) from None
    except Exception as error:  # ORT's own types, none of which pickles
        raise _rejected(
            error,
            "onnxruntime",
            label,
            _shapes_of(list(feeds.values()), list(feeds)),
            in_model_names,
        ) from None


def _rejected(
    error: Exception, runtime: str, label: str, shapes: str, in_model_names: Callable[[str], str]
) -> RunError:
    reason = in_model_names(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return RunError(
        f"stage {label} failed in {runtime} on {shapes}: {reason}",
        "check the inputs against `model.inputs`; sizes inside the graph may constrain them",
        stage=label,
        reason=reason,
    )


def _too_long(error: RunTimeoutError, label: str, shapes: str) -> TimeLimitError:
    return TimeLimitError(
        f"a run of stage {label} on {shapes} was ended after {error.seconds:,g} s, its limit",
        "check the values that tell loops of the model when to end; if runs may take so long, "
        "raise the limit: dx.SessionSpec(max_run_seconds=...), or the setting "
        "onnx.untrusted.max-run-seconds for models that are not trusted",
        stage=label,
        option="max_run_seconds",
        numbers={"seconds": error.seconds},
        suggestions=[
            Suggestion("max_run_seconds"),
            Suggestion("onnx.session.max-run-seconds"),
            Suggestion("onnx.untrusted.max-run-seconds"),
        ],
    )


def _shapes_of(arrays: Sequence[Any], names: Sequence[str]) -> str:
    return ", ".join(
        f"{name} {array.shape if isinstance(array, np.ndarray) else type(array).__name__}"
        for name, array in zip(names, arrays, strict=True)
    )
