import pytest

from llm.tokenizer.chars import Chars


def made_from(*texts, pieces=None):
    tokenizer = Chars()
    tokenizer.fit(texts, pieces)
    return tokenizer


def test_ids_are_the_sorted_characters_then_eot_then_unknown():
    tokenizer = made_from("banana", "cab")
    assert tokenizer.encode("abcn") == [0, 1, 2, 3]
    assert (tokenizer.eot, tokenizer.vocab_size) == (4, 6)


@pytest.mark.parametrize("stranger", ["\x00", "z", "é", "🐈", "\U0010ffff"])
def test_unknown_characters_become_the_replacement_character(stranger):
    tokenizer = made_from("abc")
    ids = tokenizer.encode(f"a{stranger}b")
    assert ids == [0, tokenizer.unk, 1] == [0, tokenizer.vocab_size - 1, 1]
    assert tokenizer.decode(ids) == "a\ufffdb"


def test_the_order_of_texts_is_idle():
    assert made_from("cab", "🐈 d").state() == made_from("🐈 d", "cab").state()


def test_listed_pieces_give_the_characters():
    assert made_from("texts are not read", pieces=["ab", " c"]).state() == {"characters": " abc"}


def test_an_empty_corpus_knows_nothing():
    tokenizer = made_from()
    assert tokenizer.decode(tokenizer.encode("ab")) == "\ufffd\ufffd"


def test_encoding_before_fit_is_an_error():
    with pytest.raises(RuntimeError, match="fit"):
        Chars().encode("a")
