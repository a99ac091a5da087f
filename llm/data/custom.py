"""Text that people bring: files, folders, globs."""

import codecs
import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from llm.config.errors import Refused
from llm.config.types import UNRECORDED, Between
from llm.data.account import Account
from llm.data.checksums import sha256_of_text
from llm.data.corpus import Dialogue, Document
from llm.data.duplicates import Copies
from llm.data.files import USUAL, TextFile
from llm.data.search import PACKED, Found, kind_of, places, search
from llm.data.splits import HeldOut
from llm.data.texts import Stretch, without_empty


class Custom:
    """The text under `path`.

    A .txt or .md file is one document, or several where it holds `<|endoftext|>`; each line of a
    .jsonl file, each element of the array in a .json file and each row of a .csv, .tsv or .parquet
    file is one, its text in `text_column`. Empty ones (and null) are left out; half a surrogate
    pair, as a JSON escape can make it, becomes U+FFFD.

    Args:
        path: a file, a folder that is searched with its subfolders, or a glob such as
            "texts/**/*.txt"
        suffixes: what a folder is searched for, `[.py,.rs]`; null for the usual kinds of text
        text_column: the field that holds the text; `a.b` for the field b of a field a
        val_fraction: share of the text held out: documents chosen by their hash, and where these
            hold too much or too little, the end of the largest
        drop_duplicates: whether exact copies of earlier documents are left out
        encoding: of files without a byte order mark, for example latin-1; null for UTF-8
        on_encoding_error: `refuse` bytes that mean nothing in it, or `replace` them by U+FFFD
    """

    pieces: list[str] | None = None
    dialogue: Dialogue | None = None

    def __init__(
        self,
        *,
        path: Annotated[str | None, UNRECORDED],
        suffixes: Annotated[list[str] | None, UNRECORDED] = None,
        text_column: str,
        val_fraction: Annotated[float, Between(0, 1, True, True)],
        drop_duplicates: bool = False,
        encoding: Annotated[str | None, UNRECORDED] = None,
        on_encoding_error: Literal["refuse", "replace"] = "refuse",
    ):
        if path is None:
            raise Refused("name your text: data.path=FILE_OR_FOLDER", "path")
        self.paths = places(path)
        if not self.paths:
            raise Refused(f"there is no {path}", "path")
        self.path, self.text_column, self.val_fraction = path, text_column, val_fraction
        self.drop_duplicates, self.on_encoding_error = drop_duplicates, on_encoding_error
        self.encoding = None if encoding is None else _codec(encoding)
        usual = (*USUAL, ".json") if self.paths[0].is_file() else USUAL
        self.kinds = usual if suffixes is None else tuple(map(_suffix, suffixes))
        self.account = Account()
        self.held_out = HeldOut(self._texts, val_fraction)

    def found(self) -> Found:
        """The files that are read, and those that are not."""
        try:
            found = search(self.paths, self.kinds)
        except OSError as error:
            raise _unreadable(error) from None
        if not found.files:
            what = self.path if self.paths[0].is_file() else f"in {self.path}"
            reads = f"{', '.join(self.kinds)}, also with {', '.join(PACKED)}"
            there = next((kind for kind in found.passed_over if kind.startswith(".")), ".py")
            remedy = f"data.suffixes=[{there}] reads others as plain text"
            raise Refused(f"no text found: {what}; it reads {reads}; {remedy}", "data.path")
        return found

    def describe(self) -> dict[str, object]:
        digest = hashlib.sha256()
        for file in self.found().files:
            # The suffixes decide how the bytes are read.
            suffixes = "".join(file.suffixes[-2:] if file.suffix.lower() in PACKED else file.suffix)
            digest.update(suffixes.lower().encode())
            try:
                digest.update(bytes.fromhex(sha256_of_text(file)))
            except OSError as error:
                raise _unreadable(error) from None
        facts: dict[str, object] = {
            "corpus": "custom",
            "sha256": digest.hexdigest(),
            "text_column": self.text_column,
            "val_fraction": self.val_fraction,
            "drop_duplicates": self.drop_duplicates,
            "on_encoding_error": self.on_encoding_error,
        }
        if self.encoding not in (None, "utf-8"):
            facts["encoding"] = self.encoding
        return self.held_out.described(facts)

    def documents(self) -> Iterator[Document]:
        return self.held_out.documents()

    def _texts(self) -> Iterator[Stretch]:
        counts: Counter[str] = Counter()
        found = self.found()
        texts = self._every_text(found.files, counts)
        if self.drop_duplicates:
            counts["duplicates"] = self._copies.count
            texts = self._copies.dropped_from(texts)
        yield from texts
        read = Counter(map(kind_of, found.files))
        self.account = Account(dict(read), *found[1:], dict(counts))

    def _every_text(self, files: list[Path], counts: Counter[str]) -> Iterator[Stretch]:
        replaced = counts if self.on_encoding_error == "replace" else None
        for file in files:
            text_file = TextFile(file, self.text_column, self.encoding, replaced)
            yield from without_empty(text_file.stretches(), counts)

    @cached_property
    def _copies(self) -> Copies:
        return Copies(self._every_text(self.found().files, Counter()))


def _unreadable(error: OSError) -> Refused:
    remedy = "make it readable, or name what to read: data.path=GLOB"
    return Refused(f"{error.filename} cannot be read ({error.strerror}); {remedy}", "data.path")


def _suffix(typed: str) -> str:
    return f".{typed.lower().removeprefix('.')}" if typed else ""


def _codec(encoding: str) -> str:
    """The one name that Python has for an encoding."""
    try:
        if not isinstance(codecs.getincrementaldecoder(encoding)().decode(b"", True), str):
            raise LookupError
    except (LookupError, TypeError, ValueError):
        known = "latin-1, cp1252, utf-16, shift_jis, …"
        raise Refused(
            f"{encoding!r} is no encoding that Python knows ({known})", "encoding"
        ) from None
    return codecs.lookup(encoding).name
