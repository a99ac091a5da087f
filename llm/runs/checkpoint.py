"""Checkpoints: whole or absent, checked when read, executing nothing.

step-00000100/
  model.safetensors      weights
  optimizer.safetensors  its tensors, named INDEX/NAME
  state.json             format, step, and the numbers that a resume needs
  checksums.json         sha256 of the others, written last
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from llm.config.errors import Failed, Refused
from llm.runs.files import sync_folder, write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """One that was read and found whole."""

    folder: Path
    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor] | None
    state: dict[str, Any]

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Fill in the tensors; hyper-parameters stay those of the config."""
        if self.optimizer is None:
            raise Failed(f"{self.folder} holds weights only")
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.optimizer.items():
            index, _, slot = name.partition("/")
            slots.setdefault(int(index), {})[slot] = tensor
        optimizer.load_state_dict(
            {"state": slots, "param_groups": optimizer.state_dict()["param_groups"]}
        )


def write(
    parent: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write `parent/step-N` and delete all but the newest `keep`.

    Raises OSError where the disk refuses; then nothing that was there before is lost.
    """
    folder = parent / f"step-{step:08d}"
    working = parent / f".{folder.name}.tmp"
    shutil.rmtree(working, ignore_errors=True)
    files = {"model.safetensors": save(_on_cpu(model.state_dict()))}
    if optimizer is not None:
        files["optimizer.safetensors"] = save(_optimizer_tensors(optimizer))
    files["state.json"] = json.dumps({"format": FORMAT, "step": step, **state}).encode()
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files["checksums.json"] = json.dumps(sums, indent=1).encode()
    try:
        working.mkdir(parents=True)
        for name, content in files.items():
            write_atomically(working / name, content)
        if folder.exists():  # the same step again, after a resume
            shutil.rmtree(folder)
        os.replace(working, folder)
    except OSError:
        shutil.rmtree(working, ignore_errors=True)
        raise
    sync_folder(parent)
    for old in list_steps(parent)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def list_steps(parent: Path) -> list[Path]:
    """The checkpoints in `parent`, oldest first, whole or not."""
    return sorted(parent.glob("step-*")) if parent.is_dir() else []


def drop_after(parent: Path, step: int) -> None:
    """Delete checkpoints of steps that a resume from `step` will take again."""
    for folder in list_steps(parent):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder, ignore_errors=True)


def read(folder: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Open one checkpoint.

    Raises:
        Failed: it is torn or altered; the line names the file
        Refused: another format
    """
    try:
        sums = json.loads((folder / "checksums.json").read_bytes())
        content = {name: (folder / name).read_bytes() for name in sums}
    except (OSError, ValueError) as error:
        raise Failed(f"checkpoint {folder} is damaged: {error}") from None
    for name, data in content.items():
        if hashlib.sha256(data).hexdigest() != sums[name]:
            raise Failed(f"checkpoint {folder} is damaged: {name} does not match its checksum")
    state = json.loads(content["state.json"])
    if state["format"] != FORMAT:
        raise Refused(
            f"{folder} has checkpoint format {state['format']}, and this version reads {FORMAT}; "
            "open it with the version that wrote it (see its run.json)"
        )
    tensors = {n: load(content[n]) for n in content if n.endswith(".safetensors")}
    moved = {n: {k: t.to(device) for k, t in part.items()} for n, part in tensors.items()}
    optimizer = moved.get("optimizer.safetensors")
    return Checkpoint(folder, state["step"], moved["model.safetensors"], optimizer, state)


def newest(parent: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and a line for each newer one that had to be passed over."""
    damaged: list[str] = []
    for folder in reversed(list_steps(parent)):
        try:
            return read(folder), damaged
        except Failed as failure:
            damaged.append(str(failure))
    return None, damaged


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    slots = optimizer.state_dict()["state"]
    return _on_cpu({f"{i}/{name}": t for i, state in slots.items() for name, t in state.items()})
