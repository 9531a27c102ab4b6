"""The command ``dask-onnx stream``: a video through a detector into a video with its boxes."""

from __future__ import annotations

import json
from typing import Any

import click

from dask_onnx.api.image_model import ImageModel
from dask_onnx.api.loading import load
from dask_onnx.cli import Options, common_options
from dask_onnx.cli.parameters import (
    cluster_options,
    is_untrusted,
    parse_rows,
    rows_option,
    trusted_option,
)
from dask_onnx.cli.picture_options import image_options, take_picture_options
from dask_onnx.cli.printing import echo
from dask_onnx.jobs.job_cluster import JobCluster
from dask_onnx.jobs.video_job import VideoResult, annotate_video


@click.command("stream")
@click.argument("model_path", metavar="MODEL")
@click.argument("input_path", metavar="INPUT")
@click.argument("output_path", metavar="OUTPUT")
@click.option(
    "--draw",
    type=click.Choice(["boxes"]),
    default="boxes",
    help="What is drawn: boxes, names and masks, as far as the model finds them.",
)
@click.option("--window", type=click.IntRange(min=1), help="Frames in flight, at most.")
@click.option("--deadline", type=float, metavar="SECONDS", help="Age from which a result is late.")
@click.option(
    "--late",
    type=click.Choice(["keep", "drop"]),
    default="keep",
    help="Treatment of late frames; dropped ones are written without boxes.",
)
@click.option("--on-error", type=click.Choice(["raise", "dead_letter"]), default="raise")
@rows_option
@trusted_option
@cluster_options
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@image_options
@common_options
@click.pass_obj
def command(
    options: Options,
    /,
    model_path: str,
    input_path: str,
    output_path: str,
    rows: str | None,
    workers: int | None,
    threads: int | None,
    scheduler: str | None,
    draw: str,
    **others: Any,
) -> None:
    """Run MODEL on each frame of the video INPUT, and write OUTPUT with the boxes drawn.

    Frames are prepared for the model as pictures are. Both videos are files that FFmpeg knows.
    """
    image = take_picture_options(others) or {}
    model = load(model_path, rows=parse_rows(rows), untrusted=is_untrusted(options))
    pictures = ImageModel(model, **image)
    cluster = JobCluster(scheduler, workers, threads, is_verbose=options.debug)
    with cluster.connect() as client:
        found = annotate_video(pictures, input_path, output_path, client, **others)
    echo(json.dumps(as_dict(found)) if options.as_json else summary_of(found))


def as_dict(found: VideoResult) -> dict[str, Any]:
    """Return the numbers of a run, for JSON."""
    return {
        "output": found.output,
        "frames": found.frames,
        "boxes": found.boxes,
        "statistics": found.statistics.as_dict(),
    }


def summary_of(found: VideoResult) -> str:
    """Return the numbers of a run as lines of text."""
    boxes = "" if found.boxes is None else f", {found.boxes:,} boxes"
    return f"{found.output}: {found.frames:,} frames{boxes}\n{found.statistics}"
