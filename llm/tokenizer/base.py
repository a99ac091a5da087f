"""What a tokenizer is to the rest of the house, and the little that all of them share."""

import importlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from llm.config.errors import Refused


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back.

    Built from its YAML node, whose arguments all have defaults; `fit` completes those whose
    vocabulary comes from the corpus. A fitted tokenizer is described entirely by `state()`, which
    run directories and prepared data carry, and from which `restore` makes it again without the
    corpus. Text with lone surrogates, which is no Unicode, is mended first (`well_formed`). A
    tokenizer that cannot write every text has `unk`, the id of any character that it lacks.
    """

    #: Number of ids, the end-of-text id included. 0 until fitted.
    vocab_size: int
    #: The id that ends every document (and stands before the first one).
    eot: int
    #: True where `fit` must see the corpus before the first `encode`.
    needs_fit: bool

    def fit(self, texts: Iterable[str], pieces: list[str] | None) -> None:
        """Choose the vocabulary from the corpus, or from `pieces` where the corpus lists them.

        `texts` are those of the training split, read as they are asked for; of all splits where
        the class has `fits_every_split = True`.
        """

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without the end-of-text id.

        Text never makes the end-of-text id: what looks like it is ordinary text.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are not valid UTF-8 become U+FFFD, end-of-text nothing."""

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that one id stands for; b"" for end-of-text."""

    def state(self) -> dict[str, object]:
        """JSON facts that determine every id."""

    def restore(self, state: dict[str, object]) -> None:
        """Become the tokenizer that `state` describes."""


class ArrayTokenizer:
    """A tokenizer whose quick way is `encode_array`: (n,) uint32, as preparation wants it."""

    def encode_array(self, text: str) -> np.ndarray:
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.encode_array(text).tolist()
        return ids


def array_of(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """`tokenizer.encode(text)` as an array, the quick way where it has one."""
    quick = getattr(tokenizer, "encode_array", tokenizer.encode)
    return np.asarray(quick(text))


def lacking(tokenizer: Tokenizer, text: str) -> list[str]:
    """The characters of `text` that the vocabulary lacks, each occurrence, in order."""
    unknown = getattr(tokenizer, "unk", None)

    def is_whole(part: str) -> bool:
        ids = array_of(tokenizer, part)
        return unknown not in ids and tokenizer.decode(ids) == part

    text = well_formed(text)
    if is_whole(text):
        return []
    lacks = {character for character in set(text) if not is_whole(character)}
    return [character for character in text if character in lacks]


def well_formed(text: str) -> str:
    """`text` as UTF-8 can carry it: surrogate pairs joined, lone ones replaced by U+FFFD.

    JSON may bring such strings ("\\ud83d" is half of an emoji that somebody cut).
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def text_of(table: Sequence[bytes], ids: Iterable[int]) -> str:
    """The text of `ids`, where `table[i]` is the bytes of id i. Raises IndexError outside it."""
    numbers = np.asarray(ids if hasattr(ids, "__len__") else list(ids), dtype=np.int64)
    if numbers.size and (numbers.min() < 0 or numbers.max() >= len(table)):
        raise IndexError(f"ids lie outside this vocabulary of {len(table)}")
    return b"".join([table[i] for i in numbers.tolist()]).decode("utf-8", "replace")


# White space as Unicode defines it (Python adds U+001C to U+001F), before anything else.
_LAST_SPACE = re.compile(r"[^\S\x1c-\x1f](?=[\S\x1c-\x1f])")


def stretches(text: str, length: int) -> Iterator[str]:
    """Cut `text` into stretches of `length` characters, each going on to the next word's end.

    A cut lies before the last white-space character ahead of something else. No piece of `PIECES`
    or of GPT-2's pattern lies across such a place, nor does a look-ahead there change its left
    side, so pieces of the stretches are exactly the pieces of the text. Without such a place ahead
    the rest is one stretch.
    """
    start = 0
    while len(text) - start > length:
        cut = _LAST_SPACE.search(text, start + length)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


FILE = "vocabulary.json"
FORMAT = 1


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `vocabulary.json` into `folder`: the format, the class and the state; atomic."""
    kind = type(tokenizer)
    content = {
        "format": FORMAT,
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "state": tokenizer.state(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{FILE}.{os.getpid()}"
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="ascii", newline="\n")
    unfinished.replace(folder / FILE)


def load(folder: Path, plugins: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`.

    The file may come from anybody: it chooses a class of `llm.tokenizer`, or of a package that the
    person at the command line named in `plugins`, and nothing in it is executed. Raises `Refused`.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        made_by, name, state = content["format"], content["class"], content["state"]
    except FileNotFoundError:
        raise Refused(f"{path} does not exist; a finished run has it in its tokenizer/") from None
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{path} is not a vocabulary; copy it again, or prepare the data") from None
    if made_by != FORMAT:
        raise Refused(
            f"{path} has format {made_by!r}, this version reads {FORMAT}; open it with the version "
            "of My Simple LLM that wrote it"
        )
    kind = _class(path, name, plugins)
    try:
        tokenizer = kind()
        tokenizer.restore(state)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Refused(f"{path} is not a vocabulary of {name}; prepare the data again") from None
    return tokenizer


def _class(path: Path, name: object, plugins: Sequence[str]) -> type[Tokenizer]:
    allowed = ["llm.tokenizer", *plugins]
    if not isinstance(name, str) or not any(name.startswith(f"{room}.") for room in allowed):
        raise Refused(
            f"{path} names the class {name!r}, which is not one of My Simple LLM's; if you trust "
            "its package, name it in plugins=[…]"
        )
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        raise Refused(f"{path} names the class {name!r}, which does not exist here") from None
    # Only what that module itself defines as a tokenizer, not what it happens to import.
    if not (isinstance(found, type) and found.__module__ == module and hasattr(found, "restore")):
        raise Refused(f"{path} names {name!r}, which is no tokenizer")
    return found
