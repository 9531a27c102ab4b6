"""Transfers between workers, from the logs of both ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from distributed.comm import get_address_host

from dask_onnx.core.meters import PhaseNote
from dask_onnx.diagnostics.profiling.profile_assembly import Notes
from dask_onnx.diagnostics.profiling.run_profile import CLIENT, TransferRecord


@dataclass(slots=True)
class _Sending:
    """One message, as its sender logged it."""

    start: float
    stop: float
    receiver: str
    plain_bytes: int
    wire_bytes: int
    keys: tuple[str, ...]
    is_matched: bool = False


_Index = defaultdict[tuple[str, str, str], list[_Sending]]
"""Messages by sender, receiver and one of their keys."""


def transfer_records(notes: Notes, labels: Mapping[str, str]) -> list[TransferRecord]:
    """Return the transfers of a profile's values, in the order of their starts.

    Parameters
    ----------
    notes : Notes
    labels : mapping of str to str
        Key to the label of the stage, or the name of the task, that made the value.

    Returns
    -------
    list of TransferRecord
        Each is known from the receiver's log; bytes on the wire from the sender's. Results that the
        client gathered are known from the sender's alone.
    """
    keys = notes.keys
    sent = {worker: _sendings(notes, worker) for worker in notes.workers}
    index: _Index = defaultdict(list)
    for sender, messages in sent.items():
        for each in messages:
            for key in each.keys:
                index[sender, each.receiver, key].append(each)
    encodings, decodings = _phases(notes, "encode"), _phases(notes, "decode")
    found = []
    for receiver, own in notes.workers.items():
        for start, stop, sender, size, names in own.incoming:
            names = tuple(names)
            if not keys.intersection(names):
                continue
            begin, end = notes.span_of(receiver, start, stop)
            log = _match(index.get((sender, receiver, names[0]), ()), (begin + end) / 2)
            encode = _within(encodings.get(sender, ()), log, get_address_host(receiver))
            decode = [p for p in decodings.get(receiver, ()) if begin <= p.start <= end]
            found.append(
                TransferRecord(
                    sender,
                    receiver,
                    begin,
                    end,
                    size,
                    log.wire_bytes if log else 0,
                    names,
                    labels.get(names[0], ""),
                    sum(p.seconds for p in encode),
                    sum(p.seconds for p in decode),
                    any(p.wire_bytes < p.plain_bytes for p in encode),
                )
            )
    for sender, messages in sent.items():
        found += _gathered(sender, messages, notes, labels)
    return sorted(found, key=lambda each: each.start)


def _gathered(
    sender: str, messages: Sequence[_Sending], notes: Notes, labels: Mapping[str, str]
) -> Iterator[TransferRecord]:
    """Yield what the scheduler gathered for the client: nobody but the sender logs it."""
    keys = notes.keys
    for each in messages:
        if each.is_matched or each.receiver in notes.workers or not keys.intersection(each.keys):
            continue
        yield TransferRecord(
            *(sender, CLIENT, each.start, each.stop, each.plain_bytes, each.wire_bytes),
            *(each.keys, labels.get(each.keys[0], "")),
        )


def _sendings(notes: Notes, worker: str) -> list[_Sending]:
    return [
        _Sending(
            *notes.span_of(worker, start, stop),
            receiver,
            plain,
            wire,
            tuple(keys),
        )
        for start, stop, receiver, plain, wire, keys in notes.workers[worker].outgoing
    ]


def _match(messages: Sequence[_Sending], middle: float) -> _Sending | None:
    """Return the log of the message, among those of one value, that is nearest to a time."""
    fitting = [each for each in messages if not each.is_matched]
    found = min(fitting, key=lambda each: abs((each.start + each.stop) / 2 - middle), default=None)
    if found is not None:
        found.is_matched = True
    return found


def _within(phases: Sequence[PhaseNote], log: _Sending | None, host: str) -> list[PhaseNote]:
    if log is None:
        return []
    return [p for p in phases if p.peer in ("", host) and log.start <= p.start <= log.stop]


def _phases(notes: Notes, name: str) -> dict[str, list[PhaseNote]]:
    """Return the phases of a name by worker, with times of the one clock."""
    found: defaultdict[str, list[PhaseNote]] = defaultdict(list)
    for worker, own in notes.workers.items():
        for phase in (PhaseNote(*fields) for fields in own.phases):
            if phase.phase == name:
                start = notes.worker_time(worker, phase.start)
                found[worker].append(phase._replace(start=start))
    return found
