"""Scaled rotary positions, judged by transformers."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llm.config.errors import Refused
from llm.model.position import Geometry, Rope
from llm.model.rope_scaling import RopeDynamic, RopeLinear, RopeLlama3, RopeYarn
from tests.toy_models import context_of, tokens, transformer

LENGTH = 128  # before scaling


def theirs(kind: str, head_dim: int, base: float, n: int | None = None, **parameters):
    """Frequencies and attention factor of transformers."""
    # Their dynamic scaling takes the length before from max_position_embeddings.
    longest = LENGTH if kind == "dynamic" else 4 * LENGTH
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        max_position_embeddings=longest,
        rope_parameters={"rope_type": kind, "rope_theta": base, **parameters},
    )
    return ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=n)


def mine(rope: Rope, n: int = 1) -> torch.Tensor:
    return rope.frequencies_for(torch.arange(n))


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
@pytest.mark.parametrize("head_dim", [16, 64])
@pytest.mark.parametrize("factor", [1.0, 4.0, 7.5])
def test_frequencies_and_magnitude_are_those_of_transformers(head_dim, base, factor):
    geometry = Geometry(2 * head_dim, 2, head_dim, 4 * LENGTH, 0.02)
    settings = {"base": base, "factor": factor}
    known = {**settings, "original_max_seq_len": LENGTH}
    original = {"factor": factor, "original_max_position_embeddings": LENGTH}
    pairs = [
        (RopeLinear(geometry, **settings), theirs("linear", head_dim, base, factor=factor)),
        (RopeYarn(geometry, **known), theirs("yarn", head_dim, base, **original)),
        (
            RopeYarn(geometry, **known, beta_fast=8.0, beta_slow=0.5, attention_factor=1.3),
            theirs(
                "yarn",
                head_dim,
                base,
                **original,
                beta_fast=8.0,
                beta_slow=0.5,
                attention_factor=1.3,
            ),
        ),
        (
            RopeLlama3(geometry, **known),
            theirs("llama3", head_dim, base, **original, low_freq_factor=1.0, high_freq_factor=4.0),
        ),
    ]
    for rope, (frequencies, magnitude) in pairs:
        torch.testing.assert_close(mine(rope), frequencies, rtol=1e-5, atol=0)
        assert rope.magnitude == pytest.approx(magnitude)
        if factor > 1:
            assert (mine(rope) - mine(Rope(geometry, base=base))).abs().max() > 1e-5
    dynamic = RopeDynamic(geometry, **known)
    for n in (1, LENGTH, LENGTH + 1, 3 * LENGTH):
        frequencies, _ = theirs("dynamic", head_dim, base, n, factor=factor)
        torch.testing.assert_close(mine(dynamic, n), frequencies, rtol=1e-5, atol=0)


def test_yarn_turns_and_lengthens():
    """Scores grow by the square of 0.1 ln s + 1 where nothing turns."""
    geometry = Geometry(32, 2, 16, 64, 0.02)
    x = torch.randn(1, 2, 1, 16)
    yarn = RopeYarn(geometry, base=1e4, factor=8.0)
    turned = yarn.rotate(x, context_of(x[:, 0]))
    torch.testing.assert_close(turned, x * (0.1 * torch.tensor(8.0).log() + 1))


def test_the_length_before_follows_from_the_factor():
    """One override extends a context: max_seq_len grows, and so the factor."""
    geometry = Geometry(32, 2, 16, 4 * LENGTH, 0.02)
    for kind in (RopeYarn, RopeLlama3):
        said = kind(geometry, base=1e4, factor=4.0, original_max_seq_len=LENGTH)
        assert torch.equal(mine(kind(geometry, base=1e4, factor=4.0)), mine(said))


def test_dynamic_changes_nothing_within_the_training_length():
    model = transformer(max_seq_len=12)
    geometry = Geometry(16, 4, 4, 12, 0.02)
    ids = tokens(2, 20)
    plain = model(ids[:, :12]).logits_BTV
    longer = model(ids).logits_BTV
    model.position = RopeDynamic(geometry, base=1e4, factor=3.0)
    assert torch.equal(model(ids[:, :12]).logits_BTV, plain)
    assert not torch.equal(model(ids).logits_BTV, longer)


def test_contradictions_are_refused():
    geometry = Geometry(32, 2, 16, 64, 0.02)
    with pytest.raises(Refused, match="high_freq_factor: is 1, not more than low_freq_factor=2"):
        RopeLlama3(geometry, base=1e4, factor=2.0, low_freq_factor=2.0, high_freq_factor=1.0)
    with pytest.raises(Refused, match="4 channels or more"):
        RopeDynamic(Geometry(4, 2, 2, 64, 0.02), base=1e4, factor=2.0)
