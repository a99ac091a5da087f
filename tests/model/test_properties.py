"""What holds of every model that the keys can describe, whatever goes together."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from llm.model import cache, cached, windowed
from tests.toy_models import POSITIONS, STYLES, VOCAB, randomised, tokens, transformer

LONGEST = 20
WINDOWS = st.none() | st.integers(1, LONGEST)
MODELS = st.fixed_dictionaries(
    {
        "moe": st.sampled_from(["dense", "topk"]),
        "position": st.sampled_from(sorted(POSITIONS)),
        "style": st.sampled_from(sorted(STYLES)),
        "qk_norm": st.sampled_from(["none", "head", "projection"]),
        "norm_position": st.sampled_from(["pre", "post"]),
        "n_kv_heads": st.sampled_from([1, 2, 4]),
        "head_dim": st.sampled_from([None, 6]),
        "window": WINDOWS | st.lists(WINDOWS, min_size=1, max_size=3),
        "n_sinks": st.integers(0, 4),
        "attention_softcap": st.none() | st.just(2.0),
        "logit_softcap": st.none() | st.just(3.0),
        "moe_every": st.integers(1, 3),
        "dense_first": st.integers(0, 3),
        "parametrization": st.sampled_from(["standard", "mup"]),
        "max_seq_len": st.just(LONGEST),
    }
)
EXAMPLES = settings(max_examples=25, derandomize=True)


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windowed, "LEAST_BLOCK", 2)
        patch.setattr(cache, "BLOCK", 4)
        patch.setattr(cached, "BLOCK", 4)
        yield


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@EXAMPLES
@given(MODELS, st.integers(1, LONGEST), st.data())
@torch.no_grad()
def test_causality_rows_documents_and_cache(facts, length, data):
    """The future changes nothing, other rows change nothing, a document is as if alone, and
    rows of unlike lengths, read in pieces, are read as at once."""
    model = randomised(transformer(**facts)).eval()
    ids = tokens(3, length)
    whole = model(ids).logits_BTV
    assert whole.isfinite().all()

    cut = data.draw(st.integers(0, length - 1), "first changed place")
    changed = ids.clone()
    changed[:, cut:] = (ids[:, cut:] + 1) % VOCAB
    close(model(changed).logits_BTV[:, :cut], whole[:, :cut])

    close(model(ids[1:2]).logits_BTV, whole[1:2])

    joined = torch.cat([ids[0, :cut], ids[1, : length - cut]])[None]
    documents = (torch.arange(length) >= cut).long()[None]
    together = model(joined, document_ids_BT=documents).logits_BTV
    close(together[0, :cut], whole[0, :cut])
    close(together[0, cut:], whole[1, : length - cut])

    lengths = data.draw(st.lists(st.integers(1, length), min_size=3, max_size=3), "lengths")
    cache, read = model.cache(3, LONGEST), [whole.new_zeros(0, VOCAB)] * 3
    while any(left := [n - held for n, held in zip(lengths, cache.lengths, strict=True)]):
        size = data.draw(st.integers(1, max(left)), "piece")
        counts = [min(size, missing) for missing in left]
        piece = torch.zeros(3, size, dtype=torch.long)
        for row, count in enumerate(counts):
            piece[row, :count] = ids[row, cache.lengths[row] :][:count]
        logits = model(piece, cache=cache.rows(0, 3, counts)).logits_BTV
        read = [torch.cat([r, logits[row, : counts[row]]]) for row, r in enumerate(read)]
    for row, count in enumerate(lengths):
        close(read[row], whole[row, :count])


@settings(max_examples=10, derandomize=True)
@given(
    MODELS.filter(lambda facts: facts["position"] in ("none", "rope", "alibi", "kerple")),
    st.integers(1, 90),
)
@torch.no_grad()
def test_a_text_reads_the_same_wherever_it_stands(facts, shift):
    """Relative positions: moved by any number of places, the logits stay."""
    model = randomised(transformer(**facts)).eval()
    ids = tokens(2, LONGEST)
    here = model(ids).logits_BTV
    rotate = model.position.rotate

    def moved(x, context):
        return rotate(x, replace(context, position_T=context.position_T + shift))

    model.position.rotate = moved
    close(model(ids).logits_BTV, here)
