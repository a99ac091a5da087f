"""Positions against their formulas."""

import math

import pytest
import torch

from llm.config.errors import Refused
from llm.layers.context import Context
from llm.model.position import Alibi, Geometry, Kerple, Learned, Position, Rope, Sinusoidal

GEOMETRY = Geometry(d_model=12, n_heads=2, head_dim=6, max_seq_len=20, init_std=0.02)


def heads(seed: int = 0, length: int = 9):
    return torch.randn(2, 3, length, 6, generator=torch.Generator().manual_seed(seed))


def at(places) -> Context:
    """A context of tokens that stand at these places of their texts."""
    return Context(torch.zeros(1, len(places)), places, places)


@pytest.mark.parametrize("base", [10_000.0, 500.0])
def test_rope_turns_complex_numbers(base):
    """(x_j + i x_{j+C/2}) · exp(i · pos · base^{−2j/C})"""
    x, places = heads(), torch.tensor([0, 1, 2, 3, 5, 8, 13, 400, 4001])
    angles = torch.outer(places.double(), base ** (-torch.arange(3).double() / 3))
    turned = torch.complex(x[..., :3].double(), x[..., 3:].double()) * torch.exp(1j * angles)
    expected = torch.cat([turned.real, turned.imag], -1).float()
    mine = Rope(GEOMETRY, base=base).rotate(x, at(places))
    torch.testing.assert_close(mine, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(mine[..., :7, :], expected[..., :7, :])


def test_rope_scores_depend_on_the_distance_alone():
    rope, q, k = Rope(GEOMETRY), heads(1), heads(2)

    def scores(start: int):
        places = torch.arange(start, start + 9)
        return rope.rotate(q, at(places)) @ rope.rotate(k, at(places)).transpose(2, 3)

    torch.testing.assert_close(scores(0), scores(100), atol=1e-4, rtol=1e-4)
    assert (scores(0) - q @ k.transpose(2, 3)).abs().max() > 0.1


def test_rope_leaves_values_of_bfloat16_in_it():
    assert Rope(GEOMETRY).rotate(heads().bfloat16(), at(torch.arange(9))).dtype is torch.bfloat16


def test_sinusoidal_table():
    x, places = torch.zeros(1, 3, 12), torch.tensor([0, 1, 17])
    y = Sinusoidal(GEOMETRY).embed(x, at(places))[0]
    for row, pos in enumerate(places.tolist()):
        for i in range(6):
            angle = pos / 10_000 ** (2 * i / 12)
            # √2 · init_std: the scale of the embedding it is added to
            assert y[row, 2 * i] == pytest.approx(0.02 * math.sqrt(2) * math.sin(angle), abs=1e-7)
            assert y[row, 2 * i + 1] == pytest.approx(
                0.02 * math.sqrt(2) * math.cos(angle), abs=1e-7
            )


def test_sinusoidal_positions_weigh_as_much_as_the_tokens():
    """So they drown no token (a table of RMS 0.7 on embeddings of 0.02 would), nor drown in it."""
    places = torch.arange(1000)
    table = Sinusoidal(GEOMETRY).embed(torch.zeros(1, 1000, 12), at(places))
    learned = Learned(Geometry(64, 2, 32, 1000, 0.02)).weight.detach()
    assert table.square().mean().sqrt() == pytest.approx(0.02, rel=1e-3)
    assert learned.square().mean().sqrt() == pytest.approx(0.02, rel=0.02)


def test_learned_adds_its_vector():
    learned = Learned(GEOMETRY)
    assert learned.limit == 20
    y = learned.embed(torch.ones(2, 2, 12), at(torch.tensor([3, 7])))
    torch.testing.assert_close(y[1], 1 + learned.weight[[3, 7]])


@pytest.mark.parametrize("n_heads", [1, 6, 8])
def test_alibi_slopes(n_heads):
    """2^{−8i/H}: for 8 heads 1/2, 1/4 … 1/256, as the paper has it."""
    alibi = Alibi(Geometry(12, n_heads, 6, 20, 0.02))
    slopes = -alibi.bias(torch.tensor([[1]]), torch.tensor([[0]])).flatten()
    assert slopes.tolist() == pytest.approx([2 ** (-8 * (i + 1) / n_heads) for i in range(n_heads)])


def test_kerple_by_its_equation_and_its_gradients():
    """−p · ln(1 + a · distance) of each head, learned (Chi et al. 2022, equation 6)."""
    kerple = Kerple(GEOMETRY).double()
    place = torch.arange(7)
    bias = kerple.bias(place[:, None], place[None, :])
    p, a = kerple.log_p_H.exp(), kerple.log_a_H.exp()
    for head in range(2):
        for t in range(7):
            for s in range(t + 1):
                expected = -p[head] * math.log(1 + a[head] * (t - s))
                assert bias[head, t, s].item() == pytest.approx(expected.item())
    bias.tril().square().sum().backward()
    assert kerple.log_p_H.grad.abs().min() > 0 and kerple.log_a_H.grad.abs().min() > 0


@pytest.mark.parametrize("kind", [Rope, Learned, Sinusoidal])
def test_rows_may_stand_at_places_of_their_own(kind):
    torch.manual_seed(0)
    position, x, h = kind(GEOMETRY), torch.randn(2, 9, 12), heads()
    places = torch.stack([torch.arange(9), torch.tensor([0, 1, 2, 0, 1, 0, 1, 2, 3])])
    for row in range(2):
        torch.testing.assert_close(
            position.embed(x, at(places))[row], position.embed(x, at(places[row]))[row]
        )
        torch.testing.assert_close(
            position.rotate(h, at(places))[row], position.rotate(h, at(places[row]))[row]
        )


def test_what_does_not_turn_leaves_queries_alone():
    for kind in (Position, Learned, Sinusoidal):
        x = heads()
        assert kind(GEOMETRY).rotate(x, at(torch.arange(9))) is x


def test_odd_widths_are_refused():
    with pytest.raises(Refused, match="even head width, not 5"):
        Rope(Geometry(10, 2, 5, 8, 0.02))
    with pytest.raises(Refused, match="even d_model, not 9"):
        Sinusoidal(Geometry(9, 1, 9, 8, 0.02))
