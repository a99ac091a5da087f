"""Rooms import what the table of CONTRIBUTING.md says, and nothing else."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Entry modules of commands: they join rooms.
COMMANDS = {"chat", "evaluate_run", "export", "prepare", "sizes", "train", "llm"}


def table() -> dict[str, set[str]]:
    allowed: dict[str, set[str]] = {"config": {"sweep", "plan"}}
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if not line.startswith("| `"):
            continue
        rooms, wanted = (re.findall(r"`(\w+)`", cell) for cell in line.split("|")[1:3])
        above = set(allowed) if "everything above" in line else set()
        allowed |= {room: {*wanted, *above, "config"} for room in rooms}
    return allowed


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imported(file: Path) -> set[str]:
    """Rooms of the house that a file imports anywhere, but for the type checker."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    hints = [
        n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)
    ]
    aside = {id(inner) for block in hints for inner in ast.walk(block)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in aside:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "llm":
            own = node.module == "llm"
            found |= {a.name if own else room_of(str(node.module)) for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {room_of(a.name) for a in node.names if a.name.split(".")[0] == "llm"}
    return found


def test_rooms_import_what_the_table_says():
    allowed, wrong = table(), []
    for file in sorted((ROOT / "llm").rglob("*.py")):
        parts = file.relative_to(ROOT / "llm").with_suffix("").parts
        room = parts[0] if parts[0] != "__init__" else "llm"
        if room in COMMANDS:
            continue
        for other in imported(file) - {room} - COMMANDS:
            if other not in allowed[room]:
                wrong.append(f"{file.relative_to(ROOT)} imports {other}")
    assert not wrong, "\n".join(wrong)
