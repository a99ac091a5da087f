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
from zipfile import BadZipFile

import numpy as np
import torch
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
#: What reading a file raises that a power cut has torn.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, BadZipFile)


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
        folder: the run directory, None to keep nothing (all processes of a job but the first)
        exam: whose rows are examined
        step: where the run begins or goes on
        say: prints a line for people
    """

    def __init__(
        self,
        folder: Path | None,
        exam: Examination,
        tokenizer: Tokenizer,
        step: int,
        say: Callable[[str], None],
    ):
        self.folder, self.say = None if folder is None else folder / FOLDER, say
        counted_RT = exam.rows.targets_RT != IGNORED
        rows = int(np.searchsorted(counted_RT.sum(1).cumsum(), LIMIT)) + 1
        self._counted_RT = counted_RT[:rows]
        read_M = exam.rows.tokens_RT[:rows][self._counted_RT]
        class_V = token_classes(tokenizer, np.unique(read_M))
        self.groupings = [Grouping("token", CLASSES, class_V[read_M])]
        if exam.skills_RT is not None and exam.skill_names:
            skill_M = exam.skills_RT[:rows][self._counted_RT]
            self.groupings.insert(0, Grouping("skill", list(exam.skill_names), skill_M))
        self._chosen: Tensor | None = None  # (L, R, T, K) int32: 1 + expert, 0 where none is known
        self._sums: dict[str, Tensor] = {}  # over the tokens watched
        self._before: np.ndarray | None = None  # choices (L, M, K) of the evaluation before
        self.go_back(step)

    def go_back(self, step: int) -> None:
        """Forget the evaluations behind `step`, and go on from the last one that is left."""
        self._before, self._chosen, self._sums = None, None, {}
        for file in sorted(self.folder.glob("step-*.npz")) if self.folder else []:
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
        chosen_LNK = router.get("experts_NK")
        if chosen_LNK is not None:
            layers, _, k = chosen_LNK.shape
            if self._chosen is None:
                self._chosen = torch.zeros(layers, rows, length, k, dtype=torch.int32)
            here_LRTK = (chosen_LNK + 1).int().cpu().view(layers, -1, length, k)
            last = min(part.start + here_LRTK.shape[1], rows)
            self._chosen[:, part.start : last] = here_LRTK[:, : max(last - part.start, 0)]
        tokens = (part.stop - part.start) * length
        figures = {name: value.float() for name, value in router.items() if name != "experts_NK"}
        figures["tokens"] = torch.ones_like(figures["load_E"][0, 0])
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + tokens * value

    def report(
        self, step: int, title: str, add_up: Callable[[Tensor], Tensor] = lambda own: own
    ) -> dict[str, Any]:
        """Metrics `moe/…` of the examination that was watched, {} without experts.

        Their number depends neither on layers nor on experts: scalars over all layers, one list
        over layers for each figure under `moe/layers/`, and `moe/load`, layers × experts. Writes
        the file and the picture; a disk that refuses costs these and no more.

        Args:
            title: what the picture is called
            add_up: sums a tensor over the processes that shared the examination, if there are any
        """
        if not self._sums:
            return {}
        sums = {name: add_up(value) for name, value in self._sums.items()}
        tokens = sums.pop("tokens")
        means = {name: (value / tokens).cpu().numpy() for name, value in sums.items()}
        chosen_LRTK = (
            None if self._chosen is None else add_up(self._chosen.to(tokens.device)).cpu().numpy()
        )
        self._chosen, self._sums = None, {}
        load_LE = means.pop("load_E").astype(np.float64)
        layers = {name: mean for name, mean in means.items() if mean.ndim == 1}
        file: dict[str, Any] = {"step": step, "title": title}
        if chosen_LRTK is not None:
            choices_LMK = chosen_LRTK[:, self._counted_RT] - 1
            taken = self._by_group(choices_LMK, load_LE.shape[1])
            for by, (names, taken_LGE) in taken.items():
                layers[f"bits_{by}"] = information(taken_LGE)
                file |= {f"{by}_names": np.array(names), f"{by}_LGE": taken_LGE}
            taken_LE = taken["token"][1].sum(1)
            load_LE = taken_LE / np.maximum(taken_LE.sum(1, keepdims=True), 1)
            if self._before is not None and self._before.shape == choices_LMK.shape:
                first_L, all_L = agreement(self._before, choices_LMK)
                layers |= {"agreement": all_L, "agreement_first": first_L}
            self._before = choices_LMK
            file["choices_LMK"] = _compact(choices_LMK, load_LE.shape[1])
        layers["max_violation"] = max_violation(load_LE)
        layers["effective_experts"] = effective_experts(load_LE)
        layers["unused"] = (load_LE == 0).sum(1)
        file |= {"load_LE": load_LE, **{f"layers_{name}": v for name, v in layers.items()}}
        self._write(step, file)
        return {
            **{f"moe/val/{name}": float(values.mean()) for name, values in layers.items()},
            "moe/val/unused": int(layers["unused"].sum()),
            "moe/val/max_violation_worst": float(layers["max_violation"].max()),
            "moe/val/effective_experts_worst": float(layers["effective_experts"].min()),
            **{f"moe/layers/{name}": values.tolist() for name, values in layers.items()},
            "moe/load": load_LE.tolist(),
            "moe/picture": f"{FOLDER}/{_name(step)}.png",
        }

    def _by_group(
        self, choices_LMK: np.ndarray, experts: int
    ) -> dict[str, tuple[list[str], np.ndarray]]:
        """Who takes what, by each criterion: names of the groups that occur, and (L, G, E)."""
        taken = {}
        for grouping in self.groupings:
            there, group_M = np.unique(grouping.group_M, return_inverse=True)
            names = [grouping.names[i] for i in there]
            taken[grouping.title] = names, taken_by(choices_LMK, group_M, len(names), experts)
        return taken

    def _write(self, step: int, file: dict[str, Any]) -> None:
        if self.folder is None:
            return
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
    try:
        with np.load(files[-1]) as archive:
            seen = {name: archive[name] for name in archive.files if name != "choices_LMK"}
    except _DAMAGED:
        return []
    load_LE, agreed_L = seen["load_LE"], seen.get("layers_agreement")
    told_apart = next((title for title in ("skill", "token") if f"{title}_LGE" in seen), None)
    n_layers, n_experts = load_LE.shape
    shown = sorted({round(i) for i in np.linspace(0, n_layers - 1, min(n_layers, most))})
    lines = ["experts          load of each, and the kind of token that tells it apart most"]
    for layer in shown:
        relative_E = load_LE[layer] * n_experts
        bar = "".join("▁▂▃▄▅▆▇█"[min(int(4 * value), 7)] for value in relative_E[:width])
        parts = [f"busiest {relative_E.max():.2f}×"]
        if agreed_L is not None:
            parts.append(f"{agreed_L[layer]:4.0%} as before")
        if told_apart:
            names, taken_LGE = seen[f"{told_apart}_names"], seen[f"{told_apart}_LGE"]
            gain_GE = terms(taken_LGE[layer : layer + 1])[0]
            group, expert = np.unravel_index(gain_GE.argmax(), gain_GE.shape)
            share = taken_LGE[layer, group, expert] / taken_LGE[layer, group].sum()
            parts.append(f"expert {expert} gets {share:.0%} of {names[group]}")
        lines.append(
            f"  layer {layer:<2} {bar}{'…' if n_experts > width else ''}  {', '.join(parts)}"
        )
    picture = files[-1].with_suffix(".png")
    return [*lines, f"  in a picture   {picture}"] if picture.exists() else lines


def _compact(choices: np.ndarray, experts: int) -> np.ndarray:
    """One byte a choice where that is enough; −1 becomes the largest number of the type."""
    return choices.astype(np.uint8 if experts < 255 else np.uint16)


def _choices(file: Path) -> np.ndarray | None:
    try:
        with np.load(file) as seen:
            if "choices_LMK" not in seen:
                return None
            stored = seen["choices_LMK"]
    except _DAMAGED:
        return None
    choices = stored.astype(np.int16)
    choices[stored == np.iinfo(stored.dtype).max] = -1
    return choices


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))
