"""The metric log: exact numbers, strict JSON, and an end that is always a whole line."""

import json
import struct

import numpy as np
import pytest
import torch

from llm.config.errors import Failed
from llm.tracking.log import MetricLog, PerfLog


def test_rows_come_back_with_step_and_tokens_first(tmp_path):
    log = MetricLog(tmp_path)
    log.append(1, 512, {"train/loss": 3.5, "moe/load": [[0.25, 0.75], [1.0, 0.0]]})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.startswith('{"step": 1, "tokens": 512, "train/loss": 3.5')
    assert MetricLog.read(log.path) == [
        {"step": 1, "tokens": 512, "train/loss": 3.5, "moe/load": [[0.25, 0.75], [1.0, 0.0]]}
    ]


def test_every_float_reads_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**64, 2000, dtype=np.uint64).view(np.float64)
    values = values[np.isfinite(values)].tolist()
    log = MetricLog(tmp_path)
    log.append(0, 0, {"values": values})
    read = MetricLog.read(log.path)[0]["values"]
    assert [struct.pack("d", v) for v in read] == [struct.pack("d", v) for v in values]


def test_non_finite_numbers_are_null_and_the_file_is_strict_json(tmp_path):
    log = MetricLog(tmp_path)
    log.append(0, 0, {"a": float("nan"), "b": [float("inf"), 1.0], "c": np.float32("-inf")})
    line = log.path.read_text()
    row = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert (row["a"], row["b"], row["c"]) == (None, [None, 1.0], None)


def test_tensors_and_arrays_are_taken_as_plain_numbers(tmp_path):
    log = MetricLog(tmp_path)
    log.append(0, 0, {"a": torch.tensor(2.5), "b": np.array([1, 2]), "c": np.float32(0.5)})
    assert MetricLog.read(log.path)[0] == {"step": 0, "tokens": 0, "a": 2.5, "b": [1, 2], "c": 0.5}


@pytest.mark.parametrize(
    ("metrics", "error"),
    [({"step": 1}, ValueError), ({"x": {"y": 1}}, TypeError), ({"x": 1j}, TypeError)],
)
def test_what_is_no_metric_is_refused_and_leaves_no_trace(tmp_path, metrics, error):
    log = MetricLog(tmp_path)
    with pytest.raises(error):
        log.append(0, 0, metrics)
    assert log.sync() == 0


def test_a_line_can_be_read_as_soon_as_it_is_appended(tmp_path):
    log = MetricLog(tmp_path)
    for step in range(3):
        log.append(step, step, {"x": step})
        assert len(MetricLog.read(log.path)) == step + 1


def test_cutting_back_gives_the_bytes_of_the_checkpoint(tmp_path):
    log = MetricLog(tmp_path)
    log.append(0, 0, {"x": 0.1})
    size = log.sync()
    at_checkpoint = log.path.read_bytes()
    log.append(1, 1, {"x": 0.2})
    log.close()
    with open(log.path, "ab") as file:
        file.write(b'{"step": 2, "tok')  # killed in the middle of a write
    resumed = MetricLog(tmp_path)
    resumed.cut_back(size)
    assert resumed.path.read_bytes() == at_checkpoint
    resumed.append(1, 1, {"x": 0.2})
    assert [row["step"] for row in MetricLog.read(resumed.path)] == [0, 1]
    resumed.cut_back(0)
    assert resumed.sync() == 0


def test_a_log_that_is_not_the_checkpoints_is_refused(tmp_path):
    log = MetricLog(tmp_path)
    log.append(0, 0, {"x": 0.1})
    size = log.sync()
    with pytest.raises(Failed, match="altered"):
        log.cut_back(size + 1)
    with pytest.raises(Failed, match="altered"):
        log.cut_back(size - 1)
    assert log.sync() == size


def test_a_torn_last_line_is_ignored_by_readers_and_mended_by_the_next_writer(tmp_path):
    path = tmp_path / "perf.jsonl"
    path.write_bytes(b'{"step": 0, "tokens": 0}\n{"step": 1, "to')
    assert [row["step"] for row in MetricLog.read(path)] == [0]
    log = PerfLog(tmp_path)
    log.append(1, 10, {"seconds": 2.0})
    assert [row["step"] for row in MetricLog.read(path)] == [0, 1]
    path.write_bytes(b"x" * 200_000)
    PerfLog(tmp_path)
    assert path.read_bytes() == b""


def test_perf_is_another_file_and_never_cut_back(tmp_path):
    log = PerfLog(tmp_path)
    log.append(0, 0, {"seconds": 1.0})
    assert log.path.name == "perf.jsonl"
    with pytest.raises(TypeError):
        log.cut_back(0)
