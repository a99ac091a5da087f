"""What runs on this machine have taken: the measure of what others will take."""

import json
import math
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from llm.plan.memory import peak_memory
from llm.runs.arms import read_run
from llm.tracking.log import MetricLog

#: The first steps compile, allocate and fill caches.
_WARM_UP = 3
#: Where no run tells: from the start of a process to its first step, importing PyTorch; and a token
#: of an evaluation, which runs forward only, in tokens of training.
_START, _FORWARD = 6.0, 1 / 3
#: How long a calibration took as a process, in seconds (`llm.plan.calibrate`).
WALL = "wall.json"


@dataclass(frozen=True)
class Past:
    """One run that is over, or has come some way; seconds are None where it does not tell."""

    signature: str
    machine: str
    flops_per_token: float
    seconds_per_token: float  # of training
    evaluation: float | None  # seconds of one, with all that a run does at one
    eval_tokens: float  # that it examined at most
    start: float | None  # seconds of the process before the first step and after the last
    peak_memory: float | None
    formula: float  # what llm.plan.cost says of it


@dataclass(frozen=True)
class Estimate:
    """`basis`: "measured" (the same model has run here), "scaled" from others, or "unknown"."""

    value: float
    basis: str


@dataclass(frozen=True)
class Pace:
    """Seconds of a token in training, of an evaluation, and of a process beside its steps."""

    token: float
    evaluation: float
    start: float
    basis: str


def signature(config: dict[str, Any], vocab_size: int) -> str:
    """All that decides the speed of a step."""
    train = config["train"]
    hardware = {k: v for k, v in config["hardware"].items() if k not in ("device", "precision")}
    parts = [config["model"], config["moe"], config["optimizer"]["_target_"], hardware]
    shape = [train["batch_size"], train["grad_accum_steps"], vocab_size]
    return json.dumps([parts, shape], sort_keys=True)


@dataclass(frozen=True)
class History:
    """What former runs tell."""

    past: list[Past]

    @classmethod
    def under(cls, outputs: Path) -> "History":
        """Of the runs under `outputs/runs` and `outputs/calibration/runs`."""
        folders = [outputs / "runs", outputs / "calibration" / "runs"]
        files = [file for folder in folders for file in sorted(folder.glob("*/run.json"))]
        return cls([past for file in files if (past := _read(file.parent)) is not None])

    def pace(self, mark: str, machine: str, flops_per_token: float, examined: float) -> Pace:
        """How fast a job will be.

        Runs of other models are scaled by their operations: seconds are affine in FLOPs, since
        every step has a part that does not depend on the size.

        Args:
            examined: tokens of an evaluation
        """
        here = [past for past in self.past if past.machine == machine]
        same = [past for past in here if past.signature == mark][-5:]
        start = _median((p.start for p in same), _median((p.start for p in here), _START))
        if same:
            token, basis = statistics.median(p.seconds_per_token for p in same), "measured"
        elif here:
            points = {p.signature: (p.flops_per_token, p.seconds_per_token) for p in here}
            token, basis = _affine(list(points.values()), flops_per_token), "scaled"
        else:
            return Pace(math.nan, math.nan, start, "unknown")
        ratio = _median((_forward(p, examined) for p in here), _FORWARD)
        ratio = _median((_forward(p, examined) for p in same), ratio)
        return Pace(token, examined * token * ratio, start, basis)

    def of_widths(self, mark: str, machine: str) -> dict[int, float]:
        """`d_ff` to seconds a token, of runs that differ from signature `mark` in it alone."""
        _, wanted = _without_width(mark)
        found: dict[int, list[float]] = defaultdict(list)
        for past in self.past:
            d_ff, rest = _without_width(past.signature)
            if past.machine == machine and rest == wanted and d_ff is not None:
                found[d_ff].append(past.seconds_per_token)
        return {d_ff: statistics.median(times[-5:]) for d_ff, times in found.items()}

    def memory(self, mark: str, machine: str, formula: float) -> Estimate:
        """Peak bytes: measured, or the formula times what it was off by in other runs."""
        here = [p for p in self.past if p.machine == machine and p.peak_memory]
        same = [p.peak_memory for p in here if p.signature == mark and p.peak_memory]
        if same:
            return Estimate(statistics.median(same[-5:]), "measured")
        ratios = [p.peak_memory / p.formula for p in here if p.peak_memory]
        factor = statistics.median(ratios) if ratios else 1.0
        return Estimate(formula * min(max(factor, 0.5), 2.0), "scaled")


def _without_width(mark: str) -> tuple[int | None, Any]:
    """A signature's `d_ff`, and the rest of it."""
    told = json.loads(mark)
    return told[0][0].pop("d_ff", None), told


def machine_name(facts: dict[str, Any]) -> str:
    """Host, device and precision of run.json, or of this machine and its facts."""
    host = facts.get("host", platform.node())
    return f"{host} {facts.get('device')} {facts.get('precision')}"


def _forward(past: Past, available: float) -> float | None:
    """Seconds of an examined token over those of a token in training."""
    tokens = min(past.eval_tokens, available)
    if past.evaluation is None or not tokens or not math.isfinite(tokens):
        return None
    return past.evaluation / tokens / past.seconds_per_token


def _median(values: Iterable[float | None], otherwise: float) -> float:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else otherwise


def _affine(points: list[tuple[float, float]], x: float) -> float:
    """α + β x by least squares of relative errors, α, β ≥ 0; proportional to the nearest of few."""
    near = min(points, key=lambda point: abs(math.log(point[0] / x)))
    if len({point[0] for point in points}) < 3:
        return near[1] * x / near[0]
    # minimise Σ ((α + β x) / y − 1)²
    u = [1 / y for _, y in points]
    v = [px / y for px, y in points]
    uu, vv, uv = sum(a * a for a in u), sum(b * b for b in v), sum(map(float.__mul__, u, v))
    determinant = uu * vv - uv * uv
    if determinant <= 1e-12 * uu * vv:
        return near[1] * x / near[0]
    alpha = (sum(u) * vv - sum(v) * uv) / determinant
    beta = (sum(v) * uu - sum(u) * uv) / determinant
    if alpha < 0:
        alpha, beta = 0.0, sum(v) / vv
    if beta < 0:
        alpha, beta = sum(u) / uu, 0.0
    return alpha + beta * x


def _read(folder: Path) -> Past | None:
    try:
        facts, config = read_run(folder)
        if facts.get("processes", 1) != 1:
            return None
        rows = MetricLog.read(folder / "perf.jsonl")
        token, evaluation = _paces(rows)
        vocabulary = facts["vocab_size"]
        # The code of plugins runs where the command line names them, not where old configs do.
        known = {**config, "hardware": {**config["hardware"], **facts}, "plugins": []}
        return Past(
            signature(config, vocabulary),
            machine_name(facts),
            facts["flops_per_token"],
            token,
            evaluation,
            config["train"]["eval_tokens"] or math.inf,
            _start(folder, facts, rows, token, evaluation),
            facts.get("peak_memory"),
            peak_memory(known, facts["params_total"], vocabulary),
        )
    except (OSError, ValueError, KeyError, statistics.StatisticsError, ZeroDivisionError):
        return None


def _paces(rows: list[dict[str, Any]]) -> tuple[float, float | None]:
    """Seconds of a token between two steps, and of an evaluation with what belongs to it.

    A row is written when its step is over, and says when that was; its evaluation comes after that.
    Of several evaluations the first is left out: it loads what draws the pictures.
    """
    plain, evaluations = [], []
    for i, (before, row) in enumerate(pairwise(rows)):
        seconds = row["perf/seconds"] - before["perf/seconds"]
        tokens = row["tokens"] - before["tokens"]
        if seconds <= 0 or tokens <= 0:  # taken again after a crash
            continue
        if "perf/evaluation" in before:
            evaluations.append(seconds - tokens / row["perf/tokens_per_second"])
        elif i >= _WARM_UP - 1:
            plain.append(seconds / tokens)
    if not plain:  # a run of a few steps
        plain = [1 / row["perf/tokens_per_second"] for row in rows[_WARM_UP:]]
    kept = evaluations[1:] or evaluations
    return statistics.median(plain), statistics.median(kept) if kept else None


def _start(
    folder: Path,
    facts: dict[str, Any],
    rows: list[dict[str, Any]],
    token: float,
    evaluation: float | None,
) -> float | None:
    """Of a calibration: the seconds of its process beside steps and evaluations."""
    if not (folder / WALL).exists() or evaluation is None:
        return None
    wall: float = json.loads((folder / WALL).read_bytes())
    n_evaluations = sum("perf/evaluation" in row for row in rows)
    return max(wall - facts["tokens"] * token - n_evaluations * evaluation, 0.0)
