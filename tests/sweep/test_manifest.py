"""What a sweep remembers of itself between launches."""

import pytest

from llm.config.outcome import Outcome, SweepJob
from llm.sweep import manifest
from llm.sweep.task import Task


class FakeJobs:
    command, sweep, snapshot, line = "llm.train", "toy", None, ()

    def __init__(self, folder, draws):
        self.folder, self.draws = str(folder), draws


def a_task(number: int, *overrides: str, **told: object) -> Task:
    job = SweepJob(number, list(overrides), "", {}, {}, {}, [], [], "toy", "")
    return Task(job, outcome=Outcome(number, list(overrides), **told) if told else None)


@pytest.fixture
def written(tmp_path):
    def write(draws: bool):
        jobs = FakeJobs(tmp_path, draws)
        tasks = [a_task(0, "lr=1", run="a"), a_task(1, "lr=2", exit=143, pruned=True)]
        manifest.write(jobs, tasks, [])
        return jobs

    return write


def test_a_search_adds_to_its_jobs_and_what_comes_again_keeps_its_number(written):
    jobs = written(draws=True)
    known = manifest.earlier(jobs, 0)
    assert [told["state"] for told in known] == ["finished", "pruned"]
    again = [["++lr=3"], ["++lr=1"], ["++lr=1"]]
    assert manifest.numbers(jobs, again, 0, known) == [2, 0, 3]
    manifest.write(jobs, [a_task(2, "lr=3")], known)
    assert [told["job"] for told in manifest.earlier(jobs, 0)] == [0, 1, 2]


def test_a_grid_is_listed_as_it_is_typed(written):
    jobs = written(draws=False)
    assert manifest.earlier(jobs, 0) == []
    assert [told["job"] for told in manifest.earlier(jobs, 1)] == [0]
    assert manifest.numbers(jobs, [["lr=1"], ["lr=5"]], 4, []) == [4, 5]


def test_a_pruned_job_is_remembered_until_it_is_done(written, tmp_path):
    jobs = written(draws=False)
    assert manifest.pruned(jobs) == {}
    outcome = Outcome(1, ["lr=2", "seed=1"], 143, "hopeless", "b", 3.0, pruned=True)
    outcome.append_to(tmp_path)
    (found,) = manifest.pruned(jobs).values()
    assert (found.problem, found.val_loss, found.objective) == ("hopeless", 3.0, 3.0)
    Outcome(7, ["seed=1", "lr=2"], run="b", val_loss=1.0).append_to(tmp_path)
    assert manifest.pruned(jobs) == {}


@pytest.mark.parametrize(
    ("told", "objective"),
    [
        ({"val_loss": 1.5}, 1.5),
        ({"exit": 1, "again": False}, float("inf")),  # diverged
        ({"exit": 2, "again": False}, float("inf")),
        ({"exit": -9}, None),  # an accident says nothing of the place
        ({"exit": 143, "pruned": True, "val_loss": 3.0}, 3.0),
    ],
)
def test_what_a_search_is_told(told, objective):
    assert Outcome(0, **told).objective == objective
