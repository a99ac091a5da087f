"""English that every Python carries: the language reference in `pydoc_data.topics`."""

import hashlib
from collections.abc import Iterator

from llm.config.types import ProperFraction
from llm.data.corpus import Dialogue, Document
from llm.data.splits import HeldOut
from llm.data.texts import Stretch


class Pydoc:
    """One document a topic of `help()`, about half a megabyte; differs between Python versions."""

    pieces: list[str] | None = None
    dialogue: Dialogue | None = None

    def __init__(self, *, val_fraction: ProperFraction):
        self.val_fraction = val_fraction
        self.held_out = HeldOut(lambda: map(Stretch, self._texts()), val_fraction)

    def _texts(self) -> list[str]:
        from pydoc_data.topics import topics

        return [topics[name] for name in sorted(topics)]

    def describe(self) -> dict[str, object]:
        digest = hashlib.sha256("\0".join(self._texts()).encode()).hexdigest()
        facts = {"corpus": "pydoc", "sha256": digest, "val_fraction": self.val_fraction}
        return self.held_out.described(facts)

    def documents(self) -> Iterator[Document]:
        return self.held_out.documents()
