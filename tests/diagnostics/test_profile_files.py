from __future__ import annotations

import json
import sqlite3

import pytest
from profile_builders import FIRST, A, B, small_profile, task

import dask_onnx as dx
from dask_onnx.diagnostics.profiling.chrome_trace import trace_of
from dask_onnx.diagnostics.profiling.profile_files import read_profile, write_profile

PHASES_OF_EVENTS = {"X", "M", "C", "s", "f"}


def test_a_written_profile_is_read_as_it_was(tmp_path):
    profile = small_profile(others=((A, 1.0, 2.0),))
    write_profile(profile, tmp_path / "run.json")
    assert read_profile(tmp_path / "run.json") == profile


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"dask_onnx_profile": {"format": 2}}',
        '{"dask_onnx_profile": {"format": 1}}',
    ],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(dx.InputError) as caught:
        dx.load_profile(path)
    assert caught.value.option == "path"


@pytest.mark.parametrize("name", ["run.txt", "run", "missing/run.json", "folder.json"])
def test_targets_are_checked(tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(dx.InputError):
        write_profile(small_profile(), tmp_path / name)


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(dx.InputError):
        dx.load_profile(tmp_path / "none.json")


@pytest.fixture
def trace(tmp_path):
    """Return a database of the events, as Perfetto's trace processor makes one of them."""
    path = tmp_path / "run.json"
    write_profile(small_profile(), path)
    events = json.loads(path.read_text())["traceEvents"]
    database = sqlite3.connect(":memory:")
    database.execute("create table slice (name, cat, pid, tid, ts, dur, args)")
    database.execute("create table flow (step, id, pid, tid, ts)")
    database.execute("create table counter (name, pid, ts, args)")
    database.execute("create table process (pid, name)")
    for each in events:
        assert each["ph"] in PHASES_OF_EVENTS
        assert isinstance(each["pid"], int)
        args = json.dumps(each.get("args", {}))
        if each["ph"] == "X":
            assert each["dur"] >= 0 <= each["ts"] <= 10e6
            row = (each["name"], each["cat"], each["pid"], each["tid"], each["ts"], each["dur"])
            database.execute("insert into slice values (?,?,?,?,?,?,?)", (*row, args))
        elif each["ph"] in "sf":
            row = (each["ph"], each["id"], each["pid"], each["tid"], each["ts"])
            database.execute("insert into flow values (?,?,?,?,?)", row)
        elif each["ph"] == "C":
            assert each["args"]
            row = (each["name"], each["pid"], each["ts"], args)
            database.execute("insert into counter values (?,?,?,?)", row)
        elif each["name"] == "process_name":
            row = (each["pid"], each["args"]["name"])
            database.execute("insert into process values (?,?)", row)
    return database


def test_every_stage_and_transfer_is_found_by_sql(trace):
    query = """
        select p.name, s.name, count(*), sum(s.dur) / 1e6
        from slice s join process p using (pid) where s.cat = 'task' group by 1, 2 order by 1, 2
    """
    assert trace.execute(query).fetchall() == [
        (f"{A} (a)", "first", 2, 4.0),
        (f"{B} (b)", "second", 2, 4.0),
    ]
    query = """
        select json_extract(args, '$.link'), count(*), sum(json_extract(args, '$.wire_bytes'))
        from slice where cat = 'transfer' group by 1 order by 1
    """
    assert trace.execute(query).fetchall() == [
        (f"{A} -> {B}", 2, 8_000_000),
        (f"{B} -> client", 1, 1100),
    ]


def test_nodes_are_drawn_to_scale_inside_a_task_of_their_stage(trace):
    rows = trace.execute("select name, dur from slice where cat = 'node' order by ts").fetchall()
    assert [name for name, _ in rows] == ["conv<1>", "relu"]
    # 3.0 and 0.6 of 3.8 seconds of all runs, in a run of 1.9 s.
    assert [dur / 1e6 for _, dur in rows] == pytest.approx([1.5, 0.3])


def test_each_flow_begins_and_ends_inside_a_slice(trace):
    query = """
        select f.step, f.id, count(s.name) from flow f left join slice s
        on s.pid = f.pid and s.tid = f.tid and f.ts between s.ts and s.ts + s.dur
        group by f.step, f.id
    """
    rows = trace.execute(query).fetchall()
    assert all(count >= 1 for _, _, count in rows)
    assert sorted(i for step, i, _ in rows if step == "s") == sorted(
        i for step, i, _ in rows if step == "f"
    )


def test_slices_of_a_thread_nest(trace):
    query = """
        select count(*) from slice a join slice b on a.pid = b.pid and a.tid = b.tid
        where a.ts < b.ts and b.ts < a.ts + a.dur and a.ts + a.dur < b.ts + b.dur - 0.01
    """
    assert trace.execute(query).fetchone() == (0,)


def test_counters_show_memory_and_blocks_in_flight(trace):
    query = "select max(json_extract(args, '$.blocks')) from counter where name like 'blocks%'"
    assert trace.execute(query).fetchone() == (2,)
    names = {name for (name,) in trace.execute("select distinct name from counter")}
    assert {"memory", "CPU", "network", f"bytes {A} -> {B}"} <= names


def test_a_task_on_an_unknown_worker_is_drawn_too():
    events = trace_of(small_profile(workers=(), tasks=(task("first", A, 0.0, 1.0),)))
    assert any(e["ph"] == "X" and e["args"]["stage"] == FIRST for e in events if "args" in e)
