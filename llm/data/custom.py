"""Text that people bring: a file or a folder of .txt, .md and .jsonl."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from llm.config.errors import Refused
from llm.config.types import UNRECORDED, Between
from llm.data.corpus import Dialogue, Document
from llm.tokenizer.base import well_formed

SUFFIXES = (".txt", ".md", ".jsonl")
#: Stands between documents in some corpora's .txt files (TinyStories).
SEPARATOR = "<|endoftext|>"


class Custom:
    """The text under `path`, UTF-8.

    A .txt or .md file is one document, or several where it holds `<|endoftext|>`; each line of a
    .jsonl file is one, its text in `text_column`. Empty ones (and null) are left out; half a
    surrogate pair, as a JSON escape can make it, becomes U+FFFD.

    Args:
        path: a file, or a folder that is searched with its subfolders
        text_column: the field of a .jsonl line that holds the text
        val_fraction: share of the documents held out, chosen by their hash; where there is one
            document only, that share of its characters, from the end
    """

    pieces: list[str] | None = None
    dialogue: Dialogue | None = None

    def __init__(
        self,
        *,
        path: Annotated[str | None, UNRECORDED],
        text_column: str,
        val_fraction: Annotated[float, Between(0, 1, True, True)],
    ):
        if path is None:
            raise Refused("name your text: data.path=FILE_OR_FOLDER", "path")
        self.path = Path(path).expanduser()
        if not self.path.exists():
            raise Refused(f"there is no {path}", "path")
        self.text_column, self.val_fraction = text_column, val_fraction

    def files(self) -> list[Path]:
        """Every file that is read, in the order of their names."""
        if self.path.is_file():
            found = [self.path]
        else:
            found = sorted(f for f in self.path.rglob("*") if _reads(f) and f.is_file())
        if not found or not _reads(found[0]):
            what = found[0].name if found else f"in {self.path}"
            raise Refused(f"no text found: {what}; it reads {', '.join(SUFFIXES)}", "data.path")
        return found

    def describe(self) -> dict[str, object]:
        digest = hashlib.sha256()
        for file in self.files():
            # The suffix decides how the bytes are read.
            digest.update(file.suffix.lower().encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return {
            "corpus": "custom",
            "sha256": digest.hexdigest(),
            "text_column": self.text_column,
            "val_fraction": self.val_fraction,
        }

    def documents(self) -> Iterator[Document]:
        texts = (text for file in self.files() for text in self._texts(file) if text.strip())
        return split_documents(texts, self.val_fraction)

    def _texts(self, file: Path) -> Iterator[str]:
        content = file.read_bytes()
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            number = content[: error.start].count(b"\n") + 1
            problem = f"{file}, line {number}: is not UTF-8 ({error.reason})"
            raise Refused(problem, "data.path") from None
        # What Windows adds: a byte order mark in front, and its ends of lines.
        text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        if file.suffix.lower() != ".jsonl":
            yield from text.split(SEPARATOR)
            return
        # Not splitlines(), which also cuts at U+2028 and U+0085: JSON strings may hold these.
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)[self.text_column]
                if not isinstance(value, str | None):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                problem = f"{file}, line {number}: is no JSON object with a text in "
                problem += f"{self.text_column!r}; name its field: data.text_column"
                raise Refused(problem, "data.path") from None
            yield well_formed(value or "")


def _reads(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def split_documents(texts: Iterator[str], val_fraction: float) -> Iterator[Document]:
    """Hold out by hash of the text, so that adding documents moves none from side to side.

    A corpus of one document is cut instead, the end held out. Of a few documents, none may hash
    below the fraction: then the one with the smallest hash is held out.
    """
    collected: list[str] = []
    for text in texts:
        collected.append(text)
    if not collected:
        return
    if len(collected) == 1:
        cut = int(len(collected[0]) * (1 - val_fraction))
        yield Document(collected[0][:cut], "train")
        yield Document(collected[0][cut:], "val")
        return
    places = [_place(text) for text in collected]
    held_out = [place < val_fraction for place in places]
    if not any(held_out):
        held_out[places.index(min(places))] = True
    if all(held_out):
        held_out[places.index(max(places))] = False
    for text, val in zip(collected, held_out, strict=True):
        yield Document(text, "val" if val else "train")


def _place(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
