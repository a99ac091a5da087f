"""As much of the text is held out as was asked for, however its documents are cut."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.config.errors import Refused
from llm.data import survey
from llm.data.account import account_of
from llm.data.custom import Custom
from llm.data.prepare import prepare
from llm.data.splits import HeldOut
from llm.data.texts import Stretch, whole
from llm.tokenizer.bytes import Bytes

NODE = {"_target_": "llm.tokenizer.bytes.Bytes"}


def text_of(n_bytes: int, seed: int, alphabet: str = "abcdefgh") -> str:
    """Words, no two texts alike."""
    draw = random.Random(seed)
    words: list[str] = []
    left = n_bytes
    while left > 0:
        words.append("".join(draw.choices(alphabet, k=draw.randint(1, 12))))
        left -= 1 + len(words[-1].encode())
    return " ".join(words)


#: One, two, a few hundred; alike, or with a heavy tail.
SIZES = st.one_of(
    st.lists(st.integers(1, 4000), min_size=1, max_size=5),
    st.lists(st.floats(0, 4).map(lambda power: int(10**power)), min_size=2, max_size=40),
    st.tuples(st.integers(20, 300), st.integers(30, 300)).map(lambda case: [case[1]] * case[0]),
)


@settings(max_examples=50, deadline=None)
@given(SIZES, st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.9]), st.integers(0, 9), st.booleans())
@example([29_000, 51], 0.1, 0, False)  # a book and a README.md
@example([51, 29_000], 0.1, 1, False)
@example([2226, 2206, 649, 9474, 100, 177], 0.3, 4, False)  # too much by nearly one of them
@example([20_000] + [40] * 300, 0.1, 2, True)  # one long row of a .jsonl
def test_the_share_is_right_or_a_line_says_why_not(sizes, fraction, seed, greek):
    alphabet = "abcαβγ→" if greek else "abcdefgh"
    texts = [text_of(n, 1000 * seed + i, alphabet) for i, n in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm.data.texts.STRETCH", 3000)
        split = HeldOut(lambda: (s for text in texts for s in whole(text)), fraction)
        documents = list(split.documents())
    assert "".join(d.text for d in documents) == "".join(texts)
    held = sum(len(d.text.encode()) for d in documents if d.split == "val")
    total = sum(len(text.encode()) for text in texts)
    smaller = min(fraction, 1 - fraction) * total
    if abs(held - fraction * total) > 0.2 * smaller:
        assert "cannot be met with so little text" in split.moves().note
        assert smaller < 400
    # each document is closed, and goes to one side or ends on the other
    open_side = None
    for document in documents:
        assert open_side in (None, document.split)
        open_side = document.split if document.more else None


def test_a_split_that_was_fair_is_as_it_was():
    """Neither a word nor another fingerprint where the hash alone holds out enough."""
    texts = [text_of(200 + i, i) for i in range(400)]
    split = HeldOut(lambda: map(Stretch, texts), 0.1)
    below = {text for text in texts if survey.key_of(text) / 2**64 < 0.1}
    assert {d.text for d in split.documents() if d.split == "val"} == below
    assert split.described({"corpus": "x"}) == {"corpus": "x"} and not split.moves().note


def test_a_cut_is_between_words_and_never_in_a_character():
    book = text_of(30_000, 7, "äöü→😀")
    documents = HeldOut(lambda: map(Stretch, [book, "read me"]), 0.1).documents()
    head, tail = (document.text for document in documents if document.text != "read me")
    assert head + tail == book and tail.startswith(" ")


def test_a_large_document_that_comes_late_is_noticed(tmp_path, monkeypatch):
    """The beginning of the text is trusted; what was prepared is looked at."""
    monkeypatch.setattr(survey, "ENOUGH", 4)
    text = tmp_path / "text"
    text.mkdir()
    for i in range(100):
        (text / f"a{i}.txt").write_text(text_of(100, i))
    (text / "z.txt").write_text(text_of(100_000, 1000))

    def prepared():
        corpus = Custom(path=str(text), text_column="text", val_fraction=0.1)
        return prepare(corpus, Bytes(), NODE, "late", tmp_path / "data")

    made = prepared()
    n_bytes = {split: made.manifest["splits"][split]["bytes"] for split in ("train", "val")}
    assert 0.08 < n_bytes["val"] / sum(n_bytes.values()) < 0.12
    assert "the end of a document of 100.0 kB is held out" in made.manifest["account"]["notes"][0]
    assert " 101 documents" in account_of(made.manifest)  # though one is on both sides
    assert prepared().manifest == made.manifest
    assert [folder.name for folder in (tmp_path / "data").glob("[!.]*")] == [made.folder.name]


def test_an_interrupted_preparation_cuts_where_it_did(tmp_path, monkeypatch):
    (tmp_path / "book.txt").write_text(text_of(50_000, 1))
    (tmp_path / "README.md").write_text(text_of(51, 2))
    monkeypatch.setattr("llm.data.texts.STRETCH", 1000)
    monkeypatch.setattr("llm.data.prepare.BATCH", 1000)

    class Stopping(Custom):
        def documents(self):
            for number, document in enumerate(super().documents()):
                if number in stops[-1:]:
                    raise Refused("the network stopped")
                yield document

    def prepared(root):
        corpus = Stopping(path=str(tmp_path / "*.*"), text_column="text", val_fraction=0.1)
        return prepare(corpus, Bytes(), NODE, "book", tmp_path / root)

    stops = [47, 45, 20, 3]
    for _ in range(4):
        with pytest.raises(Refused, match="the network stopped"):
            prepared("stopped")
        stops.pop()
    again, whole_one = prepared("stopped"), prepared("alone")
    assert again.manifest == whole_one.manifest
    assert again.manifest["splits"]["val"]["documents"] in (1, 2)
