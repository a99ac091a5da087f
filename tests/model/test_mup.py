"""μP: what a step does to activations and logits is the same at every width."""

from functools import partial

import pytest
import torch

from llm.optimizer.adamw import AdamW
from llm.optimizer.muon import Muon
from llm.optimizer.schedule import Constant
from tests.toy_models import tokens, transformer

WIDTHS = (32, 64, 128)
COMMON = {
    "betas": [0.9, 0.95],
    "eps": 1e-12,
    "weight_decay": 0.1,
    "warmup": 0.0,
    "schedule": Constant(),
}
ADAMW = partial(AdamW, **COMMON)
MUON = partial(Muon, momentum=0.95, steps=5, update_rms=0.2, **COMMON)


def model_of(width: int, parametrization: str, moe: str = "dense", **changes):
    torch.manual_seed(0)
    settings = {"init_std": 0.05, "base_d_model": 32, "tie_embeddings": True, **changes}
    return transformer(
        moe,
        "learned",
        "llama",
        vocab_size=64,
        d_model=width,
        d_ff=2 * width,
        parametrization=parametrization,
        **settings,
    )


def moved_by_steps(recipe, width: int, parametrization: str, moe: str) -> torch.Tensor:
    """Root mean square of what 4 steps change in each block's output, and in the logits."""
    model = model_of(width, parametrization, moe)
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda *call: seen.append(call[2].y_BTD))
    ids = tokens(4, 12, vocab_size=64)

    def look() -> list[torch.Tensor]:
        seen.clear()
        with torch.no_grad():
            logits = model(ids).logits_BTV
        return [*seen, logits]

    before = look()
    optimizer = recipe(lr=1e-2).optimizer(model)
    for _ in range(4):
        optimizer.zero_grad()
        output = model(ids[:, :-1], ids[:, 1:])
        (output.loss_sum / output.n_tokens + sum(output.aux.values())).backward()
        optimizer.step()
    pairs = zip(before, look(), strict=True)
    return torch.stack([(now - then).square().mean().sqrt() for then, now in pairs])


@pytest.mark.parametrize("moe", ["dense", "topk"])
@pytest.mark.parametrize("recipe", [ADAMW, MUON], ids=["adamw", "muon"])
def test_the_coordinate_check_is_flat_with_mup_and_is_not_without(recipe, moe):
    """Over widths of 32 to 256 (Yang et al. 2022, appendix D.1)."""

    def over_widths(parametrization: str) -> torch.Tensor:
        return torch.stack([moved_by_steps(recipe, w, parametrization, moe) for w in WIDTHS])

    flat, steep = over_widths("mup"), over_widths("standard")
    growth = flat[-1] / flat[0]
    assert ((growth > 0.6) & (growth < 1.6)).all(), growth
    assert (steep[-1] / steep[0] > 2).all()


def test_at_the_base_width_only_the_scale_of_scores_differs():
    """8/C for 1/√C, which are equal at C = 64: then weights, logits and rates are the same."""
    ids = tokens(2, 12, vocab_size=64)
    standard, mup = (model_of(32, kind, head_dim=64, n_heads=2) for kind in ("standard", "mup"))
    torch.testing.assert_close(mup(ids).logits_BTV, standard(ids).logits_BTV)
    assert ADAMW(lr="auto").optimizer(mup).param_groups[0]["lr"] == 6e-4 * 768 / 32


@pytest.mark.parametrize(("recipe", "matrix_scale"), [(ADAMW, 1 / 4), (MUON, 1 / 2)])
def test_rates_and_decay_by_role(recipe, matrix_scale):
    """At 4 times the base width. The decay of a step, lr · weight_decay, is that of every width."""
    made = recipe(lr="auto")
    model = model_of(128, "mup", "topk", tie_embeddings=False)
    optimizer = made.optimizer(model)
    base_lr = 6e-4 * 768 / 32
    made.set_lr(optimizer, base_lr / 10)
    rates = {
        p: (group["lr"], group["weight_decay"] * group["lr"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert made.lr == pytest.approx(base_lr)
    for parameter in model.parameters():
        scale = {"matrix": matrix_scale, "expert": matrix_scale, "router": 1 / 4}
        scale = scale.get(parameter.role, 1.0)
        decay = 0.1 * base_lr / 10 if scale < 1 else 0.0
        assert rates[parameter] == pytest.approx((base_lr / 10 * scale, decay))


def test_initial_weights_by_role():
    model = model_of(128, "mup", "topk", tie_embeddings=False, n_layers=2)
    assert model.head.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert model.embedding.std().item() == pytest.approx(0.05, rel=0.05)
    block = model.blocks[0]
    assert block.attention.query.weight.std().item() == pytest.approx(0.05 / 2, rel=0.05)
    assert block.feed_forward.experts.up_EDF.std().item() == pytest.approx(0.05 / 2, rel=0.05)
    assert block.attention.out.weight.std().item() == pytest.approx(0.05 / 2 / 2, rel=0.05)
