"""The documents of a corpus as they were before they were split."""

from llm.data.corpus import Corpus


def whole_documents(corpus: Corpus) -> list[str]:
    """Each with its stretches, and the two sides of one that was cut, together."""
    texts: list[str] = []
    before = None
    for document in corpus.documents():
        goes_on = before is not None and (
            before.more
            or (before.key == document.key and (before.split, document.split) == ("train", "val"))
        )
        if goes_on:
            texts[-1] += document.text
        else:
            texts.append(document.text)
        before = document
    return texts
