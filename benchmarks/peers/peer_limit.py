"""The limit: two bare processes with a one-thread session each, which divide the files beforehand.

The processes are those of `multiprocessing`; the code of each is that of `peer_alone`.
https://docs.python.org/3/library/multiprocessing.html
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import functions
import numpy as np
import peer_alone
from work import Result, Work

Pair = list[Connection]


# user code: start
def serve(connection: Connection) -> None:
    while (request := connection.recv()) is not None:
        job, arguments = request
        connection.send(job(*arguments))


@contextlib.contextmanager
def started(work: Work) -> Iterator[Pair]:
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    for _ in range(2):
        here, there = context.Pipe()
        processes.append(context.Process(target=serve, args=(there,), daemon=True))
        processes[-1].start()
        there.close()
        ends.append(here)
    yield ends
    for end, process in zip(ends, processes, strict=True):
        end.send(None)
        process.join()


def on_both(job: Any, work: Work, pair: Pair) -> list[Any]:
    for number, end in enumerate(pair):
        end.send((job, (work.part(number, len(pair)), None, 1)))
    return [end.recv() for end in pair]


def joined(found: list[Result]) -> Result:
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


# end


# user code: images (start, picture_vectors)
def images(work: Work, pair: Pair) -> Result:
    return joined(on_both(peer_alone.images, work, pair))


# end


# user code: table (start, probabilities)
def table(work: Work, pair: Pair) -> None:
    on_both(peer_alone.table, work, pair)


# end


# user code: sentences (start, sentence_vectors)
def sentences(work: Work, pair: Pair) -> None:
    on_both(peer_alone.sentences, work, pair)


# end


# user code: large (start, block_vectors)
def large(work: Work, pair: Pair) -> Result:
    return joined(on_both(peer_alone.large, work, pair))


# end


# user code: picture (start, slice_boxes, best_of_each)
def some_slices(file: str, model: str, first: int) -> Any:
    page = np.load(file)
    corners = functions.slice_corners(page.shape[0])[first::2]
    return np.concatenate([functions.slice_boxes(page, corner, model) for corner in corners])


def picture(work: Work, pair: Pair) -> Result:
    for number, end in enumerate(pair):
        end.send((some_slices, (work.files[0], work.model, number)))
    return {"values": functions.best_of_each(np.concatenate([end.recv() for end in pair]))}


# end
