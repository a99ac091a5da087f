"""The median rule over curves, and over logs as they grow."""

import json
import math

import pytest

from llm.sweep.prune import QUORUM, Arm, Entry, Pruner, judge


def curve(*losses: float, every: int = 100) -> list[tuple[int, float]]:
    return [(every * i, loss) for i, loss in enumerate(losses, 1)]


def arms(*lasts: float) -> list[Arm]:
    """One arm a number, which its curve falls to in four evaluations."""
    return [Arm([curve(last + 3, last + 2, last + 1, last)]) for last in lasts]


OTHERS = arms(1.0, 1.1, 1.2, 1.3)


@pytest.mark.parametrize(
    ("losses", "after", "hopeless"),
    [
        ((5, 4, 3, 2), 3, True),
        ((5, 4, 3, 1.15), 3, False),  # exactly the median
        ((5, 4, 1.14, 9), 3, False),  # the best so far counts
        ((5, 4, 3), 4, False),  # too early
        ((5, 4, 3), 3, True),  # where the others were after as many tokens: at 2.15
        ((5, 4, 2.1), 3, False),
        ((math.inf,) * 4, 3, True),
        ((), 1, False),
    ],
)
def test_an_arm_worse_than_the_median_of_the_others_is_hopeless(losses, after, hopeless):
    verdict = judge(Arm([curve(*losses)]), OTHERS, after)
    assert (verdict is not None) == hopeless
    if verdict:
        assert verdict.middle == pytest.approx(1.15 + (4 - len(losses)))


def test_few_others_are_no_median():
    bad = Arm([curve(9, 9, 9, 9)])
    assert judge(bad, OTHERS, 3) is not None
    assert judge(bad, OTHERS[: QUORUM - 1], 3) is None
    # Ahead of all others, it is judged where they have been, too.
    ahead = Arm([curve(9, 9, 9, 9, 0.1, 0.1)])
    assert judge(ahead, OTHERS, 3).tokens == 400


def test_of_many_at_one_pace_about_half_are_pruned_and_no_more():
    """What was pruned goes on counting: the rest is not halved at each evaluation."""
    every = [Arm(open=True) for _ in range(16)]
    lasts = [1 + i / 10 for i in range(16)]
    for step in range(1, 9):
        for arm, last in zip(every, lasts, strict=True):
            if not arm.pruned:
                arm.curves = [[(100 * s, last + 4 / s) for s in range(1, step + 1)]]
        for arm in every:
            arm.pruned |= judge(arm, [a for a in every if a is not arm], 2) is not None
    assert [arm.pruned for arm in every] == [False] * 8 + [True] * 8


def test_seeds_are_judged_together():
    good, bad = curve(4, 3, 2, 1), curve(4, 3, 2, 1.9)
    assert judge(Arm([bad]), OTHERS, 3) is not None
    assert judge(Arm([good, good, curve(4, 3, 2, 1.2)]), OTHERS, 3) is None


@pytest.fixture
def run(tmp_path):
    """Writes a run of the given bits per byte, or adds to its log; returns its folder."""

    def write(name: str, *losses: float | None, data: str = "a", mode: str = "a"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_text(json.dumps({"data_fingerprint": data}))
        with (folder / "metrics.jsonl").open(mode) as file:
            before = (folder / "metrics.jsonl").read_text().count("val/bpb")
            for i, loss in enumerate(losses, before + 1):
                row = {"step": i, "tokens": 100 * i, "val/loss": loss, "val/bpb": loss}
                file.write(json.dumps(row) + "\n" + '{"step": 0, "tokens": 0, "train/loss": 1}\n')
        return folder

    return write


def test_logs_are_read_on_as_they_grow_and_after_they_were_cut_back(run):
    pruner = Pruner(after=2)
    others = [Entry(f"lr={i}", run(f"o{i}", 3, 2, 1), False, False) for i in range(4)]
    mine = run("mine", 5)
    entries = [*others, Entry("lr=9", mine, True, False)]
    waiting = Entry("lr=9", None, True, False)
    assert pruner.look(entries) == {}
    run("mine", 4)
    assert list(pruner.look([*entries, waiting])) == [waiting.arm]
    run("mine", 1.5, mode="w")  # a resume from before
    assert pruner.look(entries) == {}
    run("mine", None)
    assert pruner.look(entries) == {}
    run("mine", 1.4)
    assert pruner.look(entries)[waiting.arm].startswith("val/bpb 1.4000 after 300 tokens")
    assert pruner.last_loss(mine) == 1.4
    # What waits of an arm that was given up shares its fate.
    given_up = Entry("lr=9", mine, False, True)
    assert list(pruner.look([*others, given_up, waiting])) == [waiting.arm]


def test_only_runs_of_the_same_data_are_compared(run):
    entries = [Entry(f"lr={i}", run(f"o{i}", 3, 2, 1), False, False) for i in range(4)]
    entries.append(Entry("data=b", run("mine", 9, 9, 9, data="b"), True, False))
    assert Pruner(after=2).look(entries) == {}
