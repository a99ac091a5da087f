"""The Python that runs us: what it lacks, and how a command is typed so that it is found again.

Imports the standard library alone, since outside .venv nothing else is there.
"""

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

#: What modules of ours import at their top. The rest is missed where it is used, and named there.
_AT_THE_TOP = ("filelock", "hydra", "numpy", "omegaconf", "torch")
_ROOT = Path(__file__).resolve().parents[2]
_VENV = _ROOT / ".venv"


def check() -> None:
    """Leave with one line and exit code 2 where this Python cannot run our commands (0.3 ms)."""
    if sys.version_info < (3, 11):  # noqa: UP036
        problem = f"needs Python 3.11 or newer, and {sys.executable} is older; {_remedy()}"
    else:
        missing = [name for name in _AT_THE_TOP if importlib.util.find_spec(name) is None]
        if not missing:
            return
        problem = lacks(*missing)
    typed = sys.orig_argv
    print(f"{typed[typed.index('-m') + 1]}: {problem}", file=sys.stderr)
    sys.exit(2)


def lacks(*modules: str) -> str:
    """One line on modules that this Python has not, and the remedy."""
    return f"{sys.executable or 'this Python'} lacks {', '.join(modules)}{_remedy()}"


def _remedy() -> str:
    make = "make" if Path.cwd() == _ROOT else f"make -C {shlex.quote(_from_here(_ROOT))}"
    activate = f"`source {shlex.quote(_from_here(_VENV / 'bin' / 'activate'))}`"
    if not (_ROOT / "Makefile").exists():
        return "; install it with pip"
    if not (_VENV / "bin" / "python").exists():
        return f": My Simple LLM's environment is not made yet; run `{make} env`, then {activate}"
    if Path(sys.prefix).resolve() != _VENV:
        return f": My Simple LLM's environment is not active; run {activate}"
    return f"; `{make} -B env` installs again what My Simple LLM needs, pip anything else"


def invocation(module: str, *arguments: str, outputs: Path | None = None) -> str:
    """The line that runs `module` in this Python, as it can be typed in this folder.

    Args:
        outputs: the folder that holds runs/, where the command has to be told if it is another one
            than usual
    """
    found, python = shutil.which("python"), Path(sys.executable or "python")
    if found is not None and Path(found).absolute().parent == python.parent:
        python = Path("python")
    usual = outputs is None or outputs.absolute() == Path("outputs").absolute()
    where = [] if usual else [f"--outputs={outputs}"]
    return shlex.join([_from_here(python), "-m", module, *arguments, *where])


def installation(extra: str) -> str:
    """The line that installs the packages of an optional feature, an extra of pyproject.toml."""
    return invocation("pip", "install", "-e", f"{_from_here(_ROOT)}[{extra}]")


def _from_here(path: Path) -> str:
    return min(os.path.relpath(path), str(path), key=len) if path.is_absolute() else str(path)
