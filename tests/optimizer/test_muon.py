"""Muon: what its steps are, judged by singular values and by torch's own."""

import copy

import pytest
import torch
from torch import nn

from llm.config.errors import Refused
from llm.layers.roles import declare, role_of
from llm.optimizer.adamw import AdamW
from llm.optimizer.muon import Muon, MuonAdamW, orthogonalise
from llm.optimizer.recipe import ROLES
from llm.optimizer.schedule import Constant
from tests.toy_models import FEED_FORWARDS, STYLES, tokens, transformer

SETTINGS = {
    "lr": 1e-2,
    "betas": [0.9, 0.95],
    "eps": 1e-8,
    "weight_decay": 0.1,
    "warmup": 0.0,
    "schedule": Constant(),
}


def muon(**changes) -> Muon:
    own = {"momentum": 0.95, "steps": 5, "update_rms": 0.2}
    return Muon(**{**SETTINGS, **own, **changes})


def moves(recipe, **changes) -> dict[str, list[torch.Tensor]]:
    """What one step changes of the parameters of each role, at four times μP's base width."""
    torch.manual_seed(0)
    mup = {"parametrization": "mup", "base_d_model": 4, "tie_embeddings": False}
    model = transformer("topk", "learned", "gpt2", **mup)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = recipe(**changes).optimizer(model)
    ids = tokens(4, 12)
    output = model(ids[:, :-1], ids[:, 1:])
    (output.loss_sum / output.n_tokens + sum(output.aux.values())).backward()
    optimizer.step()
    found: dict[str, list[torch.Tensor]] = {}
    for parameter, then in zip(model.parameters(), before, strict=True):
        found.setdefault(role_of(parameter), []).append((parameter - then).detach())
    return found


@pytest.mark.parametrize("recipe", [muon, lambda **changes: AdamW(**SETTINGS | changes)])
def test_each_role_moves_by_its_factor(recipe):
    """Decay included: a factor of all roles is that of the learning rate."""
    plain, factors = moves(recipe), {role: 2.0**i for i, role in enumerate(ROLES)}
    assert set(plain) == set(ROLES)
    moved = moves(recipe, lr_factors=factors)
    for role, steps in moved.items():
        for step, unscaled in zip(steps, plain[role], strict=True):
            torch.testing.assert_close(step, factors[role] * unscaled, atol=2e-6, rtol=1e-3)
    doubled = moves(recipe, lr_factors=dict.fromkeys(ROLES, 2.0))
    assert all(
        torch.equal(ours, theirs)
        for role, twice in moves(recipe, lr=2 * SETTINGS["lr"]).items()
        for ours, theirs in zip(doubled[role], twice, strict=True)
    )


def test_factors_of_no_role_are_refused_and_idle_ones_said():
    with pytest.raises(Refused, match=r"lr_factors: 'ruoter' is no role; .* expert, router, head"):
        muon(lr_factors={"ruoter": 2.0})
    made = muon(lr_factors={"embedding": 2.0, "gain": 0.5})
    [line] = made.caveats(transformer("dense", style="gpt2"))  # its table is the head's, too
    assert line.startswith("optimizer.lr_factors.embedding has no effect")


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 40), (1, 1, 5)])
def test_singular_values_come_out_near_one_with_the_same_directions(shape):
    torch.manual_seed(0)
    update = torch.randn(shape)
    made = orthogonalise(update, 12)  # more steps, for the smallest ones
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(update, full_matrices=False)
    assert (u @ vh * made).sum() / ((u @ vh).norm() * made.norm()) > 0.97


def one_matrix(shape) -> nn.Module:
    model = nn.Module()
    torch.manual_seed(1)
    model.weight = declare(nn.Parameter(torch.randn(shape)), "matrix")
    model.d_model, model.width_ratio = shape[-1], 1.0
    return model


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_a_few_steps_agree_with_torch(shape):
    """torch.optim.Muon with the same scaling (0.2 √max) is the judge, to its bfloat16."""
    ours, theirs = one_matrix(shape), one_matrix(shape)
    optimizer = muon().optimizer(ours)
    judge = torch.optim.Muon(
        [theirs.weight],
        lr=1e-2,
        weight_decay=0.1,
        momentum=0.95,
        nesterov=True,
        ns_steps=5,
        adjust_lr_fn="match_rms_adamw",
    )
    for step in range(4):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        ours.weight.grad, theirs.weight.grad = gradient.clone(), gradient.clone()
        before = ours.weight.detach().clone()
        optimizer.step()
        judge.step()
        moved = (ours.weight - before).norm()
        assert (ours.weight - theirs.weight).norm() < 0.05 * moved * (step + 1)


def test_each_expert_is_a_matrix_of_its_own():
    torch.manual_seed(0)
    gradient = torch.randn(3, 4, 9)
    gradient[1] *= 100  # a loud expert does not hush the others
    stacked = nn.Module()
    stacked.weight = declare(nn.Parameter(torch.zeros(3, 4, 9)), "expert")
    stacked.weight.grad = gradient.clone()
    stacked.d_model, stacked.width_ratio = 9, 1.0
    muon().optimizer(stacked).step()
    for expert in range(3):
        alone = nn.Module()
        alone.weight = declare(nn.Parameter(torch.zeros(4, 9)), "matrix")
        alone.weight.grad = gradient[expert].clone()
        alone.d_model, alone.width_ratio = 9, 1.0
        muon().optimizer(alone).step()
        assert torch.allclose(stacked.weight[expert], alone.weight, atol=1e-6)


@pytest.mark.parametrize("moe", FEED_FORWARDS)
@pytest.mark.parametrize("style", STYLES)
def test_what_is_no_matrix_takes_adamws_steps(moe, style):
    """Embedding, head, router, gains and biases after three steps, by torch's fused AdamW."""
    models = [transformer(moe, "learned", style) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [muon().optimizer(models[0]), AdamW(**SETTINGS).optimizer(models[1])]
    ids = tokens(2, 9)
    output = models[0](ids[:, :-1], ids[:, 1:])
    (output.loss_sum + sum(output.aux.values())).backward()
    for _ in range(3):
        for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
            theirs.grad = None if ours.grad is None else ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = 0
    for (name, ours), theirs in zip(
        models[0].named_parameters(), models[1].parameters(), strict=True
    ):
        if role_of(ours) not in ("matrix", "expert"):
            assert torch.equal(ours, theirs), name
        elif ours.grad is not None:
            moved += not torch.allclose(ours, theirs, atol=1e-4)
    assert moved


@pytest.mark.parametrize("fused", [True, False], ids=["one kernel", "a device without"])
def test_adamws_half_goes_on_from_a_checkpoint(fused):
    """As torch's own without a break; the kernel finds its step counts where it wants them."""
    ours, theirs = (nn.ParameterList(torch.ones(3, n) for n in (4, 5)) for _ in range(2))
    group = {"lr": 1e-2, "weight_decay": 0.1, "muon": False}
    judge = torch.optim.AdamW(theirs, 1e-2, (0.9, 0.95), weight_decay=0.1, fused=fused)
    saved = None
    for step in range(4):
        optimizer = MuonAdamW([{"params": list(ours), **group}], muon(), fused)
        if saved is not None:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})
        generator = torch.Generator().manual_seed(step)
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        optimizer.step()
        judge.step()
        saved = copy.deepcopy(optimizer.state_dict()["state"])
        for state in saved.values():
            assert state.keys() == {"step", "mean", "square"}
            if fused:  # whatever a file holds: float32, on the parameter's device
                state["step"] = state["step"].double()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other) if fused else torch.allclose(mine, other, atol=1e-7)


@pytest.mark.parametrize(
    ("tokens_per_step", "factor"),
    [(None, 1), (512, 1), (2048, 1), (4096, 2**0.5), (8192, 2), (2**19, 2)],
)
def test_the_automatic_rate_by_batch(tokens_per_step, factor):
    """Muon's grows within what was measured; AdamW's does not, and a rate that is given stays."""
    model = transformer()
    for made, expected in (
        (muon(lr="auto"), factor * 6e-4 * 768 / 16),
        (muon(lr=1e-3), 1e-3),
        (AdamW(**SETTINGS | {"lr": "auto"}), 6e-4 * 768 / 16),
    ):
        made.settle(model, tokens_per_step)
        made.optimizer(model)
        assert made.lr == pytest.approx(expected)
