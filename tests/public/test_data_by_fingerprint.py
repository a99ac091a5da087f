"""What was learnt goes by the content of the text, never by its path.

Dense trained on x.txt, x.txt overwritten, top-k trained: "better by 1.63 (p = 0.013)". Equal bytes
under two paths were not compared.
"""

import pytest

from llm.report.__main__ import run as report
from llm.report.collect import collect
from llm.report.fits import law_of
from llm.report.leaderboard import standings
from llm.report.page import verdict
from tests.report.fake import fake_run

CUSTOM = {"_target_": "llm.data.custom.Custom", "text_column": "text", "val_fraction": 0.05}


def runs(folder, moe: str, path: str, text: str, seeds=(1, 2), **told):
    """Runs of each seed on the file at `path` that holds `text`; fingerprints are told apart."""
    facts = {"data_fingerprint": f"{text}'s bytes", "text_fingerprint": text, **told}
    for seed in seeds:
        fake_run(folder, moe=moe, seed=seed, data={**CUSTOM, "path": path}, told=facts)


def test_other_text_under_one_path_is_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **options: None)
    runs(tmp_path, "dense", "x.txt", "old")
    runs(tmp_path, "switch", "x.txt", "new")
    rows = standings(collect([tmp_path]).results)
    assert [row.against for row in rows] == [None, None]
    assert {verdict(row) for row in rows} == {"no other arm learns from this text"}
    assert {row.label for row in rows} == {
        "moe=dense data_fingerprint=old's by",
        "moe=switch data_fingerprint=new's by",
    }
    report([str(tmp_path)])
    page = (tmp_path / "report/index.html").read_text()
    assert "learn from different data" in page and "p = " not in page


def test_one_text_under_two_paths_is_compared(tmp_path):
    runs(tmp_path, "dense", "x.txt", "same")
    runs(tmp_path, "switch", "elsewhere/y.txt", "same")
    against = {row.label: row.against for row in standings(collect([tmp_path]).results)}
    assert against["moe=switch"] == "moe=dense"


def test_seeds_of_one_path_whose_text_changed_are_not_pooled(tmp_path):
    runs(tmp_path, "dense", "x.txt", "long words", seeds=(1, 2))
    runs(tmp_path, "dense", "x.txt", "long words with one more", seeds=(3, 4))
    assert [row.loss.n for row in standings(collect([tmp_path]).results)] == [2, 2]


@pytest.mark.parametrize("text", ["same", "other"])
def test_tokenizers_are_compared_on_one_text_only(tmp_path, text):
    runs(tmp_path, "dense", "x.txt", "same")
    facts = {"data_fingerprint": f"{text}'s chars", "text_fingerprint": text}
    chars = {"_target_": "llm.tokenizer.chars.Chars"}
    fake_run(tmp_path, data={**CUSTOM, "path": "y.txt"}, tokenizer=chars, told=facts)
    rows = standings(collect([tmp_path]).results, "val_bpb")
    assert [row.alone for row in rows] == [text == "other"] * 2


def test_no_law_is_fitted_to_runs_on_different_text(tmp_path):
    for i, d_model in enumerate((64, 128, 192)):
        for tokens in (250_000, 500_000, 2_000_000):
            facts = {"data_fingerprint": str(i == 2), "text_fingerprint": str(i == 2)}
            fake_run(tmp_path, d_model=d_model, tokens=tokens, data=CUSTOM, told=facts)
    assert "different data" in law_of(collect([tmp_path]).results).reason


def test_a_run_says_which_text_it_learns(llm_train, toy_text):
    one, chars = (
        llm_train("train.budget=1steps"),
        llm_train("train.budget=1steps", "tokenizer=chars"),
    )
    toy_text.write_text(toy_text.read_text() + "more")
    other = llm_train("train.budget=1steps")
    found = {result.folder: result for result in collect([one.folder.parent]).results}
    first, second, third = (found[end.folder.resolve()] for end in (one, chars, other))
    assert first.compares_with(second) and not first.compares_with(third)
    assert first.facts["data_fingerprint"] != second.facts["data_fingerprint"]
    assert first.facts["chosen"]["moe"] == "topk" and first.facts["chosen"]["model"] == "tiny"
