"""Chat at the keyboard, or through a pipe: one line in, one answer or one command."""

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing

from llm.config.errors import Refused
from llm.config.suggest import nearest
from llm.config.terminal import shown
from llm.data.corpus import Dialogue, Instrument
from llm.generate import colour, judge
from llm.generate.conversation import Conversation, Piece, Sampling
from llm.generate.limits import count, temperature
from llm.tokenizer.base import lacking, well_formed

HELP = """\
/temp V        temperature, 0.1 (sure of itself) to 2.0 (wild), 0: always the likeliest token;
               now {temperature}
/topk V        draw from the V likeliest tokens only; now {top_k}
/tokens V      longest answer in tokens; now {max_tokens}
/reset         forget what was said
/confidence    colour answers by the model's own probability of each word, on or off
/check         is the last answer in the language of the corpus? (instruments such as tinytown)
/help          this list
quit, exit     leave (Ctrl-D, too); Ctrl-C stops an answer"""
COMMANDS = ("temp", "topk", "tokens", "reset", "confidence", "check", "help", "quit", "exit")


class Session:
    """A conversation on a terminal, or between a script and a pipe.

    What is said and what commands answer goes to standard output. Notes in brackets do too at a
    terminal; in a pipe they go to standard error.

    Args:
        at_terminal: somebody types, so there is a prompt
    """

    def __init__(
        self,
        conversation: Conversation,
        sampling: Sampling,
        at_terminal: bool,
    ):
        corpus = conversation.reading.corpus
        self.conversation, self.sampling = conversation, sampling
        self.instrument = corpus if isinstance(corpus, Instrument) else None
        self.at_terminal = at_terminal
        self.colours = colour.wanted(sys.stdout)
        self.confidence = False
        self._tokenizer = conversation.reading.tokenizer

    def run(self, banner: str) -> None:
        """Until somebody leaves: quit, exit, the end of the input, Ctrl-C at the prompt."""
        if self.at_terminal:
            print(banner)
        else:
            print(banner, file=sys.stderr)
        for line in self._lines():
            text = line.removesuffix("\n").removesuffix("\r")
            if text.strip().lower() in ("quit", "exit", "/quit", "/exit"):
                return
            if text.startswith("/"):
                self._command(text.strip())
            elif text.strip() or (text and self.conversation.dialogue is None):
                self.answer(text)
            if self.at_terminal:
                print()

    def _lines(self) -> Iterator[str]:
        if not self.at_terminal:
            yield from sys.stdin
            return
        ask = "you> "
        try:
            import readline  # noqa: F401  arrow keys and earlier lines, where Python has it

            ask = colour.prompt(ask) if self.colours else ask
        except ImportError:
            pass
        while True:
            try:
                yield input(ask)
            except (EOFError, KeyboardInterrupt):
                print()
                return

    # -- talking ---------------------------------------------------------------------------------

    def answer(self, text: str) -> None:
        """Print the answer to `text` as it comes, and what is to be said about it."""
        pieces = self.reply_to(text)
        interrupted = False
        try:
            with closing(pieces):
                for piece in pieces:
                    self.show(piece)
        except KeyboardInterrupt:
            if not self.at_terminal:
                raise
            interrupted = True
        print(flush=True)
        turn = self.conversation.turns[-1] if self.conversation.turns else None
        if interrupted:
            self.note("stopped")
        elif turn and not turn.answer.strip():
            self.note("the model ended its answer at once")
        elif turn and turn.ending == "length":
            self.note(f"cut off after {self.sampling.max_tokens} tokens; /tokens V allows more")
        self.note_forgotten()

    def note_forgotten(self) -> None:
        """Say of the last answer what the model could not read, or not to the end."""
        talk = self.conversation
        unread = talk.turns[-1].unread if talk.turns else 0
        if unread:
            self.note(f"too long for a context of {talk.max_len}: the first {unread} tokens unread")
        elif talk.overflowed:
            self.note("the context is full: the beginning of the conversation is forgotten")

    def reply_to(self, text: str) -> Generator[Piece, None, None]:
        """The answer to a question, or a text that goes on (with the text itself before it).

        On a corpus with a dialogue, everything is a question but what begins a document of an
        instrument ("Once upon a time"). On other corpora nothing is. What is read is what was
        typed, to the byte, or it is said.
        """
        typed, talk, dialogue = text, self.conversation, self.conversation.dialogue
        text = well_formed(text)
        self._note_unknown(text)
        question = False
        if dialogue is not None:
            text, question = self._meant(text, dialogue)
        if text != typed:
            self.note(f"read as: {text}")
        if question:
            yield from _without_first_space(talk.ask(text, self.sampling))
            return
        if dialogue is not None and talk.turns:
            self.note("a new text begins: what was said before is forgotten")
        if dialogue is None:
            self._note_last_space(text)
        if not text and not talk.turns:
            text = talk.reading.opening
        answer = talk.go_on(text, self.sampling)
        if text:
            yield Piece(text, None)
        yield from answer

    def _meant(self, text: str, dialogue: Dialogue) -> tuple[str, bool]:
        """The text as the corpus would write it, without its markers; whether it is a question."""
        if text.lstrip().startswith(dialogue.user.strip()):  # which somebody typed, too
            text = text.lstrip().removeprefix(dialogue.user.strip()).lstrip()
        if self.instrument is None:
            return text, bool(text)
        text = text.strip()
        if not text or judge.opens_document(self.instrument, dialogue, text):
            return text, False
        return judge.completed(self.instrument, dialogue, self.conversation.turns, text), True

    def show(self, piece: Piece) -> None:
        """Print a piece of an answer, harmless where a terminal shows it."""
        text = shown(piece.text, sys.stdout)
        if self.confidence and piece.probability is not None:
            text = colour.by_confidence(text, piece.probability)
        print(text, end="", flush=True)

    def note(self, text: str) -> None:
        """Something about an answer, told apart from it."""
        line = shown(f"({text})", sys.stdout if self.at_terminal else sys.stderr)
        if self.at_terminal:
            print(colour.dim(line) if self.colours else line, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _note_unknown(self, text: str) -> None:
        unknown = " ".join(dict.fromkeys(lacking(self._tokenizer, text)))
        if unknown:
            self.note(f"the model's vocabulary lacks {unknown}, which it reads as “unknown”")

    def _note_last_space(self, text: str) -> None:
        ids = self._tokenizer.encode(text)
        if text.endswith(" ") and self._tokenizer.encode(f"{text}a")[: len(ids)] != ids:
            self.note("the last space is a word's first letter to this model: better without it")

    # -- commands --------------------------------------------------------------------------------

    def _command(self, line: str) -> None:
        """Do what a line like `/temp 0.5` says; its answer is one line (a few for /help)."""
        name, _, value = line[1:].partition(" ")
        value = value.strip()
        settings = self.sampling
        match name.lower():
            case "help":
                print(HELP.format(**vars(settings)))
            case "temp":
                self._set("temperature", "temperature", temperature, value)
            case "topk":
                self._set("top-k", "top_k", count, value)
            case "tokens":
                self._set("longest answer", "max_tokens", count, value)
            case "reset":
                self.conversation.reset()
                print("forgotten: the conversation begins anew")
            case "confidence":
                self._toggle_confidence(value)
            case "check":
                print(shown(self._verdict(), sys.stdout))
            case _:
                guess = nearest(name, COMMANDS)
                hint = f"did you mean /{guess}?" if guess else "/help lists the commands"
                print(f"there is no /{name}; {hint}")
        sys.stdout.flush()

    def _set(self, label: str, key: str, read: Callable[[str], float], value: str) -> None:
        try:
            if value:
                setattr(self.sampling, key, read(value))
            print(f"{label}: {getattr(self.sampling, key)}")
        except Refused as refusal:
            print(f"{label} {refusal}")

    def _toggle_confidence(self, value: str) -> None:
        if value not in ("", "on", "off"):
            print(f"/confidence takes on or off, not {value!r}")
        elif value == "off" or (not value and self.confidence):
            self.confidence = False
            print("answers are plain again")
        elif not self.colours:
            print("no colours here (NO_COLOR, or no terminal); FORCE_COLOR=1 turns them on")
        else:
            self.confidence = True
            print(colour.legend())

    def _verdict(self) -> str:
        if self.instrument is None:
            return "only a corpus that knows its own language can tell (data=tinytown does)"
        return judge.verdict(self.instrument, self.conversation.turns)


def _without_first_space(pieces: Generator[Piece, None, None]) -> Generator[Piece, None, None]:
    """Without the space that stands between a marker ("A:") and an answer; indentation stays."""
    begun = False
    with closing(pieces):
        for piece in pieces:
            text = piece.text if begun else piece.text.removeprefix(" ")
            begun = True
            if text:
                yield Piece(text, piece.probability)
