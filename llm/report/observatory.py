"""What each expert of a run was given at each evaluation: figures, a file and a picture.

    RUN/routing/step-00000200.npz   loads, who takes what, and the choices themselves
    RUN/routing/step-00000200.png   the same to look at

L layers with experts, E experts, M examined tokens, K experts a token, G groups of tokens
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from llm.data.batches import IGNORED
from llm.evaluate import Examination
from llm.moe.alarm import effective_experts
from llm.moe.observatory import agreement, information, max_violation, taken_by, terms
from llm.tokenizer.base import Tokenizer
from llm.tokenizer.classes import CLASSES, token_classes
from llm.tracking.heatmap import draw_routing

#: So many validation tokens at most: enough for a standard error of 0.4% of any share.
LIMIT = 2**14
FOLDER = "routing"


@dataclass(frozen=True)
class Grouping:
    """The examined tokens by one criterion."""

    title: str
    names: list[str]
    group_M: np.ndarray


class Observatory:
    """Watches the examinations of a run; costs nothing in a training step.

    A token is counted under the class of what the expert reads (the input token) and, where the
    corpus tags its targets, under the skill that predicting the next one needs. Only positions
    whose target counts are looked at, the first `LIMIT` of them: the same at every evaluation.

    Args:
        folder: the run directory; what lies there of steps behind `step` is deleted
        exam: whose rows are examined
        step: where the run begins or goes on
        say: prints a line for people
    """

    def __init__(
        self,
        folder: Path,
        exam: Examination,
        tokenizer: Tokenizer,
        step: int,
        say: Callable[[str], None],
    ):
        self.folder, self.say = folder / FOLDER, say
        counted_RT = exam.rows.targets_RT != IGNORED
        self._rows = int(np.searchsorted(counted_RT.sum(1).cumsum(), LIMIT)) + 1
        self._counted_RT = counted_RT[: self._rows]
        read_M = exam.rows.tokens_RT[: self._rows][self._counted_RT]
        class_V = token_classes(tokenizer, np.unique(read_M))
        self.groupings = [Grouping("token", CLASSES, class_V[read_M])]
        if exam.skills_RT is not None and exam.skill_names:
            skill_M = exam.skills_RT[: self._rows][self._counted_RT]
            self.groupings.insert(0, Grouping("skill", list(exam.skill_names), skill_M))
        self._choices: np.ndarray | None = None  # (L, R, T, K), −1 where not yet seen
        self._sums: dict[str, Tensor] = {}
        self._tokens = 0
        self._before: np.ndarray | None = None
        for file in sorted(self.folder.glob("step-*.npz")):
            if _step(file) > step:
                file.unlink()
                file.with_suffix(".png").unlink(missing_ok=True)
            else:
                self._before = _choices(file)

    def watch(self, part: slice, router: dict[str, Tensor]) -> None:
        """Take what the routers did with some rows of the examination (`examine` calls this)."""
        if "load_E" not in router:
            return
        rows, length = self._counted_RT.shape
        last = min(part.stop, rows)
        chosen_LNK = router.get("experts_NK")
        if chosen_LNK is not None and part.start < last:
            if self._choices is None:
                shape = (len(chosen_LNK), rows, length, chosen_LNK.shape[2])
                self._choices = np.full(shape, -1, np.int16)
            here_LRTK = chosen_LNK.short().cpu().numpy().reshape(len(chosen_LNK), -1, length, self.k)
            self._choices[:, part.start : last] = here_LRTK[:, : last - part.start]
        tokens = (part.stop - part.start) * length
        for name, value in router.items():
            if name != "experts_NK":
                self._sums[name] = self._sums.get(name, 0.0) + tokens * value.detach().float()
        self._tokens += tokens

    @property
    def k(self) -> int:
        return 0 if self._choices is None else self._choices.shape[3]

    def report(self, step: int, title: str) -> dict[str, Any]:
        """Metrics `moe/…` of the examination that was watched, {} without experts.

        Their number depends neither on layers nor on experts: scalars over all layers, one list
        over layers for each figure under `moe/layers/`, and `moe/load`, layers × experts. Writes
        the file and the picture; a disk that refuses costs these and no more.
        """
        if not self._tokens:
            return {}
        means = {name: (t / self._tokens).cpu().numpy() for name, t in self._sums.items()}
        load_LE = means.pop("load_E").astype(np.float64)
        experts = load_LE.shape[1]
        choices_LRTK, self._choices, self._sums, self._tokens = self._choices, None, {}, 0
        layers = {name: mean for name, mean in means.items() if mean.ndim == 1}
        scalars: dict[str, float] = {}
        file: dict[str, Any] = {"step": step, "title": title}
        if choices_LRTK is not None:
            choices_LMK = choices_LRTK[:, self._counted_RT]
            for grouping in self.groupings:
                names, group_M = _present(grouping)
                taken_LGE = taken_by(choices_LMK, group_M, len(names), experts)
                layers[f"bits_{grouping.title}"] = information(taken_LGE)
                scalars[f"moe/bits_{grouping.title}"] = float(information(taken_LGE).mean())
                file[f"{grouping.title}_names"] = np.array(names)
                file[f"{grouping.title}_LGE"] = taken_LGE
            load_LE = taken_LGE.sum(1) / np.maximum(taken_LGE.sum((1, 2), keepdims=False), 1)[:, None]
            if self._before is not None and self._before.shape == choices_LMK.shape:
                layers["agreement_first"], layers["agreement"] = agreement(
                    self._before, choices_LMK
                )
                scalars["moe/agreement"] = float(layers["agreement"].mean())
                scalars["moe/agreement_worst"] = float(layers["agreement"].min())
                scalars["moe/agreement_first"] = float(layers["agreement_first"].mean())
            self._before = choices_LMK
            file["choices_LMK"] = _compact(choices_LMK, experts)
        layers["max_violation"] = max_violation(load_LE)
        layers["effective_experts"] = effective_experts(load_LE)
        layers["unused"] = (load_LE == 0).sum(1)
        scalars |= {
            "moe/max_violation": float(layers["max_violation"].mean()),
            "moe/max_violation_worst": float(layers["max_violation"].max()),
            "moe/effective_experts": float(layers["effective_experts"].mean()),
            "moe/effective_experts_worst": float(layers["effective_experts"].min()),
            "moe/unused": int(layers["unused"].sum()),
        }
        file |= {"load_LE": load_LE, **{f"layers_{name}": v for name, v in layers.items()}}
        self._write(step, file)
        return {
            **scalars,
            **{f"moe/layers/{name}": values.tolist() for name, values in layers.items()},
            "moe/load": load_LE.tolist(),
            "moe/picture": f"{FOLDER}/{_name(step)}.png",
        }

    def _write(self, step: int, file: dict[str, Any]) -> None:
        path = self.folder / f"{_name(step)}.npz"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
        try:
            self.folder.mkdir(exist_ok=True)
            try:
                np.savez_compressed(temporary, **file)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            draw_routing(path)
        except OSError as error:
            self.say(f"what the experts did at step {step} could not be kept: {error}")


def expert_lines(folder: Path, width: int = 64, most: int = 8) -> list[str]:
    """The last evaluation's experts in a few lines of text, [] without experts.

    A character stands for an expert's load, full at twice an even one or more.
    """
    files = sorted((folder / FOLDER).glob("step-*.npz"))
    if not files:
        return []
    with np.load(files[-1]) as seen:
        load_LE = seen["load_LE"]
        titles = [title for title in ("skill", "token") if f"{title}_LGE" in seen]
        taken = {title: (seen[f"{title}_names"], seen[f"{title}_LGE"]) for title in titles}
        agreed_L = seen["layers_agreement"] if "layers_agreement" in seen else None
    n_layers, n_experts = load_LE.shape
    shown = sorted({round(i) for i in np.linspace(0, n_layers - 1, min(n_layers, most))})
    lines = ["experts          load of each, and the kind of token that tells it apart most"]
    for layer in shown:
        relative_E = load_LE[layer] * n_experts
        bar = "".join("▁▂▃▄▅▆▇█"[min(int(4 * value), 7)] for value in relative_E[:width])
        parts = [f"busiest {relative_E.max():.2f}×"]
        if agreed_L is not None:
            parts.append(f"{agreed_L[layer]:4.0%} as before")
        if titles:
            names, taken_LGE = taken[titles[0]]
            gain_GE = terms(taken_LGE[layer : layer + 1])[0]
            group, expert = np.unravel_index(gain_GE.argmax(), gain_GE.shape)
            share = taken_LGE[layer, group, expert] / taken_LGE[layer, group].sum()
            parts.append(f"expert {expert} gets {share:.0%} of {names[group]}")
        lines.append(f"  layer {layer:<2} {bar}{'…' if n_experts > width else ''}  {', '.join(parts)}")
    picture = files[-1].with_suffix(".png")
    return [*lines, f"  in a picture   {picture}"] if picture.exists() else lines


def _present(grouping: Grouping) -> tuple[list[str], np.ndarray]:
    """Only the groups that have a token."""
    there, group_M = np.unique(grouping.group_M, return_inverse=True)
    return [grouping.names[i] for i in there], group_M


def _compact(choices: np.ndarray, experts: int) -> np.ndarray:
    """One byte a choice where that is enough; −1 becomes the largest number of the type."""
    return choices.astype(np.uint8 if experts < 255 else np.uint16)


def _choices(file: Path) -> np.ndarray | None:
    try:
        with np.load(file) as seen:
            if "choices_LMK" not in seen:
                return None
            stored = seen["choices_LMK"]
    except (OSError, ValueError, KeyError, EOFError):
        return None
    choices = stored.astype(np.int16)
    choices[stored == np.iinfo(stored.dtype).max] = -1
    return choices


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))
