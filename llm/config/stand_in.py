"""A stand-in for PyTorch that knows shapes only: enough to make a model's constructors run.

`llm.plan` reads the schema of a config from signatures and counts parameters by building models,
with the very classes that training uses, in a process that never imports PyTorch: three seconds
saved, and no second account of what a model consists of. Tensors are shapes; what is computed with
them is unknown, and an unknown that is needed (a parameter of unknown shape) raises Unknown, after
which PyTorch itself has to be asked.

Only for a process that does nothing but plan: the modules of `llm` that were imported with it
cannot train.
"""

import importlib
import importlib.abc
import importlib.machinery
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class Unknown(Exception):
    """Something about a tensor is asked that a shape does not tell."""


class _Anything(type):
    """A class of which every attribute exists: `Tensor | None`, `torch.cuda.is_available`."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _named(name)

    def __getitem__(cls, item: Any) -> Any:
        return cls


def _named(name: str) -> Any:
    return _Anything(name, (_Thing,), {})


class _Thing(metaclass=_Anything):
    """What a call or a computation gives: anything at all, until its value is needed."""

    def __init__(self, *arguments: Any, **options: Any):
        self.first = arguments[0] if arguments else None

    def __init_subclass__(cls, **options: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        # A decorator with arguments gives back what it decorates.
        if len(arguments) == 1 and not options and callable(arguments[0]):
            return arguments[0]
        return _Thing()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Thing()

    def __enter__(self) -> "_Thing":
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        raise Unknown("a computed tensor has no known length")

    def __bool__(self) -> bool:
        raise Unknown("a computed tensor has no known value")

    def _computed(self, *others: Any) -> "_Thing":
        return _Thing()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _computed
    __truediv__ = __rtruediv__ = __floordiv__ = __pow__ = __rpow__ = __neg__ = _computed
    __matmul__ = __getitem__ = __lt__ = __le__ = __gt__ = __ge__ = __and__ = __invert__ = _computed


class Tensor(_Thing):
    """A shape. In-place filling gives the tensor back; everything else is unknown."""

    def __init__(self, shape: Sequence[int] | None = None, *arguments: Any, **options: Any):
        self.shape = tuple(shape) if isinstance(shape, Sequence) else None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.endswith("_") or name in ("to", "float", "detach", "contiguous", "clone"):
            return lambda *arguments, **options: self
        return _Thing()

    def __setitem__(self, index: Any, value: Any) -> None:
        pass

    def numel(self) -> int:
        if self.shape is None:
            raise Unknown("a parameter of unknown shape")
        return math.prod(self.shape)


class Parameter(Tensor):
    """A tensor that a module counts among its own."""

    def __init__(self, data: Any = None, requires_grad: bool = True):
        super().__init__(getattr(data, "shape", None))


class Module:
    """Finds its parameters in its attributes, in the order in which they were set."""

    def __init__(self, *arguments: Any, **options: Any):
        pass

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        object.__setattr__(self, name, tensor)

    def register_parameter(self, name: str, parameter: Any) -> None:
        setattr(self, name, parameter)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Each once, however often it is used."""
        seen: set[int] = set()
        for part in self.modules():
            for value in list(vars(part).values()):
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield value

    def modules(self) -> Iterator["Module"]:
        seen: set[int] = set()
        waiting: list[Any] = [self]
        while waiting:
            part = waiting.pop(0)
            if isinstance(part, Module) and id(part) not in seen:
                seen.add(id(part))
                yield part
                waiting += list(vars(part).values())
            elif isinstance(part, (list, tuple)):
                waiting += part
            elif isinstance(part, dict):
                waiting += part.values()

    def apply(self, function: Any) -> "Module":
        for part in self.modules():
            function(part)
        return self

    def to(self, *arguments: Any, **options: Any) -> "Module":
        return self

    eval = train = requires_grad_ = cpu = to


class ModuleList(Module):
    def __init__(self, modules: Any = ()):
        self.parts = list(modules)

    def append(self, module: Any) -> "ModuleList":
        self.parts.append(module)
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Any:
        return self.parts[index]


class ModuleDict(ModuleList):
    def __init__(self, modules: Any = None):
        super().__init__((modules or {}).values())


def _shaped(*shape: Any, **options: Any) -> Tensor:
    """`torch.empty(2, 3)`, `torch.empty((2, 3))`, `torch.full((2, 3), 1.0)`."""
    if shape and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    return Tensor(shape)


def _filled(tensor: Any, *arguments: Any, **options: Any) -> Any:
    return tensor


_KNOWN: dict[str, dict[str, Any]] = {
    "torch": {
        "Tensor": Tensor,
        **dict.fromkeys(("empty", "zeros", "ones", "rand", "randn", "full"), _shaped),
        "no_grad": _Thing,
        "__version__": "0",
    },
    "torch.nn": {
        "Module": Module,
        "Parameter": Parameter,
        "ModuleList": ModuleList,
        "Sequential": lambda *parts: ModuleList(parts),
        "ModuleDict": ModuleDict,
        "Dropout": type("Dropout", (Module,), {}),
        "Identity": type("Identity", (Module,), {}),
    },
    "torch.nn.parameter": {"Parameter": Parameter},
}


class _Stand(ModuleType):
    """A module in which every name is defined."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.__name__ == "torch.nn.init":
            return _filled
        if name in ("nn", "init"):
            return importlib.import_module(f"{self.__name__}.{name}")
        return _named(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in ("torch", "safetensors"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        module = _Stand(spec.name)
        vars(module).update(_KNOWN.get(spec.name, {}))
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def install() -> None:
    """From here on `import torch` in this process gives the stand-in."""
    if "torch" in sys.modules:
        raise RuntimeError("PyTorch is imported already")
    sys.meta_path.insert(0, _Finder())


@contextmanager
def installed() -> Iterator[None]:
    """Within, a stand-in; afterwards this process is as it was (for tests)."""
    names = ("torch", "safetensors", "llm")
    kept = {n: m for n, m in sys.modules.items() if n.split(".")[0] in names}
    for name in kept:
        del sys.modules[name]
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if n.split(".")[0] in names]:
            del sys.modules[name]
        sys.modules.update(kept)
