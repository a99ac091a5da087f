"""The local launcher: a process a job, as many at a time as the machine allows."""

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from llm.config.errors import Interrupted
from llm.config.jobs import Jobs
from llm.config.outcome import Outcome, SweepJob, report_problem, run_facts
from llm.plan.estimate import Planner
from llm.runs.arms import arm_of, read_content
from llm.runs.code import changes, code_facts, packages
from llm.runs.directory import mark_pruned
from llm.sweep import manifest, process
from llm.sweep.prune import Entry, Pruner
from llm.sweep.resources import Gpus, cpu_slots, gpu_ids, memory_free, threads_each
from llm.sweep.table import Table
from llm.sweep.task import Task

#: Seconds between two looks at the processes.
_PERIOD = 0.05
#: Seconds between two looks at the metric logs.
_LOOK = 2.0
#: How a process ends that was told to.
_STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


def launch(
    jobs: Jobs,
    job_overrides: list[list[str]],
    first: int,
    parallel: int | None,
    retries: int,
    backoff: float,
    fail_fast: bool,
    pruner: Pruner | None,
) -> list[JobReturn]:
    """Do the jobs; returns what Hydra's sweepers want, the validation loss as the value.

    Args:
        jobs: the command's, with the sweep's snapshot
        first: number of the first job; those before came in an earlier call for this sweep
        parallel: processes at a time, None for what the machine allows
        retries, backoff, fail_fast: the keys of `hydra.launcher`
        pruner: tells which jobs are hopeless, None where none is given up
    Raises:
        Interrupted: Ctrl-C or SIGTERM came; the jobs have saved and go on with the same line
    """
    earlier = manifest.earlier(jobs, first)
    numbers = manifest.numbers(jobs, job_overrides, first, earlier)
    hopeless = manifest.pruned(jobs) if pruner else {}
    tasks = _tasks(jobs, job_overrides, numbers, hopeless)
    earlier = [told for told in earlier if told["job"] not in numbers]
    manifest.write(jobs, tasks, earlier)
    pool = _Pool(jobs, tasks, parallel, retries, backoff, fail_fast, pruner, earlier)
    for task in tasks:
        if task.outcome is not None:
            pool.conclude(task, task.outcome)
    with _signals(pool):
        pool.work()
    manifest.write(jobs, tasks, earlier)
    if pool.stop is not None:
        raise Interrupted(pool.stop)
    outcomes = [task.outcome for task in tasks if task.outcome is not None]
    jobs.codes += [outcome.exit for outcome in outcomes]
    return [_job_return(outcome) for outcome in outcomes]


def _tasks(
    jobs: Jobs,
    job_overrides: list[list[str]],
    numbers: list[int],
    hopeless: dict[frozenset[str], Outcome],
) -> list[Task]:
    """Compose and validate every job; find those that are done, and those that are the same."""
    frozen = jobs.frozen()
    assert jobs.snapshot is not None
    planner, composer = Planner(frozen), frozen.composer()
    changed: dict[str, str] = {}  # of the code that made a finished run
    tasks: dict[int, Task] = {}
    with composer.opened():
        for number, overrides in zip(numbers, job_overrides, strict=True):
            job = frozen.job(number, overrides, composer)
            planned = planner.plan(number, job)
            if isinstance(job, Outcome):  # it cannot even be composed
                about = (number, job.overrides, planned.label)
                job = SweepJob(*about, {}, {}, {}, [], [], jobs.sweep, jobs.folder)
            task = tasks[number] = Task(job, planned.folder, planned.arm, planned.device)
            if math.isfinite(planned.memory.value):
                task.memory = planned.memory.value
            if planned.state == "refused":
                task.outcome = Outcome(number, job.overrides, 2, planned.problem, again=False)
                continue
            task.shares = tasks.get(planned.same_as) if planned.same_as is not None else None
            facts = run_facts(planned.folder) if planned.folder else {}
            if jobs.restarts:
                continue
            if facts.get("state") == "finished":
                loss = facts.get("val_loss")
                task.outcome = Outcome(number, job.overrides, run=task.run, val_loss=loss)
                places = [jobs.snapshot / place.name for place in packages(job.plugins)]
                changed[str(task.run)] = changes(facts, code_facts(*places))
            elif frozenset(job.overrides) in hopeless:
                task.outcome = replace(hopeless[frozenset(job.overrides)], job=number)
            task.at_once = task.outcome is not None
    told = [how for how in changed.values() if how]
    if told:
        which = f"{len(told)} of {len(changed)} finished runs were made by other code"
        print(f"note: {which} ({told[0]})", file=sys.stderr)
    return list(tasks.values())


def _job_return(outcome: Outcome) -> JobReturn:
    value = JobReturn(overrides=outcome.overrides, status=JobStatus.COMPLETED)
    value.return_value = outcome.objective
    return value


def _entry_of(told: dict[str, Any], runs: Path) -> Entry | None:
    """A job of sweep.json, as the rule sees it; None where it has no run."""
    folder = runs / str(told["run"])
    try:
        content, _ = read_content(folder)
    except (OSError, ValueError):
        return None
    return Entry(arm_of(content), folder, False, told["state"] == "pruned")


class _Pool:
    """The processes, and what is still to do."""

    def __init__(
        self,
        jobs: Jobs,
        tasks: list[Task],
        parallel: int | None,
        retries: int,
        backoff: float,
        fail_fast: bool,
        pruner: Pruner | None = None,
        earlier: Sequence[dict[str, Any]] = (),
    ):
        self.jobs, self.tasks = jobs, tasks
        self.retries, self.backoff, self.fail_fast = retries, backoff, fail_fast
        self.pruner, self.next_look = pruner, 0.0
        runs = Path(jobs.folder).parent.parent / "runs"
        past = [_entry_of(told, runs) for told in earlier] if pruner else []
        self.earlier = [entry for entry in past if entry is not None]
        self.stop: int | None = None  # the signal that ends the sweep
        self.second = False  # whether a second one came
        self.failed_fast = False
        open_tasks = [task for task in tasks if task.outcome is None]
        on_gpu = any(task.device == "cuda" for task in open_tasks)
        self.gpus = Gpus(gpu_ids() if on_gpu else [])
        allowed = parallel or (len(self.gpus) if self.gpus else cpu_slots())
        self.slots = max(1, min(allowed, len(open_tasks)))
        self.threads = threads_each(self.slots)
        self.memory = memory_free()
        self.table = Table(tasks, self.slots)

    def work(self) -> None:
        """Until every job has an outcome, or a signal or a failure ended the sweep."""
        while True:
            if self.stop is not None or self.failed_fast:
                self.stop_all()
                break
            for task in self.running():
                code = task.process.poll() if task.process else None
                if code is not None:
                    self.ended(task, code)
            if all(task.outcome is not None for task in self.tasks):
                break
            self.give_up_hopeless()
            if not self.failed_fast:
                self.start_what_fits()
            self.table.show()
            time.sleep(_PERIOD)
        self.table.close()

    def running(self) -> list[Task]:
        return [task for task in self.tasks if task.process is not None]

    def start_what_fits(self) -> None:
        now = time.monotonic()
        for task in self.tasks:
            running = self.running()
            if len(running) >= self.slots:
                return
            if task.state != "waiting" or task.not_before > now:
                continue
            if task.shares is not None:
                if task.shares.outcome is not None:
                    shared = replace(
                        task.shares.outcome, job=task.job.number, overrides=task.job.overrides
                    )
                    self.conclude(task, shared)
                continue
            if running and sum(t.memory for t in running) + task.memory > self.memory:
                continue
            if not self.start(task):
                return

    def start(self, task: Task) -> bool:
        extra = {"OMP_NUM_THREADS": str(self.threads)}
        if task.device == "cuda" and len(self.gpus):
            task.gpu = self.gpus.lease()
            if task.gpu is None:
                return False
            extra["CUDA_VISIBLE_DEVICES"] = task.gpu
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with open(task.log, "ab") as log:
            task.process = process.start(self.jobs, task.job, log, extra)
        task.began, task.attempts = time.monotonic(), task.attempts + 1
        return True

    def ended(self, task: Task, code: int) -> None:
        """Take note of a process that is over; try again where that may help."""
        task.seconds = time.monotonic() - task.began
        if task.process is not None and task.process.stdin is not None:
            task.process.stdin.close()
        task.process = None
        if task.gpu is not None:
            self.gpus.give_back(task.gpu)
            task.gpu = None
        outcome = process.outcome_of(task.job, code)
        if task.hopeless is not None and outcome.exit in _STOPPED:
            self.conclude_pruned(task)
            return
        stopping = self.stop is not None or self.failed_fast
        if outcome.exit and outcome.again and task.attempts <= self.retries and not stopping:
            pause = self.backoff * 2 ** (task.attempts - 1)
            task.not_before = time.monotonic() + pause
            told = f"{outcome.problem}; again in {pause:g} s"
            self.table.say(f"{self.jobs.command}: job {task.job.number} ({task.job.swept}): {told}")
            return
        if stopping and code in (-signal.SIGTERM, -signal.SIGKILL):
            outcome = replace(outcome, exit=143, problem="interrupted")
        self.conclude(task, outcome)

    def give_up_hopeless(self) -> None:
        """Stop the arms that the rule condemns, each in all its seeds; what waits of them is not
        begun. A run is told by SIGINT to save: SLURM would queue the whole launcher again where
        one heard SIGTERM."""
        now = time.monotonic()
        if self.pruner is None or now < self.next_look:
            return
        self.next_look = now + _LOOK
        entries = [(task, self.entry(task)) for task in self.tasks if task.shares is None]
        condemned = self.pruner.look([*self.earlier, *(entry for _, entry in entries)])
        for task, entry in entries:
            if not entry.open or task.hopeless or entry.arm not in condemned:
                continue
            task.hopeless = condemned[entry.arm]
            if task.process is not None:
                task.process.send_signal(signal.SIGINT)
            else:
                self.conclude_pruned(task)

    def entry(self, task: Task) -> Entry:
        pruned = task.state == "pruned" or task.hopeless is not None
        return Entry(task.arm, task.folder, task.outcome is None, pruned)

    def conclude_pruned(self, task: Task) -> None:
        assert self.pruner is not None and task.hopeless is not None
        loss = self.pruner.last_loss(task.folder)
        if task.folder is not None:
            mark_pruned(task.folder, f"pruned: {task.hopeless}")
        number, overrides, why = task.job.number, task.job.overrides, task.hopeless
        self.conclude(
            task, Outcome(number, overrides, 143, why, task.run, val_loss=loss, pruned=True)
        )

    def conclude(self, task: Task, outcome: Outcome) -> None:
        task.outcome = outcome
        outcome.append_to(self.jobs.folder)
        if task.state in ("failed", "refused"):
            self.table.erase()
            report_problem(self.jobs.command, task.job.swept, outcome)
        elif not self.table.live and not task.at_once:
            self.table.say(self.table.row(task))
        if self.fail_fast and task.state == "failed":
            self.failed_fast = True

    def stop_all(self) -> None:
        """SIGTERM to all, wait until they have saved; a second signal kills."""
        for task in self.running():
            if task.process is not None and task.hopeless is None:  # it saves already
                task.process.terminate()
        if self.running():
            self.table.say(f"{self.jobs.command}: the jobs are saving; Ctrl-C again kills them")
        while self.running():
            for task in self.running():
                code = task.process.poll() if task.process else None
                if code is not None:
                    self.ended(task, code)
                elif self.second and task.process is not None:
                    task.process.kill()
            time.sleep(_PERIOD)


@contextmanager
def _signals(pool: _Pool) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP stop the pool; a second one makes it kill."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: object) -> None:
        if pool.stop is not None:
            pool.second = True
        pool.stop = number

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    sys.stderr.flush()
