"""Which text is held out: decided by the hash of each document, so the same on every machine."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping

from llm.data import checksums
from llm.data.corpus import Document
from llm.data.survey import Moves, Survey, is_off, key_of
from llm.data.texts import Stretch


class HeldOut:
    """Training and held-out text of a corpus.

    A document is held out where the hash of its text lies below the fraction: adding documents
    moves none, and copies stay together. Where documents are so few or so unlike in size that this
    holds out another share of the text, the largest ones make up for it (`llm.data.survey`): they
    change sides, and the last of them is cut, its end held out. A corpus of one document is cut.

    Args:
        read: the texts, from the first one on, each time it is called
        fraction: share of the text that is held out, in bytes of UTF-8
    """

    def __init__(self, read: Callable[[], Iterator[Stretch]], fraction: float):
        self.read, self.fraction = read, fraction
        self._name = ""  # of the text, in the memory of surveys
        self._found: Moves | None = None

    def moves(self) -> Moves:
        """Where documents go against their hash; found out where it is not known yet."""
        return self._found or self.survey()

    def described(self, facts: dict[str, object], unread: bool = False) -> dict[str, object]:
        """The facts of a corpus, with the documents that changed sides.

        Args:
            unread: to say only what an earlier survey found
        """
        name = "held out " + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        if name != self._name:
            self._name, known = name, checksums.recalled(name)
            self._found = Moves(*known) if known else None
        if (unread and self._found is None) or not self.moves().described:
            return facts
        return {**facts, "moved": self.moves().kept}

    def survey(self, complete: bool = False) -> Moves:
        """Read as much of the text as it takes to be certain of the share, or all of it."""
        self._found = Survey(self.read, self.fraction, complete).moves()
        if self._name:
            checksums.remember(self._name, list(self._found))
        return self._found

    def missed(self, counts: Mapping[str, Mapping[str, int]]) -> bool:
        """Whether another share was held out, since the survey ended too soon.

        Args:
            counts: `bytes` of each split, as prepared
        """
        held, trained = counts["val"]["bytes"], counts["train"]["bytes"]
        return not self.moves().complete and is_off(held, held + trained, self.fraction)

    def documents(self) -> Iterator[Document]:
        """All documents, one that is cut as two."""
        moved = {int(key, 16): math.inf if n is None else n for key, n in self.moves().kept.items()}
        key, end, inside, kept = 0, 0, False, 0.0
        for text, more in self.read():
            if not inside:
                key, end = key_of(text), 0
                kept = moved.get(key, 0 if key / 2**64 < self.fraction else math.inf)
            inside, begin, end = more, end, end + len(text)
            if kept <= begin:
                yield Document(text, "val", more, key)
            elif kept >= end:
                yield Document(text, "train", more and kept > end, key)
            else:
                yield Document(text[: int(kept) - begin], "train", False, key)
                yield Document(text[int(kept) - begin :], "val", more, key)
