"""Parts of a mixture, none of which trains on what another one holds out."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from llm.config.errors import Refused
from llm.data.account import Account
from llm.data.corpus import Corpus, Document
from llm.data.prepare import Prepared
from llm.data.survey import among, key_of


class Apart:
    """A corpus without the training text that others hold out.

    Args:
        corpus: the whole of it
        kept: of a document's key, how many of its characters nobody holds out
    """

    def __init__(self, corpus: Corpus, kept: Mapping[int, int]):
        self.corpus, self.kept = corpus, kept
        self.pieces, self.dialogue = corpus.pieces, corpus.dialogue
        self.held_out = getattr(corpus, "held_out", None)
        self.account = Account()

    def describe(self) -> dict[str, object]:
        kept = json.dumps(sorted(self.kept.items())).encode()
        return {**self.corpus.describe(), "apart": hashlib.sha256(kept).hexdigest()[:16]}

    def documents(self) -> Iterator[Document]:
        kept, end, inside, n_held = math.inf, 0, False, 0
        for document in self.corpus.documents():
            if not inside:
                key = key_of(document.text) if document.key is None else document.key
                kept, end = math.inf, 0
                if document.split == "train" and key in self.kept:
                    kept, n_held = self.kept[key], n_held + 1
            inside, begin, end = document.more, end, end + len(document.text)
            if end <= kept:
                yield document._replace(more=document.more and kept > end)
            elif begin < kept:
                yield document._replace(text=document.text[: int(kept) - begin], more=False)
        account: Account = getattr(self.corpus, "account", Account())
        left_out = {**account.left_out, "held out by another part": n_held}
        self.account = replace(account, left_out=left_out)


def shared(name: str, parts: Mapping[str, Prepared]) -> dict[int, int] | None:
    """Training documents of a part that others hold out.

    Refused where these are all.

    Returns:
        by key, how many characters of each nobody holds out; None where that is not known, as of a
        corpus that an earlier version prepared
    """
    kept: dict[int, int] = {}
    trained, cut = parts[name].keys("train"), parts[name].manifest.get("cut", {})
    if trained is None:
        return None
    for other in (part for part_name, part in parts.items() if part_name != name):
        columns = [other.keys(split) for split in other.splits if split != "train"]
        known = [column for column in columns if column is not None]
        if len(known) < len(columns):
            return None
        for key in np.unique(among(trained, known)).tolist():
            n_characters = other.manifest["cut"].get(f"{key:016x}", 0)
            if cut.get(f"{key:016x}", math.inf) > n_characters:
                kept[key] = min(kept.get(key, n_characters), n_characters)
    if kept and not any(kept.values()) and len(kept) == len(np.unique(trained)):
        text = "all of its training text is held out by other parts"
        raise Refused(f"{text}; leave it out, or give it no weight", f"data.parts.{name}")
    return kept
