"""What a search draws from: intervals, ranges and choices of the command line.

    optimizer.lr=tag(log,interval(1e-4,1e-1))  model.n_layers=interval(2,8)  moe=dense,switch

The words are Hydra's. What Hydra or Optuna's plugin would take in silence and draw otherwise than
it reads is refused here, or put in words of which they make what was typed.
"""

import math
import re
import shlex
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, RangeSweep

from llm.config.errors import Refused
from llm.config.suggest import nearest

#: How each of Hydra's words for several values is written.
_FORMS = {
    "interval": "interval(LOW,HIGH)",
    "tag": "tag(log,interval(LOW,HIGH))",
    "range": "range(START,STOP) or range(START,STOP,STEP)",
    "choice": "choice(A,B)",
    "glob": "glob(PATTERN)",
}


def form_of(name: str, value: str) -> str | None:
    """How to write `value`, which Hydra cannot read, where one of these words was meant."""
    for word in reversed(re.findall(r"(\w+)\(", value)):  # the inner one first
        meant = word if word in _FORMS else nearest(word, _FORMS)
        if meant is not None:
            return shlex.quote(f"{name}={_FORMS[meant]}")
    return None


def is_interval(sweep: Any) -> bool:
    """Whether its values cannot be listed, so that only a search can take it."""
    return isinstance(sweep, IntervalSweep)


def check(text: str, sweep: Any) -> None:
    """Refuse what cannot be drawn from.

    Args:
        text: the override as typed
        sweep: its values as Hydra reads them, None where it is no sweep
    """
    tags: set[str] = getattr(sweep, "tags", set())
    unknown = sorted(tags - {"log"})
    if unknown:
        raise Refused(f"{text}: there is no tag {unknown[0]}; write {_FORMS['tag']}")
    if not isinstance(sweep, IntervalSweep):
        if tags:
            raise Refused(f"{text}: log goes with an interval; write {_FORMS['tag']}")
        return
    low, high = _ends(sweep)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise Refused(f"{text}: an interval has finite ends")
    if low >= high:
        raise Refused(f"{text}: an interval begins with its lower end; write {_FORMS['interval']}")
    if tags and low <= 0:
        raise Refused(f"{text}: a logarithmic interval begins above 0")


def fraction_within(sweep: Any) -> float | None:
    """A number of an interval that is not whole, for its key to judge: `interval(2,8)` means
    whole numbers of layers and any dropout. None where the ends leave no doubt."""
    low, high = _ends(sweep)
    plain = not isinstance(sweep.start, int)  # int(interval(2,8)) has said it
    return low + 0.5 if plain and low.is_integer() and high.is_integer() else None


def as_optuna_draws(name: str, sweep: Any, values: list[str], fractions: bool) -> str:
    """The override of which Optuna's plugin makes what was typed.

    Args:
        name: the left side, as Hydra wants it (`++optimizer.lr`)
        sweep: the right side as Hydra reads it
        values: the list of them, where it is no interval
        fractions: whether the key takes what is between whole numbers
    """
    if isinstance(sweep, IntervalSweep):
        low, high = _ends(sweep)
        whole = isinstance(sweep.start, int) or not fractions
        text = f"int(interval({int(low)},{int(high)}))" if whole else f"interval({low!r},{high!r})"
        return f"{name}=tag(log,{text})" if sweep.tags else f"{name}={text}"
    if isinstance(sweep, RangeSweep) and not sweep.shuffle and len(values) > 1:
        # The end of Hydra's range is not in it; to the plugin it is, and it counts upwards only.
        kind: Any = int if all(isinstance(x, int) for x in (sweep.start, sweep.step)) else float
        first, last = sorted(kind(value) for value in (values[0], values[-1]))
        return f"{name}=range({first!r},{last!r},{kind(abs(sweep.step))!r})"
    listed = sorted(values) if getattr(sweep, "shuffle", False) else values  # the same each time
    return f"{name}={','.join(listed)}"


def _ends(sweep: IntervalSweep) -> tuple[float, float]:
    assert sweep.start is not None and sweep.end is not None
    return float(sweep.start), float(sweep.end)
