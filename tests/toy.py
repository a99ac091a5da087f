"""What tests of the whole command line train, and what they get back."""

from pathlib import Path
from typing import NamedTuple

#: A run of a second: what tests of the whole command line train.
TOY = [
    "model=tiny",
    "model.d_model=16",
    "model.n_heads=2",
    "model.n_layers=2",
    "model.d_ff=32",
    "model.max_seq_len=16",
    "data=custom",
    "data.path=text.txt",
    "tokenizer=bytes",
    "tracking=none",
    "hardware=cpu",
    "hardware.precision=fp32",
    "train.batch_size=2",
    "train.eval_every=4",
    "train.eval_tokens=64",
    "train.checkpoint_every=2",
    "train.budget=8steps",
]


class Ended(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run directory: the last line on standard output."""
        return Path(self.out.strip().splitlines()[-1])
