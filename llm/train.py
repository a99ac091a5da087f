"""Training: the command, and the same from Python. The loop is in `llm.training.fit`.

    python -m llm.train model=small moe=switch data=custom data.path=FILE_OR_FOLDER
    torchrun --nproc-per-node 4 -m llm.train model=small hardware.parallel=fsdp

Nothing here imports torch before a job begins: `--help` imports this file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm.config.entry import Job, in_process, main

if TYPE_CHECKING:
    from llm.runs.reopen import OpenRun


def train(job: Job) -> Path:
    """Train the run that `job` describes, or go on with it, or answer from it.

    The last line on standard output is the run directory, which is also returned.

    Raises:
        Refused: a contradiction in the config, or a run that must not be touched
        Failed: a loss that is not finite, a disk that takes nothing more
        Interrupted: a signal came; the run is saved and continues with the same command
        PeerFailed: another process of the job raised one of these, and has said so
    """
    from llm.training import fit as training

    return training.fit(job)


def fit(overrides: Sequence[str] = ()) -> "OpenRun":
    """Train as `python -m llm.train OVERRIDES` does, in this process: the run, opened.

    The same run directory, whichever of the two began it: it goes on where it was interrupted, and
    is answered where it is finished.

    Args:
        overrides: settings as they are typed: `["model=nano", "data=custom", "data.path=my.txt"]`
    Raises: what `train` raises
    """
    from llm.runs.reopen import load_run

    runs: list[OpenRun] = []

    def task(job: Job) -> None:
        runs.append(load_run(train(job), plugins=job.config["plugins"]))

    in_process("llm.fit", task, overrides)
    return runs[0]


if __name__ == "__main__":
    main("llm.train", train)
