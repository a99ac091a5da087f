"""A job before it is begun: what it is, what it costs, what is done of it already."""

import json
import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm.config.errors import Refused
from llm.config.jobs import Jobs
from llm.config.outcome import Outcome, SweepJob, as_problem, run_facts
from llm.config.root import Budget
from llm.config.validate import Validated
from llm.plan.cost import Costs
from llm.plan.history import Estimate, History, Pace, machine_name, signature
from llm.plan.memory import peak_memory
from llm.plan.timing import Unmeasured
from llm.runs.arms import Entry, job_words
from llm.sweep.answer import Answers

_UNKNOWN = Estimate(math.nan, "unknown")


@dataclass
class Planned:
    """One job of the grid."""

    number: int
    label: str
    overrides: list[str] = field(default_factory=list)
    run: str | None = None
    #: new, finished, failed, interrupted, running, refused, duplicate, or unknown
    state: str = "new"
    problem: str = ""
    same_as: int | None = None  # number of the job that is the same run
    params_total: float = math.nan
    params_active: float = math.nan
    flops_per_token: float = math.nan
    vocab_known: bool = True
    tokens: float = math.nan
    examined: float = math.inf  # tokens of an evaluation at most
    prepared: bool = False  # whether its data are, as far as one knows
    memory: Estimate = _UNKNOWN
    seconds: Estimate = _UNKNOWN
    entry: Entry | None = None
    #: Overrides, beside its own, of what `compare=time` has to see run first.
    unmeasured: list[list[str]] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)

    @property
    def flops(self) -> float:
        return self.tokens * self.flops_per_token

    @property
    def counted(self) -> bool:
        """Whether parameters and operations are known."""
        return math.isfinite(self.params_total)

    @property
    def to_do(self) -> bool:
        return self.state not in ("finished", "refused", "duplicate")


class Planner:
    """Looks at jobs one by one; what they share is found out once."""

    def __init__(self, jobs: Jobs, outputs: Path, answers: Answers):
        self.jobs, self.answers = jobs, answers
        self.costs, self.history = Costs(), History(outputs)
        self.machine_facts = answers.machine_facts
        self._first: dict[str, int] = {}

    def plan(self, number: int, made: SweepJob | Outcome) -> Planned:
        if isinstance(made, Outcome):
            label = self.jobs.label(made.overrides)
            return Planned(number, label, made.overrides, state="refused", problem=made.problem)
        planned = Planned(number, made.swept, made.overrides)
        try:
            self._fill(planned, made.validated(self.jobs.choices))
        except Refused as refusal:
            planned.state = "refused"
            planned.unmeasured = refusal.lines if isinstance(refusal, Unmeasured) else []
            planned.problem = str(as_problem(refusal, made.words))
        return planned

    def _fill(self, planned: Planned, validated: Validated) -> None:
        config = validated.config
        manifest = self.answers.prepared(validated)
        vocab, planned.vocab_known = self.costs.vocabulary(config, manifest)
        account = self.costs.account(config, vocab)
        planned.run = self.answers.run_id(validated)
        # Where only the job can find out its id, equal configs are still the same run.
        identity = planned.run or json.dumps(validated.identity, sort_keys=True)
        first = self._first.setdefault(identity, planned.number)
        if first != planned.number:
            planned.state, planned.same_as = "duplicate", first
        elif planned.run is not None:
            facts = run_facts(Path(config["outputs"]) / "runs" / planned.run)
            planned.state = facts.get("state", "new")
        elif config["model"].get("init_from") is not None:
            planned.state = "unknown"
        here = self.machine_facts(config["hardware"])
        if here is None:
            raise Refused("that device is not here; take hardware=cpu", "hardware")
        if account is None:
            return
        planned.params_total = account.params_total
        planned.params_active = account.params_active
        planned.flops_per_token = account.flops_per_token
        budget = Budget.parse(config["train"]["budget"])
        planned.tokens, planned.caveats = _extent(
            budget, config, account.flops_per_token, manifest.get("train", math.nan)
        )
        planned.examined = min(config["train"]["eval_tokens"] or math.inf, _val(manifest))
        planned.prepared = bool(manifest)
        mark, machine = signature(config, vocab), machine_name(here)
        formula = peak_memory(
            {**config, "hardware": here}, account.params_total, vocab, here["device"]
        )
        planned.memory = self.history.memory(mark, machine, formula)
        examined = planned.examined if math.isfinite(planned.examined) else 0.0
        pace = self.history.pace(mark, machine, account.flops_per_token, examined)
        if budget.unit == "min":
            planned.seconds = Estimate(60 * budget.amount + pace.start, "given")
            every = config["train"]["eval_every"] * _step_tokens(config)
            planned.tokens = 60 * budget.amount / (pace.token + pace.evaluation / every)
        else:
            planned.seconds = Estimate(_seconds(config, planned.tokens, pace), pace.basis)
        planned.entry = Entry(
            *self.answers.content(validated, here),
            validated.chosen,
            planned.tokens,
            planned.flops,
            account.params_active,
            account.params_total,
            config["compare"],
            frozenset([job_words(shlex.split(planned.label))]),
        )


def _extent(
    budget: Budget, config: dict[str, Any], flops_per_token: int, targets: float
) -> tuple[float, list[str]]:
    """Tokens of the training, NaN where they are not known yet, and what is to be said of them.

    Args:
        targets: of the training text
    """
    rows, seq_len = _step_rows(config), int(config["model"]["max_seq_len"])
    of_a_step = budget.of_a_step(rows, seq_len, targets / seq_len, flops_per_token)
    steps = budget.steps(of_a_step) if math.isfinite(of_a_step) else None
    tokens = steps * rows * seq_len if steps is not None else math.nan
    return tokens, list(budget.caveats(rows, seq_len, targets / seq_len, of_a_step))


def _step_rows(config: dict[str, Any]) -> int:
    rows: int = config["train"]["batch_size"] * config["train"]["grad_accum_steps"]
    return rows


def _step_tokens(config: dict[str, Any]) -> int:
    return _step_rows(config) * int(config["model"]["max_seq_len"])


def _val(manifest: dict[str, Any]) -> float:
    return float(manifest["val"]) if manifest else math.inf


def _seconds(config: dict[str, Any], tokens: float, pace: Pace) -> float:
    """Start and end, training steps, and evaluations, of which there is one at the end."""
    if not math.isfinite(tokens):
        return math.nan
    steps = tokens / _step_tokens(config)
    evaluations = math.ceil(steps / config["train"]["eval_every"] - 1e-9)
    return pace.start + tokens * pace.token + evaluations * pace.evaluation
