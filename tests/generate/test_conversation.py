"""A conversation is one document; its answers stream, stop, and are forgotten in whole turns."""

from types import SimpleNamespace

import pytest
import torch

from llm.data.corpus import Dialogue
from llm.generate.conversation import Conversation, Sampling
from llm.model.cache import BLOCK
from llm.tokenizer.bytes import Bytes
from tests.toy_models import reading

DIALOGUE = Dialogue(user="Q: ", assistant="\nA:", stop="\n")


def converse(model, dialogue=DIALOGUE):
    how = reading(corpus=SimpleNamespace(dialogue=dialogue))
    return Conversation(model, how, 0)


def said(pieces):
    return "".join(piece.text for piece in pieces)


SAMPLING = Sampling(max_tokens=50, temperature=0.8, top_k=5)


def test_an_answer_is_what_stands_before_the_stop(parrot):
    talk = converse(parrot(Bytes(), {"Q: Who?\nA:": " Me.\nQ: more"}))
    assert said(talk.ask("Who?", SAMPLING)) == " Me."
    assert [turn.text for turn in talk.turns] == ["Q: Who?\nA: Me.\n"]
    assert talk.turns[0].ending == "stop"


def test_a_stop_of_several_characters_is_not_shown_in_part(parrot):
    talk = converse(
        parrot(Bytes(), {"A:": " a#b ##c ###d"}), Dialogue(user="Q:", assistant="A:", stop="###")
    )
    pieces = [piece.text for piece in talk.ask("", SAMPLING)]
    assert "".join(pieces) == " a#b ##c "
    assert talk.turns[0].answer == " a#b ##c ###"


def test_characters_of_several_bytes_come_whole(parrot):
    talk = converse(parrot(Bytes(), {"A:": " né 🙂\n"}))
    pieces = [piece.text for piece in talk.ask("", SAMPLING)]
    assert pieces == [" ", "n", "é", " ", "🙂"]


def test_an_unfinished_character_is_replaced_at_the_end(parrot):
    talk = converse(parrot(Bytes(), {"A:": "🙂\n"}))
    assert said(talk.ask("", Sampling(3, 0.8, 5))) == "\ufffd"


def test_the_probability_of_a_piece_is_that_of_its_least_likely_token(parrot):
    class Hesitant(parrot):
        def __call__(self, tokens_BT, cache, last_only=False):
            output = super().__call__(tokens_BT, cache, last_only)
            if self.context.endswith("A:"):
                return output
            output.logits_BTV = output.logits_BTV / 4
            return output

    model = Hesitant(Bytes(), {"A:": "é\n"})
    (piece,) = converse(model).ask("", Sampling(3, 0.1, 1))
    e5 = torch.tensor(5.0).exp()
    assert piece.probability == pytest.approx(float(e5 / (e5 + 256)), rel=1e-4)


def test_the_next_question_stands_behind_the_answer_and_costs_only_what_is_new(parrot):
    first = "One" + "!" * 2 * BLOCK
    model = parrot(Bytes(), {f"Q: {first}\nA:": " 1.\n", "Q: Two?\nA:": " 2.\n"})
    talk = converse(model)
    said(talk.ask(first, SAMPLING))
    before = model.read
    assert said(talk.ask("Two?", SAMPLING)) == " 2."
    assert model.context.startswith(f"Q: {first}\nA: 1.\nQ: Two?\nA: 2.")
    assert model.read - before <= BLOCK + len("\nA: 1.\nQ: Two?\nA: 2.\n")  # from a block's end


def test_an_answer_that_was_cut_off_gets_its_stop_in_the_context(parrot):
    model = parrot(Bytes(), {"Q: One?\nA:": " 1234.\n", "Q: Two?\nA:": " 2.\n"})
    talk = converse(model)
    assert said(talk.ask("One?", Sampling(3, 0.8, 5))) == " 12"
    assert (talk.turns[0].ending, talk.turns[0].answer) == ("length", " 12")
    said(talk.ask("Two?", SAMPLING))
    assert model.context.startswith("Q: One?\nA: 12\nQ: Two?\nA:")


def test_an_answer_that_nobody_waits_for_is_kept_as_far_as_it_went(parrot):
    model = parrot(Bytes(), {"Q: One?\nA:": " 1234.\n", "Q: Two?\nA:": " 2.\n"})
    talk = converse(model)
    pieces = talk.ask("One?", SAMPLING)
    assert next(pieces).text == " "
    assert next(pieces).text == "1"
    pieces.close()
    assert (talk.turns[0].ending, talk.turns[0].answer) == ("interrupted", " 1")
    assert said(talk.ask("Two?", SAMPLING)) == " 2."


def test_the_end_of_the_document_ends_an_answer(parrot):
    talk = converse(parrot(Bytes(), {"A:": " Bye"}))
    assert said(talk.ask("", SAMPLING)) == " Bye"
    assert talk.turns[0].ending == "end of text"


def test_reset_forgets(parrot):
    model = parrot(Bytes(), {"Q: One?\nA:": " 1.\n"})
    talk = converse(model)
    said(talk.ask("One?", SAMPLING))
    talk.reset()
    said(talk.ask("One?", SAMPLING))
    assert model.context.count("One?") == 1
    assert len(talk.turns) == 1


def test_a_full_context_forgets_whole_turns_from_the_front(parrot):
    model = parrot(Bytes(), {"\nA:": " yes.\n"}, max_seq_len=64)
    talk = converse(model)
    for number in range(12):
        assert said(talk.ask(f"Is it {number}?", SAMPLING)) == " yes."
        assert model.context.startswith("Q: Is it ")
        assert model.seen[0] == Bytes.eot
        assert f"Q: Is it {number}?" in model.context
    assert 0 < talk.forgotten < 12


def test_an_answer_longer_than_the_context_goes_on(parrot):
    model = parrot(Bytes(), {"Tell": "".join(chr(97 + i % 26) for i in range(300))}, max_seq_len=64)
    talk = converse(model)
    said(talk.ask("Hello", SAMPLING))
    assert len(said(talk.go_on("Tell", Sampling(200, 0.8, 5)))) > 50


def test_an_answer_that_outgrows_the_context_forgets_a_quarter(parrot):
    model = parrot(Bytes(), {"Tell": "".join(chr(97 + i % 26) for i in range(300))}, max_seq_len=64)
    talk = converse(model)
    said(talk.go_on("Tell", Sampling(60, 0.8, 5)))  # behind end-of-text and "Tell": 64 are read
    assert not talk.overflowed and len(model.seen) == 64
    talk.reset()
    said(talk.go_on("Tell", Sampling(61, 0.8, 5)))
    assert talk.overflowed and len(model.seen) == 48


def test_without_a_dialogue_every_text_goes_on_with_the_document(parrot):
    model = parrot(Bytes(), {"one": " two three", "four": " five"})
    talk = converse(model, None)
    assert said(talk.go_on("one", SAMPLING)) == " two three"
    assert said(talk.go_on("four", SAMPLING)) == " five"
    assert model.context.startswith("one two three\nfour five")


def test_with_a_dialogue_a_text_that_goes_on_begins_a_document(parrot):
    model = parrot(Bytes(), {"A:": " no.\n", "Once": " upon.\n"})
    talk = converse(model)
    said(talk.ask("Well?", SAMPLING))
    assert said(talk.go_on("Once", SAMPLING)) == " upon."
    assert model.context == "Once upon."
    said(talk.ask("And?", SAMPLING))
    assert model.context.startswith("Once upon.\nQ: And?\nA:")


def test_half_a_surrogate_is_mended(parrot):
    model = parrot(Bytes(), {"A:": " ok\n"})
    assert said(converse(model).ask("\udc80 \ud83d", SAMPLING)) == " ok"
