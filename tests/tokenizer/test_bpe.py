"""The trained byte-pair vocabulary: whose ids, learnt from what, opened where."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.tokenizer.base import load, save
from llm.tokenizer.bpe import BPE
from llm.tokenizer.byte_pairs import FIRST_IDS

TEXTS = [
    f"The {animal}'s {n} naïve {thing}s aren't here — {n * n} ==== ----\n\n  and so on, 猫."
    for n, animal in enumerate("cat dog bird horse fish".split())
    for thing in ("idea", "story", "café", "question")
]


def trained(texts: list[str], vocab_size: int = 320) -> BPE:
    tokenizer = BPE(vocab_size=vocab_size)
    tokenizer.fit(texts, None)
    return tokenizer


def as_tokenizers_runs_it(tokenizer: BPE):
    """The judge: the library's own encoder, trained again on the same texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    judge = Tokenizer(models.BPE())
    judge.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=tokenizer.wanted - 1,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    judge.train_from_iterator(TEXTS, trainer)
    return judge


TOKENIZER = trained(TEXTS)
JUDGE = as_tokenizers_runs_it(TOKENIZER)
#: Text of the kind that was learnt, with whatever else there is between.
LIKELY = st.lists(
    st.one_of(st.text(max_size=4), st.sampled_from(" ".join(TEXTS).split(" ")), st.just(" ")),
    max_size=30,
).map("".join)


@given(LIKELY)
@settings(max_examples=60)
def test_ids_are_those_of_tokenizers_and_come_back(text):
    ids = TOKENIZER.encode(text)
    assert ids == JUDGE.encode(text).ids
    assert TOKENIZER.decode(ids) == text


def test_the_vocabulary_is_as_large_as_asked_or_as_the_text_bears():
    assert (TOKENIZER.vocab_size, TOKENIZER.eot) == (320, 319)
    assert TOKENIZER.token_bytes(319) == b""
    assert [TOKENIZER.token_bytes(i) for i in range(256)] == FIRST_IDS
    assert len({TOKENIZER.token_bytes(i) for i in range(319)}) == 319
    assert trained(["abab"]).vocab_size == 258  # "ab" occurs twice, "abab" once
    assert trained([]).vocab_size == trained(["a"], 257).vocab_size == 257


def test_a_function_of_the_texts_and_not_of_their_order():
    assert trained(TEXTS[::-1]).state() == trained(list(TEXTS)).state() == TOKENIZER.state()
    assert trained(TEXTS[1:]).state() != TOKENIZER.state()


def test_listed_pieces_have_no_frequencies_so_it_reads_the_texts():
    tokenizer = BPE(vocab_size=320)
    tokenizer.fit(iter(TEXTS), [" cat", " dog"])
    assert tokenizer.state() == TOKENIZER.state()


def test_texts_stream_by(tmp_path):
    """They are taken one after another: whoever writes them need not hold them."""
    alive = most = 0

    class Text(str):
        __slots__ = ()

        def __del__(self):
            nonlocal alive
            alive -= 1

    def texts():
        nonlocal alive, most
        for i in range(4000):
            alive += 1
            most = max(most, alive)
            yield Text(f"the text {i % 7} of many")

    BPE(vocab_size=300).fit(texts(), None)
    assert most < 2000 and alive <= 1


@pytest.mark.parametrize("text", ["a" * 300_000, " \t" * 600_000 + "x", "\x1c\x85\u3000 " * 9])
def test_odd_texts_train_and_come_back(text):
    tokenizer = trained([text, "some words, some more words"])
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_half_an_emoji_trains():
    assert len(trained(["\ud83d"] * 3).encode("\ufffd")) == 1


def test_the_saved_file_opens_anywhere(tmp_path):
    """ASCII, and without the library that trained it."""
    save(TOKENIZER, tmp_path)
    content = (tmp_path / "vocabulary.json").read_bytes()
    assert content.isascii()
    assert json.loads(content)["state"]["pieces"][0] == TOKENIZER.token_bytes(256).decode("latin-1")
    again = load(tmp_path)
    assert again.state() == TOKENIZER.state()
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from pathlib import Path; from llm.tokenizer.base import load\n"
        f"print(load(Path({str(tmp_path)!r})).encode({TEXTS[0]!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(done.stdout) == JUDGE.encode(TEXTS[0]).ids


def test_an_unfitted_one_says_so():
    with pytest.raises(RuntimeError, match="fit or restore"):
        BPE().encode("a")
