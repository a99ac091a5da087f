"""English that every Python carries: the language reference in `pydoc_data.topics`."""

import hashlib
from collections.abc import Iterator

from llm.config.types import ProperFraction
from llm.data.corpus import Dialogue, Document
from llm.data.splits import split_documents
from llm.data.texts import Stretch


class Pydoc:
    """One document a topic of `help()`, about half a megabyte; differs between Python versions."""

    pieces: list[str] | None = None
    dialogue: Dialogue | None = None

    def __init__(self, *, val_fraction: ProperFraction):
        self.val_fraction = val_fraction

    def _texts(self) -> list[str]:
        from pydoc_data.topics import topics

        return [topics[name] for name in sorted(topics)]

    def describe(self) -> dict[str, object]:
        digest = hashlib.sha256("\0".join(self._texts()).encode()).hexdigest()
        return {"corpus": "pydoc", "sha256": digest, "val_fraction": self.val_fraction}

    def documents(self) -> Iterator[Document]:
        return split_documents(lambda: map(Stretch, self._texts()), self.val_fraction)
