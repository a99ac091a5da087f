"""What is prepared, in words and figures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm.config.errors import Refused
from llm.data import checksums
from llm.data.account import account_of
from llm.data.prepare import read_manifest


def folders(root: Path) -> list[Path]:
    """Every prepared corpus under `root` (`outputs/data`), by name."""
    return sorted(file for file in root.glob("[!.]*/") if file.is_dir())


def unfinished(root: Path) -> Iterator[tuple[str, int]]:
    """Name, and tokens so far, of what an interrupted command left to go on with."""
    for journal in sorted(root.glob(".*.journal")):
        try:
            splits = json.loads(journal.read_text())["splits"]
            tokens = sum(counts["tokens"] for counts in splits.values())
        except (OSError, ValueError, LookupError, TypeError):
            continue
        yield journal.name[1:].removesuffix(".journal"), tokens


def total(manifest: dict[str, Any], what: str) -> int:
    """Tokens, documents or bytes of all splits together."""
    return sum(counts[what] for counts in manifest["splits"].values())


def tokenizer_of(manifest: dict[str, Any]) -> str:
    """Its class and its size: "GPT2 50,257"."""
    return f"{str(manifest['tokenizer']['_target_']).split('.')[-1]} {manifest['vocab_size']:,}"


def revision_of(manifest: dict[str, Any]) -> str:
    """Where the text is from, in ten characters: a commit, else a hash of the text."""
    corpus = manifest["corpus"]
    return str(corpus.get("revision") or corpus.get("sha256") or corpus.get("copy") or "")[:10]


def checked(folder: Path, full: bool) -> tuple[dict[str, Any] | None, str]:
    """The manifest, and what is wrong with the folder ("" for nothing)."""
    try:
        manifest = read_manifest(folder)
    except Refused as refusal:
        return None, refusal.message.split(";")[0]
    found = checksums.problems(folder, manifest["files"], full)
    return manifest, "; ".join(f"{folder / file} {problem}" for file, problem in found.items())


COLUMNS = "name tokens documents bytes bytes/token tokenizer revision checksum".split()


def row(folder: Path) -> list[str]:
    """The columns of `ls` for one folder."""
    manifest, problem = checked(folder, full=False)
    if manifest is None:
        return [folder.name, *[""] * 6, "DAMAGED: " + problem.removeprefix(f"{folder}/")]
    tokens, documents, size = (total(manifest, what) for what in ("tokens", "documents", "bytes"))
    return [
        folder.name,
        f"{tokens:,}",
        f"{documents:,}",
        f"{size:,}",
        f"{size / tokens:.2f}",
        tokenizer_of(manifest),
        revision_of(manifest),
        "DAMAGED: " + problem.replace(f"{folder}/", "") if problem else "ok",
    ]


def table(rows: list[list[str]]) -> str:
    """Rows under their heads; figures to the right."""
    lines = [COLUMNS, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    figures = range(1, 5)

    def cell(text: str, i: int) -> str:
        return text.rjust(widths[i]) if i in figures else text.ljust(widths[i])

    return "\n".join("  ".join(map(cell, line, range(len(line)))).rstrip() for line in lines)


def card(manifest: dict[str, Any]) -> str:
    """A few lines on one prepared corpus."""
    lines = []
    for split, counts in manifest["splits"].items():
        lines.append(
            f"{split:10} {counts['tokens']:,} tokens, {counts['documents']:,} documents, "
            f"{counts['bytes']:,} bytes ({counts['bytes'] / counts['tokens']:.2f} a token)"
        )
    lines.append(f"tokenizer  {tokenizer_of(manifest)} ids")
    if revision_of(manifest):
        lines.append(f"revision   {revision_of(manifest)}")
    lines.append(f"account    {account_of(manifest)}")
    return "\n".join(lines)
