"""Shell completion for `python -m COMMAND`, which Hydra's own knows for files and programs only.

    eval "$(python -m llm.train -sc install=bash)"

Hydra still finds what may follow (`query`); here it gets the line as if COMMAND were a program.
"""

import re

_BASH = """\
_llm_complete() {{
    local words=($COMP_LINE)
    [[ ${{words[1]}} == -m && ${{words[2]}} == {command} ]] || return
    local found=$(COMP_LINE="$COMP_LINE" "${{words[@]:0:3}}" -sc query=bash 2>/dev/null)
    COMPREPLY=($(compgen -o nospace -W "$found" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -o nospace -o default -F _llm_complete python python3
"""


def install_script(command: str) -> str:
    """What bash evaluates: completion for `python -m command`, by any path of that Python."""
    return _BASH.format(command=command)


def as_program(line: str, command: str) -> str:
    """`python -m llm.train model=` as `llm.train model=`."""
    return re.sub(rf"^\s*\S*python\S*\s+-m\s+{re.escape(command)}\b", command, line)


def without_shared(found: str) -> str:
    """What Hydra found, but for files that options share (`model=_shared`), which are none."""
    return re.sub(r"\S+=_\w*[ \t]*", "", found)
