"""Sorting tokens to experts and back, against loops over tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.layers.feed_forward import FeedForward
from llm.moe import experts as experts_module
from llm.moe.dispatch import gather, plan, scatter
from tests.toy_models import experts, randomised, shape


@given(
    st.integers(1, 6).flatmap(
        lambda e: st.tuples(
            st.just(e),
            st.integers(1, e).flatmap(
                lambda k: st.lists(
                    st.permutations(range(e)).map(lambda p: list(p)[:k]), min_size=1, max_size=20
                )
            ),
        )
    )
)
def test_plan_is_a_stable_sort_and_its_inverse(case):
    n_experts, choices = case
    assigned = torch.tensor(choices)
    places = plan(assigned, n_experts)
    flat = assigned.flatten()
    expected = sorted(range(flat.numel()), key=lambda m: (flat[m].item(), m))
    assert places.order_M.tolist() == expected
    assert places.order_M[places.place_NK.flatten()].tolist() == list(range(flat.numel()))
    counts = [(flat == e).sum().item() for e in range(n_experts)]
    assert places.counts_E.tolist() == counts
    assert places.ends_E.tolist() == torch.tensor(counts).cumsum(0).tolist()
    assert places.ends_E.dtype is torch.int32


def test_scatter_and_gather_pass_gradcheck():
    chosen = torch.tensor([[0, 2], [2, 1], [2, 0], [3, 2]])
    places = plan(chosen, 5)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: scatter(x, places), (x,))
    assert torch.autograd.gradcheck(lambda y, w: gather(y, w, places), (y, weights))


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_experts_pass_gradcheck(activation):
    layer = randomised(
        experts_module.Experts(shape(d_model=4, d_ff=4, activation=activation), 3, 1)
    )
    layer = layer.double()
    places = plan(torch.tensor([[0], [2], [2], [0], [2]]), 3)  # expert 1 gets nothing
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(
            layer, dict(zip(names, values, strict=True)), (x, places.ends_E)
        )

    assert torch.autograd.gradcheck(run, (x, *values))


def by_hand(layer, x_BTD: torch.Tensor) -> torch.Tensor:
    """Σ weight · expert(x), one token and one expert at a time."""
    routing = layer.router(x_BTD.flatten(0, 1))
    rows = []
    for token, x in enumerate(x_BTD.flatten(0, 1)):
        row = torch.zeros_like(x)
        for choice, expert in enumerate(routing.experts_NK[token].tolist()):
            parts = layer.experts
            up = x @ parts.up_EDF[expert]
            if parts.up_bias_EF is not None:
                up = up + parts.up_bias_EF[expert]
            if parts.gate_EDF is not None:
                gate = x @ parts.gate_EDF[expert]
                if parts.gate_bias_EF is not None:
                    gate = gate + parts.gate_bias_EF[expert]
                inner = torch.nn.functional.silu(gate) * up
            else:
                inner = torch.nn.functional.gelu(up)
            y = inner @ parts.down_EFD[expert]
            if parts.down_bias_ED is not None:
                y = y + parts.down_bias_ED[expert]
            row = row + routing.weights_NK[token, choice] * y
        rows.append(row)
    return torch.stack(rows).view_as(x_BTD)


@pytest.mark.parametrize("skew", ["even", "skewed", "one"])
@pytest.mark.parametrize(("n_experts", "top_k"), [(1, 1), (5, 1), (5, 2), (4, 4)])
@pytest.mark.parametrize(
    ("activation", "bias", "d_ff"), [("gelu", True, 24), ("swiglu", False, 24), ("swiglu", True, 7)]
)
def test_outputs_and_all_gradients_are_those_of_a_loop(
    n_experts, top_k, activation, bias, d_ff, skew
):
    """Even, skewed and single-expert loads, empty experts, widths that grouped_mm does not take."""
    layer = experts(n_experts, top_k)(shape(activation=activation, bias=bias, d_ff=d_ff))
    layer = randomised(layer)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, 7, 16, generator=generator)
    x += {"even": 0.0, "skewed": 1.5, "one": 8.0}[skew] * layer.router.weight_ED[0].detach()
    weights = torch.randn(3, 7, 16, generator=generator)
    results = []
    for function in (lambda x: layer(x).y_BTD, lambda x: by_hand(layer, x)):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        (y * weights).sum().backward()
        results.append([y, leaf.grad, *(p.grad.clone() for p in layer.parameters())])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)
    if skew == "one" and (n_experts, top_k) == (5, 1):
        assert (layer(x).router["load_E"] == 0).sum() == 4


@pytest.mark.parametrize("bias", [True, False])
def test_grouped_products_and_the_loop_agree(monkeypatch, bias):
    """Outputs and gradients, with rows behind the last expert's that nobody may read.

    Some GPUs write neither those nor the weight gradients of experts without rows.
    """
    grouped_mm = torch.nn.functional.grouped_mm

    def careless(a, b, offs):
        y = grouped_mm(a, b, offs=offs)
        if b.ndim == 3:
            y[offs[-1] :] = torch.nan
        else:
            y[offs.diff(prepend=offs.new_zeros(1)) == 0] = torch.nan
        return y

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", careless)
    layer = randomised(experts(6, 2)(shape(activation="swiglu", bias=bias))).experts
    x_MD = torch.randn(21, 16, generator=torch.Generator().manual_seed(1))
    ends_E = torch.tensor([4, 4, 9, 12, 17, 17], dtype=torch.int32)
    results = []
    for take in (True, False):
        monkeypatch.setattr(experts_module, "_grouped_mm_takes", lambda *_, take=take: take)
        leaf = x_MD.clone().requires_grad_()
        layer.zero_grad()
        y_MD = layer(leaf, ends_E)
        y_MD[:17].square().sum().backward()
        results.append([y_MD[:17], leaf.grad[:17], *(p.grad.clone() for p in layer.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("d_ff", [22, 6, 9])
def test_widths_that_grouped_products_refuse_fall_back(d_ff):
    layer = randomised(experts(4, 2)(shape(d_ff=d_ff)))
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x).y_BTD, by_hand(layer, x), atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x).y_BTD
    assert low.dtype is x.dtype
    assert (low - by_hand(layer, x)).norm() < 0.03 * low.norm()


@pytest.mark.parametrize(("activation", "bias"), [("gelu", True), ("swiglu", False)])
def test_one_expert_is_the_dense_feed_forward(activation, bias):
    facts = shape(activation=activation, bias=bias)
    dense = randomised(FeedForward(facts))
    layer = experts(1, 1)(facts)
    pairs = [(layer.experts.up_EDF, dense.up), (layer.experts.down_EFD, dense.down)]
    biases = [(layer.experts.up_bias_EF, dense.up), (layer.experts.down_bias_ED, dense.down)]
    if dense.gate is not None:
        pairs.append((layer.experts.gate_EDF, dense.gate))
    with torch.no_grad():
        for mine, linear in pairs:
            mine[0] = linear.weight.T
        for mine, linear in biases if bias else ():
            mine[0] = linear.bias
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(2))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ya, yb = layer(a).y_BTD, dense(b).y_BTD
    torch.testing.assert_close(ya, yb)
    ya.square().sum().backward()
    yb.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
    for mine, linear in pairs:
        torch.testing.assert_close(mine.grad[0], linear.weight.grad.T, atol=1e-4, rtol=1e-4)
    for mine, linear in biases if bias else ():
        torch.testing.assert_close(mine.grad[0], linear.bias.grad, atol=1e-4, rtol=1e-4)
    assert not layer.router.weight_ED.grad.any()  # nothing to choose


def test_equal_experts_are_the_dense_feed_forward_for_renormalised_weights():
    facts = shape()
    dense, layer = randomised(FeedForward(facts)), experts(4, 2)(facts)
    with torch.no_grad():
        layer.experts.up_EDF[:] = dense.up.weight.T
        layer.experts.down_EFD[:] = dense.down.weight.T
        layer.experts.up_bias_EF[:] = dense.up.bias
        layer.experts.down_bias_ED[:] = dense.down.bias
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(layer(x).y_BTD, dense(x).y_BTD)
