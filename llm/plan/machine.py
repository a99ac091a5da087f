"""What `auto` becomes on this machine, known without PyTorch once PyTorch has been asked.

The answer is kept in `outputs/.machines/HOST.json`; it holds for the versions and the visible
GPUs that it was given for.
"""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llm.runs.files import write_json


class Machines:
    """Machine facts of `hardware` nodes, for `llm.sweep.answer.Answers`."""

    def __init__(self, outputs: Path):
        self.file = outputs / ".machines" / f"{platform.node() or 'here'}.json"
        self._known: dict[str, Any] | None = None
        self._facts: dict[str, dict[str, Any] | None] = {}

    def facts(self, node: dict[str, Any]) -> dict[str, Any] | None:
        """Device, precision, …; None where that device is not there."""
        key = json.dumps(node, sort_keys=True)
        if key not in self._facts:
            self._facts[key] = self._found_out(node)
        return self._facts[key]

    def _found_out(self, node: dict[str, Any]) -> dict[str, Any] | None:
        from llm.config.instantiate import instantiate
        from llm.config.stand_in import Unknown

        try:
            told: dict[str, Any] = instantiate(node, "hardware").resolve().facts()
            return told
        except Unknown:  # `auto`, or whether there is a GPU
            return self._asked({k: v for k, v in node.items() if k != "threads"})

    def _asked(self, node: dict[str, Any]) -> dict[str, Any] | None:
        key = json.dumps([_surroundings(), node], sort_keys=True)
        if self._known is None:
            try:
                self._known = json.loads(self.file.read_bytes())
            except (OSError, ValueError):
                self._known = {}
        if key not in self._known:
            self._known[key] = _ask({**node, "threads": None})
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, self._known)
        found: dict[str, Any] | None = self._known[key]
        return found


def _surroundings() -> dict[str, str | None]:
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        torch_version = None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"torch": torch_version, "visible": visible, "python": sys.prefix}


def _ask(node: dict[str, Any]) -> dict[str, Any] | None:
    """Ask PyTorch in a process of its own; None where it has no such device, or is missing."""
    command = [sys.executable, "-m", "llm.plan.machine", json.dumps(node)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        told: dict[str, Any] | None = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return told


if __name__ == "__main__":
    from llm.sweep.answer import resolved_here

    print(json.dumps(resolved_here(json.loads(sys.argv[1]))))
