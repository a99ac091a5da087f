"""What became of a corpus's text, in one line: read, passed over, left out, held out."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Account:
    """What a corpus says of its own reading, in numbers that JSON can carry.

    Args:
        read: files that were read, by kind
        passed_over: files that were not, by kind or reason
        passed_over_bytes: their size
        left_out: documents that were dropped and places that were mended, by reason
        notes: whatever else the reader of the line should know
    """

    read: dict[str, int] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    passed_over_bytes: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def account_of(manifest: dict[str, Any]) -> str:
    """The line of a prepared corpus."""
    # Manifests that older versions wrote have the one mapping only.
    account = Account(**manifest.get("account", {"left_out": manifest.get("left_out", {})}))
    splits: dict[str, dict[str, int]] = manifest["splits"]
    n_bytes = sum(counts["bytes"] for counts in splits.values())
    # One that is cut is a document of both sides.
    n_documents = sum(counts["documents"] for counts in splits.values()) - manifest.get("n_cut", 0)
    text = f"{size(n_bytes)}, {counted(n_documents, 'document')}"
    parts = [f"read {text}"]
    if account.read:
        files = counted(sum(account.read.values()), "file")
        parts = [f"read {files} ({_by_kind(account.read)}; {text})"]
    if account.passed_over:
        kinds = f"{_by_kind(account.passed_over)}; {size(account.passed_over_bytes)}"
        parts.append(f"passed over {sum(account.passed_over.values()):,} ({kinds})")
    if account.left_out:
        parts.append(f"left out or mended: {_by_kind(account.left_out)}")
    if "val" in splits:
        held, documents = splits["val"]["bytes"], counted(splits["val"]["documents"], "document")
        parts.append(f"held out {documents} ({size(held)}, {held / max(1, n_bytes):.1%})")
    return "; ".join([*parts, *account.notes])


def is_partial(manifest: dict[str, Any]) -> bool:
    """Whether any text did not become tokens as it stood."""
    account = manifest.get("account", manifest)
    return any(account.get(key) for key in ("passed_over", "left_out", "notes"))


def size(n_bytes: int) -> str:
    """51 bytes, 3.4 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:,.1f} {unit}"
    return counted(n_bytes, "byte")


def counted(number: int, noun: str) -> str:
    """1 file, 2,310 files."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _by_kind(counts: dict[str, int]) -> str:
    """The most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{kind} {number:,}" for kind, number in ranked)
