"""The chunked head and loss against F.cross_entropy on all logits at once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llm.layers import cross_entropy
from llm.layers.cross_entropy import (
    IGNORED,
    chunk_terms,
    linear_cross_entropy,
    plain_cross_entropy,
)

V, D = 53, 8


def problem(n: int, dtype=torch.float32, ignored: float = 0.0, d: int = D, v: int = V):
    generator = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(v, d, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(v, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < ignored] = IGNORED
    return hidden, weight, targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ignored", [0.0, 0.4])
@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize(
    ("chunk_numbers", "filled"),  # rows: 32, 40, all; columns: as many as ids, or filled up to 64
    [(1, 1), (40 * V, 1), (40 * V, 64), (10**9, 1)],
)
def test_values_and_gradients_are_those_of_the_plain_loss(
    monkeypatch, dtype, ignored, chunk_numbers, softcap, filled
):
    monkeypatch.setitem(cross_entropy._CHUNK_NUMBERS, "cpu", chunk_numbers)
    monkeypatch.setitem(cross_entropy._FILLED, "cpu", filled)
    hidden, weight, targets = problem(101, dtype, ignored)
    loss_sum, nats = linear_cross_entropy(hidden, weight, targets, softcap)
    expected = plain_cross_entropy(hidden, weight, targets, softcap)
    torch.testing.assert_close(nats, expected)
    torch.testing.assert_close(loss_sum, expected.sum())
    got = torch.autograd.grad(0.37 * loss_sum, (hidden, weight))
    judged = torch.autograd.grad(0.37 * expected.sum(), (hidden, weight))
    for mine, theirs in zip(got, judged, strict=True):
        assert mine.dtype is dtype
        torch.testing.assert_close(mine, theirs)


def test_gradcheck():
    hidden, weight, targets = problem(9, torch.float64, 0.3, d=4, v=7)
    for softcap in (None, 1.3):
        assert torch.autograd.gradcheck(
            lambda h, w, c=softcap: linear_cross_entropy(h, w, targets, c)[0], (hidden, weight)
        )


def test_all_rows_ignored_costs_nothing_and_moves_nothing():
    hidden, weight, targets = problem(40)
    loss_sum, nats = linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORED))
    loss_sum.backward()
    assert loss_sum == 0 and not nats.any()
    assert not hidden.grad.any() and not weight.grad.any()


def test_the_nats_of_rows_refuse_a_gradient():
    """One pass makes the gradient of one sum: weighing rows must not silently come out wrong."""
    hidden, weight, targets = problem(10)
    _, nats = linear_cross_entropy(hidden, weight, targets)
    assert not nats.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        (nats * torch.arange(10)).sum().backward()


def test_a_target_outside_the_vocabulary_is_no_class():
    hidden, weight, targets = problem(4)
    for wrong in (-1, V):
        targets[2] = wrong
        with pytest.raises((RuntimeError, IndexError)):
            linear_cross_entropy(hidden, weight, targets)


class Products(TorchDispatchMode):
    """Counts matrix products and the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.matmul)
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_never_are_there_all_logits(monkeypatch):
    monkeypatch.setitem(cross_entropy._CHUNK_NUMBERS, "cpu", 64 * V)
    hidden, weight, targets = problem(640)
    with Products() as seen:
        linear_cross_entropy(hidden, weight, targets)[0].backward()
    assert seen.largest == max(64 * V, 640 * D)  # of 640 · V
    with Products() as plain:
        plain_cross_entropy(hidden, weight, targets).sum().backward()
    assert plain.largest == 640 * V


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_forms_no_gradients(mode):
    hidden, weight, targets = problem(40)
    with mode(), Products() as seen:
        loss_sum, _ = linear_cross_entropy(hidden, weight, targets)
    assert not loss_sum.requires_grad
    assert seen.products == 1


@pytest.mark.parametrize("wanted", ["hidden", "weight"])
def test_one_side_alone_may_want_a_gradient(wanted):
    hidden, weight, targets = problem(12)
    (weight if wanted == "hidden" else hidden).requires_grad_(False)
    linear_cross_entropy(hidden, weight, targets)[0].backward()
    one = hidden if wanted == "hidden" else weight
    (judged,) = torch.autograd.grad(plain_cross_entropy(hidden, weight, targets).sum(), one)
    torch.testing.assert_close(one.grad, judged)


def test_bfloat16_autocast_stays_close():
    hidden, weight, targets = problem(200, ignored=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        loss_sum, nats = linear_cross_entropy(hidden, weight, targets)
    expected = plain_cross_entropy(hidden, weight, targets)
    assert nats.dtype is torch.float32
    torch.testing.assert_close(nats, expected, atol=0.1, rtol=0.02)
    loss_sum.backward()
    judged = torch.autograd.grad(expected.sum(), (hidden, weight))
    for mine, theirs in zip((hidden.grad, weight.grad), judged, strict=True):
        assert mine.dtype is torch.float32
        assert (mine - theirs).norm() < 0.01 * theirs.norm()


def test_the_weight_gradient_is_not_rounded_to_half_precision():
    """200,000 equal rows push one weight by 133,333: more than float16 can hold."""
    hidden = torch.ones(200_000, 2, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(3, 2, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        loss_sum, _ = linear_cross_entropy(hidden, weight, torch.zeros(200_000, dtype=torch.int64))
    (loss_sum / 200_000).backward()
    expected = torch.tensor([[-2 / 3], [1 / 3], [1 / 3]]).expand(3, 2)
    torch.testing.assert_close(weight.grad, expected, atol=2e-3, rtol=0)


def test_the_scale_of_the_loss_is_exact_under_autocast():
    """1/6 is not a bfloat16: rounding it would scale the whole gradient below the head."""
    hidden, weight, targets = problem(64)
    with torch.autocast("cpu", torch.bfloat16):
        loss_sum, _ = linear_cross_entropy(hidden, weight, targets)
    (whole,) = torch.autograd.grad(loss_sum, hidden, retain_graph=True)
    (part,) = torch.autograd.grad(loss_sum / 6, hidden)
    ratio = float((part * whole).sum() / whole.square().sum())
    assert ratio == pytest.approx(1 / 6, rel=3e-4)  # bfloat16(1/6) is off by 1.9e-3


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_z_loss_adds_the_squared_normaliser_to_the_sum_and_not_to_the_nats(softcap):
    hidden, weight, targets = problem(101, torch.float64, 0.3)
    objective, nats = linear_cross_entropy(hidden, weight, targets, softcap, z_loss=0.1)
    expected = plain_cross_entropy(hidden, weight, targets, softcap)
    logits = cross_entropy.soft_capped(hidden @ weight.T, softcap)
    log_z = logits.logsumexp(1)[targets != IGNORED]
    torch.testing.assert_close(nats, expected)
    judged = expected.sum() + 0.1 * log_z.square().sum()
    torch.testing.assert_close(objective, judged)
    got = torch.autograd.grad(objective, (hidden, weight))
    for mine, theirs in zip(got, torch.autograd.grad(judged, (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_logits_that_are_far_apart_have_exact_nats():
    """Shares below the smallest float32 are 0, and their logarithm is not what nats are made of."""
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[300.0, -300.0], [-300.0, 300.0], [0.0, 0.0]], requires_grad=True)
    targets = torch.tensor([1, 1])
    loss_sum, nats = linear_cross_entropy(hidden, weight, targets)
    assert nats.tolist() == [600.0, 0.0]
    loss_sum.backward()
    assert torch.isfinite(weight.grad).all() and torch.isfinite(hidden.grad).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_terms_stay_the_same_when_compiled(dtype):
    torch._dynamo.reset()
    compiled = torch.compile(chunk_terms, fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(48, 64, generator=generator)).to(dtype)
    targets = torch.randint(V, (48,), generator=generator)
    targets[::5] = IGNORED
    for softcap, z_loss in ((None, 0.0), (3.0, 0.01)):
        results = [
            f(logits.clone(), targets, V, True, softcap, z_loss) for f in (compiled, chunk_terms)
        ]
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)
    torch._dynamo.reset()
