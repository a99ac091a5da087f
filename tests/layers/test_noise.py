"""Noise by row: the same however the batch is split, and otherwise like any noise."""

import pytest
import torch
from scipy import stats

from llm.layers.noise import Dropout, Noise, keyed, number_places
from tests.toy_models import experts, randomised, tokens, transformer


def keys(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, (rows, 2), dtype=torch.int32, generator=generator)


def test_uniform_and_independent_of_place_row_and_index():
    first, second = Noise(), Noise()
    number_places(torch.nn.ModuleList([first, second]))
    like = torch.empty(64, 4096)
    with keyed(keys(64)):
        a, b = first(like), second(like)
        assert torch.equal(a, first(like))
    assert a.min() >= 0 and a.max() < 1
    assert stats.kstest(a.flatten().numpy(), "uniform").pvalue > 1e-3
    pairs = [
        (a, b),  # places
        (a[1:], a[:-1]),  # rows
        (a[:, 1:], a[:, :-1]),  # neighbours
        (a[:, 64:], a[:, :-64]),
        (a[:, 2048:], a[:, :2048]),
    ]
    for x, y in pairs:
        r = torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1]
        assert abs(r) < 5 / x.numel() ** 0.5
    # and no row is another one begun elsewhere
    assert len(a.flatten().unique()) > a.numel() * (1 - a.numel() / 2**24)
    assert not torch.equal(a[:, ::2], b[:, ::2])


def test_dropout_keeps_the_mean_and_its_share():
    x = torch.ones(32, 2000)
    dropout = Dropout(0.3)
    for context in (keyed(keys(32)), torch.no_grad()):  # by row, and by the global generator
        with context:
            y = dropout(x)
        assert (y == 0).float().mean() == pytest.approx(0.3, abs=0.01)
        assert y.mean() == pytest.approx(1.0, abs=0.02)
    assert dropout.eval()(x) is x


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_a_split_batch_draws_what_the_whole_one_does(style):
    """Dropout everywhere, attention weights included, and the router's jitter."""
    model = transformer(
        experts(top_k=2, jitter=0.1), style=style, dropout=0.2, n_kv_heads=2, max_seq_len=12
    )
    number_places(randomised(model).double())
    batch, row_keys = tokens(4, 12), keys(4)
    with keyed(row_keys):
        whole = model(batch, batch).nats_BT
        assert not torch.equal(whole, model.eval()(batch, batch).nats_BT)
        model.train()
    parts = []
    for i in range(4):
        with keyed(row_keys[i : i + 1]):
            parts.append(model(batch[i : i + 1], batch[i : i + 1]).nats_BT)
    torch.testing.assert_close(torch.cat(parts), whole)
