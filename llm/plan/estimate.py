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
from llm.plan.cost import account, machine_here, vocabulary
from llm.plan.history import Estimate, History, Pace, machine_name, signature
from llm.plan.memory import peak_memory
from llm.plan.timing import Unmeasured
from llm.runs.arms import Entry, arm_of, job_words
from llm.sweep.answer import Answers

_UNKNOWN = Estimate(math.nan, "unknown")


@dataclass
class Planned:
    """One job of the grid."""

    number: int
    label: str
    overrides: list[str] = field(default_factory=list)
    folder: Path | None = None  # of its run, where that is known
    #: new, finished, failed, interrupted, running, refused, duplicate, or unknown
    state: str = "new"
    problem: str = ""
    same_as: int | None = None  # number of the job that is the same run
    device: str = "cpu"
    arm: str = ""  # the same for jobs that differ in their seed only
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
    """Looks at jobs one by one; what they share is found out once.

    Args:
        history: of runs that tell times and memory, none where formulas will do
    """

    def __init__(self, jobs: Jobs, history: History | None = None):
        self.jobs, self.answers, self.history = jobs, Answers(), history or History([])
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
        vocab, planned.vocab_known = vocabulary(config, manifest)
        costs = account(config, vocab)
        self._find_run(planned, validated)
        here = machine_here(config)
        planned.device = here["device"]
        content, marks = self.answers.content(validated, here)
        planned.arm = arm_of(content)
        if costs is None:
            return
        planned.params_total, planned.params_active = costs.params_total, costs.params_active
        planned.flops_per_token = costs.flops_per_token
        planned.prepared = bool(manifest)
        asked = config["train"]["eval_tokens"] or math.inf
        planned.examined = min(asked, _targets(manifest, "val"))
        known = {**config, "hardware": {**config["hardware"], **here}}
        formula = peak_memory(known, costs.params_total, vocab)
        mark, machine = signature(config, vocab), machine_name(here)
        planned.memory = self.history.memory(mark, machine, formula)
        examined = planned.examined if math.isfinite(planned.examined) else 0.0
        pace = self.history.pace(mark, machine, costs.flops_per_token, examined)
        _spend(planned, config, pace, _targets(manifest, "train"))
        planned.entry = Entry(
            content,
            marks,
            validated.chosen,
            planned.tokens,
            planned.flops,
            costs.params_active,
            costs.params_total,
            config["compare"],
            frozenset([job_words(shlex.split(planned.label))]),
        )

    def _find_run(self, planned: Planned, validated: Validated) -> None:
        """The run that answers the job, or the job before it that is the same run."""
        config, run = validated.config, self.answers.run_id(validated)
        planned.folder = Path(config["outputs"]) / "runs" / run if run else None
        # Where only the job can find out its id, equal configs are still the same run.
        identity = run or json.dumps(validated.identity, sort_keys=True)
        first = self._first.setdefault(identity, planned.number)
        if first != planned.number:
            planned.state, planned.same_as = "duplicate", first
        elif planned.folder is not None:
            planned.state = run_facts(planned.folder).get("state", "new")
        elif config["model"].get("init_from") is not None:
            planned.state = "unknown"


def _targets(manifest: dict[str, Any], split: str) -> float:
    """Of the split's text; as far as one knows there is no end to one that is not prepared."""
    return float(manifest.get(split, math.inf))


def _spend(planned: Planned, config: dict[str, Any], pace: Pace, targets: float) -> None:
    """Tokens and seconds of the training, NaN where they are not known yet, and what is to be said
    of them.

    Args:
        targets: of the training text
    """
    train, seq_len = config["train"], int(config["model"]["max_seq_len"])
    budget = Budget.parse(train["budget"])
    rows = train["batch_size"] * train["grad_accum_steps"]
    per_epoch = targets / seq_len
    of_a_step = budget.of_a_step(rows, seq_len, per_epoch, planned.flops_per_token)
    planned.caveats = list(budget.caveats(rows, seq_len, per_epoch, of_a_step))
    every = train["eval_every"]
    if budget.unit == "min":
        planned.seconds = Estimate(60 * budget.amount + pace.start, "given")
        per_token = pace.token + pace.evaluation / (every * rows * seq_len)
        planned.tokens = 60 * budget.amount / per_token
        return
    steps = (budget.steps(of_a_step) if of_a_step else None) or math.nan
    planned.tokens = steps * rows * seq_len
    evaluations = -(-steps // every)  # one comes at the end
    spent = pace.start + planned.tokens * pace.token + evaluations * pace.evaluation
    planned.seconds = Estimate(spent, pace.basis)
