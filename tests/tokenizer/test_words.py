import pytest

from llm.config.errors import Refused
from llm.tokenizer.words import Words


def made_from(*texts, pieces=None, **options):
    tokenizer = Words(**options)
    tokenizer.fit(texts, pieces)
    return tokenizer


def test_a_known_word_is_one_id_with_its_space():
    tokenizer = made_from("The cat's 42 hats.")
    ids = tokenizer.encode("The cat's 42 hats.")
    assert [tokenizer.token_bytes(i) for i in ids] == [b"The", b" cat's", b" 42", b" hats", b"."]


def test_pieces_of_one_byte_are_that_byte():
    tokenizer = made_from("a . a . a")
    assert tokenizer.encode("a.") == [1 + ord("a"), 1 + ord(".")]
    stands_for = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    assert len(set(stands_for)) == tokenizer.vocab_size


def test_unknown_words_are_spelt_in_bytes():
    tokenizer = made_from("the cat")
    assert tokenizer.encode("the cät") == [
        257 + 1,  # "the"; " cat" is as frequent and stands before it
        *(1 + byte for byte in " cä".encode()),
        1 + ord("t"),
    ]


def test_the_most_frequent_pieces_fit():
    text = "one two two three three three four four four four"
    tokenizer = made_from(text, max_vocab_size=257 + 2)
    assert tokenizer.vocab_size == 259
    assert tokenizer.state()["pieces"] == [" four", " three"]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_order_of_texts_is_idle():
    assert made_from("a cat", "the dog").state() == made_from("the dog", "a cat").state()


def test_listed_pieces_keep_their_order_and_need_no_texts():
    listed = [" zebra", "ape", ".", " zebra", "\n"]
    tokenizer = made_from("unread text", pieces=listed)
    assert tokenizer.state()["pieces"] == [" zebra", "ape"]
    assert tokenizer.encode("ape zebra.") == [258, 257, 1 + ord(".")]


def test_more_listed_pieces_than_ids_are_refused():
    with pytest.raises(Refused, match="max_vocab_size") as caught:
        made_from(pieces=["one", "two", "three"], max_vocab_size=259)
    assert "260" in str(caught.value)
    assert made_from(pieces=["one", "two", "three"], max_vocab_size=260).vocab_size == 260


def test_a_listed_string_of_several_pieces_is_an_error():
    with pytest.raises(ValueError, match="Once upon"):
        made_from(pieces=["Once upon"])


def test_text_longer_than_a_stretch(monkeypatch):
    text = "The cat sat.\n\n  It's 12  cats! 🐈" * 20
    tokenizer = made_from(text)
    whole = tokenizer.encode(text)
    monkeypatch.setattr("llm.tokenizer.words.STRETCH", 7)
    assert tokenizer.encode(text) == whole
    assert made_from(text).state() == tokenizer.state()


def test_encoding_before_fit_is_an_error():
    with pytest.raises(RuntimeError, match="fit"):
        Words().encode("a")
