"""How training ends: whatever ends it, run.json says it."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from llm.config.errors import Failed, Interrupted
from llm.hardware.slurm import requeue
from llm.hardware.world import World
from llm.runs.directory import Run
from llm.training.writer import how_to_go_on, last_good


@contextmanager
def recorded(run: Run, world: World) -> Iterator[None]:
    """Around all that is done with a claimed run: notes what ended it, and lets the claim go.

    A run that is finished stays so, whatever becomes of its last lines. An interrupt is none of
    the run's faults, wherever it comes.
    """
    try:
        yield
    except BaseException as problem:
        if run.state == "finished":
            raise
        cause = world.cause_of(problem)
        interrupted = isinstance(cause, KeyboardInterrupt)
        if type(cause) is KeyboardInterrupt and world.size == 1:
            cause = Interrupted(signal.SIGINT)
        with suppress(OSError):  # a full disk does not take this either
            state = "interrupted" if interrupted else "failed"
            run.update(state=state, reason=str(cause) or type(cause).__name__)
        if interrupted and world.first:
            told = requeue(cause.args[0]) if isinstance(cause, Interrupted) else None
            print(*filter(None, [how_to_go_on(run), told]), sep="\n", file=sys.stderr)
        if isinstance(cause, Interrupted):
            raise cause from None
        if isinstance(problem, OSError):
            raise Failed(f"{problem}; {last_good(run)}") from problem
        raise
    finally:
        run.release()
