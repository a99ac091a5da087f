"""The top of the config: what `conf/train.yaml` holds beside the groups."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation, Overflow
from typing import Annotated, Literal

from llm.config.errors import Refused
from llm.config.schema import Common, Node
from llm.config.types import UNRECORDED, NonNegativeFloat, PositiveFloat, PositiveInt, Seed

_BUDGET = re.compile(
    r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kMGB]?)(tok|steps?|epochs?|(?:active_)?flops|min)"
)
_POWERS = {"B": 9, "G": 9, "M": 6, "k": 3, "": 0}


@dataclass(frozen=True)
class Budget:
    """How much to train: an amount of one of `tok`, `step`, `epoch`, `flops`, `min`.

    `active_flops` are `flops`: operations that are really done, by the experts that a token uses.
    Those that it does not use do none.
    """

    amount: float
    unit: Literal["tok", "step", "epoch", "flops", "min"]

    @classmethod
    def parse(cls, text: str) -> "Budget":
        match = _BUDGET.fullmatch(text.strip())
        if not match:
            raise Refused(
                f"{text!r} is no budget; write 20Mtok, 2000steps, 3epochs, 1e15flops or 10min",
                "budget",
            )
        try:
            # Exact, so that 1100tok and 1.1ktok are one amount.
            amount = float(Decimal(match[1]).scaleb(_POWERS[match[2]]))
        except InvalidOperation:
            raise Refused(f"{match[1]!r} in {text!r} is no number", "budget") from None
        except Overflow:
            amount = math.inf
        if not 0 < amount < math.inf:
            raise Refused(f"{text!r} must be more than nothing, and finite", "budget")
        unit = match[3].removeprefix("active_")
        unit = unit if unit == "flops" else unit.rstrip("s")
        return cls(amount, unit)  # type: ignore[arg-type]

    def of_a_step(
        self, rows: int, seq_len: int, rows_per_epoch: float, flops_per_token: float
    ) -> float:
        """How much of it one step of so many rows spends; NaN where the clock decides."""
        tokens = rows * seq_len
        return {
            "tok": tokens,
            "step": 1,
            "epoch": rows / rows_per_epoch,
            "flops": tokens * flops_per_token,
            "min": math.nan,
        }[self.unit]

    def steps(self, of_a_step: float) -> int | None:
        """How many steps it takes to spend it, None where the clock decides."""
        if self.unit == "min":
            return None
        return max(1, math.ceil(self.amount / of_a_step - 1e-9))

    def caveats(
        self, rows: int, seq_len: int, rows_per_epoch: float, of_a_step: float
    ) -> Iterator[str]:
        """What a run of this budget has to say before it begins, a line each."""
        if self.amount < of_a_step * (1 - 1e-9):
            yield (
                f"train.budget={self.spelling} is less than one step ({rows} × {seq_len} tokens): "
                f"training takes one, which is {of_a_step:,.3g} {self.name}; use a smaller "
                "train.batch_size or model.max_seq_len"
            )
        if rows_per_epoch < 1:
            yield (
                f"the training text is shorter than one row ({rows_per_epoch * seq_len:,.0f} of "
                f"{seq_len} tokens): every row repeats it; use a smaller model.max_seq_len"
            )

    @property
    def name(self) -> str:
        """The unit behind a number: "steps", "tok"."""
        return {"step": "steps", "epoch": "epochs"}.get(self.unit, self.unit)

    @property
    def spelling(self) -> str:
        """The one spelling of this budget, which identities hold: 20Mtok for 20000ktok."""
        amount = Decimal(repr(self.amount)).normalize()
        if self.unit == "flops":
            return f"{amount:e}flops".replace("e+", "e")
        letter = ""
        if self.unit == "tok":  # the largest unit of which it is a whole number
            whole = (k for k, power in _POWERS.items() if amount % 10**power == 0)
            letter = next(whole, "")
        return f"{amount.scaleb(-_POWERS[letter]):f}{letter}{self.name}"


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The `train` section.

    budget: `20Mtok`, `2000steps`, `3epochs`, `1e15flops` (also called active_flops) or `10min`
    batch_size: sequences in one micro-step, over all ranks
    grad_accum_steps: micro-steps in one optimizer step
    clip_norm: largest global gradient norm, null for no clipping
    z_loss: weight of mean(log² Z) of the output's softmax, which keeps its logits from drifting
        (PaLM: 1e-4)
    spike_factor: a step is left out where its gradient norm is more than so many times the median
        of the last 128, or its loss so many standard deviations above theirs; null: only where
        they are not finite
    spike_patience: after so many such steps in a row the run goes back to the last checkpoint and
        skips that data, three times at most
    eval_every: optimizer steps between evaluations (and one at the end)
    eval_tokens: evaluate on the first so many validation tokens, null for all of them
    checkpoint_every: optimizer steps between checkpoints (and one at the end)
    checkpoint_minutes: and never longer than so many minutes, null for steps only
    keep_every: checkpoints whose step is a multiple are kept for ever; otherwise the newest two
    sample_every: optimizer steps between text samples, null for the end only
    overfit: train on the first batch for ever (debug=overfit)
    profile: write a trace of steps 3 to 5 that opens in Perfetto (debug=profile)
    preflight: before step 0, prove that every router, expert and other parameter gets gradient from
        the language-model loss, or stop
    """

    budget: str
    batch_size: PositiveInt
    grad_accum_steps: PositiveInt
    clip_norm: PositiveFloat | None
    z_loss: NonNegativeFloat
    spike_factor: PositiveFloat | None
    spike_patience: PositiveInt
    eval_every: PositiveInt
    eval_tokens: PositiveInt | None
    checkpoint_every: Annotated[int, *PositiveInt.__metadata__, UNRECORDED]
    checkpoint_minutes: Annotated[float | None, *PositiveFloat.__metadata__, UNRECORDED]
    keep_every: Annotated[int | None, *PositiveInt.__metadata__, UNRECORDED]
    sample_every: PositiveInt | None
    overfit: bool
    profile: Annotated[bool, UNRECORDED]
    preflight: Annotated[bool, UNRECORDED]

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", Budget.parse(self.budget).spelling)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The `run` section: what to do where a run of this identity exists already.

    existing: `resume` continues an unfinished one and answers from a finished one; `restart`
        moves it aside and begins anew
    code_changed: `refuse` stops where other code began an unfinished run; `accept` goes on; a
        sweep goes on with the code and configs that it began with where it says `frozen`
    """

    existing: Annotated[Literal["resume", "restart"], UNRECORDED]
    code_changed: Annotated[Literal["refuse", "accept", "frozen"], UNRECORDED]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Keys of `data` whatever the corpus.

    document_mask: attention and positions stay within a document, where a row holds several
    """

    document_mask: bool


#: What a dense partner may have equal with a model with experts (`llm.plan.partner`).
Compare = Literal["active_flops", "total_params", "memory", "time"]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run, fully described.

    seed: keys initialisation, batch order, dropout and noise
    compare: train the dense partner in place of a model with experts; the identity is the partner's
    """

    seed: Seed
    compare: Annotated[Compare | None, UNRECORDED]
    train: TrainSettings
    model: Node
    moe: Node
    data: Annotated[Node, Common(DataSettings)]
    tokenizer: Node
    objective: Node
    optimizer: Node
    hardware: Node
    tracking: Annotated[Node, UNRECORDED]
    run: Annotated[RunSettings, UNRECORDED]
    outputs: Annotated[str, UNRECORDED]
    plugins: Annotated[list[str], UNRECORDED]
