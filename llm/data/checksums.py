"""Whether a file is what it was: quickly at every opening, to the last byte on request."""

import hashlib
from pathlib import Path
from typing import Any

#: What the quick check reads of a file: so many blocks, evenly spread, its ends among them. Of a
#: file of a megabyte or less that is all.
BLOCKS, BLOCK = 128, 8192


def sha256(file: Path) -> str:
    """Of all bytes."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


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
