"""A run's past: saved while training goes on, found again after a crash, gone back to in need."""

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from llm.config.errors import Diverged, Failed
from llm.hardware.world import World
from llm.runs import checkpoint
from llm.runs.checkpoint import Checkpoint
from llm.runs.directory import Run
from llm.training.null_sink import NullSink
from llm.training.state import TrainState
from llm.training.writer import CheckpointWriter, last_good

#: Times that a run goes back for one mishap, that is before it has got past it, until it gives up.
_MOST_RETURNS = 3


class CheckpointHistory:
    """What a run was at its checkpoints, and how it becomes that again.

    All processes of a job call every method; the first one decides and writes.

    Args:
        log: the metric log, which goes back with everything else
        state: where the run stands; changed in place
        parts: what else has `state_dict` and `load_state_dict`, by its name in a checkpoint
        settings: the config's `train`, for `checkpoint_every`, `_minutes` and `keep_every`
        say: prints a line
    Attributes:
        writer: writes checkpoints in the background
    """

    def __init__(
        self,
        run: Run,
        world: World,
        log: Any,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
        parts: Mapping[str, Any],
        settings: Mapping[str, Any],
        say: Callable[[str], None],
    ):
        self.run, self.world, self.log = run, world, log
        self.model, self.optimizer, self.state, self.parts = model, optimizer, state, parts
        self.every, self.minutes = settings["checkpoint_every"], settings["checkpoint_minutes"]
        self.say, self._saved_at = say, 0.0
        self.writer: Any = NullSink()
        if world.first:
            self.writer = CheckpointWriter(run, self.every, settings["keep_every"], say)

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, or begin where there is none.

        Raises:
            Failed: there are checkpoints, and none is whole
        """
        newest = self.world.decide(self._newest_whole)
        if newest is not None:
            self._restore(checkpoint.read(self.run.checkpoints / newest))
            returned = self.run.facts.get("returned", {})
            if returned.get("step") == self.state.step:  # stopped before the next checkpoint
                vars(self.state).update(returned)
            if self.world.first:
                step = self.state.step
                print(f"going on with {self.run.folder} from step {step}", file=sys.stderr)
        self._forget_what_came_after()

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint, by steps or by the clock."""
        waited = self.state.seconds - self._saved_at
        by_clock = self.minutes is not None and waited >= 60 * self.minutes
        return by_clock or self.state.step % self.every == 0

    def save(self, needed: bool, regular: bool = True, best: bool = False) -> None:
        """Copy the run as it stands and write it while training goes on.

        Args:
            needed: wait, and raise where the disk refuses; otherwise that is told, and no more
            regular: a checkpoint; best: the best weights
        """
        content = checkpoint.snapshot(
            self.model, self.optimizer if regular else None, self.world.first
        )
        state = None
        if regular:
            if self.state.step % self.every == 0 and not self.parts["guard"].in_a_row:
                self.state.went_back = [r for r in self.state.went_back if r[0] >= self.state.step]
            self.state.metrics_bytes, self._saved_at = self.log.sync(), self.state.seconds
            state = self.state.state_dict()
            state |= {name: part.state_dict() for name, part in self.parts.items()}
        best_state = {"val_loss": self.state.best} if best else None
        self.writer.put(self.state.step, content, state, best_state)
        if needed:
            self.writer.settle(needed=True)

    def go_back(self, rows_per_step: int, why: str) -> None:
        """To the last good checkpoint, and past the data since and all that were passed before.

        To none twice for one mishap: it would end the same way. run.json notes it at once, so that
        a resume from that checkpoint takes the same way.

        Args:
            rows_per_step: of data
            why: the diagnosis, should the run have to end here
        Raises:
            Diverged: there is nowhere left to go back to
        """
        self.writer.settle()
        left, passed, returns = self.state.step, self.state.passed_over, self.state.went_back
        name = self.world.decide(self._newest_good) if len(returns) < _MOST_RETURNS else None
        if name is None:
            raise Diverged(f"{why}; {last_good(self.run)}")
        self._restore(checkpoint.read(self.run.checkpoints / name))
        if self.world.first:
            checkpoint.drop_after(self.run.checkpoints, self.state.step)
        self.state.went_back = [*returns, [left, self.state.step]]
        self.state.passed_over = passed + (left - self.state.step) * rows_per_step
        with suppress(OSError):  # then a resume meets the same data, and goes back again
            known = ("step", "passed_over", "went_back")
            self.run.update(returned={key: vars(self.state)[key] for key in known})
        self._forget_what_came_after()
        step = self.state.step
        self.say(f"step {left}: back to step {step}, and past the data that did the harm")

    def _newest_whole(self) -> str | None:
        """Its name; of each newer one that is damaged, a line."""
        for parent in (self.run.checkpoints, self.run.best):
            checkpoint.mend(parent)
        found, damaged = checkpoint.newest(self.run.checkpoints)
        for line in damaged:
            print(f"{line}; going back to the one before", file=sys.stderr)
        if damaged and found is None:
            raise Failed(
                f"no checkpoint of {self.run.folder} is whole; run.existing=restart begins anew"
            )
        return found.folder.name if found else None

    def _newest_good(self) -> str | None:
        """The name of the newest whole checkpoint to go back to; of damaged ones, a line.

        Of a regular step, so that the clock has no say; not made while steps were left out.
        """
        visited = [there for _, there in self.state.went_back]

        def fits(found: Checkpoint) -> bool:
            regular = found.step % self.every == 0 and found.step not in visited
            return regular and not found.state.get("guard", {}).get("in_a_row")

        found, damaged = checkpoint.newest(self.run.checkpoints, fits)
        for line in damaged:
            self.say(f"{line}; going back further")
        return found.folder.name if found else None

    def _restore(self, found: Checkpoint) -> None:
        found.restore_model(self.model)
        found.restore_optimizer(self.optimizer)
        for name, part in self.parts.items():
            if name in found.state:  # older checkpoints know fewer
                part.load_state_dict(found.state[name])
        self.state.restore(found.step, found.state)
        self._saved_at = self.state.seconds

    def _forget_what_came_after(self) -> None:
        """Metrics and best weights of steps that will be taken again."""
        self.log.cut_back(self.state.metrics_bytes)
        if self.world.first:
            checkpoint.drop_after(self.run.best, self.state.step)
