"""``dask-onnx``, also reachable as ``dask onnx``.

Exit codes: 0 done; 1 failed while running; 2 bad input or usage; 130 interrupted.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import traceback
from typing import Any

import click

from dask_onnx.core.errors import DaskOnnxError, InputError, ModelError, PlanError

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

_COMMANDS = {
    "inspect": "What a model takes, gives, is made of and costs.",
    "plan": "How a model would be cut into stages.",
    "predict": "Run a model over a data set.",
    "store": "What this host keeps of models: list, verify, prune.",
}


class LazyGroup(click.Group):
    """Imports a command when it is used: `dask` loads this module whatever it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"dask_onnx.cli.{cmd_name}_command")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Without this, listing the commands would import them all.
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ASKED_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        options = Options()
        ctx.obj = options
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            # What click cannot parse it says before it has looked at --json.
            if not (options.as_json or ctx.meta[_ASKED_JSON]):
                raise
            options.as_json = True
            _report(options, error.format_message(), _help_of(error), type(error).__name__)
            ctx.exit(error.exit_code)
        except (click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            _report(options, "interrupted", "")
            ctx.exit(EXIT_INTERRUPTED)
        except DaskOnnxError as error:
            _fail(ctx, options, error.cause, error.next_step, _exit_code(error), error)
        except Exception as error:
            cause = f"unexpected {type(error).__name__}: {error}"
            _fail(ctx, options, cause, "run again with --debug for the traceback", 1, error)


_ASKED_JSON = "dask_onnx.cli.asked_json"


def _help_of(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return "" if context is None else f"`{context.command_path} --help` says what there is"


class Options:
    """What every command takes: how to speak, and how much."""

    as_json = False
    debug = False


def common_options(function: Any) -> Any:
    """``--json`` and ``--debug``, kept in the context for whoever reports an error."""

    def keep(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
        setattr(ctx.find_root().obj or ctx.obj, str(parameter.name), value)
        return value

    options: dict[str, Any] = {"is_flag": True, "expose_value": False, "callback": keep}
    function = click.option("--debug", "debug", help="Show tracebacks.", **options)(function)
    return click.option("--json", "as_json", help="Speak JSON, for machines.", **options)(function)


def _exit_code(error: DaskOnnxError) -> int:
    return EXIT_BAD_INPUT if isinstance(error, InputError | ModelError | PlanError) else EXIT_FAILED


def _fail(
    ctx: click.Context,
    options: Options,
    cause: str,
    next_step: str,
    code: int,
    error: Exception,
) -> None:
    if options.debug:
        traceback.print_exception(error)
    _report(options, cause, next_step, kind=type(error).__name__)
    ctx.exit(code)


def _report(options: Options, cause: str, next_step: str, kind: str = "Interrupted") -> None:
    cause = " ".join(cause.split())
    if options.as_json:
        click.echo(json.dumps({"error": {"kind": kind, "cause": cause, "next_step": next_step}}))
        return
    click.echo(f"error: {cause}", err=True)
    if next_step:
        click.echo(f"       {next_step}", err=True)


@click.group(
    name="onnx",
    cls=LazyGroup,
    help="Run ONNX models on a Dask cluster.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="dask-onnx")
def main() -> None:
    """The group that `dask onnx` and `dask-onnx` share."""


def _press_again(unraisable: Any) -> None:
    """Ctrl-C that came while a finalizer or the garbage collector ran: Python prints and drops what
    these raise, so that it is sent once more, a moment later."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        threading.Timer(_MOMENT, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


_MOMENT = 0.05
"""Seconds."""


def run() -> None:
    """The entry point of ``dask-onnx``."""
    sys.unraisablehook = _press_again
    # Functions named by MODULE:FUNCTION are looked for where the user stands, as `python -m` does.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  # sys.path holds strings
    main(prog_name="dask-onnx")
