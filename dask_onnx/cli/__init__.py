"""The command ``dask-onnx``, which is also reachable as ``dask onnx``.

Exit codes: 0 done; 1 failed while running; 2 bad input or usage; 130 interrupted; 143 ended by
SIGTERM; 129 ended by SIGHUP. `status` has three more: 3 for a run that goes on, 4 for one that
ended, 5 for an output of which no run is known.
"""

from __future__ import annotations

import importlib
import io
import os
import select
import signal
import sys
import threading
import traceback
import warnings
from typing import Any

import click

from dask_onnx.cli.error_report import ErrorReport, report_of
from dask_onnx.cli.printing import echo
from dask_onnx.core.errors import DaskOnnxError, InputError, ModelError, PlanError

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_SIGNAL = 1, 2, 128
"""Exit codes; a signal adds its number to the last."""

_COMMANDS = {
    "doctor": "Say what is wrong with a cluster or this host, and what to do about it.",
    "generate": "Write text after prompts in files, with a decoder.",
    "inspect": "Show the inputs, outputs, operators and cost of a model.",
    "plan": "Show how a model would be divided into stages.",
    "predict": "Run a model over a data set in files.",
    "report": "Show where the time of a recorded run went.",
    "status": "Show how far a run that writes an output has come.",
    "store": "List, verify and clean up the models that this host keeps.",
    "stream": "Run a detector on a video, and draw its boxes into another.",
    "top": "Watch the models, stages, workers and links of a cluster.",
}
_ASKED_JSON = "dask_onnx.cli.asked_json"
_INTERRUPT_DELAY = 0.05
"""Seconds after which a lost interrupt is sent again, until it has arrived."""


class LazyGroup(click.Group):
    """Group that imports a command when it is used: `dask` loads this module for all its commands.

    It also reports every error, and sets the exit code.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"dask_onnx.cli.{cmd_name}_command")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without importing them as click would do."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether JSON was asked for: errors of usage come before options are parsed."""
        ctx.meta[_ASKED_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and report its error."""
        options = Options()
        ctx.obj = options
        try:
            _tell_unknown_keys()
            return super().invoke(ctx)
        except click.ClickException as error:
            if options.as_json or ctx.meta[_ASKED_JSON]:
                kind = type(error).__name__
                ErrorReport(kind, error.format_message(), _help_of(error)).show(as_json=True)
            else:
                usage = io.StringIO()
                error.show(usage)
                echo(usage.getvalue().rstrip(), err=True)
            ctx.exit(error.exit_code)
        except click.exceptions.Exit:
            raise
        except click.Abort:
            # A question was answered with "no", or with the end of the input.
            ErrorReport("Aborted", "aborted, nothing was changed").show(as_json=options.as_json)
            ctx.exit(EXIT_FAILED)
        except KeyboardInterrupt:
            # The exception may be another one: libraries below raise it anew.
            number = _ended_by[0] if _ended_by else signal.SIGINT
            kind = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
            ErrorReport("Interrupted", kind).show(as_json=options.as_json)
            ctx.exit(EXIT_SIGNAL + number)
        except DaskOnnxError as error:
            is_input = isinstance(error, InputError | ModelError | PlanError)
            _fail(options, report_of(error, options.command), error)
            ctx.exit(EXIT_BAD_INPUT if is_input else EXIT_FAILED)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _has_no_reader(1):
                raise  # click ends quietly: `dask-onnx inspect model.onnx | head` is no failure
            kind = type(error).__name__
            cause = " ".join(f"unexpected {kind}: {error}".split())
            _fail(options, ErrorReport(kind, cause, "add --debug to see the traceback"), error)
            ctx.exit(EXIT_FAILED)


def _has_no_reader(descriptor: int) -> bool:
    """Return whether a file descriptor is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _tell_unknown_keys() -> None:
    """Tell of misspelt keys of the configuration, in the form of this command line."""
    with warnings.catch_warnings():
        # The module warns of them too when it is imported.
        warnings.filterwarnings("ignore", message="nothing reads the configuration key")
        config = importlib.import_module("dask_onnx.core.config")
    for key in config.unknown():
        echo(f"warning: {key}", err=True)


class Options:
    """Options that all commands share, and the command that was called."""

    as_json = False
    debug = False
    trusted = False
    command: click.Command | None = None


def common_options(function: Any) -> Any:
    """Add ``--json`` and ``--debug``, which are kept in the context for reports of errors."""

    def keep(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
        options: Options = ctx.find_root().obj or ctx.obj
        setattr(options, str(parameter.name), value)
        options.command = ctx.command
        return value

    options: dict[str, Any] = {"is_flag": True, "expose_value": False, "callback": keep}
    function = click.option("--debug", "debug", help="Show tracebacks.", **options)(function)
    return click.option("--json", "as_json", help="Print JSON, for programs.", **options)(function)


def _help_of(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return "" if context is None else f"see `{context.command_path} --help`"


def _fail(options: Options, report: ErrorReport, error: Exception) -> None:
    if options.debug:
        echo("".join(traceback.format_exception(error)).rstrip(), err=True)
    report.show(as_json=options.as_json)


@click.group(
    name="onnx",
    cls=LazyGroup,
    help="Run ONNX models on a Dask cluster.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="dask-onnx")
def main() -> None:
    """Group of all commands, which `dask onnx` and `dask-onnx` share."""


def _resend_interrupt(unraisable: Any) -> None:
    """Send Ctrl-C again if it came while a finalizer or the garbage collector ran.

    Python prints and drops exceptions that are raised there.
    """
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _interrupt_arrived.clear()
        signal.signal(signal.SIGINT, _interrupt)  # SIGINT may be ignored where SIGTERM came
        threading.Thread(target=_resend, daemon=True).start()
    else:
        sys.__unraisablehook__(unraisable)


_interrupt_arrived = threading.Event()
"""Set once a signal that was sent again has been handled."""


def _resend() -> None:
    # A signal between the last check for one and a system call that sleeps does not wake that call.
    # It is likely: this thread gets the interpreter's lock when the main thread is about to sleep.
    while not _interrupt_arrived.wait(_INTERRUPT_DELAY):
        os.kill(os.getpid(), signal.SIGINT)


def _interrupt(number: int, _: Any) -> None:
    _interrupt_arrived.set()
    raise KeyboardInterrupt


_ENDING = (signal.SIGTERM, signal.SIGHUP)
_ended_by: list[signal.Signals] = []
"""The one of these signals that ends this process, if it has arrived."""


def _terminate(number: int, _: Any) -> None:
    """Let a command clean up and end, as on Ctrl-C."""
    # A service manager may send both signals, and the second must not end the clean-up.
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
    _ended_by[:] = [signal.Signals(number)]
    raise KeyboardInterrupt


def _handle_endings() -> None:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does, unless they are ignored as by nohup."""
    for number in _ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _terminate)


def run() -> None:
    """Run the command line; the entry point of ``dask-onnx``."""
    sys.unraisablehook = _resend_interrupt
    _handle_endings()
    main(prog_name="dask-onnx")
