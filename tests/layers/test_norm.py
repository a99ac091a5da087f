"""Norms against torch's own."""

import pytest
import torch
from torch import nn

from llm.layers.norm import LayerNorm, RMSNorm
from tests.toy_models import randomised


def agree(mine: nn.Module, theirs: nn.Module):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 5, 8, generator=generator) * 3 + 1
    x[0, 0] *= 1e-3  # where eps counts
    weights = torch.randn(3, 5, 8, generator=generator)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ya, yb = mine(a), theirs(b)
    torch.testing.assert_close(ya, yb)
    (ya * weights).sum().backward()
    (yb * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mine.gain.grad, theirs.weight.grad)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias):
    mine, theirs = randomised(LayerNorm(8, 1e-5, bias)), nn.LayerNorm(8, 1e-5, bias=bias)
    theirs.weight.data.copy_(mine.gain.data)
    if bias:
        theirs.bias.data.copy_(mine.bias.data)
    agree(mine, theirs)


def test_rms_norm():
    mine, theirs = randomised(RMSNorm(8, 1e-5)), nn.RMSNorm(8, 1e-5)
    theirs.weight.data.copy_(mine.gain.data)
    agree(mine, theirs)


def test_rms_norm_computes_in_float32():
    x = torch.full((1, 8), 300.0, dtype=torch.float16)  # its square is more than float16 holds
    torch.testing.assert_close(RMSNorm(8, 1e-5)(x), torch.ones(1, 8), atol=1e-3, rtol=0)
