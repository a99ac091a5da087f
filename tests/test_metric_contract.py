"""The metric contract of DESIGN.md.

`val/loss` is the token-weighted mean cross-entropy in nats per token over a fixed validation
split, and nothing else; it does not move with the batch size. `val/bpb` compares tokenizers.
"""

import math

import pytest
import torch

from llm.data.batches import IGNORED
from llm.data.corpus import Document
from llm.data.prepare import prepare
from llm.evaluate import examination, examine
from llm.generate.engine import Engine, Request
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.chars import Chars
from tests.toy_models import FEED_FORWARDS, experts, randomised, reading, transformer

T = 12
#: Documents shorter and longer than a row, some of them not ASCII.
HELD_OUT = [
    "a short one",
    "née, 東京 und 😀",
    "x",
    "a document that is much longer than a row is",
    "",
]


class Plain:
    pieces = dialogue = None

    def describe(self):
        return {"corpus": "plain"}

    def documents(self):
        yield Document("née, 東京 und 😀 other text of training", "train")
        for text in HELD_OUT:
            yield Document(text, "val")


@pytest.fixture(params=["bytes", "chars"])
def prepared(request, tmp_path):
    tokenizer = Bytes() if request.param == "bytes" else Chars()
    return prepare(Plain(), tokenizer, {"_target_": request.param}, "plain", tmp_path)


def reading_of(prepared, **changes):
    return reading(prepared.tokenizer, **{"seq_len": T, **changes})


def exam_of(prepared):
    return examination(prepared, reading_of(prepared), None)


def model_for(prepared, moe, **changes):
    vocab_size = prepared.tokenizer.vocab_size
    return randomised(transformer(moe, "learned", vocab_size=vocab_size, **changes))


def brute_force(model, prepared) -> list[float]:
    """−log softmax of every target, one row of whole documents (or part of a long one) a time."""
    tokenizer = prepared.tokenizer
    rows: list[list[int]] = []
    room = 0
    for text in HELD_OUT:
        ids = [tokenizer.eot, *tokenizer.encode(text)]
        if len(ids) <= room:
            rows[-1] += ids
            room -= len(ids)
            continue
        for first in range(0, len(ids), T):
            rows.append(ids[first : first + T])
            room = T - len(rows[-1])
    flat = [token for row in rows for token in row] + [tokenizer.eot]
    nats, at = [], 0
    for row in rows:
        log_p = model(torch.tensor([row])).logits_BTV[0].double().log_softmax(-1)
        for i in range(len(row)):
            at += 1
            nats.append(-log_p[i, flat[at]].item())
    return nats


@pytest.mark.parametrize("moe", FEED_FORWARDS)
def test_loss_is_the_mean_over_tokens_and_batch_sizes_do_not_move_it(prepared, moe):
    model = model_for(prepared, moe)
    exam = exam_of(prepared)
    nats = brute_force(model.eval(), prepared)
    assert (
        exam.n_tokens
        == len(nats)
        == sum(len(prepared.tokenizer.encode(text)) + 1 for text in HELD_OUT)
    )
    expected = math.fsum(nats) / len(nats)
    losses = {
        size: examine(model, exam, reading_of(prepared, eval_rows=size))["val/loss"]
        for size in (1, 2, 3, 16)
    }
    for loss in losses.values():
        assert loss == pytest.approx(losses[1], abs=1e-6)
        assert loss == pytest.approx(expected, abs=1e-5)
    # The rows hold different numbers of targets: a mean of batch means would be another number.
    counts = (exam.rows.targets_RT != IGNORED).sum(1)
    assert len(set(counts.tolist())) > 1


def test_bits_per_byte_by_hand(prepared):
    """All nats, ends of documents included, over the UTF-8 bytes of the text."""
    model = model_for(prepared, "dense")
    metrics = examine(model, exam_of(prepared), reading_of(prepared))
    n_bytes = sum(len(text.encode()) for text in HELD_OUT)
    expected = math.fsum(brute_force(model.eval(), prepared)) / math.log(2) / n_bytes
    assert metrics["val/bpb"] == pytest.approx(expected, rel=1e-5)


def test_an_even_guess_costs_the_logarithm_of_the_vocabulary(prepared):
    model = model_for(prepared, "dense", style="llama")
    with torch.no_grad():
        model.head.weight.zero_()
    loss = examine(model, exam_of(prepared), reading_of(prepared))["val/loss"]
    assert loss == pytest.approx(math.log(prepared.tokenizer.vocab_size), abs=1e-5)


@pytest.mark.parametrize("top_k", [1, 2])
def test_auxiliary_losses_do_not_move_it(prepared, top_k):
    """Trap 4: whatever they weigh, and after training steps and generation as before."""
    exam = exam_of(prepared)
    results = []
    for balance, z in ((0.0, 0.0), (0.01, 0.001), (1e3, 1e3)):
        model = model_for(prepared, experts(4, top_k, balance_loss=balance, z_loss=z))
        results.append(examine(model, exam, reading_of(prepared)))
    assert results[0] == results[1] == results[2]
    list(Engine(model.eval(), 3).generate([Request([0], 9)] * 3))
    model.train()
    rows = torch.from_numpy(exam.rows.tokens_RT)
    output = model(rows, rows)
    (output.loss_sum + sum(output.aux.values())).backward()
    assert examine(model, exam, reading_of(prepared)) == results[0]


def test_noise_of_training_is_off(prepared):
    """Dropout and router jitter; the model goes on training afterwards."""
    model = model_for(prepared, experts(4, 1, jitter=0.5), dropout=0.5)
    exam = exam_of(prepared)
    model.train()
    assert examine(model, exam, reading_of(prepared)) == examine(model, exam, reading_of(prepared))
    assert model.training
    calm = model_for(prepared, experts(4, 1))
    assert examine(model, exam, reading_of(prepared)) == examine(calm, exam, reading_of(prepared))


@pytest.mark.parametrize("limit", [1, 13, 40])
def test_a_limit_counts_the_same_targets_for_every_context_length(prepared, limit):
    for seq_len in (4, 12, 64):
        exam = examination(prepared, reading_of(prepared, seq_len=seq_len), limit)
        assert exam.n_tokens == limit
        counted = exam.rows.targets_RT != IGNORED
        assert exam.rows.places_RT[counted].tolist() == list(range(limit))
        targets = exam.rows.targets_RT[counted].tolist()
        lengths = [len(prepared.tokenizer.token_bytes(token)) for token in targets]
        assert exam.n_bytes == sum(lengths)


def test_bfloat16_moves_it_by_less_than_a_hundredth(prepared):
    model = transformer("switch", "learned", vocab_size=prepared.tokenizer.vocab_size)
    exam = exam_of(prepared)
    exact, low = (
        examine(model, exam, reading_of(prepared, precision=precision))["val/loss"]
        for precision in ("fp32", "bf16")
    )
    assert low == pytest.approx(exact, rel=1e-2)
