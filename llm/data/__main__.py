"""`python -m llm.data`: what is prepared, and whether it is whole.

python -m llm.data ls             a line a corpus, after a quick check
python -m llm.data verify [NAME]  every byte against its checksum; exit code 1 where one differs
"""

import argparse
import sys
from pathlib import Path

from llm.config.command import exit_code
from llm.config.environment import invocation
from llm.config.errors import Failed, Refused
from llm.data.account import account_of, is_partial
from llm.data.listing import checked, folders, row, table, unfinished


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 damaged, 2 refused."""
    return exit_code("llm.data", lambda: _answer(arguments))


def _answer(arguments: list[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llm.data", description=__doc__.split("\n")[0])
    parser.add_argument("--outputs", default="outputs", help="the folder that holds data/")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ls", help="what is prepared")
    verify = commands.add_parser("verify", help="check every byte")
    verify.add_argument("name", nargs="?", help="a folder of `ls`, or the beginning of its name")
    given = parser.parse_args(arguments)
    root = Path(given.outputs) / "data"
    if given.command == "ls":
        _ls(root)
    else:
        _verify(root, given.name)


def _ls(root: Path) -> None:
    rows = [row(folder) for folder in folders(root)]
    if not rows:
        line = invocation("llm.prepare", "data=NAME")
        print(f"nothing is prepared in {root}; {line}", file=sys.stderr)
    else:
        print(table(rows))
    for folder in folders(root):
        manifest, _ = checked(folder, full=False)
        if manifest is not None and is_partial(manifest):
            print(f"{folder.name}: {account_of(manifest)}")
    for name, tokens in unfinished(root):
        print(f"{name} is unfinished, {tokens:,} tokens so far; its command goes on with it")


def _verify(root: Path, name: str | None) -> None:
    chosen = [folder for folder in folders(root) if folder.name.startswith(name or "")]
    if name is not None and not chosen:
        raise Refused(f"there is no {name} in {root}; `ls` lists what there is")
    bad = 0
    for folder in chosen:
        _, problem = checked(folder, full=True)
        print(f"{folder.name}: {'DAMAGED: ' + problem if problem else 'whole'}")
        bad += bool(problem)
    if bad:
        raise Failed(f"{bad} damaged; delete the folder to prepare it again")


if __name__ == "__main__":
    sys.exit(main())
