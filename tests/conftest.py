"""What every test needs before it starts."""

import gc
import os
import pickle
import shutil
import tempfile
from pathlib import Path

# Before torch is imported: one thread a process, since the suite runs a process a core (two
# threads each on two cores fight), and since sums then do not depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# Where a test has two threads, they do not spin for one another on cores that others use.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# What a machine learns about itself (its speed: two seconds) is learnt once for all tests.
os.environ.setdefault(
    "MY_SIMPLE_LLM_CACHE", os.path.join(tempfile.gettempdir(), "my-simple-llm-tests")
)

import hypothesis
import pytest
import yaml

from tests.parity_table import pytest_runtest_logreport, pytest_terminal_summary  # noqa: F401
from tests.toy import TOY, Ended

# No deadline an example: the suite shares its cores, and a slow moment is no bug.
hypothesis.settings.register_profile("suite", deadline=None, max_examples=50)
hypothesis.settings.load_profile("suite")


_parse = yaml.load
_parsed: dict[tuple, bytes] = {}


def parse_once(stream, Loader):
    """`yaml.load`, once for each text: every command line composes the same thirty files."""
    text = stream if isinstance(stream, str | bytes) else stream.read()
    key = (text, Loader.__qualname__)
    if key not in _parsed:
        if text is not stream:
            stream.seek(0)  # for its name, which stands in messages
        _parsed[key] = pickle.dumps(_parse(stream, Loader))
    return pickle.loads(_parsed[key])


yaml.load = parse_once


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: the garbage collector, a tenth of all time, need not look
    at them again, and need not come so often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none; torch is imported only if something is."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def same_cpu():
    """No CPU multiplies bfloat16 in hardware, so that `auto` is fp32 on every machine.

    Commands that tests start in processes of their own see the real CPU; they name a precision.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm.hardware.limits.has_bf16_products", lambda: False)
        yield


@pytest.fixture(params=[False, True], ids=["fp32-cpu", "bf16-cpu"])
def bf16_products(request, monkeypatch):
    """Runs a test on a CPU without bfloat16 products and on one with them: whether it has them."""
    monkeypatch.setattr("llm.hardware.limits.has_bf16_products", lambda: request.param)
    return request.param


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder as current directory, so that `outputs/` is made there: its path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def toy_text(workplace):
    """text.txt in the workplace: some English, enough for a toy run."""
    words = "the cat sat on the mat and saw a dog who ran to the sea with an old red hat".split()
    text = " ".join(words[(i * i + i // 7) % len(words)] for i in range(600))
    (workplace / "text.txt").write_text(text + "\n")
    return workplace / "text.txt"


@pytest.fixture
def llm_train(request, toy_text, monkeypatch, capsys):
    """`python -m llm.train` on a toy, in this process: call it with overrides."""
    from llm.config.entry import main
    from llm.train import train

    # Pictures take a third of a second each, and have tests of their own.
    if not request.node.get_closest_marker("pictures"):
        monkeypatch.setattr("llm.report.observatory.draw_routing", lambda file: None)
        monkeypatch.setattr("llm.tracking.curve.draw_curve", lambda folder: None)

    def run(*overrides: str) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["llm.train", *TOY, *overrides])
        with pytest.raises(SystemExit) as end:
            main("llm.train", train)
        return Ended(end.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def trained_already() -> dict[tuple[str, ...], tuple[Ended, Path]]:
    """What `trained` has trained: how it ended, and a copy of its `outputs`."""
    return {}


@pytest.fixture
def trained(llm_train, trained_already, tmp_path_factory):
    """A finished toy run of these overrides, as `llm_train` makes it: once, for all who ask."""

    def run(*overrides: str) -> Ended:
        if overrides not in trained_already:
            ended = llm_train(*overrides)
            assert ended.code == 0, ended.err
            kept = tmp_path_factory.mktemp("trained") / "outputs"
            shutil.copytree(ended.folder.parts[0], kept)
            trained_already[overrides] = ended, kept
            return ended
        ended, kept = trained_already[overrides]
        shutil.copytree(kept, ended.folder.parts[0], dirs_exist_ok=True)
        return ended

    return run
