"""Windows, sinks, ALiBi, soft-caps and documents against attention written out pair by pair."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llm.model import windowed
from llm.model.attention import Attention, AttentionShape
from llm.model.position import Alibi, Geometry, Kerple, Position
from tests.toy_models import context_of, randomised, tokens, transformer

D, HEADS, KV, C = 12, 4, 2, 6
GEOMETRY = Geometry(D, HEADS, C, 100, 0.02)


def attention(**changes) -> Attention:
    facts = {"qk_norm": "none", "norm_eps": 1e-5, "init_std": 0.5, "residual_std": 0.5, **changes}
    torch.manual_seed(0)
    shape = AttentionShape(D, HEADS, KV, C, bias=True, dropout=0.0, **facts)
    return randomised(Attention(shape)).double()


def pair_by_pair(module: Attention, x, documents, position):
    """Softmax over all pairs, of which a loop says one at a time whether they count."""
    shape = module.shape
    batch, length, _ = x.shape
    seen = torch.zeros(batch, 1, length, length, dtype=torch.bool)
    for b in range(batch):
        for t in range(length):
            begin = 0 if documents is None else t
            while documents is not None and begin and documents[b, begin - 1] == documents[b, t]:
                begin -= 1
            for s in range(begin, t + 1):
                seen[b, 0, t, s] = t - s < (shape.window or length) or s - begin < shape.n_sinks

    def heads(linear, n):
        y = (x @ linear.weight.T + linear.bias).unflatten(2, (n, C)).transpose(1, 2)
        return y.repeat_interleave(HEADS // n, 1)

    scores = heads(module.query, HEADS) @ heads(module.key, KV).mT * (shape.scale or C**-0.5)
    if shape.softcap:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    place_T = torch.arange(length)
    bias = position.bias(place_T[:, None], place_T[None, :])
    scores = scores if bias is None else scores + bias
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    y = (weights @ heads(module.value, KV)).transpose(1, 2).flatten(2)
    return y @ module.out.weight.T + module.out.bias


DOCUMENTS = {
    "one": None,
    "many": [[0] * 9 + [1] * 2 + [2] * 1 + [3] * 11, [5] * 17 + [6] * 6],
    "two of equal ids": [[0] * 4 + [1] * 5 + [0] * 14, [7] * 23],
}


@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize(
    ("window", "n_sinks"), [(None, 0), (1, 0), (5, 0), (5, 2), (3, 7), (22, 1), (23, 0), (40, 3)]
)
@pytest.mark.parametrize("kind", ["plain", "alibi", "kerple", "alibi and softcap"])
def test_values_and_gradients_are_those_of_single_pairs(
    monkeypatch, documents, window, n_sinks, kind
):
    monkeypatch.setattr(windowed, "LEAST_BLOCK", 4)
    softcap = 0.7 if "softcap" in kind else None
    module = attention(window=window, n_sinks=n_sinks, softcap=softcap)
    chosen = {"plain": Position, "kerple": Kerple}.get(kind, Alibi)
    position = randomised(chosen(GEOMETRY)).double()
    x = torch.randn(2, 23, D, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    ids = None if DOCUMENTS[documents] is None else torch.tensor(DOCUMENTS[documents])
    mine = module(x, context_of(x, ids), position)
    expected = pair_by_pair(module, x, ids, position)
    torch.testing.assert_close(mine, expected)
    weights = torch.randn(mine.shape, generator=torch.Generator().manual_seed(2)).double()
    wanted = [x, *module.parameters(), *position.parameters()]
    judged = torch.autograd.grad((expected * weights).sum(), wanted)
    got = torch.autograd.grad((mine * weights).sum(), wanted)
    for mine, theirs in zip(got, judged, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("n_sinks", [0, 2])
@pytest.mark.parametrize(
    ("window", "layers"), [(1, 1), (3, 1), (3, 2), ([3, 6], 2), ([4, None], 2)]
)
def test_the_receptive_field_is_exact(monkeypatch, window, layers, n_sinks):
    """A token reaches as many places as the windows of all layers add up to, and the sinks reach
    everything; one more place would be an error, and so would one less."""
    monkeypatch.setattr(windowed, "LEAST_BLOCK", 2)
    length = 24
    model = transformer(window=window, n_sinks=n_sinks, n_layers=layers, position="rope")
    model = randomised(model).double().eval()
    ids = tokens(1, length)
    before = model(ids).logits_BTV
    pattern = window if isinstance(window, list) else [window] * layers
    reach = sum((w or length) - 1 for w in pattern)
    for moved in (0, 1, 2, 5, 13):
        changed = ids.clone()
        changed[0, moved] = (ids[0, moved] + 1) % 37
        differs = (model(changed).logits_BTV - before).abs().amax(-1)[0] > 1e-9
        # What is near a sink reaches it only forwards: places behind `moved`, sinks or not.
        for t in range(length):
            through_sink = any(moved <= s <= moved + reach for s in range(n_sinks))
            assert differs[t] == (t >= moved and (t - moved <= reach or through_sink)), (moved, t)


class Largest(TorchDispatchMode):
    """The numbers of the largest tensor, of any type, that an operation makes."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


@pytest.mark.parametrize("kind", ["plain", "sinks", "alibi", "softcap", "documents"])
def test_no_tensor_grows_with_the_square_of_the_length(kind):
    """Forward and backward of a windowed layer."""
    module = attention(
        window=8, n_sinks=2 * (kind == "sinks"), softcap=1.0 if kind == "softcap" else None
    )
    position = (Alibi if kind == "alibi" else Position)(GEOMETRY)
    sizes = []
    for length in (256, 512, 1024):
        x = torch.randn(1, length, D).double().requires_grad_()
        ids = torch.arange(length)[None] // 50 if kind == "documents" else None
        with Largest() as seen:
            module(x, context_of(x, ids), position).sum().backward()
        sizes.append(seen.numbers)
    assert sizes[2] <= 2.05 * sizes[1] <= 4.2 * sizes[0]


def test_a_window_that_sees_everything_is_no_window():
    model = randomised(transformer(position="alibi")).eval()
    wide = randomised(transformer(position="alibi", window=12, n_sinks=1)).eval()
    ids = tokens(2, 12)
    torch.testing.assert_close(model(ids).logits_BTV, wide(ids).logits_BTV)
    assert windowed.LEAST_BLOCK > 12


def test_dropout_in_blocks_is_dropout_of_weights():
    """A mean over many draws is the undropped value, and single draws differ."""
    module = attention(window=4)
    module.dropout.p = 0.5
    x = torch.randn(1, 100, D).double()
    places = context_of(x)
    torch.manual_seed(0)
    draws = torch.stack([module(x, places, Position(GEOMETRY)) for _ in range(100)])
    module.eval()
    expected = module(x, places, Position(GEOMETRY))
    assert draws.std(0).mean() > 0.1
    assert ((draws.mean(0) - expected).abs() / (draws.std(0) / 10)).mean() < 1.2
