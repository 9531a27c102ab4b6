"""The command ``dask-onnx generate``: a decoder over a column of prompts in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from dask_onnx.api.generator import Generator
from dask_onnx.api.loading import load
from dask_onnx.cli import Options, common_options
from dask_onnx.cli.parameters import cluster_options, is_untrusted, split_names, trusted_option
from dask_onnx.cli.predict_command import ConsoleProgress, as_dict, summary_of
from dask_onnx.cli.printing import echo
from dask_onnx.generation.genai_folders import ENGINES, Engine
from dask_onnx.jobs.file_generation import generate_files
from dask_onnx.jobs.job_result import FilePrediction


@click.command("generate")
@click.argument("model_path", metavar="MODEL")
@click.argument("input_path", metavar="PROMPTS")
@click.argument("output_path", metavar="OUTPUT")
@click.option("--tokenizer", metavar="FILE", required=True, help="tokenizer.json of the model.")
@click.option("--column", default="prompt", show_default=True, help="Column of prompts.")
@click.option("--keep", metavar="NAME,...", help="Columns to write too; all by default.")
@click.option("--prefix", default="", help="Beginning of the names of the new columns.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Tokens after a prompt at most.",
)
@click.option(
    "--temperature", type=float, default=0.0, help="Of drawn tokens; 0 (greedy) by default."
)
@click.option("--top-k", type=click.IntRange(min=1), help="Most probable tokens to draw from.")
@click.option("--top-p", type=float, help="Sum of probabilities of tokens to draw from.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of drawn tokens; 0.")
@click.option(
    "--eos",
    multiple=True,
    metavar="TOKEN",
    help="Token, or its number, that ends a row; may be repeated.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="Text that ends a row; repeatable.")
@click.option(
    "--choices",
    multiple=True,
    metavar="FILE_OR_TEXT",
    help="Text that may be written, or a file of one a line; may be repeated.",
)
@click.option(
    "--json-schema",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="JSON schema of what is written.",
)
@click.option("--regex", metavar="REGEX", help="Regular expression that the text matches.")
@click.option("--context", type=click.IntRange(min=1), help="Tokens of a row at most.")
@click.option("--batch-rows", type=click.IntRange(min=1), help="Rows of a batch; by memory.")
@click.option(
    "--num-beams",
    type=click.IntRange(min=1),
    default=1,
    help="Continuations that a beam search follows; 1 (none) by default.",
)
@click.option(
    "--length-penalty", type=float, default=1.0, help="Exponent of the length of beams; 1."
)
@click.option(
    "--early-stopping",
    type=click.Choice(["true", "false", "never"]),
    default="false",
    help="End of a beam search: enough ends, no better one likely (false), or possible (never).",
)
@click.option(
    "--cache",
    multiple=True,
    metavar="OUTPUT=INPUT",
    help="Pair of the cache, where names do not tell it; may be repeated.",
)
@click.option("--encoder", metavar="FILE", help="Encoder of an encoder-decoder; MODEL its decoder.")
@click.option(
    "--with-past",
    metavar="FILE",
    help="Decoder of later tokens; decoder_with_past_model.onnx beside decoder_model.onnx.",
)
@click.option(
    "--start",
    multiple=True,
    metavar="TOKEN",
    help="Token that the decoder of one begins with; may be repeated.",
)
@click.option(
    "--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help="Of the runs."
)
@click.option("--on-error", type=click.Choice(["raise", "null"]), default="raise")
@trusted_option
@cluster_options
@click.option(
    "--memory-limit",
    "worker_memory_limit",
    metavar="SIZE",
    help="Memory of a process, such as 4GiB; its share by default.",
)
@click.option("--overwrite", is_flag=True, help="Replace an output that exists or was begun.")
@click.option("--resume", is_flag=True, help="Go on with a run that failed or was ended.")
@common_options
@click.pass_obj
def command(
    options: Options,
    /,
    model_path: str,
    input_path: str,
    output_path: str,
    tokenizer: str,
    keep: str | None,
    eos: tuple[str, ...],
    stop: tuple[str, ...],
    choices: tuple[str, ...],
    json_schema: Path | None,
    early_stopping: str,
    context: int | None,
    cache: tuple[str, ...],
    encoder: str | None,
    with_past: str | None,
    start: tuple[str, ...],
    engine: Engine,
    **others: Any,
) -> None:
    """Write after each prompt of the table PROMPTS with the decoder MODEL.

    OUTPUT is a folder of .parquet, .csv or .jsonl: the columns of PROMPTS, and text, tokens,
    finish_reason (eos, stop, length, context, complete), prompt_tokens and new_tokens.
    """
    model = load(model_path, untrusted=is_untrusted(options))
    generator = Generator(
        model,
        tokenizer,
        cache=parse_pairs(cache),
        context=context,
        encoder=None if encoder is None else load(encoder, untrusted=is_untrusted(options)),
        with_past=None if with_past is None else load(with_past, untrusted=is_untrusted(options)),
        start=[as_token(each) for each in start] or None,
        eos=[as_token(each) for each in eos] or None,
        engine=engine,
    )
    console = Console(stderr=True, highlight=False, quiet=options.as_json)
    with ConsoleProgress(console, is_verbose=options.debug) as progress:
        found = generate_files(
            generator,
            input_path,
            output_path,
            keep=split_names(keep) or None,
            stop=stop,
            choices=texts_of(choices),
            json_schema=None if json_schema is None else schema_of(json_schema),
            early_stopping="never" if early_stopping == "never" else early_stopping == "true",
            progress=progress,
            **others,
        )
    echo(json.dumps(numbers_of(found)) if options.as_json else text_of(found))


def as_token(text: str) -> int | str:
    """Return the number of a token, or the token itself."""
    return int(text) if text.isdecimal() else text


def texts_of(choices: tuple[str, ...]) -> list[str] | None:
    """Return the texts that may be written: those given, and the lines of files given.

    Raises
    ------
    click.BadParameter
        A file is not text in UTF-8.
    """
    found: list[str] = []
    for choice in choices:
        path = Path(choice)
        if not is_file(path):
            found.append(choice)
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise click.BadParameter(f"{choice}: {error}", param_hint="--choices") from error
        found += [line for line in lines if line]
    return found if choices else None


def is_file(path: Path) -> bool:
    """Return whether a path is that of a file; False for a text that can be no path."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def schema_of(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises
    ------
    click.BadParameter
        It is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path}: {error}", param_hint="--json-schema") from error
    if not isinstance(found, dict):
        raise click.BadParameter(f"{path} is no JSON object", param_hint="--json-schema")
    return found


def parse_pairs(pairs: tuple[str, ...]) -> dict[str, str] | None:
    """Return what `Generator` takes as `cache`.

    Raises
    ------
    click.BadParameter
        A pair is not of the form ``OUTPUT=INPUT``.
    """
    found = {}
    for pair in pairs:
        present, equals, past = pair.partition("=")
        if not equals or not present or not past:
            raise click.BadParameter(f"{pair!r} is not OUTPUT=INPUT", param_hint="--cache")
        found[present] = past
    return found or None


def numbers_of(found: FilePrediction) -> dict[str, Any]:
    """Return the numbers of a job, for JSON."""
    numbers = as_dict(found)
    if found.tokens is not None and found.seconds:
        numbers["tokens_per_second"] = round(found.tokens / found.seconds, 1)
    return numbers


def text_of(found: FilePrediction) -> str:
    """Return the numbers of a job as a line of text."""
    text = summary_of(found)
    return text if found.tokens is None else f"{text}; {found.tokens:,} new tokens"
