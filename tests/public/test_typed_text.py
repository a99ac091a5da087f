"""What is typed is read to the byte, as far as the context holds it; anything else is said."""

import io
from types import SimpleNamespace

import pytest

from llm.config.errors import Refused
from llm.data.corpus import Dialogue
from llm.generate.conversation import Conversation, Sampling
from llm.generate.session import Session
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.words import Words
from tests.toy_models import reading

SAMPLING = Sampling(max_tokens=1, temperature=0, top_k=None)


class Deaf:
    """Writes within 16 places, ends every text at once, and knows what it was given."""

    max_len = 16
    given: list[int]


@pytest.fixture
def session(monkeypatch):
    def made(tokenizer=None, dialogue=None, cuts=True) -> Session:
        tokenizer = tokenizer or Bytes()
        model = Deaf()

        def stream(engine, context, *settings):
            model.given = list(context)
            yield tokenizer.eot, 1.0

        monkeypatch.setattr("llm.generate.conversation.stream", stream)
        monkeypatch.setattr("llm.generate.conversation.Engine", lambda *_, **__: model)
        how = reading(tokenizer, corpus=SimpleNamespace(dialogue=dialogue))
        talk = Conversation(model, how, 0, cuts)
        return Session(talk, SAMPLING, at_terminal=False)

    return made


def read_by(session: Session, typed: bytes | str, monkeypatch) -> tuple[str, list[int]]:
    """What the model was given for the first line of `typed`, as text and as ids."""
    data = typed.encode() if isinstance(typed, str) else typed
    stdin = io.TextIOWrapper(io.BytesIO(data), "utf-8", "surrogateescape", newline="")
    monkeypatch.setattr("sys.stdin", stdin)
    session.run("banner")
    ids = session.conversation._engine.given
    return session.conversation._tokenizer.decode(ids), ids


@pytest.mark.parametrize("typed", ["    x = 1", "\tgo", "a  ", "  ", " /usr", "x\x1b[A", "é\u3000"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_line_is_read_to_the_byte(session, typed, end, monkeypatch, capsys):
    assert read_by(session(), typed + end, monkeypatch)[0] == typed
    assert capsys.readouterr().err == "banner\n(the model ended its answer at once)\n"


def test_a_question_keeps_its_indentation(session, monkeypatch):
    dialogue = Dialogue(user="Q: ", assistant="!", stop="\n")
    assert read_by(session(dialogue=dialogue), "   def f", monkeypatch)[0] == "Q:    def f!"
    assert read_by(session(dialogue=dialogue), "Q: why", monkeypatch)[0] == "Q: why!"


def test_bytes_that_are_no_text_are_said(session, monkeypatch, capsys):
    assert read_by(session(), b"a\xffb\n", monkeypatch)[0] == "a\ufffdb"
    assert "(read as: a\ufffdb)" in capsys.readouterr().err


def test_a_last_space_is_doubtful_where_spaces_begin_words(session, monkeypatch, capsys):
    words = Words()
    words.fit(["a cat sat on a mat"], None)
    assert read_by(session(words), "a cat ", monkeypatch)[0] == "a cat "
    assert "(the last space is a word's first letter to this model" in capsys.readouterr().err
    read_by(session(words), "a cat", monkeypatch)
    assert "space" not in capsys.readouterr().err


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_as_much_as_fits_is_read_and_the_rest_is_said(session, length, monkeypatch, capsys):
    typed = "".join(chr(97 + i % 26) for i in range(length))
    text, ids = read_by(session(), typed, monkeypatch)
    assert text == typed[-16:]
    assert ids[0] == Bytes.eot if length < 16 else len(ids) == 16
    said = f"(too long for a context of 16: the first {length - 16} tokens unread)"
    assert (said in capsys.readouterr().err) == (length > 16)


@pytest.mark.parametrize("length", [15, 16, 17, 40])
def test_one_prompt_that_does_not_fit_is_refused(session, length):
    pieces = session(cuts=False).reply_to("x" * length)
    if length <= 16:
        list(pieces)
    else:
        with pytest.raises(Refused, match=f"the prompt has {length} tokens, more than the 16 that"):
            next(pieces)  # before anything is shown
