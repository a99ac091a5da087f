"""The engine: a row gives the same bytes whoever shares the batch, and the model's own figures."""

import random
from dataclasses import replace

import pytest
import torch

from llm.generate.engine import Engine, Request
from llm.model.cache import BLOCK
from llm.model.latent import LatentAttention
from llm.model.position import Geometry
from llm.model.rope_scaling import RopeDynamic
from tests.toy_models import VOCAB, experts, randomised, tokens, transformer

MODELS = {
    "dense": {},
    "grouped, window, sinks": {
        "style": "qwen3",
        "n_kv_heads": 2,
        "window": [20, None],
        "n_sinks": 2,
    },
    "alibi, soft-capped": {"position": "alibi", "attention_softcap": 2.0, "logit_softcap": 3.0},
    "kerple": {"position": "kerple"},
    "dynamic rope": {},
    "learned positions": {"position": "learned"},
    "latent": {"attention": LatentAttention, "qk_norm": "none"},
    "top-1": {"moe": experts(4, 1)},
    "top-2, shared": {"moe": experts(8, 2, n_shared=1)},
}


def model_of(name: str, dtype=torch.float32):
    """Wide enough that products of one, two and four rows round differently."""
    torch.manual_seed(0)
    facts = {"d_model": 64, "d_ff": 96, "n_heads": 4, "n_layers": 2, "max_seq_len": 200}
    model = randomised(transformer(**{**facts, **MODELS[name]})).eval()
    if name == "dynamic rope":  # grows with the text from 48 places on
        geometry = Geometry(64, 4, 16, 200, 0.02)
        model.position = RopeDynamic(geometry, base=1e4, factor=2.0, original_max_seq_len=48)
    return model.to(dtype)


def random_request(draws: random.Random, **changes) -> Request:
    prompt = [draws.randrange(VOCAB) for _ in range(draws.choice([1, 3, 40, 63, 64, 65, 130]))]
    facts = {
        "max_tokens": draws.choice([1, 2, 7, 20]),
        "temperature": draws.choice([0.0, 0.7, 1.0, 1.9]),
        "top_k": draws.choice([None, 1, 5, 200]),
        "top_p": draws.choice([None, 0.3, 0.9]),
        "key": draws.randrange(2**40),
        "stop_ids": draws.choice([(), (3,), (3, 5, 7)]),
    }
    return Request(prompt, **{**facts, **changes})


def told(answer):
    return answer.tokens, answer.logprobs, answer.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_row_is_equal_to_the_byte_alone_and_among_any_others(name, dtype):
    model, draws = model_of(name, dtype), random.Random(name)
    requests = [random_request(draws) for _ in range(12)]
    alone = [told(next(Engine(model, 1).generate([request]))) for request in requests]
    for slots in (3, 9):
        engine = Engine(model, slots)
        order = draws.sample(range(12), 12)
        arriving = iter(order)
        expected, found = {}, {}
        while engine.busy or len(expected) < 12:
            while draws.random() < 0.4 and (index := next(arriving, None)) is not None:
                expected[engine.submit(requests[index])] = alone[index]
            for event in engine.step():
                kept = found.setdefault(event.ticket, ([], [], None))
                kept[0].append(event.token)
                kept[1].append(event.logprob)
                found[event.ticket] = (kept[0], kept[1], event.reason)
        assert found == expected


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_prompt_that_is_cancelled_while_it_is_read_disturbs_nobody(steps):
    """With one, two and three rows that decode before it, and one that waits behind it."""
    model, draws = model_of("dense"), random.Random(5)
    requests = [random_request(draws, max_tokens=25, stop_ids=(), temperature=1.0) for _ in "abc"]
    requests = [replace(request, prompt=request.prompt[:3]) for request in requests]
    alone = [told(next(Engine(model, 1).generate([request]))) for request in requests]
    engine, events = Engine(model, 5), []
    tickets = [engine.submit(request) for request in requests[: 1 + steps % 3]]
    while len({event.ticket for event in events}) < len(tickets):
        events += engine.step()
    long = engine.submit(Request([3] * 190, 5))
    tickets += [engine.submit(request) for request in requests[len(tickets) :]]
    for _ in range(steps):
        events += engine.step()
    engine.cancel(long)
    while engine.busy:
        events += engine.step()
    for ticket, (tokens_, logprobs, _) in zip(tickets, alone, strict=True):
        own = [event for event in events if event.ticket == ticket]
        assert [event.token for event in own] == tokens_
        assert [event.logprob for event in own] == logprobs


def test_cancelled_and_later_rows_do_not_disturb_the_others():
    model, draws = model_of("top-2, shared"), random.Random(1)
    requests = [random_request(draws, max_tokens=15, stop_ids=()) for _ in range(6)]
    alone = [told(next(Engine(model, 1).generate([request]))) for request in requests]
    engine = Engine(model, 4)
    tickets = [engine.submit(request) for request in requests]
    events = []
    for turn in range(200):
        if turn in (3, 9, 14):
            engine.cancel(tickets[turn % 4])
        events += engine.step()
    assert not engine.busy
    gone = {tickets[turn % 4] for turn in (3, 9, 14)}
    for ticket, expected in zip(tickets, alone, strict=True):
        own = [event for event in events if event.ticket == ticket]
        kept = [event.token for event in own], [event.logprob for event in own]
        if ticket in gone:
            assert kept[0] == expected[0][: len(kept[0])]
        else:
            assert (*kept, own[-1].reason) == expected


# A cache keeps dynamic RoPE's turn of the length at which keys were read.
@pytest.mark.parametrize("name", [name for name in MODELS if name != "dynamic rope"])
def test_log_probabilities_are_the_models_own(name):
    """At temperature 1 over all ids, whatever the draw was made from; of a scored text, too."""
    model, draws = model_of(name), random.Random(2)
    engine = Engine(model, 4)
    requests = [random_request(draws, stop_ids=(), logprobs=3) for _ in range(5)]
    for request, answer in zip(
        requests, sorted(engine.generate(requests), key=lambda a: a.ticket), strict=True
    ):
        ids = torch.tensor([[*request.prompt, *answer.tokens]])
        logprobs = model(ids).logits_BTV[0, :-1].log_softmax(-1)
        expected = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        mine = torch.tensor(answer.logprobs)
        torch.testing.assert_close(mine, expected[len(request.prompt) - 1 :], atol=1e-4, rtol=1e-4)
        (scored,) = engine.score([ids[0].tolist()])
        torch.testing.assert_close(scored, expected, atol=1e-4, rtol=1e-4)


def test_greedy_and_top_are_the_likeliest():
    model = model_of("dense")
    engine = Engine(model, 2)
    ticket = engine.submit(Request([1, 2, 3], 9, temperature=0.0, logprobs=2))
    ids = [1, 2, 3]
    while engine.busy:
        for event in engine.step():
            logprobs = model(torch.tensor([ids])).logits_BTV[0, -1].log_softmax(-1)
            assert event.ticket == ticket and event.token == logprobs.argmax()
            assert [token for token, _ in event.top] == logprobs.topk(2).indices.tolist()
            assert event.top[0] == (event.token, event.logprob)
            ids.append(event.token)
    assert len(ids) == 12 and event.reason == "length"


def test_draws_follow_the_distribution_that_is_asked_for():
    """Frequencies over many keys, by a chi-squared bound, with top-k and top-p cut as defined."""
    from llm.generate.sampling import draw, uniform

    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(3))
    for temperature, top_k, top_p in [(1.0, None, None), (0.6, 5, None), (1.3, None, 0.7)]:
        shares = (logits[0].double() / temperature).softmax(-1)
        order = shares.argsort(descending=True)[: top_k or 12]
        kept = shares[order] / shares[order].sum()
        if top_p:
            order = order[: int((kept.cumsum(0) < top_p).sum()) + 1]
        expected = torch.zeros(12).double()
        expected[order] = shares[order] / shares[order].sum()
        n = 4000
        setting = [(temperature, top_k, top_p)] * n
        ids = draw(logits.expand(n, -1), setting, [uniform(key, 5) for key in range(n)])
        counts = ids.bincount(minlength=12)
        assert not counts[expected == 0].any()
        there = expected > 0
        chi = ((counts[there] - n * expected[there]) ** 2 / (n * expected[there])).sum()
        assert chi < 35  # 11 degrees of freedom at most: one in 4,000


def test_prefixes_are_read_once_until_the_weights_change(monkeypatch):
    model = model_of("dense")
    engine, prompt = Engine(model, 2), tokens(1, 3 * BLOCK + 5)[0].tolist()
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    first = told(next(engine.generate([Request(prompt, 1)])))
    assert len(calls) == 4
    assert told(next(engine.generate([Request(prompt, 1)]))) == first
    assert len(calls) == 5
    other = [*prompt[: BLOCK + 3], *prompt[: BLOCK + 3]]
    next(engine.generate([Request(other, 1)]))
    assert len(calls) == 7  # the first of its three blocks was known
    engine.weights_changed()
    with torch.no_grad():
        model.embedding.mul_(1.5)
    changed = told(next(engine.generate([Request(prompt, 1)])))
    assert len(calls) == 11 and changed != first
    assert changed == told(next(Engine(model, 1).generate([Request(prompt, 1)])))


def test_what_is_edited_or_barred_is_not_drawn():
    model = model_of("dense")
    allowed = torch.zeros(VOCAB, dtype=torch.bool)
    allowed[[4, 9]] = True

    def without(logits_V, ids):
        return logits_V.index_fill(0, torch.tensor([ids[-1]]), -torch.inf)

    engine = Engine(model, 2, allowed_V=allowed)
    answer = next(engine.generate([Request([4], 6, temperature=1.5, edit=without)]))
    assert answer.tokens == [9, 4, 9, 4, 9, 4]


def test_rows_end_where_the_context_does():
    model = model_of("learned positions")
    engine = Engine(model, 2)
    prompt = tokens(1, 195)[0].tolist()
    answer = next(engine.generate([Request(prompt, 99)]))
    assert answer.reason == "context" and len(answer.tokens) == 6
    with pytest.raises(ValueError, match="1 to 200 tokens, not 201"):
        engine.submit(Request([1] * 201, 1))
    with pytest.raises(ValueError, match="not 0"):
        engine.submit(Request([], 1))
