"""The width at which a dense model's step takes as long as that of a model with experts, here.

Seconds are those of runs that this machine has done: of the model with experts itself, and of dense
models of its shape in two widths or more, through which a line is drawn. Operations would not do:
experts cost more time than their operations say, which is what this comparison is about.

What was decided is kept in `outputs/.partners`, since a run's identity must not depend on how fast
the machine is today; delete the file to decide again.
"""

import hashlib
import json
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from llm.config.environment import invocation
from llm.config.errors import Refused
from llm.config.validate import Validated
from llm.plan.cost import machine_here, vocabulary
from llm.plan.history import History, machine_name, signature
from llm.plan.width import dense_of, equal_width, settings
from llm.runs.files import write_json
from llm.sweep.answer import Answers

#: The line is trusted so far beyond the widths that were measured.
_BEYOND = 1.1
#: Widths after which the line is trusted as it is, since times are never exact.
_ENOUGH = 5


@dataclass(frozen=True)
class Times:
    """Seconds a token of training steps on this machine, None or absent where not measured."""

    experts: float | None
    dense: dict[int, float]  # d_ff to seconds

    def width(self) -> int:
        """Where the line through the dense models meets the experts; needs two of them.

        Raises Refused where there is no such width.
        """
        assert self.experts is not None
        slope, intercept = self._line()
        if slope <= 0:
            raise Refused(
                "wider dense models were no slower here, so the times say nothing; a larger "
                "train.batch_size or a quieter machine may help",
                "compare",
            )
        found = round((self.experts - intercept) / slope)
        if found < 1:
            raise Refused("no dense model of this shape is as quick", "compare")
        return found

    def missing(self, first: int) -> list[int]:
        """Dense widths to measure, for a search that begins at `first`; empty when all is known."""
        if len(self.dense) < 2:
            return [d_ff for d_ff in (first, 2 * first) if d_ff not in self.dense]
        if self.experts is None or len(self.dense) >= _ENOUGH:
            return []
        low, high = min(self.dense), max(self.dense)
        if self._line().slope <= 0:  # too near to each other to tell
            return [4 * high]
        found = self.width()
        return [] if low / _BEYOND <= found <= high * _BEYOND else [min(found, 4 * high)]

    def _line(self) -> statistics.LinearRegression:
        return statistics.linear_regression(list(self.dense), list(self.dense.values()))


class Unmeasured(Refused):
    """Some steps have to be timed first: `lines` are overrides beside those of the job."""

    def __init__(self, lines: list[list[str]]):
        super().__init__(
            "how long these models' steps take is not known here yet; "
            f"{invocation('llm.plan')} with this line and --calibrate measures it",
            "compare",
        )
        self.lines = lines


def width_of_equal_time(validated: Validated) -> int:
    """Decided before, or now and for good; Unmeasured where too little is known."""
    config = validated.config
    here = machine_here(config)
    file = Path(config["outputs"]) / ".partners" / f"{_mark(validated, here)}.json"
    if not file.exists():
        times = _times(validated, here)
        lines = _to_measure(config, times)
        if lines:
            raise Unmeasured(lines)
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.parent / ".lock"):
            if not file.exists():  # another job was quicker
                made = {"d_ff": times.width(), "host": platform.node(), **here}
                made |= {"seconds_per_token": times.experts, "dense": times.dense}
                write_json(file, made)
    return int(json.loads(file.read_bytes())["d_ff"])


def _to_measure(config: dict[str, Any], times: Times) -> list[list[str]]:
    lines = [] if times.experts is not None else [["compare=null"]]
    for d_ff in times.missing(equal_width(config, "active_flops")):
        keys = settings(config["model"], d_ff)
        words = [f"model.{key}={value}" for key, value in keys.items()]
        lines.append(["compare=null", "moe=dense", *words])
    return lines


def _times(validated: Validated, here: dict[str, Any]) -> Times:
    config = validated.config
    outputs = Path(config["outputs"])
    vocab, _ = vocabulary(config, Answers().prepared(validated))
    history, machine = History.under(outputs), machine_name(here)
    experts = history.pace(signature(config, vocab), machine, 1.0, 0.0)
    dense = history.of_widths(signature(dense_of(config, 1), vocab), machine)
    return Times(experts.token if experts.basis == "measured" else None, dense)


def _mark(validated: Validated, here: dict[str, Any]) -> str:
    """All that decides the speed of a step, known before there are data."""
    identity = validated.identity
    parts = [signature(validated.config, 0), identity["data"], identity["tokenizer"], here]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
