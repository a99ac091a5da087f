"""Gradients are the same bytes each time, with threads too: resumes depend on it."""

import pytest
import torch

from tests.toy_models import tokens, transformer


@pytest.mark.parametrize("style", ["gpt2", "llama"])
@pytest.mark.parametrize("moe", ["switch", "topk"])
def test_gradients_do_not_depend_on_the_order_of_threads(moe, style):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = transformer(moe, "learned", style, d_model=64, d_ff=128, max_seq_len=64)
        ids = tokens(8, 65)
        seen: list[dict[str, torch.Tensor]] = []
        for _ in range(15):
            torch.manual_seed(0)
            model.zero_grad()
            output = model(ids[:, :-1], ids[:, 1:])
            (output.loss_sum / 512 + sum(output.aux.values())).backward()
            seen.append({n: p.grad.clone() for n, p in model.named_parameters()})
        for name, gradient in seen[0].items():
            assert all(torch.equal(gradient, other[name]) for other in seen), name
    finally:
        torch.set_num_threads(threads)
