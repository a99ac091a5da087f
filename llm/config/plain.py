"""One line for what Hydra, OmegaConf and YAML refuse, without their advice to type `+`."""

import re

import yaml
from hydra.conf import HydraConf
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm.config.choices import Choices, yaml_problem
from llm.config.environment import installation
from llm.config.suggest import did_you_mean

#: What the composition of a config raises when it is the user's mistake.
MISTAKES = (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError)
#: Options that come with packages of their own, and which extra of pyproject.toml these are.
_PLUGINS = {
    "hydra/sweeper=optuna": "search",
    "hydra/launcher=joblib": "joblib",
    "hydra/launcher=submitit_local": "slurm",
    "hydra/launcher=submitit_slurm": "slurm",
}


def one_line(error: Exception, choices: Choices) -> str:
    """What is wrong, with the nearest valid name where there is one."""
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        return yaml_problem(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        known = choices.groups.get(group) or [name for g, name in choices.files if g == group]
        options = error.options or known
        wanted = f"{group}={name}" if group else f"--config-name {name}"
        if f"{group}={name}" in _PLUGINS:
            return f"{wanted}: is a plugin of Hydra's; {installation(_PLUGINS[wanted])}"
        return f"{wanted}: there is no such config{did_you_mean(name, options)}"
    key = re.search(r"Could not override '(hydra\.[^']+)'", str(error))
    if isinstance(error, ConfigCompositionException) and key:
        parent = OmegaConf.select(
            OmegaConf.structured({"hydra": HydraConf}), key[1].rpartition(".")[0]
        )
        known = [f"{key[1].rpartition('.')[0]}.{name}" for name in parent or []]
        known = known or [f"hydra.{name}" for name in OmegaConf.structured(HydraConf)]
        return f"{key[1]}: no such key of Hydra's{did_you_mean(key[1], known)}"
    key = re.search(r"Could not delete from config. '([^']+)' does not exist", str(error))
    if key:
        return f"~{key[1]}: there is nothing to leave out{did_you_mean(key[1], choices.keys)}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    what = lines[0] if lines else type(error).__name__
    place = getattr(cause, "full_key", None)
    where = f"{place}: " if place and place not in what else ""
    unknown = re.search(r"[Ii]nterpolation key '([^']+)' not found", what)
    return where + what + (did_you_mean(unknown[1], choices.keys) if unknown else "")
