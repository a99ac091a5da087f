"""The forward contract of DESIGN.md.

`model(tokens_BT, targets_BT=None, *, document_ids_BT=None, cache=None) -> Output`: logits without
targets, sums with them, auxiliary losses apart and weighted, no state from one call to the next.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llm.generate.engine import Engine, Request
from llm.layers import cross_entropy
from tests.toy_models import (
    FEED_FORWARDS,
    POSITIONS,
    VOCAB,
    experts,
    feed_forward,
    randomised,
    tokens,
    transformer,
)

pytestmark = pytest.mark.parametrize("moe", FEED_FORWARDS)
IGNORED = -100


def some_targets(rows: int, length: int):
    targets = tokens(rows, length, seed=9)
    targets[0, 3:6] = IGNORED
    targets[-1] = IGNORED
    return targets


def test_logits_without_targets_and_sums_with_them(moe):
    model = randomised(transformer(moe)).eval()
    ids, targets = tokens(4, 12), some_targets(4, 12)
    plain, judged = model(ids), model(ids, targets)
    assert plain.logits_BTV.shape == (4, 12, VOCAB)
    assert plain.loss_sum is plain.n_tokens is plain.nats_BT is None
    assert judged.logits_BTV is None
    nats = F.cross_entropy(
        plain.logits_BTV.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    torch.testing.assert_close(judged.nats_BT, nats.view(4, 12), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(judged.loss_sum, nats.sum())
    assert judged.n_tokens == (targets != IGNORED).sum() == 4 * 12 - 3 - 12
    assert not judged.nats_BT.requires_grad and judged.loss_sum.requires_grad
    assert not judged.nats_BT[targets == IGNORED].any()


def test_any_split_of_a_batch_adds_up(moe):
    model = randomised(transformer(moe))
    ids, targets = tokens(6, 12), some_targets(6, 12)
    whole = model(ids, targets)
    whole.loss_sum.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    for sizes in ([1] * 6, [4, 2], [5, 1]):
        model.zero_grad()
        loss, count = 0.0, 0
        for part, part_targets in zip(ids.split(sizes), targets.split(sizes), strict=True):
            output = model(part, part_targets)
            output.loss_sum.backward()
            loss, count = loss + output.loss_sum.detach(), count + output.n_tokens
        torch.testing.assert_close(loss, whole.loss_sum.detach())
        assert count == whole.n_tokens
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-3, rtol=1e-3)


def test_auxiliary_losses_are_apart_and_weighted(moe):
    """Other weights move `aux` in proportion, and neither the loss nor the logits."""
    ids, targets = tokens(3, 12), some_targets(3, 12)
    if moe == "dense":
        output = transformer(moe)(ids, targets)
        assert output.aux == {} and output.router == {}
        return
    top_k = {"switch": 1, "topk": 2}[moe]
    outputs = []
    for balance, z in ((0.01, 0.001), (0.05, 0.1), (0.0, 0.0)):
        model = randomised(transformer(experts(4, top_k, balance_loss=balance, z_loss=z)))
        outputs.append(model(ids, targets))
    usual, heavy, none = outputs
    assert usual.loss_sum == heavy.loss_sum == none.loss_sum
    assert none.aux == {}
    assert set(usual.aux) == {"balance_loss", "z_loss"}
    torch.testing.assert_close(heavy.aux["balance_loss"], 5 * usual.aux["balance_loss"])
    torch.testing.assert_close(heavy.aux["z_loss"], 100 * usual.aux["z_loss"])
    for name, weight in (("balance_loss", 0.01), ("z_loss", 0.001)):
        expected = weight * usual.router[name].mean()  # a mean over the layers
        torch.testing.assert_close(usual.aux[name], expected)


@torch.no_grad()
def test_no_state_is_carried_from_call_to_call(moe):
    """Calls answer the same in any order, after training steps, generation and failed calls."""
    model = randomised(transformer(moe, "learned")).eval()
    calls = [(tokens(2, 12, seed=s), some_targets(2, 12)) for s in range(3)]
    first = [model(*call) for call in calls]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    list(Engine(model, 3).generate([Request([1, 2], 5), Request([0], 9, top_k=5)] * 2))
    with pytest.raises(ValueError):
        model(tokens(1, 13))
    model.train()
    with torch.enable_grad():
        model(*calls[0]).loss_sum.backward()
    model.eval()
    for index in (2, 0, 1):
        again = model(*calls[index])
        assert again.loss_sum == first[index].loss_sum
        assert torch.equal(again.nats_BT, first[index].nats_BT)
        assert again.aux.keys() == first[index].aux.keys()
        for name, value in first[index].aux.items():
            assert torch.equal(again.aux[name], value)
        for name, value in first[index].router.items():
            assert torch.equal(again.router[name], value)
    assert {n: v.tolist() for n, v in model.state_dict().items()} == {
        n: v.tolist() for n, v in before.items()
    }
    assert buffers.keys() == dict(model.named_buffers()).keys()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("window", [None, 4])
def test_documents_in_one_row_are_as_if_alone(moe, position, window):
    """Positions count from the beginning of each document, and windows and sinks do, too."""
    model = randomised(transformer(moe, position, window=window, n_sinks=1)).eval()
    ids = tokens(2, 12)
    documents = torch.tensor([[0] * 5 + [1] * 7, [4] * 3 + [9] * 8 + [2]])
    together = model(ids, document_ids_BT=documents).logits_BTV
    for row, cuts in enumerate(([5, 7], [3, 8, 1])):
        alone = [model(part[None]).logits_BTV[0] for part in ids[row].split(cuts)]
        torch.testing.assert_close(together[row], torch.cat(alone), atol=2e-5, rtol=1e-4)


def test_documents_and_a_cache_are_refused_together(moe):
    model = transformer(moe)
    with pytest.raises(ValueError, match="do not go together"):
        model(tokens(1, 3), document_ids_BT=torch.zeros(1, 3), cache=model.cache(1, 5))


class Largest(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.numbers = max(self.numbers, tensor.numel())
        return result


def test_the_loss_is_computed_inside_forward_and_never_holds_all_logits(moe, monkeypatch):
    vocabulary = 997
    monkeypatch.setitem(cross_entropy._CHUNK_NUMBERS, "cpu", 32 * vocabulary)
    model = transformer(moe, vocab_size=vocabulary)
    ids = tokens(20, 12, vocab_size=vocabulary)
    with Largest() as seen:
        output = model(ids, ids)
        output.loss_sum.backward()
    assert seen.numbers == 32 * vocabulary  # of 240 · 997
    assert all(p.grad is not None for p in model.parameters())
    assert output.loss_sum.shape == output.n_tokens.shape == ()


def test_bfloat16_autocast_keeps_the_loss_and_every_gradient(moe):
    """`feed_forward` is built twice alike; gradients stay float32 and close to the exact ones."""
    model = transformer(feed_forward(moe))
    ids, targets = tokens(8, 12), tokens(8, 12, seed=1)
    exact = model(ids, targets)
    (exact.loss_sum / exact.n_tokens + sum(exact.aux.values())).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(ids, targets)
    assert output.loss_sum.dtype is output.nats_BT.dtype is torch.float32
    assert output.loss_sum.item() == pytest.approx(exact.loss_sum.item(), rel=2e-3)
    (output.loss_sum / output.n_tokens + sum(output.aux.values())).backward()
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert parameter.grad.dtype is torch.float32
        if gradient.norm() > 1e-6 and not name.endswith("key.bias"):  # that one is 0 but for noise
            assert (parameter.grad - gradient).norm() < 0.1 * gradient.norm(), name
