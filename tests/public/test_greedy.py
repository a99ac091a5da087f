"""Temperature 0 is greedy, as in OpenAI's API."""

import pytest
import torch

from llm.config.errors import Refused
from llm.generate import limits
from llm.generate.sampling import pick


@pytest.mark.parametrize("text", ["0", "0.0", "-0", "0.1", "2"])
def test_what_is_taken(text):
    assert limits.temperature(text) == float(text)


@pytest.mark.parametrize("text", ["0.05", "-1", "2.1", "nan", "cold"])
def test_what_is_refused_names_zero(text):
    with pytest.raises(Refused, match=r"from 0.1 to 2.0, or 0"):
        limits.temperature(text)


@pytest.mark.parametrize("top_k", [None, 1, 3])
def test_zero_takes_the_likeliest_and_draws_nothing(top_k):
    logits_BV = torch.tensor([[0.0, 2.0, 2.5, -1.0], [7.0, 1.0, 6.9, 0.0]])
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    ids_B, probabilities_B = pick(logits_BV, 0, top_k, generator)
    assert ids_B.tolist() == [2, 0]
    torch.testing.assert_close(probabilities_B, logits_BV.softmax(-1).amax(-1))
    assert torch.equal(generator.get_state(), before)
