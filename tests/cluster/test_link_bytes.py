"""Bytes of links, and news of streams, as the page and metrics get them."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

from dask_onnx.cluster.link_bytes import LinkBytes, SentBytes
from dask_onnx.cluster.page_facts import WORKER_METRIC, sent_over_links, stream_state
from dask_onnx.cluster.page_plugin import _MOST_STREAMS, PagePlugin
from dask_onnx.core.dask_internals import LogTail
from dask_onnx.core.stream_records import STREAMS_TOPIC

B, C = "tcp://10.0.0.2:1", "tcp://10.0.0.3:1"


def entry(who, total, compressed):
    return {"who": who, "total": total, "compressed": compressed}


def worker(*entries, maxlen=4):
    return SimpleNamespace(
        transfer_incoming_log=deque(), transfer_outgoing_log=deque(entries, maxlen=maxlen)
    )


def test_only_what_is_sent_after_the_begin_is_added_up_once():
    sender = worker(entry(B, 1000, 1000))
    sent = SentBytes(sender)
    assert sent.read() == {}
    sender.transfer_outgoing_log += [entry(B, 8, 4), entry(C, 2, None), entry(B, 8, 5)]
    assert sent.read() == {B: (16, 9), C: (2, 0)}
    sender.transfer_outgoing_log.append(entry(B, 1, 1))
    assert sent.read() == {B: (17, 10), C: (2, 0)}
    assert sent.read() == {B: (17, 10), C: (2, 0)}


def test_a_tail_tells_what_the_log_forgot():
    log = deque([{"n": 0}], maxlen=3)
    tail = LogTail(log)
    log += [{"n": 1}, {"n": 2}]
    assert [each["n"] for each in tail.read()] == [1, 2]
    assert not tail.has_missed
    log += [{"n": n} for n in range(3, 9)]
    assert [each["n"] for each in tail.read()] == [6, 7, 8]
    assert tail.has_missed


def test_a_log_that_was_empty_may_fill_up():
    log = deque(maxlen=3)
    tail = LogTail(log)
    assert tail.read() == []
    log.append({"n": 0})
    assert [each["n"] for each in tail.read()] == [0]
    assert not tail.has_missed


def test_links_are_what_workers_told_last():
    state = SimpleNamespace(address=C, metrics={WORKER_METRIC: {"sent": {B: [16, 9]}}})
    silent = SimpleNamespace(address=B, metrics={})
    scheduler = SimpleNamespace(workers={C: state, B: silent})
    assert list(sent_over_links(scheduler)) == [(C, B, LinkBytes(16, 9))]


def test_the_last_news_of_each_stream_is_kept():
    plugin = PagePlugin()
    for number in range(_MOST_STREAMS + 5):
        told = [{"stream": "camera", "started": float(number), "done": 1}]
        plugin.log_event(STREAMS_TOPIC, told)
    plugin.log_event("other", [{}])
    assert len(plugin.streams) == _MOST_STREAMS
    assert ("camera", 4.0) not in plugin.streams
    again = {"stream": "camera", "started": 7.0, "done": 2}
    plugin.log_event(STREAMS_TOPIC, [again])
    assert plugin.streams["camera", 7.0]["done"] == 2
    assert len(plugin.streams) == _MOST_STREAMS


def test_a_stream_without_news_is_gone_unless_it_ended():
    assert stream_state({"ended": None, "told": 99.0}, 100.0) == "running"
    assert stream_state({"ended": None, "told": 90.0}, 100.0) == "gone"
    assert stream_state({"ended": 89.0, "told": 90.0}, 100.0) == "ended"
