"""No position sees the future, and no row sees another."""

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
