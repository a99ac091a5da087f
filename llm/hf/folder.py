"""A folder with somebody's checkpoint: read with suspicion, executing nothing.

config.json                    what the model is
model.safetensors              its weights, or
model.safetensors.index.json   which of several files holds which tensor
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from llm.config.errors import Refused

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
#: Before the checksum of a tensor, in the header of a file that we wrote.
_SUM = "sha256:"
_CONVERT = (
    "is a pickle, which can execute anything, and is not opened; whoever trusts it converts it "
    "with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; Refused where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} is no JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(value, dict):
        raise Refused(f"{path} holds no JSON object")
    return value


class Weights:
    """The tensors of a folder: names and shapes at once, contents when asked for.

    Use as a context manager. Raises Refused, naming the file: pickles, files that are torn or no
    safetensors, shards that are missing, types that are no floating-point numbers.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = _files(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._open: dict[str, Any] = {}
        self._file: dict[str, Path] = {}
        self._sums: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Weights":
        for file, listed in self.files.items():
            try:
                opened = self._stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise Refused(_why_not_opened(file, error)) from None
            names = list(opened.keys())
            for name in listed or ():
                if name not in names:
                    raise Refused(f"{file} lacks the tensor {name} that {INDEX} says it holds")
            for name in names:
                if name in self._file:
                    raise Refused(f"{name} is in two files: {self._file[name]} and {file}")
                part = opened.get_slice(name)
                if part.get_dtype() not in _FLOATS:
                    kind = part.get_dtype()
                    raise Refused(f"{file}: {name} has the type {kind}; read are {_FLOATS}")
                self.shapes[name] = tuple(part.get_shape())
                self._open[name], self._file[name] = opened, file
            metadata = opened.metadata() or {}
            self._sums |= {
                key.removeprefix(_SUM): value
                for key, value in metadata.items()
                if key.startswith(_SUM)
            }
        return self

    def __exit__(self, *problem: Any) -> None:
        self._stack.__exit__(*problem)

    def __getitem__(self, name: str) -> Tensor:
        """One tensor; Refused where its numbers are damaged as far as that can be known."""
        where = f"{self._file[name]}: {name}"
        try:
            tensor: Tensor = self._open[name].get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise Refused(f"{where} cannot be read: {str(error).splitlines()[0]}") from None
        known = self._sums.get(name)
        if known is not None and known != checksum(tensor):
            raise Refused(f"{where} is damaged: it does not match its checksum; copy it again")
        if not bool(torch.isfinite(tensor).all()):
            raise Refused(f"{where} is damaged: it holds numbers that are not finite")
        return tensor


def _files(folder: Path) -> dict[Path, list[str] | None]:
    """The safetensors files of a folder, with the tensors that an index says each holds."""
    if not folder.is_dir():
        raise Refused(f"{folder} is no folder")
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: None}
    if not (folder / INDEX).is_file():
        pickles = sorted(f for f in folder.iterdir() if f.suffix in (".bin", ".pt", ".pth"))
        if pickles:
            raise Refused(f"{pickles[0]} {_CONVERT}")
        raise Refused(f"{folder} has no {WEIGHTS}")
    listed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise Refused(f"{folder / INDEX} has no weight_map")
    files: dict[Path, list[str] | None] = {}
    for name, file in listed.items():
        beside = isinstance(file, str) and Path(file).name == file
        if not beside or not file.endswith(".safetensors"):
            raise Refused(f"{folder / INDEX}: {name}: {file!r} is no safetensors file beside it")
        names = files.setdefault(folder / file, [])
        assert names is not None
        names.append(name)
    for file in files:
        if not file.is_file():
            raise Refused(f"{file} is missing; {INDEX} lists it")
    return files


def _why_not_opened(file: Path, error: Exception) -> str:
    with file.open("rb") as opened:
        start = opened.read(2)
    if start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return f"{file} {_CONVERT}"
    return f"{file} is damaged, or no safetensors file: {str(error).splitlines()[0]}"


def checksum(tensor: Tensor) -> str:
    """SHA-256 of the numbers of a tensor on the CPU."""
    flat = tensor.contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def weights_file(tensors: Iterator[tuple[str, Tensor]]) -> bytes:
    """The content of model.safetensors, with a checksum of each tensor in its header."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors}
    sums = {f"{_SUM}{name}": checksum(tensor) for name, tensor in held.items()}
    return save(held, {"format": "pt", **sums})
