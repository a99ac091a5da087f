"""What runs on this machine have taken: the measure of what others will take."""

import json
import math
import platform
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm.plan.memory import peak_memory

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: The first steps compile, allocate and fill caches.
_WARM_UP = 3


@dataclass(frozen=True)
class Past:
    """One run that is over, or has come some way."""

    signature: str
    machine: str
    flops_per_token: float
    seconds_per_token: float
    peak_memory: float | None
    formula: float  # what llm.plan.memory says of it


@dataclass(frozen=True)
class Estimate:
    """`basis`: "measured" (the same model has run here), "scaled" from others, or "unknown"."""

    value: float
    basis: str


def signature(config: dict[str, Any], vocab_size: int) -> str:
    """All that decides the speed of a step."""
    train = config["train"]
    hardware = {k: v for k, v in config["hardware"].items() if k not in ("device", "precision")}
    parts = [config["model"], config["moe"], config["optimizer"]["_target_"], hardware]
    shape = [train["batch_size"], train["grad_accum_steps"], vocab_size]
    return json.dumps([parts, shape], sort_keys=True)


class History:
    """Former runs under `outputs/runs` and `outputs/calibration/runs`."""

    def __init__(self, outputs: Path):
        folders = [outputs / "runs", outputs / "calibration" / "runs"]
        files = [file for folder in folders for file in sorted(folder.glob("*/run.json"))]
        self.past = [past for file in files if (past := _read(file)) is not None]

    def seconds_per_token(self, mark: str, machine: str, flops_per_token: float) -> Estimate:
        """Of training steps. Runs of other models are scaled by their operations: seconds are
        affine in FLOPs, since every step has a part that does not depend on the size."""
        here = [past for past in self.past if past.machine == machine]
        same = [past.seconds_per_token for past in here if past.signature == mark]
        if same:
            return Estimate(statistics.median(same[-5:]), "measured")
        if not here:
            return Estimate(math.nan, "unknown")
        points: dict[str, tuple[float, float]] = {
            past.signature: (past.flops_per_token, past.seconds_per_token) for past in here
        }
        return Estimate(_affine(list(points.values()), flops_per_token), "scaled")

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


def _read(file: Path) -> Past | None:
    try:
        facts = json.loads(file.read_bytes())
        if facts.get("processes", 1) != 1:
            return None
        config = yaml.load((file.parent / "config.yaml").read_text(), _LOADER)
        lines = (file.parent / "perf.jsonl").read_text().splitlines()[_WARM_UP:]
        rates = [json.loads(line)["perf/tokens_per_second"] for line in lines]
        vocabulary = facts["vocab_size"]
        return Past(
            signature(config, vocabulary),
            machine_name(facts),
            facts["flops_per_token"],
            1 / statistics.median(rates),
            facts.get("peak_memory"),
            peak_memory(config, facts["params_total"], vocabulary, facts["device"]),
        )
    except (OSError, ValueError, KeyError, statistics.StatisticsError, ZeroDivisionError):
        return None
