"""`python -m llm.plan model=tiny,small moe=dense,switch seed=1,2,3`: a sweep before it is spent.

The overrides are those of `python -m llm.train -m`. Nothing is trained; `--calibrate` trains each
kind of model for a few steps first, in a process of its own. `--sort=KEY` sorts by job,
params_total, params_active, flops, tokens, memory or seconds.
"""

import argparse
import sys

from llm.config import overrides as override_reading
from llm.config.command import exit_code
from llm.config.entry import choices_of, read_flags
from llm.config.errors import Refused
from llm.config.jobs import Jobs
from llm.config.plain import MISTAKES, one_line

_SORTS = ("job", "params_total", "params_active", "flops", "tokens", "memory", "seconds")


def run(arguments: list[str]) -> int:
    """Print the plan of the line; the exit code."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--sort", default="job")
    own, rest = parser.parse_known_args(arguments)
    if own.sort not in _SORTS:
        raise Refused(f"--sort={own.sort}: sorts by {', '.join(_SORTS)}")
    flags = read_flags([a for a in rest if a not in ("-m", "--multirun")])
    if flags.help:
        print(__doc__)
        return 0
    from llm.plan import table  # PyTorch with it
    from llm.plan.calibrate import plan

    choices = choices_of(flags)
    typed = override_reading.read(flags.overrides, choices, True)
    jobs = Jobs("llm.plan", print, choices, typed, True)
    try:
        planned = plan(jobs, own.calibrate)
    except MISTAKES as error:
        raise Refused(one_line(error, choices)) from error
    print("\n".join(table.lines(planned, own.sort)))
    print("\n".join(table.of_search(planned, jobs.sweeper) if jobs.draws else table.sums(planned)))
    for note in table.notes(planned, jobs):
        print(f"note: {note}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("llm.plan", lambda: run(sys.argv[1:])))
