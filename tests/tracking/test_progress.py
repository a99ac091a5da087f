"""The console: a bar on a terminal, plain lines elsewhere, nothing on standard output."""

import io

import pytest

from llm.tracking import progress
from llm.tracking.progress import Progress, brief, clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def now(monkeypatch):
    """A clock that the test moves."""
    state = {"now": 100.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: state["now"])
    return state


def test_a_file_gets_plain_lines_ten_seconds_apart(now):
    out = io.StringIO()
    with Progress(1000, "steps", stream=out) as bar:
        for step in range(1, 101):
            now["now"] += 1
            bar.update(step, step=step, loss=3.0, tokens_per_second=12345.0)
    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert "\r" not in out.getvalue()
    assert lines[-1] == (" 10% 15:00 left, loss 3.000, 12.3k tok/s, 100/1,000 steps, step 100")


def test_an_evaluation_is_shown_at_once_and_stays(now):
    out = io.StringIO()
    bar = Progress(20e6, "tok", stream=out)
    bar.update(1e6, loss=3.0)
    assert out.getvalue() == ""
    bar.update(1e6, loss=3.0, val_loss=3.25, imbalance=1.5, epoch=0.5)
    assert "val 3.250" in out.getvalue() and "imbalance 1.50" in out.getvalue()
    now["now"] += 20
    bar.update(2e6, loss=2.9)
    assert "val 3.250" in out.getvalue().splitlines()[-1]


def test_time_left_counts_from_where_a_resumed_run_begins(now):
    out = io.StringIO()
    bar = Progress(100, "steps", start=90, stream=out)
    now["now"] += 10
    bar.update(95, val_loss=1.0)
    assert " 95% 0:10 left" in out.getvalue()


def test_a_terminal_gets_a_bar_and_lines_above_it():
    out = Terminal()
    with Progress(10, "min", stream=out) as bar:
        bar.update(5, loss=2.5, val_loss=2.75)
        bar.say("saved step 5")
    bar.say("said after the end")
    text = out.getvalue()
    assert "\r" in text
    assert " 50%" in text
    assert "loss 2.500, val 2.750, 5/10 min" in text
    assert "saved step 5\n" in text
    assert text.endswith("said after the end\n")


def test_what_goes_on_after_the_last_step_stands_in_place_of_the_time_left():
    for out in (Terminal(), io.StringIO()):
        with Progress(10, "steps", stream=out) as bar:
            bar.update(10, loss=2.5)
            bar.doing("judging 400 samples")
            meanwhile = out.getvalue()
        assert meanwhile.rstrip().split("  ")[-1].endswith("judging 400 samples")
        assert "left" not in meanwhile.split("\r")[-1]
    # the bar stays with its figures, and a file has the line
    assert out.getvalue().splitlines()[-1] == "judging 400 samples"


def test_a_reader_that_leaves_stops_nothing():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    bar = Progress(10, "steps", stream=Closed())
    bar.say("hello")
    bar.update(5, loss=2.5, val_loss=2.5)
    assert bar.fraction == 0.5


def test_quiet_shows_nothing_but_still_counts():
    out = Terminal()
    with Progress(10, "steps", quiet=True, stream=out) as bar:
        bar.update(5, loss=1.0, val_loss=1.0)
        bar.say("hello")
    assert out.getvalue() == ""
    assert bar.fraction == 0.5


def test_standard_output_is_left_alone(capsys):
    with Progress(10, "steps") as bar:
        bar.update(10, loss=1.0, val_loss=1.0)
        bar.say("hello")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hello\n" in captured.err


def test_a_budget_that_was_overshot_or_is_empty_is_full(now):
    bar = Progress(10, "min", stream=io.StringIO())
    bar.update(12)
    assert bar.fraction == 1.0
    assert Progress(0, "steps", stream=io.StringIO()).fraction == 1.0


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (2.5, "2.5"), (1234, "1,234"), (20480, "20.5k"), (999_999, "1M"), (1e15, "1P")],
)
def test_numbers_are_brief(number, text):
    assert brief(number) == text


def test_clock():
    assert (clock(75), clock(3675)) == ("1:15", "1:01:15")
