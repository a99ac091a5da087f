"""The study behind a search, kept in the sweep's folder, so that the same line goes on with it.

    outputs/sweeps/NAME/search.db    every trial of Optuna's: what was drawn, what came of it

Left alone, Optuna's plugin for Hydra keeps nothing, or tries `n_trials` more at each start. Here
`n_trials` counts the trials of the study. Those that were under way when the search was killed, or
failed by an accident, come before anything new: the same job, whose run goes on where it was.
"""

import json
import math
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm.config.errors import Refused
from llm.config.overrides import as_typed


@contextmanager
def study(
    folder: Path, name: str, sweeper: Mapping[str, Any], restart: bool
) -> Iterator[list[str]]:
    """Hold the study while the search runs, and say at its end what was best.

    Args:
        folder: the sweep's
        name: of the study, unless the sweeper has one
        sweeper: the node of `hydra.sweeper`
        restart: begin anew; the study that is there is set aside
    Yields: overrides that make the plugin go on with the study
    Raises:
        Refused: it is running already, or does not minimise
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if sweeper["n_trials"] < 1:
        raise Refused(f"hydra.sweeper.n_trials={sweeper['n_trials']}: is at least 1")
    if sweeper["direction"] != "minimize":
        raise Refused("hydra.sweeper.direction: a search minimizes the validation loss")
    if restart and sweeper["storage"]:
        raise Refused(
            "hydra.sweeper.storage: run.existing=restart leaves yours alone; "
            "choose another hydra.sweeper.study_name"
        )
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / "search.db"
    lock = FileLock(folder / ".search.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Refused(f"{folder}: this search is running already; wait for it") from None
    try:
        if restart and own.exists():
            os.replace(own, folder / f"search-{len(list(folder.glob('search-*.db')))}.db")
        storage = sweeper["storage"] or f"sqlite:///{own}"
        title = sweeper["study_name"] or name
        found = optuna.create_study(storage, study_name=title, load_if_exists=True)
        begun, done = len(found.trials), _go_on(found)
        told = [
            f"hydra.sweeper.storage='{storage}'",
            f"hydra.sweeper.study_name='{title}'",
            f"hydra.sweeper.n_trials={max(sweeper['n_trials'] - done, 0)}",
        ]
        if "max_failure_rate" in sweeper:  # a failed job is counted, and the rest go on
            told.append("hydra.sweeper.max_failure_rate=1.0")
        sampler = sweeper["sampler"]
        if "seed" in sampler:  # the same again would draw what was drawn before
            told.append(f"hydra.sweeper.sampler.seed={(sampler['seed'] or 0) + begun}")
        try:
            yield told
        except ValueError as error:  # the plugin asks for the best of none
            if "No trials are completed" not in str(error):
                raise
            return
        line = _best(found, folder)
        if line:
            print(line)
    finally:
        lock.release()


def _go_on(found: Any) -> int:
    """Queue what was left undone; the number of trials that are done."""
    from optuna.trial import TrialState

    trials = found.trials
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    settled = [trial.params for trial in done]
    settled += [t.system_attrs["fixed_params"] for t in trials if t.state is TrialState.WAITING]
    for trial in trials:
        if trial.state is TrialState.RUNNING:
            found.tell(trial.number, state=TrialState.FAIL)
        undone = trial.state in (TrialState.RUNNING, TrialState.FAIL)
        if undone and trial.params and trial.params not in settled:
            with warnings.catch_warnings():  # that it may change in a version to come
                warnings.simplefilter("ignore")
                found.enqueue_trial(trial.params)
            settled.append(trial.params)
    return len(done)


def _best(found: Any, folder: Path) -> str | None:
    """What the best trial drew, and the run that it is."""
    done = [trial for trial in found.trials if trial.value is not None]
    if not any(math.isfinite(trial.value) for trial in done):
        return None
    best = min(done, key=lambda trial: trial.value)
    drawn = [as_typed(f"{key}={value}") for key, value in best.params.items()]
    runs = [
        told["run"]
        for told in map(json.loads, (folder / "jobs.jsonl").read_text().splitlines())
        if told["run"] and set(drawn) <= set(told["overrides"])
    ]
    where = f": {runs[-1]}" if runs else ""
    return f"best of {len(done)} trials: val/loss {best.value:.4f} with {shlex.join(drawn)}{where}"
