"""What makes a comparison unfair is said, and a fair one is left in peace."""

from dataclasses import replace

from llm.runs.fairness import Entry, arms, warnings


def entry(seed: int = 1, tokens: float = 100.0, flops: float = 1e6, **keys: object) -> Entry:
    config = {"seed": seed, "moe": {"n_experts": 4}, "data": {"n": 1}, "optimizer": {"lr": 1e-3}}
    for dotted, value in keys.items():
        room, key = dotted.split("__")
        config = {**config, room: {**config.get(room, {}), key: value}}
    return Entry(str(keys), config, seed, tokens, flops, 1.0, 1.0)


def test_arms_differ_in_more_than_their_seed():
    found, differing = arms([entry(1), entry(2), entry(1, moe__n_experts=8)])
    assert differing == ["moe.n_experts"]
    assert [len(arm.entries) for arm in found] == [2, 1]
    assert found[1].settings == {"moe.n_experts": 8}


def test_a_fair_comparison_needs_no_word():
    fair = [entry(seed, moe__n_experts=n) for n in (4, 8) for seed in (1, 2)]
    assert warnings(fair, ["moe.n_experts"]) == []
    assert warnings(fair, ["moe"]) == []


def test_every_unfairness_has_its_line():
    def told(*entries: Entry) -> str:
        return "\n".join(warnings(entries, ["moe"]))

    one = [entry(1), entry(2)]
    other = [entry(1, moe__n_experts=8, optimizer__lr=2e-3), entry(2, moe__n_experts=8)]
    assert "more than the named factors: optimizer.lr" in told(*one, *other)
    assert "different data" in told(*one, entry(1, data__n=2), entry(2, data__n=2))
    assert "val/bpb" in told(*one, entry(1, tokenizer__n=2), entry(2, tokenizer__n=2))
    more = [entry(s, moe__n_experts=8, flops=2e6, tokens=300.0) for s in (1, 2)]
    assert "unequal active FLOPs of training: 2.00 times" in told(*one, *more)
    assert "unequal training tokens: 3.00 times" in told(*one, *more)
    assert "one seed an arm" in told(entry(1), entry(1, moe__n_experts=8))
    assert "different seeds" in told(*one, entry(1, moe__n_experts=8))


def test_a_dense_partner_is_unequal_by_intention():
    shape = {"model__d_ff": 99, "moe__n_experts": 0}
    experts = [replace(entry(s), name="moe.n_experts=4 compare=null") for s in (1, 2)]
    made = [entry(s, flops=2.31e6, **shape) for s in (1, 2)]
    name = "moe.n_experts=4 compare=total_params"
    partners = [replace(e, name=name, compare="total_params") for e in made]
    assert warnings([*experts, *partners], ["compare"]) == [
        "compare=total_params makes total parameters equal, and not the rest: "
        "dense partners have 2.31 times the active FLOPs of training"
    ]
    another = [replace(entry(s, flops=1e6), name="moe.n_experts=8") for s in (1, 2)]
    assert "active FLOPs" not in "".join(warnings([*another, *experts], ["compare"]))
