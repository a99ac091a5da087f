"""Code that can change a result is named where it changed; other code does not matter.

Before, a comment in `llm/chat.py` made every run, finished ones too, answer that other code made
it.
"""

import ast
import json
import re
from pathlib import Path

import pytest

from llm.runs import code
from llm.runs.code import EFFECT, NO_EFFECT, changes, code_facts, counts, meaning, mixed_code
from llm.runs.identity import RESULT_VERSION

LLM = Path(code.__file__).parents[1]
FILES = {file.relative_to(LLM).as_posix(): file.read_text() for file in LLM.rglob("*.py")}


def package(folder: Path, **edited: str) -> dict:
    """Facts of a package of four files, some of them edited."""
    files = {"build": "x = 1\n", "chat": "y = 2\n", "config/help": "z = 3\n"}
    files["model/attention"] = '"""Doc."""\n\n\ndef f(x):\n    """Of f."""\n    return x  # x\n'
    for name, text in {**files, **{k.replace("__", "/"): v for k, v in edited.items()}}.items():
        file = folder / "llm" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    code_facts.cache_clear()
    return code_facts(folder / "llm")


@pytest.mark.parametrize(
    ("edited", "told"),
    [
        ({"chat": "y = 3\n", "config__help": "import os\n", "report__new": "1\n"}, ""),
        ({"build": "# why\nx = 1\n\n"}, ""),
        ({"model__attention": "def f(x):\n    return x\n"}, "llm/model/attention.py changed"),
        ({"model__attention": '"""D"""\ndef f(x):\n    """F."""\n    return x\n'}, ""),
        ({"build": "x = 1.0\n", "new": ""}, "llm/build.py, llm/new.py changed"),
        ({"build": 'x = "1 # 2"\n'}, "llm/build.py changed"),
        ({f"moe__m{i}": "" for i in range(5)}, "m2.py and 2 more changed"),
    ],
)
def test_what_changed_is_named(tmp_path, edited, told):
    before, now = package(tmp_path / "a"), package(tmp_path / "b", **edited)
    assert changes(before, now).endswith(told) and bool(changes(before, now)) == bool(told)


def test_what_is_left_of_a_file_is_its_code():
    def tree(source: str) -> str:
        parsed = ast.parse(source)
        for node in ast.walk(parsed):
            kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            if isinstance(node, kinds) and ast.get_docstring(node) is not None:
                node.body[0].value.value = ""  # type: ignore[attr-defined]
        return ast.dump(parsed)

    for name in sorted(FILES)[::3]:
        assert tree(meaning(FILES[name])) == tree(FILES[name]), name
        assert meaning(meaning(FILES[name])) == meaning(FILES[name]), name


def test_every_room_that_no_run_reaches_is_in_the_table():
    """By the imports of `llm.train` and of the classes that configs name."""
    modules = {f"llm.{name[:-3].replace('/', '.')}": name for name in FILES}
    targets = [
        match[1]
        for file in (LLM.parent / "conf").rglob("*.yaml")
        for match in re.finditer(r"_target_: (llm[\w.]+)\.\w+", file.read_text())
    ]
    todo, reached = [modules[module] for module in {*targets, "llm.train"}], set()
    while todo:
        name = todo.pop()
        if name in reached or not counts(f"llm/{name}"):
            continue
        reached.add(name)
        pattern = r"^ *(?:from (llm[\w.]*) import ([\w, ]+|\([^)]*\))|import (llm[\w.]*))"
        for match in re.finditer(pattern, FILES[name], re.MULTILINE):
            words = re.findall(r"\w+", match[2] or "")
            found = [match[1] or match[3], *(f"{match[1]}.{word}" for word in words)]
            todo += [modules[module] for module in found if module in modules]
    counted = {n.split("/")[0] for n in FILES if counts(f"llm/{n}") and n != "__init__.py"}
    idle = counted - {name.split("/")[0] for name in reached}
    assert not idle, "no run reaches them: add them to llm.runs.code.NO_EFFECT"
    listed = [place for places in NO_EFFECT.values() for place in places.split()]
    assert [place for place in [*listed, *EFFECT] if not (LLM / place).exists()] == []


def test_a_run_knows_by_which_versions_it_was_made():
    first = {"code_hash": "a"}
    now = {"code_hash": "b", "code": "llm/x.py:1", "result_version": 2}
    assert changes(first, now) == "a, now b, result version 1, now 2: its numbers may differ"
    mixed = mixed_code(first, now)
    assert mixed == {**now, "code_hashes": ["a", "b"], "result_version": "1+2"}
    assert changes(mixed, now) == ""
    third = {"code_hash": "c", "code": "llm/x.py:2", "result_version": 3}
    told = "llm/x.py changed, result version 1+2, now 3: its numbers may differ"
    assert changes(mixed, third) == told
    assert mixed_code(mixed, third)["result_version"] == "1+2+3"
    assert mixed_code(now, {**third, "result_version": 2})["result_version"] == 2


def test_other_code_is_said_of_a_finished_run_and_stops_an_unfinished_one(llm_train, monkeypatch):
    first = llm_train()
    facts = json.loads((first.folder / "run.json").read_text())
    assert facts["result_version"] == RESULT_VERSION
    later = RESULT_VERSION + 1
    edited = facts["code"].replace("llm/build.py:", "llm/build.py:0")
    other = {"result_version": later, "code_hash": "changed", "code": edited}
    monkeypatch.setattr("llm.training.prepare.code_facts", lambda *places: other)
    answered = llm_train()
    assert answered.code == 0 and answered.folder == first.folder
    changed = f"llm/build.py changed, result version {RESULT_VERSION}, now"
    told = f"note: {first.folder} was made by other code ({changed}"
    assert [line.startswith(told) for line in answered.err.splitlines()] == [True]

    (first.folder / "run.json").write_text(json.dumps({**facts, "state": "interrupted"}))
    refused = llm_train()
    assert refused.code == 2
    (line,) = refused.err.strip().splitlines()
    assert "llm/build.py changed" in line and "run.code_changed=accept" in line
    assert llm_train("run.code_changed=accept").folder == first.folder
    facts = json.loads((first.folder / "run.json").read_text())
    mixed = f"{RESULT_VERSION}+{later}"
    assert facts["code_hash"] == "changed" and facts["result_version"] == mixed
    assert llm_train().err == ""

    assert llm_train("run.existing=restart").code == 0
    assert json.loads((first.folder / "run.json").read_text())["result_version"] == later
    (kept,) = Path("outputs/runs/.replaced").iterdir()  # nothing is deleted
    assert json.loads((kept / "run.json").read_text())["result_version"] == mixed
