"""A terminal is not steered by what a model writes; a file gets it as it is."""

import io

import pytest

from llm.config.terminal import shown, visible
from llm.tracking.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\rb\x00\x08\x7f", r"a\rb\x00\x08\x7f"),
        ("\x9b31m\x90", r"\x9b31m\x90"),
        ("abc\u202edef\u2066", r"abc\u202edef\u2066"),
        ("é 漢\n\t🙂 \u00a0“”", "é 漢\n\t🙂 \u00a0“”"),
    ],
)
def test_only_controls_are_written_out_and_only_on_a_terminal(text, seen):
    assert visible(text) == seen
    assert shown(text, Terminal()) == seen
    assert shown(text, io.StringIO()) == text


def test_lines_beside_a_progress_bar_are_harmless():
    out = Terminal()
    with Progress(10, "steps", stream=out) as bar:
        bar.say("step 5 writes: \x1b[2J")
    assert "\x1b[2J" not in out.getvalue()
    assert r"writes: \x1b[2J" in out.getvalue()
