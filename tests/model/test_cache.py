"""A key-value cache changes no logit: in pieces, past windows, behind padding, after going back."""

import pytest
import torch

from llm.model import attention as attention_module
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
def small_pieces(monkeypatch):
    """Windowed layers read long chunks in pieces of their window, not of 64."""
    monkeypatch.setattr(attention_module, "LEAST_BLOCK", 2)


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
def test_rows_behind_padding_are_as_if_alone(position, kind):
    """A prompt of its own length a row, read in two chunks, then one token at a time."""
    model, padding = model_of(kind, position), [0, 3, 7]
    ids = tokens(3, 20)
    cache = model.cache(3, 20, padding)
    pieces = ids.split([5, 8, *[1] * 7], 1)
    logits = torch.cat([model(part, cache=cache).logits_BTV for part in pieces], 1)
    assert logits.isfinite().all()
    for row, missing in enumerate(padding):
        alone = model(ids[row : row + 1, missing:]).logits_BTV
        torch.testing.assert_close(logits[row : row + 1, missing:], alone, atol=5e-5, rtol=1e-4)


@torch.inference_mode()
def test_learned_positions_count_behind_the_padding():
    model = randomised(transformer(position="learned")).eval()
    cache = model.cache(2, 20, [3, 4])
    assert model(tokens(2, 15), cache=cache).logits_BTV.shape[1] == 15  # 12 and 11 of text
    with pytest.raises(ValueError, match="13 positions, and the model has 12"):
        model(tokens(2, 1), cache=cache)


@torch.inference_mode()
def test_a_windowed_layer_holds_its_window_and_sinks_only():
    """And so can read for ever, where every layer has a window."""
    model = model_of("sinks")
    cache, endless = model.cache(2, 500), model.cache(2, None)
    for held in (cache, endless):
        assert {layer.k_BGSC.shape for layer in held.layers} == {(2, 4, 4 + 2, 4)}
    ids = tokens(2, 90)
    parts = [model(part, cache=endless).logits_BTV for part in ids.split(30, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits_BTV, atol=5e-5, rtol=1e-4)
    mixed = model_of("alternating").cache(2, 500)
    assert [layer.k_BGSC.shape[2] for layer in mixed.layers] == [3 + 1, 500]
    with pytest.raises(ValueError, match="max_len=None needs a window in every layer"):
        model_of("alternating").cache(2, None)


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "window"), [("full", 99), ("sinks", 4), ("alternating", 3)])
def test_going_back(kind, window):
    """One place back always; further where nothing rolled away, else everything is read again."""
    model, ids = model_of(kind), tokens(1, 2 * T)
    whole = model(ids).logits_BTV
    for read, wanted in ((3, 2), (4, 1), (9, 8), (20, 19), (20, 12), (3, 0)):
        cache = model.cache(1, 2 * T)
        mistaken = ids.clone()
        mistaken[:, wanted:] = (ids[:, wanted:] + 1) % 37
        for part in mistaken[:, :read].split(3, 1):
            model(part, cache=cache)
        kept = cache.cut(wanted)
        assert kept == cache.length == (wanted if read <= window or read - wanted == 1 else 0)
        again = model(ids[:, kept : wanted + 3], cache=cache).logits_BTV
        torch.testing.assert_close(again, whole[:, kept : wanted + 3], atol=5e-5, rtol=1e-4)


@torch.inference_mode()
def test_an_interrupted_call_is_noticed_where_it_did_damage(monkeypatch):
    model, ids = model_of("sinks"), tokens(1, 2 * T)
    cache = model.cache(1, 2 * T)
    model(ids[:, :8], cache=cache)

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.blocks[1], "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, 8:9], cache=cache)
    # One token overwrites nothing that is needed to read it again.
    torch.testing.assert_close(
        model(ids[:, 8:9], cache=cache).logits_BTV, model(ids[:, :9]).logits_BTV[:, 8:]
    )
    with monkeypatch.context() as patch:
        patch.setattr(model.blocks[1], "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, 9:14], cache=cache)
    with pytest.raises(ValueError, match="interrupted"):
        model(ids[:, 9:10], cache=cache)
    assert cache.cut(9) == 0
    torch.testing.assert_close(
        model(ids[:, :9], cache=cache).logits_BTV, model(ids[:, :9]).logits_BTV
    )


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
    with pytest.raises(ValueError, match="padding is one number for each of 2 rows"):
        endless.cache(2, 4, [1])


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
