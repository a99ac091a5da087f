"""The logs as rows, one a step, while they grow, are cut back and grow again."""

import json
from pathlib import Path

import pytest

from llm.tracking.log import MetricLog, PerfLog
from llm.tracking.points import Points


@pytest.fixture
def told():
    return []


@pytest.fixture
def points(tmp_path, told):
    return Points(tmp_path, tmp_path / "samples.jsonl", None, told.append)


def write(run: Path, *steps: int, loss: float = 1.0) -> None:
    log = MetricLog(run)
    for step in steps:
        log.append(step, 10 * step, {"train/loss": loss})
    log.close()


def test_points_wait_until_no_more_can_come_for_their_step(tmp_path, points):
    log, perf = MetricLog(tmp_path), PerfLog(tmp_path)
    perf.append(1, 10, {"seconds": 1.0})
    log.append(1, 10, {"a": 1.0})
    assert list(points.ready(complete=False)) == []
    log.append(1, 10, {"b": 2.0})
    log.append(2, 20, {"a": 3.0})
    assert list(points.ready(complete=False)) == [
        (1, {"tokens": 10, "perf/seconds": 1.0, "a": 1.0, "b": 2.0})
    ]
    perf.append(2, 20, {"seconds": 2.0})
    last = (2, {"tokens": 20, "perf/seconds": 2.0, "a": 3.0})
    assert list(points.ready(complete=True)) == [last]


def test_a_log_that_is_cut_back_and_goes_on_gives_no_step_twice(
    tmp_path, points, told, monkeypatch
):
    monkeypatch.setattr("llm.tracking.points.PIECE", 100)  # a line or two at once
    write(tmp_path, *range(1, 8))
    assert [step for step, _ in points.ready(False)] == [1, 2, 3, 4, 5, 6]
    log = MetricLog(tmp_path)
    whole = log.path.read_bytes()
    log.cut_back(len(b"\n".join(whole.split(b"\n")[:3])) + 1)
    assert list(points.ready(False)) == []
    write(tmp_path, *range(4, 11), loss=0.5)
    rows = dict(points.ready(False))
    assert list(rows) == [7, 8, 9] and rows[7]["train/loss"] == 0.5
    assert [step for step, _ in points.ready(True)] == [10]
    assert told == ["keeps steps 4 to 6 as they were before the run went back"]


def test_what_was_done_twice_is_shown_as_it_was_done_last(tmp_path, points):
    write(tmp_path, 1, 2)
    perf = PerfLog(tmp_path)
    for seconds in (1.0, 2.0):
        perf.append(1, 10, {"seconds": seconds})
        with open(tmp_path / "samples.jsonl", "a") as file:
            file.write(json.dumps({"step": 1, "text": "a"}) + "\n")
    ((_, row),) = points.ready(False)
    assert row["samples"] == [{"text": "a"}] and row["perf/seconds"] == 2.0
