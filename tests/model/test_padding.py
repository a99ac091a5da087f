"""Padding does not exist: appended to a batch it changes no gradient, no load and no bias."""

import pytest
import torch

from tests.toy_models import VOCAB, experts, randomised, tokens, transformer

LAYERS = {
    "dense": None,
    "every loss": {"top_k": 2, "balance": "switch+z+importance+bias", "bias_update": 0.01},
    "capacity": {"top_k": 2, "capacity_factor": 0.8, "balance": "switch"},
    "overflow": {"top_k": 1, "capacity_factor": 0.7, "overflow": "next", "balance": "switch"},
    "expert choice": {"top_k": 1, "choice": "expert", "balance": "none"},
}


def padded(x: torch.Tensor, columns: int, rows: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, columns, 0, rows), value=value)


@pytest.mark.parametrize(("columns", "rows"), [(5, 0), (0, 2), (3, 1)])
@pytest.mark.parametrize("kind", LAYERS)
def test_appended_padding_changes_nothing(kind, columns, rows):
    settings = LAYERS[kind]
    part = None if settings is None else experts(4, **settings)
    model = randomised(transformer(part) if part else transformer()).double().train()
    ids, targets = tokens(3, 11), tokens(3, 11, seed=1)
    real = padded(torch.ones_like(ids), columns, rows, 0).bool()
    garbage = torch.randint(VOCAB, real.shape, generator=torch.Generator().manual_seed(2))
    longer = padded(ids, columns, rows, 0).where(real, garbage)

    def step(**call):
        model.zero_grad()
        output = model(**call)
        loss = output.loss_sum / output.n_tokens + sum(output.aux.values())
        loss.backward()
        return output, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain, expected = step(tokens_BT=ids, targets_BT=targets)
    targets_there = padded(targets, columns, rows, -100)
    output, gradients = step(tokens_BT=longer, targets_BT=targets_there, real_BT=real)
    assert output.n_tokens == plain.n_tokens
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-7)
    for name, value in plain.router.items():
        torch.testing.assert_close(output.router[name], value, atol=1e-6, rtol=1e-5, msg=name)
    for name, value in plain.aux.items():
        torch.testing.assert_close(output.aux[name], value, atol=1e-6, rtol=1e-5, msg=name)
