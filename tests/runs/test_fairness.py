"""What makes a comparison unfair is said, and a fair one is left in peace."""

from llm.runs.arms import Entry, job_words
from llm.runs.fairness import warnings


def entry(
    seed: int = 1,
    tokens: float = 100.0,
    flops: float = 1e6,
    text: str = "a",
    compare: str | None = None,
    job: str = "",
    **keys: object,
) -> Entry:
    content = {"seed": seed, "moe.n_experts": 4, "optimizer.lr": 1e-3, "data_fingerprint": text}
    content |= {key.replace("__", "."): value for key, value in keys.items()}
    jobs = frozenset([job_words(job.split())])
    return Entry(content, frozenset([text]), {}, tokens, flops, 1.0, 1.0, compare, jobs)


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
    assert "different data" in told(*one, entry(1, text="b"), entry(2, text="b"))
    other_version = [entry(s, moe__n_experts=8, result_version=2) for s in (1, 2)]
    assert "are not compared: result_version" in told(*one, *other_version)
    assert "val/bpb" in told(*one, entry(1, tokenizer__n=2), entry(2, tokenizer__n=2))
    more = [entry(s, moe__n_experts=8, flops=2e6, tokens=300.0) for s in (1, 2)]
    assert "unequal active FLOPs of training: 2.00 times" in told(*one, *more)
    assert "unequal training tokens: 3.00 times" in told(*one, *more)
    assert "one seed an arm" in told(entry(1), entry(1, moe__n_experts=8))
    assert "different seeds" in told(*one, entry(1, moe__n_experts=8))


def test_a_dense_partner_is_unequal_by_intention():
    job = "moe.n_experts=4 compare="
    experts = [entry(s, job=f"{job}null") for s in (1, 2)]
    of = {"compare": "total_params", "job": f"{job}total_params", "flops": 2.31e6}
    partners = [entry(s, model__d_ff=99, moe__n_experts=0, **of) for s in (1, 2)]
    assert warnings([*experts, *partners], ["compare"]) == [
        "compare=total_params makes total parameters equal, and not the rest: "
        "dense partners have 2.31 times the active FLOPs of training"
    ]
    another = [entry(s, moe__n_experts=8) for s in (1, 2)]
    assert "active FLOPs" not in "".join(warnings([*another, *experts], ["compare"]))
