"""The report: a page that stands alone, with the verdicts and the failures in it."""

import csv
import itertools
import json
import time
from pathlib import Path

import pytest

from llm.config.errors import Refused
from llm.report.__main__ import run
from llm.report.collect import collect
from llm.report.leaderboard import standings
from llm.report.series import over_experts
from tests.report.fake import FLOOR, fake_run


def table(file: Path) -> list[dict[str, str]]:
    with file.open() as rows:
        return list(csv.DictReader(rows))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Sizes, lengths, experts and rates, with a divergence and a run under way; and its page."""
    runs = tmp_path_factory.mktemp("study") / "runs"
    for d_model in (64, 128):
        for seed in (1, 2, 3):
            fake_run(runs, d_model=d_model, seed=seed)
            for n_experts in (2, 8):
                fake_run(runs, moe="switch", n_experts=n_experts, d_model=d_model, seed=seed)
    for d_model in (64, 128, 192):
        for tokens in (250_000, 2_000_000):
            fake_run(runs, d_model=d_model, tokens=tokens)
    for lr in (3e-4, 6e-3):
        fake_run(runs, lr=lr)
    fake_run(runs, lr=3.0, state="failed", reason="the loss became <nan> at step 40")
    fake_run(runs, seed=8, state="interrupted")
    assert run([str(runs)]) == 0
    return runs / "report"


def test_every_picture_has_its_data_and_the_page_needs_no_network(study):
    pictures = {file.stem for file in study.glob("*.png")}
    assert pictures >= {"spending", "size", "experts", "learning_rate", "scaling", "balance"}
    page = (study / "index.html").read_text()
    for name in pictures:
        assert f'src="{name}.png"' in page
        assert table(study / f"{name}.csv"), name
    assert "http" not in page


def test_verdicts_are_against_the_dense_arm_of_the_same_size(study):
    rows = table(study / "leaderboard.csv")
    (sparse,) = [r for r in rows if "model=d64 moe=switch n_experts=8" in r["arm"]]
    assert sparse["against"].startswith("model=d64 moe=dense")
    assert "budget=1Mtok" in sparse["against"] and "lr=0.001" in sparse["against"]
    assert sparse["verdict"].startswith("better by ")
    assert sparse["seeds"] == "3"


def test_a_number_stands_for_an_arm_in_the_table_and_in_the_figures(study):
    arms = [row["arm"] for row in table(study / "leaderboard.csv")]
    page = (study / "index.html").read_text()
    place = 1 + arms.index("model=d64 moe=dense lr=0.001 budget=1Mtok")
    assert f"<td>{place}</td><td>{arms[place - 1]}</td>" in page
    assert f"than #{place} " in page


def test_a_line_joins_runs_that_are_equal_in_the_rest(study):
    lines: dict[str, dict[str, str]] = {}
    for row in table(study / "experts.csv"):
        lines.setdefault(row["line"], {})[row["experts (1: dense)"]] = row["runs"]
    assert lines == {f"{d} wide, 4 layers": {"1": "3", "2": "3", "8": "3"} for d in (64, 128)}
    rates = {(row["line"], row["peak learning rate"]) for row in table(study / "learning_rate.csv")}
    assert rates == {("64 wide, 4 layers", rate) for rate in ("0.0003", "0.001", "0.006")}


def test_failures_are_listed_and_not_hidden(study):
    page = (study / "index.html").read_text()
    assert "the loss became &lt;nan&gt; at step 40" in page
    assert "interrupted, 1,000,000 tokens" in page
    assert len(table(study / "runs.csv")) == 6 * 3 + 6 + 2 + 2


def test_the_asymptote_is_compared_with_the_known_floor(study):
    page = (study / "index.html").read_text()
    assert f"contain the known floor, {FLOOR:.4f}" in page or "contains the known floor" in page
    rows = table(study / "scaling.csv")
    assert max(abs(float(r["val_loss"]) - float(r["fitted"])) for r in rows) < 0.03


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are composed but not drawn, which is what takes the time."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **options: None)


def test_a_sweep_is_reported_under_its_own_words(tmp_path, undrawn):
    runs, sweep = tmp_path / "runs", tmp_path / "sweeps" / "moe-1"
    sweep.mkdir(parents=True)
    lines = []
    for number, (moe, seed) in enumerate(itertools.product(("dense", "switch"), (1, 2))):
        overrides = [f"moe={moe}", "moe.n_experts=4", f"seed={seed}", "model=tiny"]
        line = {"job": number, "overrides": overrides, "exit": 2, "problem": "top_k: is 9"}
        if number < 3:
            name = fake_run(runs, moe=moe, seed=seed).name
            line |= {"exit": 0, "problem": "", "run": name}
        lines.append(line)
    (sweep / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run([str(sweep)]) == 0
    page = (sweep / "report" / "index.html").read_text()
    arms = {row["arm"] for row in table(sweep / "report" / "leaderboard.csv")}
    assert arms == {"moe=dense", "moe=switch"}
    assert "job 3 (" in page and "top_k: is 9" in page
    assert "arms have different seeds" in page
    assert "3 runs, 3 finished" in page


def test_an_arm_of_which_a_seed_was_pruned_is_in_no_comparison(tmp_path):
    runs, sweep = tmp_path / "runs", tmp_path / "sweeps" / "moe-1"
    sweep.mkdir(parents=True)
    lines = []
    for number, (moe, seed) in enumerate(itertools.product(("dense", "switch"), (1, 2))):
        name = fake_run(runs, moe=moe, seed=seed).name if number < 3 else None
        line = {"job": number, "overrides": [f"moe={moe}", f"seed={seed}"], "exit": 0, "run": name}
        lines.append({**line, "problem": ""})
    lines[3] |= {"exit": 143, "problem": "val/bpb 3.0", "pruned": True}
    file = sweep / "jobs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = collect([sweep])
    assert found.pruned == [("job 3 (moe=switch seed=2)", "val/bpb 3.0")] and not found.problems
    assert [row.label for row in standings(found.results)] == ["moe=dense"]
    lines[3]["run"] = fake_run(runs, moe="switch", seed=2).name  # trained to its end since
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(standings(collect([sweep]).results)) == 2


def test_one_seed_is_unresolved_and_says_what_is_missing(tmp_path):
    fake_run(tmp_path, moe="dense")
    fake_run(tmp_path, moe="switch")
    rows = standings(collect([tmp_path]).results)
    assert [row.comparison.verdict for row in rows if row.comparison] == ["unresolved"] * 2


def test_runs_of_other_tokenizers_are_compared_in_bits_a_byte(tmp_path, undrawn):
    fake_run(tmp_path)
    fake_run(tmp_path, tokenizer={"_target_": "llm.tokenizer.chars.Chars"})
    assert run([str(tmp_path), f"--out={tmp_path / 'page'}"]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "<th>val/bpb</th>" in page and "compare val/bpb" in page


def test_arms_of_other_data_are_not_compared_and_lines_name_them_shortly(tmp_path):
    markov = {"_target_": "llm.data.markov.Markov", "order": 2}
    for n in (2, 4):
        fake_run(tmp_path, moe="switch", n_experts=n)
        fake_run(tmp_path, moe="switch", n_experts=n, data=markov)
    fake_run(tmp_path)
    results = collect([tmp_path]).results
    source = {result.label: result.config["data"]["_target_"] for result in results}
    for row in standings(results):
        assert row.against is None or source[row.against] == source[row.label]
    names = set(over_experts([result for result in results if result.finished]))
    assert names == {f"64 wide, 4 layers, data={name}" for name in ("markov", "tinytown")}


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(Refused, match="no runs yet"):
        collect([tmp_path])
    with pytest.raises(Refused, match="no run, no sweep"):
        collect([tmp_path / "missing"])


@pytest.mark.slow
def test_a_hundred_runs_take_less_than_half_a_minute(tmp_path):
    for i in range(100):
        fake_run(
            tmp_path,
            moe="switch" if i % 2 else "dense",
            n_experts=2 ** (1 + i // 10 % 4),
            d_model=64 + 16 * (i // 25),
            seed=i,
            evaluations=1000,
        )
    begun = time.monotonic()
    assert run([str(tmp_path)]) == 0
    assert time.monotonic() - begun < 30


def test_a_dense_partner_is_an_arm_beside_its_model_with_experts(tmp_path):
    runs, sweep = tmp_path / "runs", tmp_path / "sweeps" / "s"
    sweep.mkdir(parents=True)
    made = {"moe=dense moe.n_experts=2 compare=null": fake_run(runs)}
    for n in (2, 8):
        experts = f"moe=switch moe.n_experts={n}"
        made[f"{experts} compare=null"] = fake_run(runs, moe="switch", n_experts=n)
        partner = fake_run(runs, compare="active_flops", d_ff=10 * n)
        made[f"{experts} compare=active_flops"] = partner
    lines = [
        {"job": i, "overrides": line.split(), "exit": 0, "problem": "", "run": folder.name}
        for i, (line, folder) in enumerate(made.items())
    ]
    (sweep / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {row.label: row.against for row in standings(collect([sweep]).results)}
    partners = {f"moe=dense compare=active_flops d_ff={10 * n}" for n in (2, 8)}
    assert found.keys() == {"moe=dense", *partners, *(f"moe=switch n_experts={n}" for n in (2, 8))}
    for n in (2, 8):
        assert found[f"moe=switch n_experts={n}"] == f"moe=dense compare=active_flops d_ff={10 * n}"
