"""Whether a file is what it was: quickly at every opening, to the last byte on request."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: What the quick check reads of a file: so many blocks, evenly spread, its ends among them. Of a
#: file of a megabyte or less that is all.
BLOCKS, BLOCK = 128, 8192


def sha256(file: Path) -> str:
    """Of all bytes."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class Remembered:
    """The SHA-256 of files that are read again and again, as long as nobody touches them.

    As git does: a file is taken for the same while its size, its times and its inode are, unless
    it was written so shortly before it was read that the clock cannot tell.
    """

    def __init__(self, memory: Path):
        self.memory, self.changed = memory, False
        self.known: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):  # else nothing is known
            self.known = {str(k): list(v) for k, v in json.loads(memory.read_text()).items()}

    def sha256(self, file: Path) -> str:
        """Of all bytes, from memory where nothing happened to them."""
        name, facts = str(file.absolute()), file.stat()
        stamp = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
        known = self.known.get(name, [])
        if known[:-1] == stamp:
            return str(known[-1])
        digest = sha256(file)
        if time.time_ns() - max(stamp[1:3]) > 2_000_000_000:
            self.known[name], self.changed = [*stamp, digest], True
        return digest

    def keep(self) -> None:
        """Write the memory down, where there is anything new in it."""
        if self.changed:
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.memory.with_name(f"{self.memory.name}.{os.getpid()}")
            temporary.write_text(json.dumps(self.known, indent=1))
            os.replace(temporary, self.memory)


_memory: Remembered | None = None


@contextmanager
def remembering(memory: Path) -> Iterator[None]:
    """Within, `sha256_of_text` reads a file of text only once, whichever process it was."""
    global _memory
    before, _memory = _memory, Remembered(memory)
    try:
        yield
        _memory.keep()
    finally:
        _memory = before


def sha256_of_text(file: Path) -> str:
    """Of all bytes of a file that a corpus reads."""
    return _memory.sha256(file) if _memory else sha256(file)


def recalled(name: str) -> list[Any] | None:
    """What `remember` was told under this name, by whichever process."""
    return _memory.known.get(name) if _memory else None


def remember(name: str, values: list[Any]) -> None:
    """Keep JSON that took a while to find out; within `remembering`."""
    if _memory:
        _memory.known[name], _memory.changed = values, True


def sampled(file: Path) -> str:
    """Of the blocks that the quick check reads: a few milliseconds whatever the size."""
    size, digest = file.stat().st_size, hashlib.sha256()
    with file.open("rb", buffering=0) as content:
        if size <= BLOCKS * BLOCK:
            digest.update(content.read())
        else:
            for i in range(BLOCKS):
                content.seek(i * (size - BLOCK) // (BLOCKS - 1))
                digest.update(content.read(BLOCK))
    return digest.hexdigest()


def facts_of(file: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"size": file.stat().st_size, "sha256": sha256(file), "sampled": sampled(file)}


def problems(folder: Path, files: dict[str, dict[str, Any]], full: bool) -> dict[str, str]:
    """Name of each file of a manifest that is not what it was, to what is wrong with it."""
    found: dict[str, str] = {}
    for name, facts in files.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else -1
        if size < 0:
            found[name] = "is missing"
        elif size != facts["size"]:
            found[name] = f"has {size} bytes instead of {facts['size']}"
        elif sampled(file) != facts["sampled"] or (full and sha256(file) != facts["sha256"]):
            found[name] = "was altered: its checksum is another"
    return found
