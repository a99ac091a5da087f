"""`llm.runs` lists by what made a run, and answers a slip with what was meant.

`moe=dens`, `val_los<1` and `optimzer.lr!=1` gave empty or full tables without a word; a run that
was upcycled from a dense one was listed under `moe=dense`, since its id says so.
"""

import re
import shutil
from pathlib import Path

import pytest

from llm.config.errors import Refused
from llm.runs.__main__ import run as runs_command
from llm.runs.table import _fitting
from tests.report.fake import fake_run

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def runs(workplace):
    """Two runs of today, one of them upcycled, and two old ones that say less of themselves."""
    folder = workplace / "outputs/runs"
    plain = fake_run(folder, told={"chosen": {"model": "tiny", "moe": "dense", "data": "mine"}})
    made = fake_run(
        folder, moe="switch", n_experts=6, told={"chosen": {"moe": "mine", "data": "x"}}
    )
    upcycled = made.rename(folder / f"from_{plain.name}-x-0123456789")
    for old in GOLDEN.glob("runs/*"):
        shutil.copytree(old, folder / old.name)
    older = shutil.copytree(folder / "nano-topk-tinytown-5645b5d889", folder / "renamed by hand")
    return plain.name, upcycled.name, older.name


def listed(capsys, *conditions: str) -> set[str]:
    capsys.readouterr()
    runs_command(list(conditions))
    lines = capsys.readouterr().out.splitlines()[1:]
    return {re.split(r"\s{2,}", line)[0] for line in lines}


def test_options_are_those_that_made_the_run(runs, capsys):
    plain, upcycled, older = runs
    assert listed(capsys, "moe=mine") == listed(capsys, "data=x") == {upcycled}
    assert listed(capsys, "moe=dense") == {plain, "nano-dense-custom-21c28a2daa"}
    assert listed(capsys, "moe=topk") == {"nano-topk-tinytown-5645b5d889", older}
    assert listed(capsys, "model=nano") >= {"nano-topk-tinytown-5645b5d889"}
    assert listed(capsys, "tokenizer=words", "moe!=dense") == listed(capsys, "moe=topk")
    assert listed(capsys, "data=tinytown") == listed(capsys, "moe=topk")
    assert listed(capsys, "val/loss<100", "--sort=-date") == listed(capsys, "val_loss<100")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("moe=dens", "did you mean moe=dense"),
        ("moe!=tpok", "did you mean moe!=topk"),
        ("state=finishd", "did you mean state=finished"),
        ("tokens_per_secnd>3", "did you mean tokens_per_second"),
        ("optimizer.learning_rate=1", "did you mean optimizer.lr"),
        ("--sort=bst_val_loss", "did you mean best_val_loss"),
        ("z_loss=0", "is moe.z_loss or train.z_loss meant"),
        ("val_loss<low", "'low' is not a number"),
        ("moe>2", "moe is not a number in any run"),
    ],
)
def test_a_slip_is_refused_with_what_was_meant(runs, typed, meant):
    with pytest.raises(Refused, match=re.escape(meant)) as refusal:
        runs_command([typed])
    assert typed in str(refusal.value)


def test_what_no_run_has_is_an_empty_table(runs, capsys):
    runs_command(["moe=gshard"])
    assert capsys.readouterr() == ("", "0 of 5 runs\n")
    assert listed(capsys, "seed=99") == listed(capsys, "moe.capacity_factor=3") == set()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_fits_the_terminal(width):
    columns = {"run": ["nano-topk-tinytown-327030fd41"], "state": ["finished"]}
    columns |= {"date": ["11-27 22:31"], "val/loss": ["1.2345"], "excess": ["0.1234"]}
    columns |= {"active": ["123M"], "total": ["1.2G"], "tokens": ["1.2M"], "time": ["1:02:03"]}
    columns |= {"sweeps": ["lr-moe-seed-12345678"], "differs in": ["moe=topk lr=0.002 seed=2"]}
    head, row = _fitting(columns, width)
    assert max(map(len, (head, row))) <= width
    assert row.startswith("nano-topk-tinytown-327030fd41  finished  11-27 22:31    1.2345")
    assert "moe=topk" in row and ("time" in head) == (width > 80)
    assert "sweeps" in _fitting(columns, None)[0]


def test_a_run_whose_files_are_damaged_is_listed(runs, capsys):
    plain, upcycled, _ = runs
    Path("outputs/runs", plain, "run.json").write_text("{")
    Path("outputs/runs", upcycled, "config.yaml").write_text("a: [")
    assert listed(capsys) >= {plain, upcycled}
    assert listed(capsys, "state=damaged") == {plain}
