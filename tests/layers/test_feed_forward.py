"""The feed-forward part against its formula."""

import pytest
import torch

from llm.layers.feed_forward import FeedForward
from llm.layers.roles import role_of
from tests.toy_models import randomised, shape

FORMULAS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    ),
    "relu2": lambda x: x.clamp_min(0) ** 2,
    "swiglu": lambda x: x / (1 + torch.exp(-x)),
    "geglu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", FORMULAS)
def test_formula(activation, bias):
    layer = randomised(FeedForward(shape(activation=activation, bias=bias)))
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))

    def linear(map_, value):
        out = value @ map_.weight.T
        return out if map_.bias is None else out + map_.bias

    inner = FORMULAS[activation](linear(layer.up if layer.gate is None else layer.gate, x))
    if layer.gate is not None:
        inner = inner * linear(layer.up, x)
    y, aux, router = layer(x)
    torch.testing.assert_close(y, linear(layer.down, inner), atol=1e-5, rtol=1e-4)
    assert (aux, router) == ({}, {})
    assert (layer.gate is not None) == (activation in ("swiglu", "geglu"))
    assert any(role_of(p) == "bias" for p in layer.parameters()) == bias


def test_dropout_only_in_training():
    layer = randomised(FeedForward(shape(dropout=0.5)))
    x = torch.ones(1, 200, 16)
    dropped = (layer(x).y_BTD == 0).float().mean()
    assert 0.45 < dropped < 0.55
    assert (layer.eval()(x).y_BTD != 0).all()
