"""A conversation as one document: what was said, what the model still sees of it, what comes next.

On a corpus with a `Dialogue` a turn is a question and its answer, written with the corpus's own
markers; without one, every line typed goes on with the text.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from llm.data.batches import mix
from llm.generate.engine import Engine
from llm.generate.stream import check_length, stream
from llm.model.transformer import Transformer
from llm.reading import Reading
from llm.tokenizer.base import well_formed
from llm.tokenizer.stream import StreamDecoder

#: Why an answer is over: its own end, the end of the document, or cut off.
Ending = Literal["stop", "end of text", "length", "interrupted"]


class Piece(NamedTuple):
    """Some text of an answer, as soon as it is certain to belong to it."""

    text: str
    probability: float | None  # the model's own; of several tokens the least, None if typed


@dataclass
class Sampling:
    """How the next token is drawn, and how many there are at most."""

    max_tokens: int
    temperature: float
    top_k: int | None


@dataclass
class Turn:
    """What stands in the document: the prompt with its markers, the answer with its `stop`."""

    prompt: str
    answer: str = ""
    ending: Ending = "interrupted"
    unread: int = 0  # the first so many tokens of the prompt did not fit into the context

    @property
    def text(self) -> str:
        return self.prompt + self.answer

    @property
    def cut_off(self) -> bool:
        return self.ending in ("length", "interrupted")


class Conversation:
    """Turns, and a model that has read as many of the last ones as its context holds.

    When the context is full, whole turns go from its front, until a quarter of it is free; only of
    a turn that is too long by itself the beginning goes.

    Args:
        cuts: a prompt that is longer than the context is read from where it fits; otherwise it is
            refused
    """

    def __init__(
        self,
        model: Transformer,
        reading: Reading,
        seed: int,
        cuts: bool = True,
    ):
        self.reading, self.dialogue = reading, reading.dialogue
        self.turns: list[Turn] = []
        self.forgotten = 0  # of these turns, so many are no longer in the context
        self.overflowed = False  # during the last answer: something is no longer in the context
        self._engine = Engine(model, 1, allowed_V=reading.allowed_V)
        self.max_len = self._engine.max_len
        self.cuts = cuts
        self._tokenizer, self._seed, self._answers = reading.tokenizer, seed, 0
        self._ids: list[list[int]] = []  # of each turn that is over

    def reset(self) -> None:
        """Forget everything that was said."""
        self.turns, self._ids, self.forgotten = [], [], 0

    def ask(self, question: str, sampling: Sampling) -> Generator[Piece, None, None]:
        """The answer to `question`, without its `stop`. Needs a dialogue."""
        assert self.dialogue is not None
        prompt = self.dialogue.user + well_formed(question) + self.dialogue.assistant
        return self._answer(Turn(prompt), sampling)

    def go_on(self, text: str, sampling: Sampling) -> Generator[Piece, None, None]:
        """What follows `text`; on a corpus with a dialogue a new document begins with it."""
        text = well_formed(text)
        if self.dialogue is not None:
            self.reset()
        elif self.turns and text and not self.turns[-1].text.endswith("\n"):
            text = "\n" + text
        return self._answer(Turn(text), sampling)

    def _answer(self, turn: Turn, sampling: Sampling) -> Generator[Piece, None, None]:
        """The answer, as far as somebody asks for it; Refused at once where the prompt is."""
        self.overflowed = False
        prompt = self._encode(turn.prompt)
        context = self._context(prompt)
        if len(context) > self.max_len:
            context = self._make_room(context)
        if len(context) > self.max_len:
            turn.unread = max(0, len(prompt) - self.max_len) if self.cuts else 0
            context = prompt[turn.unread :]
        check_length(context, self.max_len)
        return self._written(turn, context, sampling)

    def _written(
        self, turn: Turn, context: list[int], sampling: Sampling
    ) -> Generator[Piece, None, None]:
        """Yields the answer; however it ends, also when nobody asks for more, it is recorded."""
        stop = self.dialogue.stop if self.dialogue else ""
        decoder, least = StreamDecoder(self._tokenizer), 1.0
        said = ""  # everything so far, the first `shown` characters of it yielded
        shown = 0
        self.turns.append(turn)
        self._answers += 1
        try:
            tokens = stream(
                self._engine,
                context,
                sampling.max_tokens,
                sampling.temperature,
                sampling.top_k,
                mix(self._seed, self._answers),
                self._shorten,
            )
            for token, probability in tokens:
                if token == self._tokenizer.eot:
                    turn.ending = "end of text"
                    break
                said += decoder.push(token)
                turn.answer = said
                least = min(least, probability)
                end = said.find(stop) if stop else -1
                certain = len(said) - _overlap(said, stop) if end < 0 else end
                if certain > shown:
                    yield Piece(said[shown:certain], least)
                    shown, least = certain, 1.0
                if end >= 0:
                    turn.answer, turn.ending = said[: end + len(stop)], "stop"
                    break
            else:
                turn.ending = "length"
            if turn.ending != "stop":
                said += decoder.finish()
                turn.answer = said
                if len(said) > shown:
                    yield Piece(said[shown:], least)
        finally:
            # The next turn begins behind a `stop`, also where the model did not write it.
            missing = "" if turn.ending == "stop" else stop
            self._ids.append(self._encode(turn.text + missing))

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def _context(self, last: list[int]) -> list[int]:
        """The turns that are still remembered, begun as in training."""
        earlier = [i for ids in self._ids[self.forgotten :] for i in ids]
        return self.reading.prompt([*earlier, *last])

    def _shorten(self, context: list[int], max_len: int) -> list[int]:
        """What is kept where an answer does not fit any more: three quarters at most."""
        context = self._make_room(context)
        self.overflowed = True
        return context if len(context) <= max_len else context[-max(1, max_len * 3 // 4) :]

    def _make_room(self, context: list[int]) -> list[int]:
        """Drop whole turns from the front, until a quarter is free or the last one is alone."""
        begun = len(self.reading.prompt([0])) - 1  # by the start id, or not
        while len(context) > max(2, self.max_len * 3 // 4) and self.forgotten < len(self._ids):
            gone = len(self._ids[self.forgotten])
            context = [*context[:begun], *context[begun + gone :]]
            self.forgotten += 1
            self.overflowed = True
        return context


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
