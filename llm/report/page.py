"""The page: one HTML file beside its pictures and tables, readable without a network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from llm.report.figures import WIDE, Picture
from llm.report.fits import Fit
from llm.report.leaderboard import Standing
from llm.report.scaling import Parabola
from llm.tracking.progress import brief, clock

_STYLE = """
:root { --ink: #202124; --soft: #5f6368; --line: #e8eaed; --good: #00795a; --bad: #b04a00; }
body { color: var(--ink); font: 15px/1.55 system-ui, sans-serif; margin: 2.5rem auto 5rem;
       max-width: 74rem; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.6rem 0 .5rem; }
p { max-width: 46rem; margin: .4rem 0; }
.soft, figcaption { color: var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
.wide { overflow-x: auto; }
th { border-bottom: 1px solid var(--ink); font-weight: 600; text-align: right; }
td { border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th, td { padding: .32rem .6rem; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; }
td:nth-child(2) { text-align: left; white-space: normal; }
td.text, th.text { text-align: left; white-space: normal; overflow-wrap: anywhere; }
tr.dense td:nth-child(2) { font-style: italic; }
.better { color: var(--good); } .worse { color: var(--bad); } .unresolved { color: var(--soft); }
figure { margin: .6rem 0 0; } img { max-width: 100%; height: auto; }
figcaption { font-size: .9rem; }
ul { padding-left: 1.2rem; max-width: 60rem; } li { margin: .25rem 0; overflow-wrap: anywhere; }
.note { border-left: 3px solid var(--bad); padding: .1rem .9rem; }
@media print { body { margin: 0; } }
"""


@dataclass
class Content:
    """Everything that the page says."""

    title: str
    summary: str
    metric: str  # "val/loss" or "val/bpb"
    standings: list[Standing]
    unfair: list[str]
    pictures: dict[str, Picture]
    fit: Fit | None = None
    floor: float | None = None
    isoflops: Sequence[Parabola] = ()
    trend: tuple[float, float] | None = None
    failures: list[tuple[str, str]] = field(default_factory=list)
    under_way: list[tuple[str, str]] = field(default_factory=list)
    pruned: list[tuple[str, str]] = field(default_factory=list)


def page(content: Content) -> str:
    """The HTML."""
    parts = [
        f"<h1>{escape(content.title)}</h1>",
        f'<p class="soft">{escape(content.summary)}</p>',
        _unfair(content.unfair),
        _leaderboard(content),
        *(_figure(content.pictures.get(name)) for name in ("spending", "size")),
        *(_figure(content.pictures.get(name)) for name in ("experts", "learning_rate")),
        _scaling(content),
        _figure(content.pictures.get("balance")),
        _listed("Failures and divergences", content.failures, "None."),
        _listed("Pruned: in no comparison, with all seeds of the arm", content.pruned, ""),
        _listed("Not finished", content.under_way, ""),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(content.title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def verdict(row: Standing, other: str | None = None) -> str:
    """ "better by 0.012 ± 0.004 than moe=dense (p = 0.01)", in words for people.

    Args:
        other: what to call the arm that it is compared with, None for its label
    """
    told, other = row.comparison, other or row.against
    if told is None or other is None:
        return "no other arm learns from this text" if row.alone else "the best"
    if told.difference is None:
        return f"has no seed in common with {other}"
    half = told.difference.half
    amount = f"{abs(told.difference.mean):.4f}" + (f" ± {half:.4f}" if half is not None else "")
    if told.verdict != "unresolved":
        return f"{told.verdict} by {amount} than {other} ({_p(told.p)})"
    side = "lower" if told.difference.mean < 0 else "higher"
    text = f"unresolved: {amount} {side} than {other}"
    if told.seeds_needed is not None:
        return f"{text}; {told.seeds_needed} seeds would resolve that"
    if told.p is None:
        return f"{text}; one pair of seeds tells nothing of the spread"
    return text


def _p(value: float | None) -> str:
    return "p < 0.0001" if value is not None and value < 1e-4 else f"p = {value:.2g}"


_LEFT = ' class="text"'


def _leaderboard(content: Content) -> str:
    if not content.standings:
        return "<h2>Leaderboard</h2>\n<p>No run is finished yet.</p>"
    with_excess = any(row.excess for row in content.standings)
    head = ["#", "", content.metric, "± 95%", "seeds", *["excess"] * with_excess, "verdict"]
    head += ["active", "total", "FLOPs", "tokens", "time"]
    numbers = {row.label: f"#{i}" for i, row in enumerate(content.standings, start=1)}
    rows = []
    for number, row in enumerate(content.standings, start=1):
        kind = row.comparison.verdict if row.comparison else "better"
        half = f"{row.loss.half:.4f}" if row.loss.half is not None else "–"
        cells = [
            f"<td>{number}</td><td>{escape(row.label)}</td>",
            f"<td>{row.loss.mean:.4f}</td><td>{half}</td><td>{row.loss.n}</td>",
            f"<td>{row.excess.mean:.4f}</td>" if row.excess else "<td></td>" * with_excess,
            f'<td class="text {kind}">{escape(verdict(row, numbers.get(row.against or "")))}</td>',
            f"<td>{brief(row.mean('params_active'))}</td><td>{brief(row.mean('params_total'))}</td>",
            f"<td>{brief(sum(r.flops for r in row.results) / row.loss.n)}</td>",
            f"<td>{brief(row.mean('tokens'))}</td><td>{clock(row.mean('seconds'))}</td>",
        ]
        marked = ' class="dense"' if row.first.is_dense else ""
        rows.append(f"<tr{marked}>{''.join(cells)}</tr>")
    columns = "".join(
        f"<th{_LEFT if name == 'verdict' else ''}>{escape(name)}</th>" for name in head
    )
    words = (
        "Means over seeds with Student's 95% intervals. Verdicts are paired tests by seed at 5%, "
        "against the dense arm of the same size where there is one, else against the best arm; "
        "they are not corrected for the number of arms. Seeds needed: for 80% power, if the "
        "difference is what it looks like. "
    )
    return (
        f'<h2>Leaderboard</h2>\n<div class="wide"><table><tr>{columns}</tr>\n'
        + "\n".join(rows)
        + f'</table></div>\n<p class="soft">{escape(words)}<a href="leaderboard.csv">CSV</a>, '
        '<a href="runs.csv">every run</a>.</p>'
    )


def _scaling(content: Content) -> str:
    fit = content.fit
    if fit is None and not content.isoflops:
        return ""
    lines = ["<h2>Scaling</h2>"]
    if fit is not None and fit.law is None:
        lines.append(f"<p>No law is fitted to the {len(fit.loss)} dense runs: {fit.reason}.</p>")
    if fit is not None and fit.law is not None:
        told = fit.intervals
        numbers = ", ".join(
            f"{name} = {told[name].value:.3f} [{told[name].low:.3f}, {told[name].high:.3f}]"
            for name in ("E", "a", "b")
        )
        lines.append(
            f"<p>L(N, D) = E + A / N<sup>a</sup> + B / D<sup>b</sup> over {len(fit.loss)} dense "
            f"runs: {numbers} (95%, bootstrap of residuals); A = {fit.law.A:.3g}, "
            f"B = {fit.law.B:.3g}; it misses the runs by {fit.law.rmse:.4f} nats (rms).</p>"
        )
        if content.floor is not None:
            inside = told["E"].low <= content.floor <= told["E"].high
            found = "contains" if inside else "does not contain"
            lines.append(
                f"<p>The asymptote's interval {found} the known floor, {content.floor:.4f}. "
                "It is an extrapolation in both directions.</p>"
            )
    parts = ["\n".join(lines), _figure(content.pictures.get("scaling"), heading=False)]
    if content.isoflops:
        items = [
            f"<li>{curve.flops:.3g} FLOPs: best at {brief(curve.n_best)} active parameters"
            + ("" if curve.inside else " (extrapolated: outside the sizes that were trained)")
            + "</li>"
            for curve in content.isoflops
        ]
        parts.append(f"<ul>{''.join(items)}</ul>")
        if content.trend:
            parts.append(f"<p>Best size ∝ C<sup>{content.trend[1]:.2f}</sup>.</p>")
        parts.append(_figure(content.pictures.get("isoflop")))
    return "\n".join(part for part in parts if part)


def _figure(picture: Picture | None, heading: bool = True) -> str:
    if picture is None:
        return ""
    title = f"<h2>{escape(picture.title)}</h2>\n" if heading else ""
    return (
        f'{title}<figure><img src="{picture.name}.png" alt="{escape(picture.title)}" '
        f'style="width: {picture.width / WIDE:.0%}">'
        f'<figcaption>{escape(picture.words)} <a href="{picture.name}.csv">CSV</a></figcaption>'
        "</figure>"
    )


def _unfair(lines: list[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="note"><p>Before comparing:</p><ul>{items}</ul></div>'


def _listed(title: str, rows: list[tuple[str, str]], otherwise: str) -> str:
    if not rows:
        return f"<h2>{title}</h2>\n<p>{otherwise}</p>" if otherwise else ""
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(why)}</li>" for name, why in rows)
    return f"<h2>{title}</h2>\n<ul>{items}</ul>"
