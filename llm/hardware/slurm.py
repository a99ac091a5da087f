"""A job that SLURM stops before its end puts itself into the queue again."""

import os
import signal
import subprocess


def requeue(number: int) -> str | None:
    """Ask SLURM for another turn after signal `number`; what was asked, None where nothing was.

    SIGUSR1 announces a limit (`sbatch --signal=USR1@120 --requeue`), SIGTERM comes with preemption.
    It comes with `scancel`, too: a job that was cancelled stays cancelled.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or number == signal.SIGINT:
        return None
    try:
        told = _scontrol("show", "job", "--oneliner", job)
        if "JobState=CANCELLED" in told:
            return None
        _scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip()
        return f"SLURM job {job} could not be put into the queue again: {told}"
    return f"SLURM job {job} is in the queue again and will go on from here"


def _scontrol(*words: str) -> str:
    command = ["scontrol", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout
