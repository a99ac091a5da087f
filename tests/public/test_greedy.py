"""Temperature 0 is greedy, as in OpenAI's API."""

import pytest
import torch

from llm.config.errors import Refused
from llm.generate import limits
from llm.generate.sampling import draw


@pytest.mark.parametrize("text", ["0", "0.0", "-0", "0.1", "2"])
def test_what_is_taken(text):
    assert limits.temperature(text) == float(text)


@pytest.mark.parametrize("text", ["0.05", "-1", "2.1", "nan", "cold"])
def test_what_is_refused_names_zero(text):
    with pytest.raises(Refused, match=r"from 0.1 to 2.0, or 0"):
        limits.temperature(text)


@pytest.mark.parametrize("top_k", [None, 1, 3])
@pytest.mark.parametrize("u", [0.0, 0.5, 0.999])
def test_zero_takes_the_likeliest_whatever_is_drawn(top_k, u):
    logits_RV = torch.tensor([[0.0, 2.0, 2.5, -1.0], [7.0, 1.0, 6.9, 0.0]])
    assert draw(logits_RV, [(0, top_k, None)] * 2, [u, u]).tolist() == [2, 0]
