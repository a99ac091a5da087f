"""How the golden values were made, by the code of commit 671c780; the tests share `resolve`.

    python tests/golden/make.py configs    configs.json: ids and resolved configs of LINES
    python tests/golden/make.py runs       runs/ and data/: two finished runs

They are what today's code is judged by, so they are not made anew when a test fails. A new line of
configs.json comes from the code before the change that it is to judge.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm.config import overrides as override_reading
from llm.config.choices import Choices, leaves
from llm.config.jobs import Jobs
from llm.config.validate import Validated
from llm.runs.identity import identify
from llm.sweep.answer import Answers

HERE = Path(__file__).parent
FP32 = {"device": "cpu", "precision": "fp32"}
#: Behind each line. `-m` begins one that stands for all jobs of a grid or a study.
ALWAYS = ["hardware=cpu", "hardware.precision=fp32"]
LINES = """

model=tiny moe=switch tokenizer=bytes seed=3
model=small moe=dense optimizer=adamw train.budget=20Mtok
model=base moe=expert_choice data=markov tokenizer=bytes train.budget=1e15flops
model=gpt2 moe=dense tokenizer=gpt2 train.budget=10min
model=llama moe=dense data=custom data.path=text.txt tokenizer=bpe train.budget=2000steps
model=mistral moe=gshard data=custom data.path=text.txt tokenizer=chars train.budget=3epochs
model=mixtral model.n_layers=2 moe.capacity_factor=1.25 train.budget=1500ktok
model=qwen3_moe model.n_layers=2 moe.top_k=2 tokenizer=bytes
model=olmoe model.n_layers=2 model.max_seq_len=512 train.budget=0.5epochs
model=mini moe=noisy_topk moe.balance=load+z moe.z_loss=0.01
model=medium moe=loss_free moe.granularity=2 moe.n_shared=1
model=nano moe=fine_grained model.moe_every=2 model.dense_first=1 model.d_ff_dense=344
model/position=rope_yarn model.window=64 model.dropout=0.1 train.z_loss=1e-4
model/position=alibi model/style=gpt2 moe=dense optimizer/schedule=wsd optimizer.warmup=0.1
model/position=learned moe=dense optimizer.lr=3e-4 'optimizer.lr_factors={head: 0.25, gain: 2}'
data.document_mask=true data.documents=2000 data.noise=0.1 tokenizer=bytes train.clip_norm=null
data=mixture data.parts.pydoc=null data/parts/b/corpus=markov data.parts.b.weight=3 tokenizer=bytes
data=custom data.path=text.txt tokenizer=words debug=overfit train.budget=320tok
compare=active_flops model.d_model=64 optimizer/schedule=linear train.grad_accum_steps=4
-m moe=dense,switch optimizer=adamw,muon seed=1,2
-m experiments=balance
-m experiments=experts
-m experiments=lr
-m experiments=scaling
""".split("\n")[1:-1]

TOY = """model=nano model.n_layers=1 model.n_heads=2 model.max_seq_len=32 tracking=none
    hardware.threads=1 train.batch_size=4 train.eval_every=10 train.eval_tokens=400
    train.checkpoint_every=20 train.budget=20steps run.code_changed=accept outputs=.""".split()
RUNS = [
    """moe=dense model/style=llama model.d_model=16 model.d_ff=32 data=custom data.path=text.txt
    tokenizer=bytes""".split(),
    """moe=topk model.d_model=16 model.d_ff=16 data.documents=40 data.val_documents=10
    data.people=2 data.domains=1 tokenizer=words""".split(),
]
#: Of a run: pictures, traces, and what only its own machine knows.
_LEFT_OUT = ("*.png", "*.lock", ".*", "*.html")


def resolve(line: str, answers: Answers) -> Iterator[tuple[str, str, Validated]]:
    """Of each job of a line: its run's id, its data's fingerprint, and what it is resolved to."""
    words = shlex.split(line)
    is_sweep = words[:1] == ["-m"]
    choices = Choices()
    typed = override_reading.read([*words[is_sweep:], *ALWAYS], choices, is_sweep)
    jobs = Jobs("llm.train", print, choices, typed, is_sweep)
    with jobs.composing() as composer:
        for overrides in jobs.grid():
            validated = jobs.job(0, overrides, composer).validated(choices)
            data = answers.data(validated).fingerprint
            name, _ = identify(validated.chosen, validated.identity, FP32, data)
            yield name, data, validated


def leaves_of(config: dict[str, Any]) -> dict[str, Any]:
    return dict(leaves(config, ""))


def write_configs() -> None:
    """The first line's config whole, of the others what differs; of a grid's jobs but ids."""
    os.chdir(HERE)
    answers = Answers()
    rows: list[dict[str, Any]] = []
    base: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for line in LINES:
            found = list(resolve(f"{line} outputs={folder}", answers))
            config = leaves_of({**found[0][2].config, "outputs": "outputs"})
            base = base or config
            changed = {k: v for k, v in config.items() if k not in base or base[k] != v}
            gone = [key for key in base if key not in config]
            ids, data = [name for name, *_ in found], [mark for _, mark, _ in found]
            rows.append({"line": line, "ids": ids, "data": data, "config": changed, "gone": gone})
    text = ",\n".join(json.dumps(row) for row in rows)
    text = f'{{"base": {json.dumps(base)},\n"lines": [\n{text}\n]}}\n'
    (HERE / "configs.json").write_text(text)


def write_runs() -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(HERE / "text.txt", folder)
        for overrides in RUNS:
            command = [sys.executable, "-m", "llm.train", *TOY, *overrides, *ALWAYS]
            subprocess.run(command, cwd=folder, check=True)
        for name in ("runs", "data"):
            shutil.rmtree(HERE / name, ignore_errors=True)
            ignored = shutil.ignore_patterns(*_LEFT_OUT)
            shutil.copytree(Path(folder) / name, HERE / name, ignore=ignored)
    for file in HERE.glob("runs/*/run.json"):
        text = re.sub(r'"host": "[^"]*"', '"host": "golden"', file.read_text())
        file.write_text(text)


if __name__ == "__main__":
    {"configs": write_configs, "runs": write_runs}[sys.argv[1]]()
