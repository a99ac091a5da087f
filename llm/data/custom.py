"""Text that people bring: files, folders, globs."""

import glob
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
from llm.data.files import PACKED, SUFFIXES, TextFile, kind_of
from llm.data.splits import HeldOut
from llm.data.texts import Stretch, without_empty


class Custom:
    """The text under `path`, UTF-8.

    A .txt or .md file is one document, or several where it holds `<|endoftext|>`; each line of a
    .jsonl file and each row of a .csv or .parquet file is one, its text in `text_column`. Empty
    ones (and null) are left out; half a surrogate pair, as a JSON escape can make it, becomes
    U+FFFD.

    Args:
        path: a file, a folder that is searched with its subfolders, or a glob such as
            "texts/**/*.txt"
        text_column: the field that holds the text
        val_fraction: share of the text held out: documents chosen by their hash, and where these
            hold too much or too little, the end of the largest
        drop_duplicates: whether exact copies of earlier documents are left out
        on_encoding_error: `refuse` bytes that are no UTF-8, or `replace` them by U+FFFD
    """

    pieces: list[str] | None = None
    dialogue: Dialogue | None = None

    def __init__(
        self,
        *,
        path: Annotated[str | None, UNRECORDED],
        text_column: str,
        val_fraction: Annotated[float, Between(0, 1, True, True)],
        drop_duplicates: bool = False,
        on_encoding_error: Literal["refuse", "replace"] = "refuse",
    ):
        if path is None:
            raise Refused("name your text: data.path=FILE_OR_FOLDER", "path")
        self.paths = [Path(path).expanduser()]
        if not self.paths[0].exists():
            self.paths = [
                Path(found) for found in sorted(glob.glob(str(self.paths[0]), recursive=True))
            ]
        if not self.paths:
            raise Refused(f"there is no {path}", "path")
        self.path, self.text_column, self.val_fraction = path, text_column, val_fraction
        self.drop_duplicates, self.on_encoding_error = drop_duplicates, on_encoding_error
        self.account = Account()
        self.held_out = HeldOut(self._texts, val_fraction)

    def files(self) -> list[Path]:
        """Every file that is read, in the order of their names."""
        found: dict[Path, None] = {}
        for path in self.paths:
            inside = sorted(path.rglob("*")) if path.is_dir() else [path]
            found |= dict.fromkeys(f for f in inside if kind_of(f) and f.is_file())
        if not found:
            what = self.path if self.paths[0].is_file() else f"in {self.path}"
            reads = f"{', '.join(SUFFIXES)}, also with {' or '.join(PACKED)}"
            raise Refused(f"no text found: {what}; it reads {reads}", "data.path")
        return list(found)

    def describe(self) -> dict[str, object]:
        digest = hashlib.sha256()
        for file in self.files():
            # The suffixes decide how the bytes are read.
            suffixes = "".join(file.suffixes[-2:] if file.suffix.lower() in PACKED else file.suffix)
            digest.update(suffixes.lower().encode())
            digest.update(bytes.fromhex(sha256_of_text(file)))
        facts: dict[str, object] = {
            "corpus": "custom",
            "sha256": digest.hexdigest(),
            "text_column": self.text_column,
            "val_fraction": self.val_fraction,
            "drop_duplicates": self.drop_duplicates,
            "on_encoding_error": self.on_encoding_error,
        }
        return self.held_out.described(facts)

    def documents(self) -> Iterator[Document]:
        return self.held_out.documents()

    def _texts(self) -> Iterator[Stretch]:
        counts: Counter[str] = Counter()
        texts = self._every_text(counts)
        if self.drop_duplicates:
            counts["duplicates"] = self._copies.count
            texts = self._copies.dropped_from(texts)
        yield from texts
        self.account = Account(left_out=dict(counts))

    def _every_text(self, counts: Counter[str]) -> Iterator[Stretch]:
        replace = self.on_encoding_error == "replace"
        for file in self.files():
            text_file = TextFile(file, self.text_column, replace, counts)
            yield from without_empty(text_file.stretches())

    @cached_property
    def _copies(self) -> Copies:
        return Copies(self._every_text(Counter()))
