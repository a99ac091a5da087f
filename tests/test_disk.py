"""A disk that is full or takes nothing: what was finished stays, and one clear line says why."""

import os
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from llm.data.feed import Feed
from llm.runs import checkpoint
from tests.test_checkpoint_contract import LONG, same_bytes

OUTPUTS = Path("outputs")


class Disk(Protocol):
    """What `outputs/` lies on. `told`: the system's words for its refusal."""

    told: str

    def spoil(self) -> None: ...

    def mend(self) -> None: ...


class Full:
    """A small disk, filled to the last byte."""

    told = "No space left on device"

    def spoil(self) -> None:
        with (OUTPUTS / "ballast").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    def mend(self) -> None:
        (OUTPUTS / "ballast").unlink()


class SmallFiles:
    """Where nothing can be mounted: a system that lets no file grow."""

    told = "File too large"

    def __init__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def spoil(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, self.before[1]))

    def mend(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


class ReadOnly:
    """A disk that was mounted anew, to be read only; files that are open can still be written."""

    told = "Read-only file system"

    def spoil(self) -> None:
        assert mounted("--bind", "outputs", "outputs")
        assert mounted("-o", "remount,ro,bind", "outputs")

    def mend(self) -> None:
        subprocess.run(["umount", "outputs"], check=True)


class NotPermitted:
    """Folders of which the permission to write was taken."""

    told = "Permission denied"

    def spoil(self) -> None:
        self._change(0o555)

    def mend(self) -> None:
        self._change(0o755)

    def _change(self, mode: int) -> None:
        for folder in [OUTPUTS, *(f for f in OUTPUTS.rglob("*") if f.is_dir())]:
            folder.chmod(mode)


def mounted(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(params=["full", pytest.param("read-only", marks=pytest.mark.slow)])
def disk(request, workplace) -> Iterator[Disk]:
    OUTPUTS.mkdir()
    mounts = mounted("-t", "tmpfs", "-o", "size=4m", "tmpfs", "outputs")
    if request.param == "full":
        yield Full() if mounts else (limited := SmallFiles())
        if not mounts:
            limited.mend()
    elif not mounts and os.geteuid() == 0:
        pytest.skip("nothing can be mounted, and permissions do not bind root")
    else:
        yield ReadOnly() if mounts else NotPermitted()
    while os.path.ismount(OUTPUTS):
        subprocess.run(["umount", "--lazy", "outputs"], check=True)


def test_a_disk_that_refuses_costs_nothing_that_was_finished(llm_train, disk, monkeypatch):
    """It refuses in step 6, behind the checkpoint of step 4, and again when the run is resumed."""
    take = Feed.take

    def taking(self, first, following):
        if first == 10:
            while not list(OUTPUTS.glob("runs/*/checkpoints/step-00000004")):
                time.sleep(0.01)  # it is written meanwhile
            disk.spoil()
        return take(self, first, following)

    with monkeypatch.context() as patch:
        patch.setattr(Feed, "take", taking)
        ended = llm_train(*LONG)
    refused = llm_train(*LONG)
    disk.mend()
    for end in (ended, refused):
        assert end.code == 1
        assert "Traceback" not in end.err
        line = end.err.strip().splitlines()[-1]
        assert line.startswith("llm.train: ") and disk.told in line, end.err
    assert ended.err.strip().endswith("step-00000004")
    (run,) = OUTPUTS.glob("runs/[a-z]*")
    newest = checkpoint.list_steps(run / "checkpoints")[-1]
    assert checkpoint.read(newest).step == 4
    assert not list(run.glob("**/.*.tmp"))
    continued = llm_train(*LONG)
    assert continued.code == 0, continued.err
    assert "from step 4" in continued.err
    assert same_bytes(llm_train(*LONG, "outputs=elsewhere").folder, continued.folder)
