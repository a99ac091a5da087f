"""Blocks under torch.compile: few graphs, however many blocks there are."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from llm.hardware.blocks import recompute_blocks
from llm.layers.noise import keyed, number_places
from tests.toy_models import experts, randomised, tokens, transformer

NOISY = experts(4, 2, jitter=0.1, balance="none")


@pytest.mark.parametrize(
    ("moe", "changes", "recompute", "graphs"),
    [
        (NOISY, {"n_layers": 12, "dropout": 0.1}, False, 1),
        pytest.param(
            *("dense", {"n_layers": 4, "window": [4, None], "position": "alibi"}, True, 2),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["noise", "masks-recomputed"],
)
def test_one_graph_for_all_blocks_alike(moe, changes, recompute, graphs):
    """Noise of a place for each, and masks that they share, in training and in evaluation."""
    torch._dynamo.reset()
    model = randomised(transformer(moe, **changes))
    number_places(model)
    if recompute:
        recompute_blocks(model)
    counter = CompileCounterWithBackend("eager")
    ids = tokens(2, 12)
    documents = (ids > 18).int().cumsum(1)
    keys = torch.randint(-(2**31), 2**31, (2, 2), dtype=torch.int32)

    def losses() -> list[float]:
        found = []
        for training in (True, False):
            with keyed(keys), torch.set_grad_enabled(training):
                loss = model.train(training)(ids, ids, document_ids_BT=documents).loss_sum
            if training:
                with keyed(keys):
                    loss.backward()
            found.append(loss.item())
        return found

    expected = losses()
    for block in model.blocks:
        block.compile(backend=counter)
    for _ in range(2):
        assert losses() == expected
        assert counter.frame_count == 2 * graphs  # training and evaluation
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()
