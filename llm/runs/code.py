"""What of the code a run's numbers depend on, and which of it has changed.

Every file of `llm` counts, unless NO_EFFECT says why it cannot. Comments, docstrings and blank
lines do not count, so a hash is the same for every Python version.
"""

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm.runs.identity import RESULT_VERSION

_PACKAGE = Path(__file__).parent.parent

#: Why files and folders of `llm` cannot change what a run computes.
NO_EFFECT = {
    "read runs that are there": """chat.py evaluate_run.py export.py sizes.py report/
        generate/colour.py generate/conversation.py generate/judge.py generate/limits.py
        generate/session.py tokenizer/stream.py""",
    "list what is there": """runs/__main__.py runs/arms.py runs/chosen.py runs/conditions.py
        runs/dashboard.py runs/fairness.py runs/labels.py runs/listing.py runs/resolve.py
        runs/sync.py runs/table.py data/__main__.py data/listing.py tokenizer/__main__.py""",
    "say which config is run: the id is a hash of it": "config/ plan/ sweep/",
    "say which run a config is": "runs/code.py runs/directory.py runs/identity.py",
    "write exports": "hf/card.py hf/interchange.py hf/tokenizer_json.py",
    "show what was computed": "tracking/",
}
#: And what does count within these folders.
EFFECT = (
    "config/instantiate.py",
    "config/root.py",  # what a budget means
    "report/observatory.py",  # metrics of routing
    "tracking/log.py",
)

_LONG = r'''"""(?:\\.|[^\\])*?"""''', r"""'''(?:\\.|[^\\])*?'''"""
_SHORT = r'''"(?:\\.|[^"\\\n])*"''', r"""'(?:\\.|[^'\\\n])*'"""
_STRING = "|".join([*_LONG, *_SHORT])
_TOKENS = re.compile(rf"(?P<string>{_STRING})|(?:[ \t]*(?:#[^\n]*)?(?:\n|\Z))+", re.DOTALL)
_SUITE = re.compile(r"(\A|:\n[ \t]+)\Z")  # a docstring comes first in its module, class or function


def counts(name: str) -> bool:
    """Whether this file, `llm/build.py` for example, can change what a run computes."""
    own = name.removeprefix("llm/")
    if own == name or own in EFFECT:
        return True
    idle = [place for places in NO_EFFECT.values() for place in places.split()]
    return not any(own == place or (own.startswith(place) and place[-1] == "/") for place in idle)


def meaning(source: str) -> str:
    """The source without comments and blank lines, its docstrings empty."""
    parts, end = [""], 0
    for match in _TOKENS.finditer(source):
        parts.append(source[end : match.start()])
        end = match.end()
        text = match["string"]
        if text is None:
            text = "\n" if "".join(parts).strip() else ""
        elif text.startswith(('"""', "'''")) and _SUITE.search("".join(parts[-4:])):
            text = '""'
        parts.append(text)
    return "".join([*parts, source[end:]])


def packages(plugins: Iterable[str] = ()) -> list[Path]:
    """Where `llm` is, and the user's own packages and modules; not those that are installed."""
    found = [_PACKAGE]
    for spec in map(find_spec, plugins):
        if spec is not None and spec.origin and "site-packages" not in spec.origin:
            origin = Path(spec.origin)
            found.append(origin.parent if origin.name == "__init__.py" else origin)
    return found


@cache
def code_facts(*places: Path) -> dict[str, Any]:
    """For run.json: `result_version`, `code_hash`, and `code`, the hash of each file that counts.

    Args:
        places: packages and modules, as `packages` finds them
    """
    hashes = []
    for place in places:
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            name = file.relative_to(place.parent).as_posix()
            if counts(name):
                text = meaning(file.read_text(encoding="utf-8"))
                hashes.append(f"{name}:{hashlib.sha256(text.encode()).hexdigest()[:8]}")
    code = " ".join(hashes)
    code_hash = hashlib.sha256(code.encode()).hexdigest()[:16]
    return {"result_version": RESULT_VERSION, "code_hash": code_hash, "code": code}


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """How the code differs that two runs' facts know of; empty where it does not.

    Old runs know one hash of all files and no result version, which is 1.
    """
    told = []
    if before["code_hash"] != now["code_hash"]:
        if "code" in before and "code" in now:
            old, new = (_files(facts["code"]) for facts in (before, now))
            names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            told.append(f"{', '.join(names[:3])}{more} changed")
        else:
            told.append(f"{before['code_hash']}, now {now['code_hash']}")
    then, today = _versions(before), _versions(now)
    if then[-1] != today[-1]:
        told.append(f"result version {'+'.join(then)}, now {today[-1]}: its numbers may differ")
    return ", ".join(told)


def mixed_code(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Facts of a run that other code goes on with. Its result version is then "1+2", since its
    numbers are of neither alone."""
    hashes = [*before.get("code_hashes", [before["code_hash"]]), now["code_hash"]]
    versions = "+".join(dict.fromkeys([*_versions(before), *_versions(now)]))
    version = int(versions) if versions.isdigit() else versions
    code = {key: value for key, value in now.items() if key in ("code_hash", "code")}
    return {**code, "code_hashes": hashes, "result_version": version}


def _files(code: str) -> dict[str, str]:
    return {name: mark for name, _, mark in (word.partition(":") for word in code.split())}


def _versions(facts: dict[str, Any]) -> list[str]:
    return str(facts.get("result_version", 1)).split("+")
