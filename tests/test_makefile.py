"""`make bench` says what it runs: every measure, each writing its figures."""

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(
    ("there", "figures", "said"),
    [
        ([], "steps head moe", "git clone https://github.com/karpathy/nanoGPT"),
        (["model.py"], "steps head moe nanogpt", "no race: "),
        (["model.py", "text"], "steps head moe nanogpt race", ""),
    ],
)
def test_make_bench_measures_all_that_can_be(tmp_path, there, figures, said):
    for name in there:
        (tmp_path / name).touch()
    told = subprocess.run(
        ["make", "-n", "bench", f"NANOGPT={tmp_path}", f"TEXT={tmp_path}/text", "ARGS=--rounds 3"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    runs = [line for line in told if "experiments/speed/" in line]
    assert len(runs) == len(figures.split())
    for line, name in zip(runs, figures.split(), strict=True):
        assert line.endswith(f"--json outputs/bench/{name}.json --rounds 3"), line
    lines = [line for line in told if line.startswith(("no race", "not against"))]
    assert said in "".join(lines) and len(lines) == bool(said)
