"""`python -m llm.chat`: what it opens, answers, and refuses. The models are untrained."""

import contextlib
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llm import chat
from llm.build import build_model
from llm.config.choices import conf_folder
from llm.config.environment import invocation
from llm.runs import checkpoint
from llm.runs.directory import claim
from llm.tokenizer import base as tokenizers
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.chars import Chars
from llm.tokenizer.words import Words

TINY = ["model=tiny", "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.d_ff=32"]


def make_run(outputs: Path, name: str, tokenizer, *overrides: str, state="finished") -> Path:
    """A run directory as training leaves it, with weights of steps 2 and (the best) 1."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose("train", [*TINY, "model.max_seq_len=64", *overrides])
    config = OmegaConf.to_container(composed, resolve=True)
    runs = outputs / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    run = claim(runs, name, config, {"code_hash": "x"}, "resume", "refuse")
    tokenizers.save(tokenizer, run.folder)
    for parent, step, seed in ((run.checkpoints, 2, 2), (run.best, 1, 1)):
        model = build_model({**config, "seed": seed}, tokenizer.vocab_size)
        checkpoint.write(parent, step, checkpoint.snapshot(model, None, True), {})
    rows = [
        {"step": 1, "tokens": 64, "val/loss": 1.25, "val/floor": 1.0, "val/excess": 0.25},
        {"step": 2, "tokens": 128, "val/loss": 1.5, "val/floor": 1.0, "val/excess": 0.5},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (run.folder / "metrics.jsonl").write_text(lines)
    run.update(state=state, params_total=12345, params_active=6789)
    run.release()
    return run.folder


@pytest.fixture(scope="session")
def outputs(tmp_path_factory) -> Path:
    """One run on plain text, then one on Tiny Town, which is the newest."""
    from llm.data.tinytown.source import Tinytown

    root = tmp_path_factory.mktemp("outputs")
    plain = make_run(root, "plain", Bytes(), "data=pydoc", "moe=dense")
    os.utime(plain / "run.json", (1e9, 1e9))
    words = Words()
    words.fit([], Tinytown().pieces)
    make_run(root, "town", words, "data=tinytown", "moe=switch")
    return root


@pytest.fixture
def ask(outputs, capsys):
    """Runs the command in this process: exit code, standard output, standard error."""

    def run(*arguments, where=outputs):
        code = chat.main(["--outputs", str(where), *arguments])
        return code, *capsys.readouterr()

    return run


# -- one answer ----------------------------------------------------------------------------------


def test_a_prompt_on_plain_text_comes_with_its_continuation(ask, outputs):
    path = str(outputs / "runs/plain")
    code, out, _ = ask("--checkpoint", path, "--prompt", "def é", "--max-tokens", "8")
    assert code == 0
    assert out.startswith("def é")
    assert len(out) > len("def é\n")


def test_a_question_is_answered_without_the_question(ask):
    for question in ("Tell me a story.", "Where is the ball?", "Where is the dragön 漢?"):
        code, out, err = ask("--prompt", question, "--max-tokens", "8")
        assert code == 0
        assert question not in out
        assert "Q:" not in out[:2]
        assert err == ""


def test_a_story_opening_goes_on(ask):
    code, out, _ = ask("--prompt", "Once upon a time", "--max-tokens", "8")
    assert code == 0
    assert out.startswith("Once upon a time")


def test_an_empty_prompt_begins_a_document(ask):
    assert ask("--prompt", "", "--max-tokens", "4")[0] == 0


def test_max_tokens_bounds_the_answer_also_beyond_the_context(ask, outputs):
    path = str(outputs / "runs/plain")
    for n in (1, 5, 200):
        _, out, _ = ask("--checkpoint", path, "--prompt", "ab", "--max-tokens", str(n))
        assert 3 <= len(out) <= 3 + n


def test_a_seed_repeats_the_answer(ask, outputs):
    def once(seed):
        return ask("--prompt", "Tell me", "--max-tokens", "20", "--seed", str(seed))[1]

    assert once(5) == once(5)
    assert len({once(seed) for seed in range(4)}) > 1


# -- which run -----------------------------------------------------------------------------------


def banner(ask, monkeypatch, *arguments, **where):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, _, err = ask(*arguments, **where)
    assert code == 0
    return err.splitlines()[-1]


def test_the_newest_finished_run_is_opened_at_its_best_weights(ask, monkeypatch):
    assert banner(ask, monkeypatch) == (
        "town · 12,345 parameters (6,789 active) · validation loss 1.2500 (floor 1.0000, excess "
        "0.2500) · best weights, step 1 · /help"
    )


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("", 1),
        ("/best", 1),
        ("/checkpoints", 2),
        ("/best/step-00000001", 1),
        ("/checkpoints/step-00000002", 2),
    ],
)
def test_a_checkpoint_is_named_by_any_of_its_folders(ask, monkeypatch, outputs, path, step):
    for flag in (["--checkpoint"], []):
        line = banner(ask, monkeypatch, *flag, f"{outputs}/runs/plain{path}")
        assert line.startswith("plain · ")
        assert f"weights, step {step} ·" in line
        assert ("best weights" in line) == (step == 1)
    assert banner(ask, monkeypatch, "lain") == banner(ask, monkeypatch, "plain")


def test_a_checkpoint_is_found_from_inside_its_folder(ask, monkeypatch, outputs):
    monkeypatch.chdir(outputs / "runs/plain/checkpoints")
    line = banner(ask, monkeypatch, "--checkpoint", "step-00000002")
    assert line.startswith("plain · ")


def test_unfinished_runs_are_left_alone_unless_named(ask, monkeypatch, outputs, tmp_path):
    shutil.copytree(outputs / "runs/plain", tmp_path / "runs/plain")
    (tmp_path / "runs/broken").mkdir()
    (tmp_path / "runs/broken/run.json").write_text("{")
    assert banner(ask, monkeypatch, where=tmp_path).startswith("plain · ")
    file = tmp_path / "runs/plain/run.json"
    file.write_text(file.read_text().replace("finished", "interrupted"))
    code, _, err = ask(where=tmp_path)
    assert code == 2
    assert err.splitlines()[-1] == (
        f"llm.chat: there is no finished run in {tmp_path}/runs (1 unfinished; name one to open "
        f"it); {invocation('llm.train')} makes one"
    )
    line = banner(ask, monkeypatch, "--checkpoint", str(tmp_path / "runs/plain"))
    assert line.startswith("plain · ")


def test_without_any_run_the_remedy_is_named(ask, tmp_path):
    code, out, err = ask(where=tmp_path)
    assert (code, out) == (2, "")
    line = invocation("llm.train")
    assert err == f"llm.chat: there is no finished run in {tmp_path}/runs; {line} makes one\n"


def test_chat_works_after_the_text_is_gone(ask, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Some words.")
    run = make_run(tmp_path, "mine", Bytes(), "data=custom", f"data.path={text}", "moe=dense")
    text.unlink()
    code, out, err = ask("--checkpoint", str(run), "--prompt", "So", "--max-tokens", "3")
    assert (code, err) == (0, "")
    assert out.startswith("So")


def test_unknown_characters_are_noted(ask, tmp_path):
    chars = Chars()
    chars.fit(["abc def"], None)
    make_run(tmp_path, "chars", chars, "data=pydoc", "moe=dense")
    code, _, err = ask("--prompt", "aé漢", "--max-tokens", "3", where=tmp_path)
    assert code == 0
    assert err == "(the model's vocabulary lacks é 漢, which it reads as “unknown”)\n"


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--promt", "x"], "there is no flag --promt; did you mean --prompt?"),
        (["--max_tokens=5"], "there is no flag --max_tokens; did you mean --max-tokens?"),
        (["--temprature", "1"], "did you mean --temperature?"),
        (["--check", "x"], "did you mean --checkpoint?"),
        (["--zzz"], "--help lists the flags"),
        (["model=tiny"], "there is no run model=tiny in "),
        (["Tell me a story."], "a prompt is given as --prompt"),
        (["plain", "town"], "'town' stands alone; a prompt is given as --prompt"),
        (["plain", "--checkpoint", "town"], "name one run"),
        (["--prompt"], "--prompt: expected one argument"),
        (["--temperature", "0.05"], "--temperature: must be a number from 0.1 to 2.0"),
        (["--temperature", "2.5"], "--temperature: must be a number from 0.1 to 2.0"),
        (["--temperature", "nan"], "--temperature: must be a number from 0.1 to 2.0"),
        (["--temperature", "warm"], "not 'warm'"),
        (["--top-k", "0"], "--top-k: must be a whole number from 1 on"),
        (["--max-tokens", "0"], "--max-tokens: must be a whole number from 1 on"),
        (["--max-tokens", "1e3"], "--max-tokens: must be a whole number from 1 on"),
        (["--seed", "-1"], "--seed: "),
        (["--checkpoint", "/nowhere"], "/nowhere is no run directory and no checkpoint of one"),
    ],
)
def test_a_mistake_is_one_line(ask, typed, said):
    code, out, err = ask(*typed)
    assert (code, out) == (2, "")
    assert err.startswith("llm.chat: ")
    assert len(err.splitlines()) == 1
    assert said in err


@pytest.mark.parametrize("group", ["data", "model", "moe"])
def test_code_from_elsewhere_runs_only_where_it_is_named(
    ask, outputs, tmp_path, monkeypatch, group
):
    (tmp_path / "strangers.py").write_text("raise SystemExit('executed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "runs/plain"
    shutil.copytree(outputs / "runs/plain", run)
    config = OmegaConf.load(run / "config.yaml")
    config[group]._target_ = "strangers.Thing"
    config.plugins = ["strangers"]  # what a file says of trust does not count
    OmegaConf.save(config, run / "config.yaml")
    code, _, err = ask("--checkpoint", str(run), "--prompt", "x")
    assert code == 2
    assert err == (
        "llm.chat: _target_: strangers.Thing lies outside llm; if you trust it, "
        "add --plugins strangers\n"
    )
    with pytest.raises(SystemExit, match="executed"):
        chat._open(chat._flags().read(["--checkpoint", str(run), "--plugins", "strangers"], ""))


def test_a_plugin_may_bring_the_corpus(ask, outputs, tmp_path, monkeypatch):
    (tmp_path / "ours.py").write_text(
        "from llm.data.corpus import Dialogue\n"
        "class Talk:\n"
        "    pieces = None\n"
        "    dialogue = Dialogue('<', '>', '!')\n"
        "    def __init__(self, *, depth: int): ...\n"
        "    def describe(self): return {}\n"
        "    def documents(self): return iter(())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "runs/plain"
    shutil.copytree(outputs / "runs/plain", run)
    config = OmegaConf.load(run / "config.yaml")
    config.data = {"_target_": "ours.Talk", "depth": 1}
    OmegaConf.save(config, run / "config.yaml")
    arguments = ["--checkpoint", str(run), "--plugins", "ours", "--max-tokens", "3"]
    code, out, _ = ask(*arguments, "--prompt", "Once upon a time")
    assert code == 0
    assert "Once" not in out  # everything is a question where nothing says otherwise


def test_a_damaged_checkpoint_is_one_line(ask, outputs, tmp_path):
    run = tmp_path / "runs/plain"
    shutil.copytree(outputs / "runs/plain", run)
    shutil.rmtree(run / "best")
    file = run / "checkpoints/step-00000002/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    code, _, err = ask("--checkpoint", str(run), "--prompt", "x")
    assert code in (1, 2)
    assert len(err.splitlines()) == 1
    assert "damaged" in err


@pytest.mark.parametrize("file", ["config.yaml", "vocabulary.json"])
def test_a_run_without_one_of_its_files_is_one_line(ask, outputs, tmp_path, file):
    run = tmp_path / "runs/plain"
    shutil.copytree(outputs / "runs/plain", run)
    (run / file).unlink()
    code, _, err = ask("--checkpoint", str(run), "--prompt", "x")
    assert code in (1, 2)
    assert len(err.splitlines()) == 1
    assert file in err


# -- the real command ----------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "llm.chat"]


def test_help_imports_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "llm.chat", "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "--max-tokens N" in done.stdout
    assert not re.search(r"\| +(torch|numpy|omegaconf|hydra)\b", done.stderr)


def test_a_script_drives_it_through_a_pipe(outputs):
    lines = ["/temp 0.5", "/temp 5", "What is 3 plus 4?", "/chek", "/reset", "Hello!", "quit", "x"]
    done = subprocess.run(
        [*COMMAND, "--outputs", str(outputs), "--max-tokens", "5", "--seed", "1"],
        input="\n".join(lines).encode() + b"\n\xff\n",
        capture_output=True,
        timeout=300,
    )
    out = done.stdout.decode().splitlines()
    assert done.returncode == 0, done.stderr
    assert out[0] == "temperature: 0.5"
    assert out[1].startswith("temperature must be a number from 0.1 to 2.0")
    assert "there is no /chek; did you mean /check?" in out
    assert "forgotten: the conversation begins anew" in out
    assert b"you>" not in done.stdout
    assert b"\x1b" not in done.stdout + done.stderr
    assert done.stderr.startswith(b"town \xc2\xb7 ")


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, *arguments: str):
        environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        self.pid, self._own = pty.fork()  # its child is exec'ed at once
        if self.pid == 0:
            os.execve(COMMAND[0], [*COMMAND, *arguments], {**environment, "TERM": "xterm"})
        self.screen = ""
        self.exit_status: int | None = None

    def wait_for(self, text: str, timeout=300) -> str:
        """What came since the last call, up to and with `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.screen:
            ready, _, _ = select.select([self._own], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {text!r} on the screen: {self.screen!r}"
            try:
                self.screen += os.read(self._own, 65536).decode(errors="replace")
            except OSError:
                self.screen += "<closed>"
                assert text in self.screen, self.screen
        seen, _, self.screen = self.screen.partition(text)
        return seen + text

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def close(self) -> None:
        os.close(self._own)  # hangs up
        if self.exit_status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def exit_code_after(self, text: str) -> int:
        """Types `text`, and again where readline missed the signal, starting just then."""
        for tenth in range(300):
            with contextlib.suppress(OSError):  # Linux: the other side is closed
                if tenth % 60 == 0:
                    self.type(text)
                if select.select([self._own], [], [], 0)[0]:
                    os.read(self._own, 65536)  # lest it wait for somebody who reads
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_status = os.waitstatus_to_exitcode(status)
                return self.exit_status
            time.sleep(0.1)
        raise AssertionError("it does not leave")


@pytest.fixture
def terminal(outputs):
    opened = Terminal("--checkpoint", f"{outputs}/runs/plain", "--max-tokens", "5", "--seed", "1")
    yield opened
    opened.close()


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.slow  # presses Ctrl-C in the middle of an answer: a matter of timing
def test_at_a_terminal(terminal):
    """Prompt, colours, Ctrl-C in an answer and at the prompt."""
    terminal.wait_for("/help")
    terminal.wait_for("you> ")
    terminal.type("/confidence\n")
    terminal.wait_for("100%")
    terminal.wait_for("you> ")
    terminal.type("Once\n")
    assert "\033[38;5;" in terminal.wait_for("you> ")
    terminal.type("/tokens 1000000\n")
    terminal.wait_for("you> ")
    for _ in range(20):
        terminal.type("Once\n")
        terminal.wait_for("\033[38;5;")
        terminal.type("\x03")
        if "(stopped)" in terminal.wait_for("you> "):
            break
    else:
        pytest.fail("no answer could be stopped")
    assert terminal.exit_code_after("\x03") == 0


def test_ctrl_c_during_one_answer_is_130(outputs, monkeypatch, capsys):
    def interrupt(*arguments, **settings):
        yield 5, 1.0
        raise KeyboardInterrupt

    monkeypatch.setattr("llm.generate.conversation.stream", interrupt)
    assert chat.main(["--outputs", str(outputs), "--prompt", "Hello!"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_the_defaults_are_those_of_the_readme():
    flags = chat._flags().read([], "")
    assert (flags.max_tokens, flags.temperature, flags.top_k) == (100, 0.8, 50)
