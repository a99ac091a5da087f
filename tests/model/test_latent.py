"""Latent attention is DeepSeek-V3's, exactly; its cache is small, and reads as the whole does."""

from functools import partial

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)

from llm.build import caveats
from llm.config.errors import Refused
from llm.model.attention import AttentionShape
from llm.model.latent import LatentAttention
from llm.model.position import Geometry, Rope
from tests.toy_models import context_of, randomised, tokens, transformer

D, HEADS, P, N, V, R, T = 24, 3, 4, 6, 5, 7, 11


@pytest.mark.parametrize("q_rank", [None, 9])
def test_output_and_gradients_are_those_of_transformers(q_rank):
    config = DeepseekV3Config(
        hidden_size=D,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        q_lora_rank=q_rank,
        kv_lora_rank=R,
        qk_rope_head_dim=P,
        qk_nope_head_dim=N,
        v_head_dim=V,
        rope_interleave=False,
        rms_norm_eps=1e-6,
        attention_bias=False,
    )
    config._attn_implementation = "eager"
    theirs = DeepseekV3Attention(config, 0).double()
    shape = AttentionShape(D, HEADS, HEADS, P, False, 0.0, 0.1, 0.1, "none", 1e-6)
    widths = {"kv_lora_rank": R, "qk_nope_head_dim": N, "v_head_dim": V}
    mine = randomised(LatentAttention(shape, q_lora_rank=q_rank, **widths)).double()
    names = {
        "kv_a_proj_with_mqa.weight": "latent.weight",
        "kv_a_layernorm.weight": "latent_norm.gain",
        "kv_b_proj.weight": "up.weight",
        "o_proj.weight": "out.weight",
        "q_proj.weight": "query.weight",
        "q_a_proj.weight": "query_down.weight",
        "q_a_layernorm.weight": "query_norm.gain",
        "q_b_proj.weight": "query.weight",
    }
    state = mine.state_dict()
    theirs.load_state_dict({name: state[names[name]] for name in theirs.state_dict()})
    x = torch.randn(2, T, D, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    rope = Rope(Geometry(D, HEADS, P, T, 0.02)).double()
    places = torch.arange(T)[None]
    causal = torch.full((T, T), -torch.inf).triu(1).double()[None, None]
    turned = DeepseekV3RotaryEmbedding(config)(x, places)
    expected = theirs(x, position_embeddings=turned, attention_mask=causal)[0]
    found = mine(x, context_of(x), rope)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    wanted = torch.randn(found.shape, generator=torch.Generator().manual_seed(2)).double()
    gradients = torch.autograd.grad((found * wanted).sum(), [x, *mine.parameters()])
    judged = torch.autograd.grad((expected * wanted).sum(), [x, *theirs.parameters()])
    ours = {"x": gradients[0]} | dict(
        zip((n for n, _ in mine.named_parameters()), gradients[1:], strict=True)
    )
    torch.testing.assert_close(ours["x"], judged[0], atol=1e-5, rtol=1e-4)
    for (name, _), gradient in zip(theirs.named_parameters(), judged[1:], strict=True):
        torch.testing.assert_close(ours[names[name]], gradient, atol=1e-5, rtol=1e-4)


def latent_model(**changes):
    node = partial(LatentAttention, kv_lora_rank=R, qk_nope_head_dim=N, v_head_dim=V)
    return randomised(transformer(attention=node, qk_norm="none", **changes)).eval()


@torch.inference_mode()
@pytest.mark.parametrize("position", ["rope", "alibi", "learned"])
@pytest.mark.parametrize("changes", [{}, {"window": 5, "n_sinks": 2, "attention_softcap": 1.0}])
def test_cached_logits_are_the_uncached_ones(position, changes):
    """The absorbed form against the plain one, in rows of unlike lengths."""
    model, ids = latent_model(position=position, **changes), tokens(2, 12)
    whole = model(ids).logits_BTV
    cache = model.cache(2, 12)
    first = model(ids[:, :7], cache=cache.rows(0, 2, [7, 4])).logits_BTV
    torch.testing.assert_close(first[0], whole[0, :7], atol=5e-5, rtol=1e-4)
    for t in range(5):
        new = torch.stack([ids[0, 7 + t], ids[1, 4 + t]])[:, None]
        logits = model(new, cache=cache).logits_BTV
        torch.testing.assert_close(logits[0, 0], whole[0, 7 + t], atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(logits[1, 0], whole[1, 4 + t], atol=5e-5, rtol=1e-4)


def test_its_cache_is_one_short_vector_per_token():
    latent = latent_model().cache(1, 64).layers[0].tensors
    full = transformer().cache(1, 64).layers[0].tensors
    (held,) = latent
    assert held.shape[2:] == (1, 64, R + 4)
    assert sum(t.numel() for t in full) == 64 * 2 * 16  # keys and values of 4 heads of 4


def test_key_value_heads_are_refused_and_a_norm_of_queries_is_said():
    with pytest.raises(Refused, match="n_kv_heads=null"):
        transformer(attention=LatentAttention, n_kv_heads=2)
    model = transformer(attention=LatentAttention, qk_norm="head")
    assert caveats(model) == ["model.qk_norm=head: latent attention normalises its latents instead"]
    assert caveats(latent_model()) == []
