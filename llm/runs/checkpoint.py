"""Checkpoints: whole or absent, checked when read, executing nothing.

step-00000100/
  model.safetensors      weights
  optimizer.safetensors  its tensors, named INDEX/NAME
  state.json             format, step, and the numbers that a resume needs
  checksums.json         sha256 of the others, written last

Tensors are whole whatever the number of processes that trained: rank 0 gathers them one by one and
writes, and each process takes its share of what it reads. So a checkpoint of two processes opens
in one or in four. Beyond the model itself, rank 0 needs memory for one copy on the CPU; readers
map the files.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm.config.errors import Failed, Refused
from llm.runs.files import sync_folder, write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is made of, copied to the CPU: training may go on while it is written."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor] | None


def snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, keep: bool = True
) -> Snapshot:
    """Copy weights and optimizer; where they are shared out, all processes must call it.

    Args:
        keep: False answers with an empty one, in the processes that do not write
    """
    slots = optimizer.state_dict()["state"] if optimizer is not None else {}
    named = {f"{i}/{name}": t for i, state in slots.items() for name, t in state.items()}
    return Snapshot(
        gathered(model.state_dict(), keep), None if optimizer is None else gathered(named, keep)
    )


def gathered(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Copies of `tensors` on the CPU, each made whole in its turn; none where not `keep`."""
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if keep:
            copies[name] = whole.detach().to("cpu", copy=True).contiguous()
    return copies


@dataclass(frozen=True)
class Checkpoint:
    """One that was read and found whole."""

    folder: Path
    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor] | None
    state: dict[str, Any]

    def restore_model(self, model: nn.Module) -> None:
        """Fill in the weights, of which a sharded model takes its share."""
        now = model.state_dict()
        model.load_state_dict({n: _share(t, now.get(n)) for n, t in self.model.items()})

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Fill in the tensors; hyper-parameters stay those of the config."""
        if self.optimizer is None:
            raise Failed(f"{self.folder} holds weights only")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.optimizer.items():
            index, _, slot = name.partition("/")
            like = parameters[int(index)]
            tensor = _share(tensor, like) if tensor.shape == like.shape else tensor
            slots.setdefault(int(index), {})[slot] = tensor
        optimizer.load_state_dict(
            {"state": slots, "param_groups": optimizer.state_dict()["param_groups"]}
        )


def _share(whole: Tensor, like: Any) -> Tensor:
    """`whole`, or this process's share of it where `like` is shared out; nothing is sent."""
    if not hasattr(like, "full_tensor"):
        return whole.clone()  # of the file's mapping
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def write(parent: Path, step: int, content: Snapshot, state: dict[str, Any]) -> Path:
    """Write `parent/step-N`.

    Raises OSError where the disk refuses; then nothing that was there before is lost.
    """
    folder = parent / f"step-{step:08d}"
    working, aside = parent / f".{folder.name}.tmp", parent / f".{folder.name}.old"
    mend(parent)
    shutil.rmtree(working, ignore_errors=True)
    try:
        working.mkdir(parents=True)
        save_file(content.model, working / "model.safetensors")
        if content.optimizer is not None:
            save_file(content.optimizer, working / "optimizer.safetensors")
        (working / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}))
        sums = {file.name: _checksum(file, sync=True) for file in sorted(working.iterdir())}
        write_atomically(working / "checksums.json", json.dumps(sums, indent=1).encode())
        if folder.exists():  # the same step again, after a resume or at a signal
            os.replace(folder, aside)
        os.replace(working, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(working, ignore_errors=True)
        with suppress(OSError):
            mend(parent)
        raise error if isinstance(error, OSError) else OSError(_told(error)) from error
    sync_folder(parent)
    shutil.rmtree(aside, ignore_errors=True)
    return folder


def mend(parent: Path) -> None:
    """Put back what a crash left aside in the middle of replacing it."""
    for aside in parent.glob(".step-*.old"):
        folder = parent / aside.name.removeprefix(".").removesuffix(".old")
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(aside, folder)


def _told(error: SafetensorError) -> str:
    """The system's message within that of safetensors: "No space left on device (os error 28)"."""
    return str(error).rpartition("I/O error: ")[2]


def _checksum(file: Path, sync: bool = False) -> str:
    stream: Any
    with file.open("rb+" if sync else "rb") as stream:
        if sync:
            os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def prune(parent: Path, newest: int, regular: int = 1, every: int | None = None) -> None:
    """Delete old checkpoints, and halves that a crash has left.

    Args:
        newest: so many are kept, and as many of those whose step is a multiple of `regular`, to
            which a run goes back when it must: which they are does not depend on the clock
        every: those whose step is a multiple of it are kept for ever
    """
    kept = latest(parent, newest, regular)
    for folder in list_steps(parent):
        step = step_of(folder)
        if step not in kept and not (every and step % every == 0):
            shutil.rmtree(folder, ignore_errors=True)
    _delete_halves(parent)


def latest(parent: Path, newest: int, regular: int = 1) -> set[int]:
    """Steps of the newest checkpoints and of the newest regular ones: see `prune`."""
    steps = [step_of(folder) for folder in list_steps(parent)]
    return {*steps[-newest:], *[step for step in steps if step % regular == 0][-newest:]}


def prune_best(parent: Path, origins: Iterable[int]) -> None:
    """Delete best weights, but for the newest and those that were it at the `origins`.

    A run that begins again at one of these steps loses what is newer, and may never get as good.
    """
    steps = [step_of(folder) for folder in list_steps(parent)]
    kept = {max((s for s in steps if s <= limit), default=None) for limit in origins}
    for folder in list_steps(parent)[:-1]:
        if step_of(folder) not in kept:
            shutil.rmtree(folder, ignore_errors=True)
    _delete_halves(parent)


def _delete_halves(parent: Path) -> None:
    for half in parent.glob(".step-*.tmp"):
        shutil.rmtree(half, ignore_errors=True)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def list_steps(parent: Path) -> list[Path]:
    """The checkpoints in `parent`, oldest first, whole or not."""
    return sorted(parent.glob("step-*")) if parent.is_dir() else []


def drop_after(parent: Path, step: int) -> None:
    """Delete checkpoints of steps that a resume from `step` will take again."""
    for folder in list_steps(parent):
        if step_of(folder) > step:
            shutil.rmtree(folder, ignore_errors=True)


def read(folder: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Open one checkpoint.

    Raises:
        Failed: it is torn or altered; the line names the file
        Refused: another format
    """
    try:
        sums = json.loads((folder / "checksums.json").read_bytes())
        for name in sums:
            if _checksum(folder / name) != sums[name]:
                raise Failed(f"checkpoint {folder} is damaged: {name} does not match its checksum")
        state = json.loads((folder / "state.json").read_bytes())
    except (OSError, ValueError) as error:
        raise Failed(f"checkpoint {folder} is damaged: {error}") from None
    if state["format"] != FORMAT:
        raise Refused(
            f"{folder} has checkpoint format {state['format']}, and this version reads {FORMAT}; "
            "open it with the version that wrote it (see its run.json)"
        )
    weights = load_file(folder / "model.safetensors", device=str(device))
    optimizer = folder / "optimizer.safetensors"
    tensors = load_file(optimizer, device=str(device)) if optimizer.name in sums else None
    return Checkpoint(folder, state["step"], weights, tensors, state)


def newest(
    parent: Path, fits: Callable[[Checkpoint], bool] = lambda found: True
) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint that `fits`, and a line for each newer one that is damaged."""
    damaged: list[str] = []
    for folder in reversed(list_steps(parent)):
        try:
            found = read(folder)
        except Failed as failure:
            damaged.append(str(failure))
            continue
        if fits(found):
            return found, damaged
    return None, damaged
