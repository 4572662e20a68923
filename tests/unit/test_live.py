"""The table of a running pipeline: states, usual seconds, and what is left."""

import io
import json

import pytest
from rich.console import Console

from convoy.repo.graph import Node
from flows.show import live
from flows.show.live import Board, find_usual_seconds

NODES = {
    "fetch@a": Node("fetch@a", ()),
    "train@x": Node("train@x", ("fetch@a",)),
    "train@y": Node("train@y", ("fetch@a",)),
    "register@a": Node("register@a", ("train@x", "train@y")),
}


@pytest.fixture
def journal(workspace):
    """Seconds that the stages took: the last five count, the failed one does not."""
    rows = (
        [("fetch@a", 90, 0)] + [("fetch@a", 10, 0)] * 5 + [("train@x", 100, 0), ("train@y", 60, 0), ("train@y", 1, 7)]
    )
    rows += [("register@a", 5, 0)]
    lines = [json.dumps({"stage": stage, "seconds": seconds, "status": status}) for stage, seconds, status in rows]
    (workspace / "data/journal.jsonl").write_text("\n".join(lines) + "\n")


def made(slots):
    return Board(NODES, slots, Console(file=io.StringIO(), force_terminal=True, width=100))


def test_usual_is_the_median_of_the_last_runs_that_ended_well(journal):
    assert find_usual_seconds() == {"fetch@a": 10, "train@x": 100, "train@y": 60, "register@a": 5}


@pytest.mark.parametrize(("slots", "left"), [(1, 160), (2, 115), (5, 115)])
def test_what_is_left_is_the_longest_way_or_the_trainings_on_their_slots(journal, slots, left):
    assert made(slots).estimate_left() == left


def test_what_is_done_is_not_left_and_what_runs_is_counted_by_what_it_took(journal, monkeypatch):
    shown = made(2)
    shown.set("fetch@a", "up to date")
    shown.set("train@y", live.FAILED)
    now = [1000.0]
    monkeypatch.setattr(live.time, "time", lambda: now[0])
    shown.set("train@x", live.RUNNING, "gpu:0")
    now[0] += 30
    assert shown.estimate_left() == 75  # 70 of training, 5 of registration


def test_without_a_run_nothing_is_promised(workspace):
    assert made(1).estimate_left() is None


def test_the_table_shows_every_stage_with_state_device_and_seconds(journal, monkeypatch):
    shown = made(2)
    shown.set("fetch@a", "cached")
    shown.set("train@x", live.RUNNING, "gpu:1")
    shown.set("train@y", live.QUEUED)
    console = Console(file=io.StringIO(), width=100)
    console.print(shown.draw())
    text = console.file.getvalue()
    for words in (
        ("fetch@a", "cached", "10"),
        ("train@x", "running", "gpu:1", "100"),
        ("train@y", "waits for a device"),
    ):
        line = next(line for line in text.splitlines() if words[0] in line)
        assert all(word in line for word in words)
    assert "1 of 4 done" in text
    assert "left" in text


def test_what_did_not_begin_was_not_run(journal):
    shown = made(2)
    shown.set("fetch@a", live.FAILED)
    shown.finish()
    assert {name: row.state for name, row in shown.rows.items()} == {
        "fetch@a": "failed",
        "train@x": "not run",
        "train@y": "not run",
        "register@a": "not run",
    }
