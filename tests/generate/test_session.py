"""Chat's lines: commands, notes, colours. The model is a parrot in Tiny Town."""

import io

import pytest

from llm.data.tinytown.source import Tinytown
from llm.generate import colour
from llm.generate.conversation import Conversation, Sampling
from llm.generate.session import Session
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.chars import Chars
from tests.toy_models import reading

TOWN = Tinytown()
REPLIES = {
    "Q: What is 3 plus 4?\nA:": " 3 plus 4 is 8.\n",
    "Q: Hello!\nA:": (
        " Hello! Ask me about the people of Tiny Town, or ask me to tell you a story.\n"
    ),
    "Q: Where is the dragön?\nA:": " In a büchse 🙂.\n",
    "Once upon a time": ", all went well.\nQ: no",
}


@pytest.fixture
def chat(parrot, monkeypatch, capsys):
    """Feeds lines to a session and returns what came out: standard output and error."""

    def talk(*lines, corpus=TOWN, replies=REPLIES, tokenizer=None, max_seq_len=2048, session=None):
        if session is None:
            session = start(corpus, replies, tokenizer or Bytes(), max_seq_len)
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        session.run("banner")
        return capsys.readouterr()

    def start(corpus, replies, tokenizer, max_seq_len):
        model = parrot(tokenizer, replies, max_seq_len)
        how = reading(tokenizer, corpus=corpus)
        conversation = Conversation(model, how, 0)
        return Session(conversation, Sampling(100, 0.8, 50), False)

    talk.start = start
    return talk


def test_an_answer_a_line_and_the_banner_aside(chat):
    out, err = chat("What is 3 plus 4?", "quit", "Hello!")
    assert out == "3 plus 4 is 8.\n"
    assert err == "banner\n"


@pytest.mark.parametrize("leave", ["quit", "exit", "EXIT", "/quit", " exit "])
def test_leaving(chat, leave):
    assert chat(leave, "Hello!").out == ""


def test_the_end_of_the_input_leaves(chat):
    assert chat("Hello!").out.startswith("Hello! Ask me")


def test_what_a_question_was_read_as_is_said(chat):
    out, err = chat("what is 3 plus 4")
    assert out == "3 plus 4 is 8.\n"
    assert "(read as: What is 3 plus 4?)" in err


def test_markers_may_be_typed_too(chat):
    assert chat("Q: What is 3 plus 4?").out == "3 plus 4 is 8.\n"


def test_a_story_is_begun_by_its_first_words_and_shown_whole(chat):
    out, err = chat("Hello!", "Once upon a time  ", "What is 3 plus 4?")
    assert out.splitlines()[1:] == ["Once upon a time, all went well.", "3 plus 4 is 8."]
    assert "(a new text begins: what was said before is forgotten)" in err


def test_check(chat):
    out, _ = chat("/check", "What is 3 plus 4?", "/check", "Hello!", "/reset", "Hello!", "/check")
    lines = out.splitlines()
    assert lines[0] == "nothing has been said yet"
    assert lines[2] == "wrong: 3 plus 4 is [8]; right is “3 plus 4 is 7.”"
    assert lines[-1] == "right: every word of the answer is in the language"


def test_check_without_an_instrument(chat):
    out, _ = chat("Once upon a time", "/check", corpus=None)
    assert "only a corpus that knows its own language can tell" in out


def test_settings(chat):
    session = chat.start(TOWN, REPLIES, Bytes(), 2048)
    out, _ = chat("/temp 0.5", "/topk 3", "/tokens 7", "/temp", "Hello!", session=session)
    assert vars(session.sampling) == {"max_tokens": 7, "temperature": 0.5, "top_k": 3}
    assert out.splitlines()[:4] == [
        "temperature: 0.5",
        "top-k: 3",
        "longest answer: 7",
        "temperature: 0.5",
    ]
    assert out.splitlines()[4] == "Hello!"


@pytest.mark.parametrize(
    "line",
    ["/temp 0.05", "/temp 2.1", "/temp nan", "/temp x", "/topk 0", "/tokens -1", "/topk 1.5"],
)
def test_settings_out_of_range_are_refused_in_a_line_and_change_nothing(chat, line):
    session = chat.start(TOWN, REPLIES, Bytes(), 2048)
    out, _ = chat(line, session=session)
    assert len(out.splitlines()) == 1
    assert "must be a" in out
    assert vars(session.sampling) == {"max_tokens": 100, "temperature": 0.8, "top_k": 50}


def test_unknown_commands_name_the_nearest(chat):
    out, _ = chat("/tmp 1", "/rest", "/xyzzy")
    assert out.splitlines() == [
        "there is no /tmp; did you mean /temp?",
        "there is no /rest; did you mean /reset?",
        "there is no /xyzzy; /help lists the commands",
    ]


def test_help_lists_every_command(chat):
    out, _ = chat("/help")
    for name in ("temp", "topk", "tokens", "reset", "confidence", "check", "help"):
        assert f"/{name}" in out
    assert "now 0.8" in out


def test_long_answers_say_that_they_were_cut(chat):
    out, err = chat("/tokens 3", "Hello!")
    assert out.endswith("He\n")
    assert "(cut off after 3 tokens; /tokens V allows more)" in err


def test_an_empty_answer_is_said_to_be_one(chat):
    assert "(the model ended its answer at once)" in chat("Well?").err


def test_a_full_context_is_mentioned_once_it_forgets(chat):
    err = chat(*["What is 3 plus 4?"] * 4, max_seq_len=128).err
    assert "(the context is full: the beginning of the conversation is forgotten)" in err


def test_characters_that_the_vocabulary_lacks_are_noted(chat):
    tokenizer = Chars()
    tokenizer.fit(["Once upon a time, all went well.\nQ: no"], None)
    out, err = chat("Once upon a timé 漢", corpus=None, tokenizer=tokenizer)
    assert "the model's vocabulary lacks é 漢" in err
    assert out.startswith("Once upon a timé 漢")


def test_any_line_is_survived(chat):
    lines = ["Where is the dragön?", "\udcff", "\x00", "a" * 9000, "漢字", "“”", "Q:", "\t", "  "]
    out, err = chat(*lines, "What is 3 plus 4?", max_seq_len=256)
    assert out.startswith("In a büchse 🙂.\n")
    assert out.endswith("3 plus 4 is 8.\n")
    assert "Traceback" not in err


def test_confidence_colours_answers_where_colours_are_wanted(chat, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out, _ = chat("/confidence", "Once upon a time")
    assert "\nOnce upon a time\033[38;5;" in out  # what was typed has none
    out, _ = chat("/confidence", "What is 3 plus 4?", "/confidence off", "What is 3 plus 4?")
    lines = out.splitlines()
    assert lines[0].startswith("the model's own probability of each word: 0% \033[38;5;196m")
    assert lines[1].startswith(f"\033[38;5;{colour.RAMP[-1]}m3\033[0m")
    assert lines[2:] == ["answers are plain again", "3 plus 4 is 8."]


def test_no_colours_in_a_pipe_or_where_they_are_not_wanted(chat, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    out, _ = chat("/confidence", "/confidence on", "What is 3 plus 4?", "/confidence maybe")
    assert "\033" not in out
    assert out.startswith("no colours here (NO_COLOR, or no terminal)")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in chat("/confidence", "What is 3 plus 4?").out


def test_the_ramp_covers_all_probabilities():
    used = {colour.by_confidence("x", p / 100) for p in range(101)}
    assert len(used) == len(colour.RAMP)
