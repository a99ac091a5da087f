"""No position sees the future, no row sees another, and a cache changes nothing."""

import pytest
import torch

from tests.toy_models import FEED_FORWARDS, POSITIONS, STYLES, randomised, tokens, transformer

pytestmark = pytest.mark.parametrize("moe", FEED_FORWARDS)
T = 12


@torch.inference_mode()
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("style", STYLES)
def test_a_future_token_changes_no_past_logits(moe, position, style):
    model = randomised(transformer(moe, position, style)).eval()
    ids = tokens(2, T)
    before = model(ids).logits_BTV
    for t in range(T):
        changed = ids.clone()
        changed[:, t:] = (ids[:, t:] + 1 + t) % 37
        after = model(changed).logits_BTV
        torch.testing.assert_close(after[:, :t], before[:, :t], atol=1e-5, rtol=1e-5)
        assert (after[:, t] - before[:, t]).abs().max() > 1e-2


def test_a_past_token_reaches_every_later_logit(moe):
    model = randomised(transformer(moe)).eval()
    ids = tokens(1, T)
    changed = ids.clone()
    changed[:, 0] = (ids[:, 0] + 1) % 37
    moved = (model(ids).logits_BTV - model(changed).logits_BTV).abs().amax(-1)
    assert (moved > 1e-4).all()


def test_other_rows_change_no_logit(moe):
    model = randomised(transformer(moe)).eval()
    ids = tokens(5, T)
    together = model(ids).logits_BTV
    for row in range(5):
        alone = model(ids[row : row + 1]).logits_BTV
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)
    skewed = ids.clone()
    skewed[1:] = ids[0]  # every token to the experts of row 0
    torch.testing.assert_close(model(skewed).logits_BTV[0], together[0], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("style", "n_kv_heads"), [("gpt2", None), ("llama", 2), ("qwen3", 1)])
@pytest.mark.parametrize("pieces", [[1] * T, [5, 1, 4, 2]])
def test_cached_logits_are_the_uncached_ones(moe, position, style, n_kv_heads, pieces):
    model = randomised(transformer(moe, position, style, n_kv_heads=n_kv_heads)).eval()
    ids = tokens(3, T)
    whole = model(ids).logits_BTV
    cache = model.cache(3, T)
    parts = [model(part, cache=cache).logits_BTV for part in ids.split(pieces, 1)]
    assert cache.length == T
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-4)


def test_cached_generation_under_bfloat16_autocast(moe):
    model = randomised(transformer(moe)).eval()
    ids, cache = tokens(2, T), model.cache(2, T)
    with torch.autocast("cpu", torch.bfloat16):
        whole = model(ids).logits_BTV
        parts = [model(part, cache=cache).logits_BTV for part in ids.split([4, 1, 7], 1)]
    # A router may decide a close call differently, so most, not all, logits agree closely.
    off = (torch.cat(parts, 1).float() - whole.float()).abs().amax(-1)
    assert off.median() < 0.05


def test_full_means_full(moe):
    learned = randomised(transformer(moe, "learned")).eval()
    with pytest.raises(ValueError, match="13 positions, and the model has 12"):
        learned(tokens(1, T + 1))
    cache = learned.cache(1, 50)
    learned(tokens(1, T), cache=cache)
    with pytest.raises(ValueError, match="13 positions, and the model has 12"):
        learned(tokens(1, 1), cache=cache)
    endless = randomised(transformer(moe, "rope")).eval()
    assert endless(tokens(1, T + 5)).logits_BTV.shape[1] == T + 5
    cache = endless.cache(1, 4)
    endless(tokens(1, 3), cache=cache)
    with pytest.raises(ValueError, match="the cache holds 4 positions, not 5"):
        endless(tokens(1, 2), cache=cache)
    assert cache.length == 3  # what failed is not counted as read
    assert endless(tokens(1, 1), cache=cache).logits_BTV.shape[1] == 1
    with pytest.raises(ValueError, match="the cache has 2 rows, not 1"):
        endless(tokens(1, 1), cache=endless.cache(2, 4))
