"""What an instrument says of a conversation: is the last answer right, and what could be a turn?

An instrument reads whole documents. A text that ends early is the beginning of one, and no error.
"""

from collections.abc import Sequence

from llm.data.corpus import Dialogue, Instrument, Outside
from llm.generate.conversation import Turn


def wrong_word(corpus: Instrument, text: str) -> Outside | None:
    """The first word of `text` that leaves the language; None where it only ends early."""
    outside = corpus.score(text).outside
    return outside if outside is not None and outside.piece else None


def opens_document(corpus: Instrument, dialogue: Dialogue, text: str) -> bool:
    """Whether `text` is the beginning of a document ("Once upon a time") and not a question.

    It is, where it stays in the language for longer as a beginning than as a question. What ends
    in a question mark is a question.
    """
    if text.endswith("?"):
        return False

    def reach(before: str) -> int:
        outside = wrong_word(corpus, before + text)
        return len(text) if outside is None else outside.position - len(before)

    return reach("") > max(0, reach(dialogue.user))


def completed(corpus: Instrument, dialogue: Dialogue, turns: Sequence[Turn], text: str) -> str:
    """`text` as the language would write it: "tell me a story" is "Tell me a story."."""
    kept, _ = _sorted_out(corpus, turns)
    capital = text[:1].upper() + text[1:]
    for candidate in (text, *(capital + mark for mark in ("", ".", "?", "!"))):
        turn = dialogue.user + candidate + dialogue.assistant
        if wrong_word(corpus, _text(kept) + turn) is None:
            return candidate
    return text


def verdict(corpus: Instrument, turns: Sequence[Turn]) -> str:
    """One line on the last answer.

    Earlier turns that left the language would hide it. Wrong answers to which there is a right one
    are taken for that; other strange turns are left aside where the rest is right without them,
    and else nothing can be said.
    """
    if not turns:
        return "nothing has been said yet"
    last = turns[-1]
    kept, strange = _sorted_out(corpus, turns[:-1])
    before = _text(kept)
    fault = _fault(corpus, before, last)
    if fault is not None and strange:
        said = _excerpt(_own(corpus, strange[0].prompt) + strange[0].answer)
        return (
            f"cannot say: “{said}” was not all in the language, and what follows may depend on it; "
            "/reset begins anew"
        )
    if fault is None:
        without = " (leaving aside what was not in the language before)" if strange else ""
        if last.cut_off:
            return f"right as far as it goes: the answer was cut off{without}"
        return f"right: every word of the answer is in the language{without}"
    place = fault.position - len(before)
    expected = ", ".join(f"“{_shown(piece)}”" for piece in fault.expected)
    if place < len(last.prompt):
        said = _marked(_own(corpus, last.prompt[:place]), fault.piece)
        return f"cannot say: your own words left the language: {said}; it has {expected} there"
    begun = len(last.prompt) if _is_question(corpus, last) else 0
    said = _marked(last.text[begun:place], fault.piece)
    right = _right_answer(corpus, before + last.prompt)
    if right:
        return f"wrong: {said}; right is “{right.strip()}”"
    return f"wrong: {said}; there could have stood {expected}"


def _sorted_out(corpus: Instrument, turns: Sequence[Turn]) -> tuple[list[Turn], list[Turn]]:
    """The turns that are in the language, one after another, and those that are not.

    Among the first are wrong and unfinished answers too, as they should have been.
    """
    kept: list[Turn] = []
    strange: list[Turn] = []
    for turn in turns:
        before = _text(kept)
        # Behind an unfinished line of a dialogue nothing else can be read.
        unfinished = turn.cut_off and corpus.dialogue is not None
        if not unfinished and _fault(corpus, before, turn) is None:
            kept.append(turn)
        elif (right := _right_answer(corpus, before + turn.prompt)) is not None:
            kept.append(Turn(turn.prompt, right, "stop"))
        else:
            strange.append(turn)
    return kept, strange


def _right_answer(corpus: Instrument, before: str) -> str | None:
    """The answer that must follow, with its `stop`; None where there is more than one, or none."""
    if corpus.dialogue is None or not before.endswith(corpus.dialogue.assistant):
        return None
    answer = ""
    while not answer.endswith(corpus.dialogue.stop):
        outside = corpus.score(before + answer).outside
        if (
            outside is None
            or outside.piece
            or len(outside.expected) != 1
            or not outside.expected[0]
        ):
            return None
        answer += outside.expected[0]
    return answer


def _is_question(corpus: Instrument, turn: Turn) -> bool:
    return corpus.dialogue is not None and turn.prompt.startswith(corpus.dialogue.user)


def _fault(corpus: Instrument, before: str, turn: Turn) -> Outside | None:
    """Where `turn` leaves the language, if it does. A last word that was cut off is not judged."""
    outside = corpus.score(before + turn.text).outside
    if outside is None:
        return None
    at_end = outside.position + len(outside.piece) == len(before + turn.text)
    if at_end and turn.cut_off:
        return None
    if not outside.piece and turn.ending == "stop":
        return None  # the line is over, and the document goes on
    return outside


def _text(turns: Sequence[Turn]) -> str:
    return "".join(turn.text for turn in turns)


def _own(corpus: Instrument, prompt: str) -> str:
    """What somebody typed, without the markers around it."""
    if corpus.dialogue is None:
        return prompt
    return prompt.removeprefix(corpus.dialogue.user).removesuffix(corpus.dialogue.assistant)


def _marked(before: str, piece: str) -> str:
    """The last words before a wrong one, and that in brackets."""
    return f"{' '.join(before.split()[-8:])} [{_shown(piece)}]".strip()


def _shown(piece: str) -> str:
    """A piece as it is named in a sentence."""
    return piece.strip() or {"": "the end", "\n": "a new line"}.get(piece, "a space")


def _excerpt(text: str) -> str:
    words = text.split()
    return " ".join(words[:6]) + (" …" if len(words) > 6 else "")
