"""Files that are there whole or not at all, whenever the plug is pulled."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path`: temporary name, sync, rename, sync of the folder.

    The name is this process's own, since several may replace one file. Where the disk refuses,
    nothing is left of it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system knows how."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except (OSError, PermissionError):  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
