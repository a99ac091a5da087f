"""`python -m llm.report outputs/sweeps/NAME`: what was learnt, as a page with pictures and tables.

Takes sweeps, runs (by folder or id), or folders of runs, during or after training. The last line on
standard output is the page. `--out=FOLDER` puts it elsewhere.
"""

import sys
from pathlib import Path

from llm.config.command import exit_code
from llm.config.errors import Refused
from llm.report.collect import Collection, Result, collect, folder_named
from llm.report.figures import Artist, Picture, write_csv
from llm.report.fits import isoflops_of, law_of
from llm.report.leaderboard import Standing, standings
from llm.report.page import Content, page, verdict
from llm.runs.fairness import warnings


def run(arguments: list[str]) -> int:
    """Write the report of the folders; the exit code."""
    if not arguments or {"--help", "-h"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    flags = [a for a in arguments if a.startswith("-")]
    unknown = [flag for flag in flags if not flag.startswith("--out=")]
    if unknown:
        raise Refused(f"{unknown[0]}: there is no such flag; did you mean --out=FOLDER?")
    found = collect([folder_named(a) for a in arguments if not a.startswith("-")])
    folder = Path(flags[-1].removeprefix("--out=")) if flags else found.folder
    print(write(found, folder))
    return 0


def write(found: Collection, folder: Path) -> Path:
    """Pictures, tables and the page; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    results = found.results
    finished = [result for result in results if result.finished]
    tokenizers = {str(result.recorded["tokenizer"]) for result in finished}
    metric = "val_bpb" if len(tokenizers) > 1 else "val_loss"
    rows = standings(results, metric)
    artist = Artist(folder, results, rows)
    drawn: list[Picture | None] = [
        artist.against_spending(),
        artist.against_size(),
        artist.against_experts(),
        artist.against_lr(),
        artist.balance(),
    ]
    fit = law_of(results)
    if fit is not None and fit.law is not None:
        drawn.append(artist.law(fit.law, fit.n, fit.d, fit.loss, "active parameters"))
    curves, trend = isoflops_of(results)
    if curves:
        drawn.append(artist.isoflops(curves, "active parameters"))
    _tables(folder, rows, results)
    content = Content(
        found.title,
        _summary(results, rows),
        metric.replace("_", "/"),
        rows,
        [
            *warnings([r.entry for r in finished if r.repeats is None], found.named),
            *(f"{name}: {why}" for name, why in found.repeats),
        ],
        {picture.name: picture for picture in drawn if picture is not None},
        fit,
        artist.floor,
        [curve for curve, _, _ in curves],
        trend,
        _failures(found),
        _under_way(results),
        found.pruned,
    )
    file = folder / "index.html"
    file.write_text(page(content), encoding="utf-8")
    return file


def _summary(results: list[Result], rows: list[Standing]) -> str:
    done = sum(result.finished for result in results)
    text = f"{len(results)} runs, {done} finished, in {len(rows)} arms"
    if rows:
        text += f". Best: {rows[0].label}, {rows[0].loss.mean:.4f}"
    return text


def _failures(found: Collection) -> list[tuple[str, str]]:
    failed = [r for r in found.results if r.facts.get("state") == "failed"]
    told = [(f"{r.id} ({r.label})", str(r.facts.get("reason"))) for r in failed]
    reasons = {why for _, why in told}
    return told + [(name, why) for name, why in found.problems if why not in reasons]


def _under_way(results: list[Result]) -> list[tuple[str, str]]:
    """Runs that are neither finished nor failed nor pruned, with how far they are."""
    told = []
    for result in results:
        state = str(result.facts.get("state"))
        if result.finished or state in ("failed", "pruned"):
            continue
        far = f"{result.points[-1].tokens:,} tokens" if result.points else "no evaluation yet"
        told.append((f"{result.id} ({result.label})", f"{state}, {far}"))
    return told


def _tables(folder: Path, rows: list[Standing], results: list[Result]) -> None:
    write_csv(
        folder / "leaderboard.csv",
        ("arm", "mean", "half_interval", "sd", "seeds", "excess", "against", "verdict"),
        [
            (
                *(r.label, r.loss.mean, r.loss.half, r.loss.sd, r.loss.n),
                *(r.excess.mean if r.excess else None, r.against, verdict(r)),
            )
            for r in rows
        ],
    )
    names = (
        "state val_loss val_bpb excess floor params_total params_active flops_per_token tokens "
        "seconds code_hash config_hash data_fingerprint"
    ).split()
    write_csv(
        folder / "runs.csv",
        ("run", "arm", "seed", *names),
        [(r.id, r.label, r.seed, *(r.facts.get(name) for name in names)) for r in results],
    )


if __name__ == "__main__":
    sys.exit(exit_code("llm.report", lambda: run(sys.argv[1:])))
