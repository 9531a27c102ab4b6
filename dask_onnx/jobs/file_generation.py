"""`generate_files`: write after a column of prompts, from file to file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from distributed import Client

from dask_onnx.api.generator import Generator
from dask_onnx.api.model import Model
from dask_onnx.collections.run_options import OnError
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.io.begun_outputs import BegunOutputs
from dask_onnx.io.output_formats import open_sink
from dask_onnx.io.output_places import check_apart
from dask_onnx.io.table_files import is_table
from dask_onnx.jobs.file_prediction import run_job
from dask_onnx.jobs.job_cluster import JobCluster
from dask_onnx.jobs.job_options import JobOptions
from dask_onnx.jobs.job_progress import JobProgress
from dask_onnx.jobs.job_result import FilePrediction
from dask_onnx.jobs.option_checks import names_of, path_text
from dask_onnx.jobs.table_request import TableRequest


def generate_files(
    generator: Generator,
    input: str | os.PathLike[str],  # noqa: A002 - the option's name on the command line
    output: str | os.PathLike[str],
    *,
    column: str = "prompt",
    keep: Sequence[str] | None = None,
    prefix: str = "",
    scheduler: Client | str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    worker_memory_limit: int | str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_error: OnError = "raise",
    progress: JobProgress | None = None,
    **generation: Any,
) -> FilePrediction:
    """Write after a column of prompts of a table in files, block by block.

    Blocks that are complete are kept beside the output if the job fails, is interrupted or killed,
    and `resume` goes on with them. A block has 64 prompts in Parquet, 16 KiB of text in CSV and
    JSON Lines, and otherwise what the file has as one piece.

    Parameters
    ----------
    generator : Generator
        Decoder with its tokenizer.
    input : path or URL
        Table as `predict_files` takes it.
    output : path or URL
        Folder of ``.parquet``, ``.csv`` or ``.jsonl``: the columns that are kept and those of
        `Generator.generate`.
    column : str
        Column of prompts, of text.
    keep : sequence of str, optional
        Columns of the input to write too; all by default.
    prefix : str
        Beginning of the names of the new columns.
    scheduler, workers, threads, worker_memory_limit, overwrite, resume, progress
        As for `predict_files`.
    on_error : {"raise", "null"}
        Treatment of prompts that cannot be used, as for `Generator.generate`.
    generation
        Further options of `Generator.generate`: ``max_new_tokens``, ``temperature``, ``top_k``,
        ``top_p``, ``seed``, ``eos``, ``stop``, ``batch_rows``, ``choices``, ``json_schema``,
        ``regex``, ``num_beams``, ``length_penalty``, ``early_stopping``. What is drawn follows from
        the seed and the number of the row in the whole table; where the format does not tell
        numbers of rows, from those of the block and of the row in it.

    Returns
    -------
    FilePrediction
        With `FilePrediction.tokens`.

    Raises
    ------
    InputError
        As for `predict_files` and `Generator.generate`; the generator has no tokenizer.
    """
    source, target = path_text(input, "input"), path_text(output, "output")
    if generator.array is not None:
        raise InputError(
            f"the generator's encoder takes arrays, {generator.array}, and tables have prompts of "
            "text",
            "use generator.generate with an array, a dask.array or a dask.bag",
            option="generator",
            input=generator.array.name,
        )
    content = generator.tokenizer_content
    if content is None:
        raise InputError(
            "the generator has no tokenizer, and prompts in files are text",
            "give it the model's tokenizer.json",
            option="tokenizer",
            suggestions=[Suggestion("tokenizer")],
        )
    if not is_table(source):
        raise InputError(
            f"{source} is no table",
            "give .parquet, .csv, .tsv, .jsonl, .arrow, .feather or .orc, a folder or a glob",
            option="input",
        )
    options = _job_options(
        TableRequest(
            text=column,
            tokenizer=content,
            append=True if keep is None else names_of(keep, "keep") or (),
            on_error=on_error,
        ),
        overwrite=overwrite,
    )
    progress = progress or JobProgress()
    cluster = JobCluster(
        scheduler, workers, threads, worker_memory_limit, is_verbose=progress.is_verbose
    )

    def opening(
        model: Model, source: str, target: str, options: JobOptions, begun: BegunOutputs
    ) -> Any:
        return _open_job(generator, source, target, options, begun, generation, prefix)

    return run_job(
        generator.model, source, target, options, cluster, progress, resume=resume, opening=opening
    )


def _job_options(table: TableRequest, *, overwrite: bool) -> JobOptions:
    """Return the options of a job that leaves all but those of the table as they are."""
    return JobOptions(
        table=table,
        batch_size="auto",
        block_rows=None,
        strategy="whole",
        n_stages=None,
        outputs=None,
        pre=None,
        post=None,
        retries=None,
        overwrite=overwrite,
        tile=None,
        image=None,
        draw=None,
    )


def _open_job(
    generator: Generator,
    source: str,
    target: str,
    options: JobOptions,
    begun: BegunOutputs,
    generation: Mapping[str, Any],
    prefix: str,
) -> Any:
    """Return a job that is checked as far as this process can. Creates nothing."""
    # Tables need pandas, which is an extra.
    from dask_onnx.jobs.generation_job import GenerationJob  # needs pandas

    sink = open_sink(target, overwrite=options.overwrite, results="tables", begun=begun)
    job = GenerationJob(
        generator.model,
        source,
        options.table,
        None,
        options.batch_size,
        [sink],
        generator=generator,
        generation=generation,
        prefix=prefix,
    )
    check_apart([sink.target], source, job.paths, may_be_inside=False)
    job.check()
    return job
