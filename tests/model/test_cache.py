"""A key-value cache changes no logit: in pieces, past windows, in rows of unlike lengths."""

import pytest
import torch

from llm.model import cache as cache_module
from llm.model import cached
from llm.model.transformer import Transformer
from tests.toy_models import FEED_FORWARDS, POSITIONS, randomised, tokens, transformer

T = 12
#: Windowed variants roll several times within 2T places, and differ between layers.
KINDS = {
    "full": {},
    "grouped": {"style": "llama", "n_kv_heads": 2},
    "window": {"style": "qwen3", "n_kv_heads": 1, "window": 5},
    "sinks": {"window": 4, "n_sinks": 2},
    "alternating": {"window": [3, None], "n_sinks": 1, "qk_norm": "projection"},
    "capped": {"window": [6, 2], "n_sinks": 3, "attention_softcap": 1.0, "logit_softcap": 2.0},
    "post": {"norm_position": "post", "window": 1},
}
PIECES = {"one by one": [1] * (2 * T), "chunks": [5, 1, 9, 2, 1, 6]}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks within the few places of these tests, instead of one of 64."""
    monkeypatch.setattr(cache_module, "BLOCK", 4)
    monkeypatch.setattr(cached, "BLOCK", 4)


def model_of(kind: str, position: str = "rope", moe: str = "dense", **changes) -> Transformer:
    limit = {"max_seq_len": 2 * T} if position == "learned" else {}
    return randomised(transformer(moe, position, **KINDS[kind], **limit, **changes)).eval()


@torch.inference_mode()
@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", POSITIONS)
def test_cached_logits_are_the_uncached_ones(position, kind, pieces):
    """Past the window and, but for learned positions, past the training length of 12."""
    model, ids = model_of(kind, position), tokens(3, 2 * T)
    whole = model(ids).logits_BTV
    cache = model.cache(3, 2 * T)
    parts = [model(part, cache=cache).logits_BTV for part in ids.split(PIECES[pieces], 1)]
    assert cache.length == 2 * T
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=5e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["grouped", "sinks"])
@pytest.mark.parametrize("moe", FEED_FORWARDS)
def test_so_with_experts(moe, kind):
    model, ids = model_of(kind, moe=moe, moe_every=1), tokens(3, 2 * T)
    cache = model.cache(3, 2 * T)
    parts = [model(part, cache=cache).logits_BTV for part in ids.split(PIECES["chunks"], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits_BTV, atol=5e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", POSITIONS)
def test_rows_of_unlike_lengths_are_as_if_alone(position, kind):
    """Prompts padded at their ends, then one token at a time, by all rows or some."""
    model, lengths = model_of(kind, position), [9, 6, 1]
    ids, cache = tokens(3, 20), model.cache(3, 20)
    logits = model(ids[:, :9], cache=cache.rows(0, 3, lengths)).logits_BTV
    read = [[logits[row, :n]] for row, n in enumerate(lengths)]
    for first, last in [(0, 3)] * 5 + [(1, 3), (0, 1)]:
        new = torch.stack([ids[row, cache.lengths[row]] for row in range(first, last)])
        logits = model(new[:, None], cache=cache.rows(first, last)).logits_BTV
        for row in range(first, last):
            read[row].append(logits[row - first])
    assert cache.lengths == [15, 12, 7]
    for row, length in enumerate(cache.lengths):
        alone = model(ids[row : row + 1, :length]).logits_BTV[0]
        torch.testing.assert_close(torch.cat(read[row]), alone, atol=5e-5, rtol=1e-4)


@torch.inference_mode()
def test_the_last_logits_of_padded_rows_are_those_of_their_last_tokens():
    model, ids = model_of("full"), tokens(3, 9)
    whole = model(ids).logits_BTV
    counts = [2, 9, 5]
    last = model(ids, cache=model.cache(3, 12).rows(0, 3, counts), last_only=True).logits_BTV
    for row, count in enumerate(counts):
        torch.testing.assert_close(last[row, 0], whole[row, count - 1], atol=5e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["full", "sinks", "alternating"])
def test_going_back_and_moving(kind):
    """A row that is shortened has forgotten the rest, and another row can go on with it."""
    model, ids = model_of(kind), tokens(1, 2 * T)
    whole = model(ids).logits_BTV
    for read, wanted in ((3, 2), (9, 8), (20, 12), (3, 0)):
        cache = model.cache(2, 2 * T)
        mistaken = ids.clone()
        mistaken[:, wanted:] = (ids[:, wanted:] + 1) % 37
        for part in mistaken[:, :read].split(3, 1):
            model(part, cache=cache.rows(1, 2))
        cache.lengths[1] = wanted
        cache.move(1, 0)
        assert cache.lengths == [wanted, 0]
        again = model(ids[:, wanted : wanted + 3], cache=cache.rows(0, 1)).logits_BTV
        torch.testing.assert_close(again, whole[:, wanted : wanted + 3], atol=5e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["full", "sinks"])
def test_what_does_not_fit_is_refused_before_anything_is_stored(kind):
    learned = randomised(transformer(position="learned", **KINDS[kind])).eval()
    with pytest.raises(ValueError, match="13 positions, and the model has 12"):
        learned(tokens(1, T + 1))
    cache = learned.cache(1, 50)
    learned(tokens(1, T), cache=cache)
    with pytest.raises(ValueError, match="13 positions, and the model has 12"):
        learned(tokens(1, 1), cache=cache)
    endless = model_of(kind)
    cache = endless.cache(1, 4)
    endless(tokens(1, 3), cache=cache)
    with pytest.raises(ValueError, match="the cache holds 4 positions, not 5"):
        endless(tokens(1, 2), cache=cache)
    assert cache.length == 3  # what failed is not counted as read
    assert endless(tokens(1, 1), cache=cache).logits_BTV.shape[1] == 1
    with pytest.raises(ValueError, match="the cache has 2 rows, not 1"):
        endless(tokens(1, 1), cache=endless.cache(2, 4))


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["full", "sinks"])
def test_the_last_logits_alone_are_the_last_of_all(kind):
    model, ids = model_of(kind), tokens(3, T)
    last = model(ids, last_only=True).logits_BTV
    assert last.shape[1] == 1
    torch.testing.assert_close(last, model(ids).logits_BTV[:, -1:])
    cached = model(ids, cache=model.cache(3, T), last_only=True).logits_BTV
    torch.testing.assert_close(cached, last, atol=5e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["full", "sinks", "capped"])
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_cached_generation_under_bfloat16_autocast(position, kind):
    model = model_of(kind, position)
    ids, cache = tokens(2, T), model.cache(2, T)
    with torch.autocast("cpu", torch.bfloat16):
        whole = model(ids).logits_BTV
        parts = [model(part, cache=cache).logits_BTV for part in ids.split([4, 1, 7], 1)]
    off = (torch.cat(parts, 1).float() - whole.float()).abs().amax(-1)
    assert off.median() < 0.05
