"""The dense transformer, judged by torch's own layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llm.config.errors import Refused
from llm.layers.noise import Dropout
from tests.toy_models import STYLES, VOCAB, context_of, randomised, tokens, transformer

D, HEADS, FF = 16, 4, 24


class Judge(nn.Module):
    """The same GPT out of nn.TransformerEncoderLayer."""

    def __init__(self, model, pre_norm):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                D, HEADS, FF, 0.0, F.gelu, batch_first=True, norm_first=pre_norm
            )
            for _ in model.blocks
        )
        self.final_norm = nn.LayerNorm(D) if pre_norm else nn.Identity()
        self.embedding = nn.Parameter(model.embedding.detach().clone())
        with torch.no_grad():
            for mine, theirs in zip(model.blocks, self.blocks, strict=True):
                for norm, judge in (
                    (mine.attention_norm, theirs.norm1),
                    (mine.feed_forward_norm, theirs.norm2),
                ):
                    judge.weight.copy_(norm.gain)
                    judge.bias.copy_(norm.bias)
                a, judge = mine.attention, theirs.self_attn
                parts = (a.query, a.key, a.value)
                judge.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
                judge.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
                for linear, judge in (
                    (a.out, theirs.self_attn.out_proj),
                    (mine.feed_forward.up, theirs.linear1),
                    (mine.feed_forward.down, theirs.linear2),
                ):
                    judge.weight.copy_(linear.weight)
                    judge.bias.copy_(linear.bias)
            if pre_norm:
                self.final_norm.weight.copy_(model.final_norm.gain)
                self.final_norm.bias.copy_(model.final_norm.bias)

    def forward(self, tokens_BT):
        x = F.embedding(tokens_BT, self.embedding)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens_BT.shape[1])
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.final_norm(x) @ self.embedding.T


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_logits_and_gradients_are_those_of_torch_encoder_layers(norm_position):
    """Post-norm is the block of Vaswani et al. 2017."""
    settings = {"activation": "gelu", "norm_position": norm_position}
    model = randomised(transformer(position="none", **settings))
    judge = Judge(model, norm_position == "pre")
    ids, targets = tokens(3, 12), tokens(3, 12, seed=1)
    logits = judge(ids)
    torch.testing.assert_close(model(ids).logits_BTV, logits, atol=1e-4, rtol=1e-4)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    loss_sum = model(ids, targets).loss_sum
    torch.testing.assert_close(loss_sum, expected)
    loss_sum.backward()
    expected.backward()
    pairs = [(model.embedding, judge.embedding)]
    if norm_position == "pre":
        pairs.append((model.final_norm.gain, judge.final_norm.weight))
    for mine, theirs in zip(model.blocks, judge.blocks, strict=True):
        pairs += [
            (mine.attention_norm.gain, theirs.norm1.weight),
            (mine.feed_forward_norm.bias, theirs.norm2.bias),
            (mine.attention.out.weight, theirs.self_attn.out_proj.weight),
            (mine.feed_forward.up.weight, theirs.linear1.weight),
            (mine.feed_forward.down.bias, theirs.linear2.bias),
        ]
        grads = theirs.self_attn.in_proj_weight.grad.chunk(3)
        linears = (mine.attention.query, mine.attention.key, mine.attention.value)
        for linear, grad in zip(linears, grads, strict=True):
            torch.testing.assert_close(linear.weight.grad, grad, atol=1e-3, rtol=1e-3)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-3, rtol=1e-3)


def test_normalised_queries_and_keys_by_hand():
    """Each head's own RMS norm, before positions turn it, on queries and keys and not on values."""
    model = randomised(transformer(position="rope", style="qwen3", n_kv_heads=2))
    attention, x = model.blocks[0].attention, torch.randn(2, 7, D)

    def normed(linear, norm, heads):
        value = (x @ linear.weight.T).unflatten(2, (heads, D // HEADS)).transpose(1, 2)
        value = value / (value.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.gain
        return model.position.rotate(value, context_of(x))

    q = normed(attention.query, attention.query_norm, HEADS)
    k = normed(attention.key, attention.key_norm, 2).repeat_interleave(2, 1)
    v = (x @ attention.value.weight.T).unflatten(2, (2, D // HEADS)).transpose(1, 2)
    scores = q @ k.transpose(2, 3) / (D // HEADS) ** 0.5
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)
    y = scores.masked_fill(future, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)
    expected = y.transpose(1, 2).flatten(2) @ attention.out.weight.T
    mine = attention(x, context_of(x), model.position)
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)
    # so the size of what comes in does not matter
    attention.query.weight.data *= 100
    torch.testing.assert_close(
        attention(x, context_of(x), model.position), expected, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("position", ["none", "rope"])
@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_grouped_queries_are_full_attention_with_repeated_keys_and_values(position, n_kv_heads):
    """Query head h shares key-value head h // (heads of a group), as Llama numbers them."""
    grouped = randomised(transformer(position=position, n_kv_heads=n_kv_heads))
    full = transformer(position=position)
    state = grouped.state_dict()
    for name, value in state.items():
        if ".key." in name or ".value." in name:
            by_head = value.unflatten(0, (n_kv_heads, D // HEADS))
            state[name] = by_head.repeat_interleave(HEADS // n_kv_heads, 0).flatten(0, 1)
    full.load_state_dict(state)
    ids = tokens(2, 12)
    torch.testing.assert_close(grouped(ids).logits_BTV, full(ids).logits_BTV, atol=1e-4, rtol=1e-4)


def test_dropout_is_on_embedding_attention_and_both_parts():
    """Each site alone makes the output random in training, and none does in evaluation."""
    model = randomised(transformer(dropout=0.3))
    ids = tokens(2, 12)
    sites = [m for m in model.modules() if isinstance(m, Dropout)]
    assert len(sites) == 1 + 3 * len(model.blocks)

    def varies() -> bool:
        return not torch.equal(model(ids).logits_BTV, model(ids).logits_BTV)

    model.eval()
    assert not varies()
    model.train()
    for site in sites:
        for other in sites:
            rate = 0.3 if other is site else 0.0
            other.p = rate
        assert varies(), site


def test_initialisation_by_role():
    """N(0, σ²), residual projections σ/√(2L), gains 1, biases 0 (GPT-2)."""
    layers = 3
    changes = {"d_model": 64, "d_ff": 256, "n_layers": layers, "max_seq_len": 64, "init_std": 0.05}
    for style in STYLES:
        for moe in ("dense", "topk"):
            torch.manual_seed(0)
            model = transformer(moe, "learned", style, vocab_size=500, **changes)
            for name, parameter in model.named_parameters():
                value = parameter.detach()
                if parameter.role == "gain":
                    assert (value == 1).all()
                elif parameter.role == "bias":
                    assert not value.any()
                elif parameter.role == "router":
                    std = (0.1 / 64) ** 0.5
                    assert value.abs().max() <= 2 * std
                    # cut off at 2σ, a normal keeps 0.880 of its σ
                    assert value.std() == pytest.approx(0.880 * std, rel=0.15)
                else:
                    residual = "out.weight" in name or "down" in name
                    std = 0.05 / (2 * layers) ** 0.5 if residual else 0.05
                    assert value.std() == pytest.approx(std, rel=0.05), name
                    assert abs(value.mean()) < 0.1 * std, name


def test_depth_scaled_initialisation_falls_with_the_layer():
    """σ/√(2l) for the projections into the residual stream of layer l = 1 …, and no other."""
    torch.manual_seed(0)
    changes = {"d_model": 64, "d_ff": 256, "n_layers": 4, "init_std": 0.05}
    model = transformer(init="depth_scaled", **changes)
    for layer, block in enumerate(model.blocks, start=1):
        expected = 0.05 / (2 * layer) ** 0.5
        assert block.attention.out.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert block.feed_forward.down.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert block.attention.query.weight.std().item() == pytest.approx(0.05, rel=0.05)
        assert block.feed_forward.up.weight.std().item() == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "with_experts"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"moe_every": 2}, [2, 4]),
        ({"dense_first": 1}, [2, 3, 4, 5]),
        ({"moe_every": 2, "dense_first": 2}, [4]),
        ({"dense_first": 9}, []),
    ],
)
def test_which_layers_have_experts(changes, with_experts):
    """Counted from 1: those behind `dense_first` whose number `moe_every` divides."""
    model = transformer("topk", n_layers=5, d_ff_dense=40, **changes)
    for number, block in enumerate(model.blocks, start=1):
        part = block.feed_forward
        if number in with_experts:
            assert part.experts.up_EDF.shape[2] == 24
        else:
            assert part.up.weight.shape == (40, 16)
    output = model(tokens(2, 12), tokens(2, 12))
    assert output.loss_sum.isfinite()
    if with_experts:
        assert output.router["load_E"].shape == (len(with_experts), 4)


def test_the_width_of_a_head_is_free():
    model = transformer(n_heads=3, n_kv_heads=1, head_dim=10)
    assert model.blocks[0].attention.query.weight.shape == (30, 16)
    assert model.blocks[0].attention.key.weight.shape == (10, 16)
    assert model(tokens(2, 12)).logits_BTV.shape == (2, 12, VOCAB)


def test_queries_and_keys_normalised_over_the_whole_projection():
    """OLMoE's: one RMS norm before the split into heads, with a gain for every channel."""
    model = randomised(transformer(position="none", style="llama", qk_norm="projection"))
    attention, x = model.blocks[0].attention, torch.randn(2, 7, D)

    def normed(linear, norm):
        value = x @ linear.weight.T
        value = value / (value.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.gain
        return value.unflatten(2, (HEADS, D // HEADS)).transpose(1, 2)

    q, k = normed(attention.query, attention.query_norm), normed(attention.key, attention.key_norm)
    v = (x @ attention.value.weight.T).unflatten(2, (HEADS, D // HEADS)).transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    mine = attention(x, context_of(x), model.position)
    torch.testing.assert_close(mine, y @ attention.out.weight.T, atol=1e-5, rtol=1e-4)


def test_logits_are_capped_in_the_loss_as_without_it():
    model = randomised(transformer(logit_softcap=1.5))
    ids, targets = tokens(3, 12), tokens(3, 12, seed=1)
    logits = model(ids).logits_BTV
    assert logits.abs().max() < 1.5
    torch.testing.assert_close(
        model(ids, targets).loss_sum,
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"),
    )


def test_seed_decides_the_weights():
    def weights(seed: int):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in transformer("topk").parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 3}, "n_heads: is 3, which does not divide d_model=16"),
        ({"n_kv_heads": 3}, "n_kv_heads: is 3, which does not divide n_heads=4"),
        ({"n_kv_heads": 8}, "n_kv_heads: is 8, which does not divide n_heads=4"),
        ({"window": []}, "window: is empty"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(Refused, match=message):
        transformer(**changes)


def test_untied_head_and_embedding_are_two():
    tied, untied = transformer(style="gpt2"), transformer(style="llama")
    assert tied.head is None
    assert untied.head.weight.shape == untied.embedding.shape == (VOCAB, D)
