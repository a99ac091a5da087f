"""The error contract: exit codes, and one clear line for what a user can get wrong."""

import json

import pytest

from llm.config.errors import Failed, Interrupted, Refused
from tests.typist import Typist


@pytest.fixture
def type_line(workplace, monkeypatch, capsys):
    return Typist(monkeypatch, capsys)


def raising(problem: BaseException):
    def task(job):
        raise problem

    return task


@pytest.mark.parametrize(
    ("problem", "code", "line"),
    [
        (Refused("is 3", "data.path"), 2, "llm.train: data.path: is 3"),
        (Failed("the loss became nan"), 1, "llm.train: the loss became nan"),
        (KeyboardInterrupt(), 130, "llm.train: interrupted"),
        (Interrupted(2), 130, None),
        (Interrupted(15), 143, None),
        (SystemExit(3), 3, None),
    ],
)
def test_an_end_has_its_code_and_one_line(type_line, problem, code, line):
    ended = type_line(task=raising(problem))
    assert ended.code == code
    assert ended.out == ""
    assert ended.err.splitlines() == ([line] if line else [])


def test_done_is_0(type_line):
    assert type_line(task=lambda job: None) == (0, "", "")


def test_a_bug_shows_where_and_is_1(type_line):
    ended = type_line(task=raising(ZeroDivisionError("division by zero")))
    assert ended.code == 1
    assert ended.err.count("Traceback") == 1
    assert ended.err.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_bug_in_reading_data_is_not_taken_for_a_config(type_line):
    ended = type_line(task=raising(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")))
    assert ended.code == 1
    assert "Traceback" in ended.err


def test_a_refusal_names_the_key_as_typed(type_line):
    ended = type_line("+seed=3", task=raising(Refused("is taken", "seed")))
    assert ended.err.strip() == "llm.train: +seed=3: is taken"


def test_an_interrupt_survives_the_way_between_processes():
    import pickle

    copy = pickle.loads(pickle.dumps(Interrupted(15)))
    assert (copy.exit_code, str(copy)) == (143, "interrupted by signal 15")
    copy = pickle.loads(pickle.dumps(Refused("is 3", "seed")))
    assert str(copy) == "seed: is 3"


def text_file(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"caf\xe9 " * 300, "a.txt, line 1: is not UTF-8"),
        ("a.txt", b"", "no train text"),
        ("a.pdf", b"text", "it reads .txt, .md, .jsonl"),
        ("a.jsonl", b'{"txt": "hello"}\n', "a.jsonl, line 1: is no JSON object with a"),
        ("a.jsonl", b'{"text": "hello"\n', "data.text_column"),
    ],
)
def test_text_that_cannot_be_read_is_refused(llm_train, workplace, name, content, told):
    path = text_file(workplace / "texts", name, content)
    ended = llm_train(f"data.path={path}")
    assert ended.code == 2
    lines = [line for line in ended.err.splitlines() if line.startswith("llm.train: ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in ended.err


def test_a_folder_without_text_is_refused(llm_train, workplace):
    (workplace / "texts").mkdir()
    ended = llm_train("data.path=texts")
    assert (ended.code, ended.out) == (2, "")
    assert "no text found: in texts" in ended.err
    assert not (workplace / "outputs").exists()


def test_a_device_that_is_not_there_is_refused(llm_train):
    import torch

    missing = "mps" if torch.cuda.is_available() else "gpu"
    ended = llm_train(f"hardware={missing}")
    assert ended.code == 2
    assert ended.err.startswith("llm.train: hardware: no ")
    assert "hardware=cpu" in ended.err


def test_what_the_disk_refuses_is_one_line(llm_train, workplace):
    (workplace / "taken").write_text("a file")
    ended = llm_train("outputs=taken")
    assert ended.code == 1
    assert ended.err == "llm.train: Not a directory: taken/data\n"
    assert llm_train("outputs=taken", "-m", "seed=1,2").code == 1


def test_a_loss_that_is_not_finite_says_step_cause_and_what_is_kept(llm_train):
    ended = llm_train("optimizer.lr=1e30", "optimizer.warmup=0", "train.clip_norm=null")
    assert ended.code == 1
    line = ended.err.splitlines()[-1]
    assert line.startswith("llm.train: the loss became ")
    assert " at step " in line
    assert "checkpoint" in line


def test_the_state_of_a_run_that_failed_says_why(llm_train, workplace):
    llm_train("optimizer.lr=1e30", "optimizer.warmup=0", "train.clip_norm=null")
    (file,) = (workplace / "outputs" / "runs").glob("*/run.json")
    told = json.loads(file.read_text())
    assert told["state"] == "failed"
    assert "the loss became" in told["reason"]
