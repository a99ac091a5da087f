"""Where a run computes, and in what precision: decided once, before step 0."""

import os
import warnings
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch

from llm.config.errors import Refused
from llm.config.types import UNRECORDED, PositiveInt
from llm.hardware import limits
from llm.hardware.allocator import keep_freed_memory
from llm.hardware.limits import cores, physical_cores
from llm.hardware.parallel import Scheme
from llm.hardware.parallel import resolve as resolve_scheme
from llm.hardware.world import World

#: What torch.compile takes at first for a block: forward, backward, and again for evaluation. Less
#: where its cache is warm.
COMPILE_SECONDS = 60.0
#: Share of the measured peak that eager steps reach on a GPU, large ones: a typical value.
EAGER_UTILISATION = 0.3
#: And no eager step is shorter: its kernels are launched one by one.
EAGER_STEP_SECONDS = 0.01

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """A device and a precision, all `auto` resolved: what a run's identity holds."""

    device: str  # cpu, cuda or mps
    precision: str  # fp32, bf16 or fp16

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in the run's precision; weights and sums stay float32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device, DTYPES[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16; passes everything through in other precisions."""
        return torch.amp.GradScaler(self.device, enabled=self.precision == "fp16")

    def facts(self) -> dict[str, str]:
        return asdict(self)


class Hardware:
    """The `hardware` node.

    Args:
        device: `auto` takes cuda, then mps, then cpu
        precision: `auto` takes bf16 where the device multiplies it in hardware, fp16 on older
            GPUs, fp32 elsewhere
        threads: of one process. null: what OMP_NUM_THREADS says, else the cores that a container's
            quota and the affinity leave, shared by the processes of this machine. torchrun sets
            OMP_NUM_THREADS=1 for several processes where the user did not; so among several a 1 is
            taken for torchrun's, and `threads=1` asks for it
        parallel: what the processes that torchrun started do with the model: `ddp` has it whole in
            each, `fsdp` a share of every parameter; `auto` is ddp there and none without torchrun.
            Results agree to about 1e-5 in float32, so it is no part of a run's identity
        expert_parallel: over so many processes the experts of each layer are spread, each working
            on the rows of all that chose its own (`llm.moe.exchange`); all other weights are as
            `parallel` says. 1: every process has every expert
        compile: translate the blocks by torch.compile; `auto` does so on CUDA for runs that are
            long enough to get the time back (`worth_compiling`), and not on a CPU, where eager
            steps are as fast (2.69 s against 2.75 s at 6 layers × 384). A resume does the same
        deterministic: on CUDA take only algorithms that add in a fixed order
        recompute: keep only the inputs of blocks for the backward pass and compute the rest again:
            a third more operations, and memory for one block instead of all
        find_batch: the largest micro-batch that fits, with as many micro-steps as give the same
            rows a step; evaluation takes no more rows. Resumes on as many processes keep it
    """

    def __init__(
        self,
        *,
        device: Literal["auto", "cpu", "cuda", "mps"],
        precision: Literal["auto", "fp32", "bf16", "fp16"],
        threads: Annotated[int | None, *PositiveInt.__metadata__, UNRECORDED],
        parallel: Annotated[Literal["auto", "none", "ddp", "fsdp"], UNRECORDED] = "auto",
        expert_parallel: Annotated[int, *PositiveInt.__metadata__, UNRECORDED] = 1,
        compile: Annotated[Literal["auto"] | bool, UNRECORDED] = "auto",
        deterministic: Annotated[bool, UNRECORDED] = False,
        recompute: Annotated[bool, UNRECORDED] = False,
        find_batch: Annotated[bool, UNRECORDED] = False,
    ):
        self.device, self.precision, self.threads = device, precision, threads
        self.parallel, self.compile, self.deterministic = parallel, compile, deterministic
        self.recompute, self.find_batch = recompute, find_batch
        self.expert_parallel = expert_parallel

    def resolve(self, world: World | None = None) -> Machine:
        """Decide. Refused where the device that was asked for is not there."""
        device = self.device if self.device != "auto" else _best_device()
        if device == "cuda" and not torch.cuda.is_available():
            raise Refused("hardware: no CUDA device is visible to PyTorch; take hardware=cpu")
        if device == "mps" and not torch.backends.mps.is_available():
            raise Refused("hardware: no Apple GPU is visible to PyTorch; take hardware=cpu")
        world = world or World()
        if device == "cuda" and world.local_size > torch.cuda.device_count():
            raise Refused(
                f"hardware: {world.local_size} processes, and this machine has "
                f"{torch.cuda.device_count()} GPUs; start as many with torchrun --nproc-per-node"
            )
        if device == "mps" and world.size > 1:
            raise Refused("hardware: an Apple GPU serves one process; leave torchrun out")
        if self.scheme(world) == "fsdp" and self.find_batch:
            raise Refused(
                "does not go with parallel=fsdp: a trial takes the whole model", "find_batch"
            )
        precision = self.precision if self.precision != "auto" else _best_precision(device)
        self._check_expert_parallel(world, precision)
        return Machine(device, precision)

    def _check_expert_parallel(self, world: World, precision: str) -> None:
        size, key = self.expert_parallel, "hardware.expert_parallel"
        if size == 1:
            return
        if world.size == 1:
            raise Refused(
                f"is {size}, which needs as many processes; start it with "
                f"torchrun --nproc-per-node {size} -m llm.train {key}={size} …",
                key,
            )
        if world.size % size:
            raise Refused(f"is {size}, which does not divide {world.size} processes", key)
        if self.find_batch:
            raise Refused("does not go with find_batch: a trial takes the whole model", key)
        if precision == "fp16":
            raise Refused(
                "does not go with fp16, whose loss scale each process would find for itself; "
                "take bf16 or fp32",
                key,
            )

    def scheme(self, world: World) -> Scheme:
        """What the processes of `world` do with the model."""
        return resolve_scheme(self.parallel, world)

    def start(
        self, machine: Machine, known: dict[str, Any], world: World | None = None
    ) -> dict[str, Any]:
        """Set up the process.

        Args:
            known: run.json's facts, which hold what `start` answered before; empty at first
        Returns: what a resume has to do alike, for run.json
        """
        keep_freed_memory()
        # The sum of a split product depends on the split: a resume must not change it. Among
        # another number of processes the cores are shared anew.
        world = world or World()
        same = known.get("processes", world.size) == world.size
        before = known.get("threads") if same else None
        torch.set_num_threads(self.threads or before or _threads(world.local_size))
        if self.deterministic and machine.device == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by the first product
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        return {"threads": torch.get_num_threads(), "deterministic": self.deterministic}

    def compiles(self, machine: Machine, known: dict[str, Any], seconds: float) -> bool:
        """Whether blocks are compiled, for run.json.

        Args:
            known: run.json's facts
            seconds: that the run takes without, about
        """
        if self.compile != "auto":
            return self.compile
        decided: bool = known.get("compile", worth_compiling(machine.device, seconds))
        return decided


def eager_step_seconds(flops: float, peak: float) -> float:
    """About how long a step of so many operations takes, not compiled, at `peak` a second."""
    return max(flops / (EAGER_UTILISATION * peak), EAGER_STEP_SECONDS)


def worth_compiling(device: str, seconds: float) -> bool:
    """Whether torch.compile gives a run of so many seconds without it more than it takes.

    A compiled step on a GPU takes about two thirds of the time, so the run has to be three times
    as long as compiling.
    """
    return device == "cuda" and seconds > 3 * COMPILE_SECONDS


def _threads(local_size: int) -> int:
    """Of one of `local_size` processes on this machine, where the config does not say."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    by_torchrun = asked == "1" and local_size > 1
    if asked.isdigit() and int(asked) and not by_torchrun:
        return int(asked)
    if local_size == 1:
        return min(torch.get_num_threads(), cores())  # PyTorch's choice, within the quota
    return max(1, physical_cores() // local_size)


def multiplies(device: str, precision: str) -> bool:
    """Whether this device multiplies in that precision at all, in hardware or not."""
    if precision == "fp32":
        return True
    ones = torch.ones(2, 2, device=device)
    with warnings.catch_warnings(), suppress(RuntimeError):
        warnings.simplefilter(
            "ignore"
        )  # where it cannot, autocast warns and does nothing, or raises
        with torch.autocast(device, DTYPES[precision]):
            return (ones @ ones).dtype == DTYPES[precision]
    return False


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _best_precision(device: str) -> str:
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device == "cpu" and limits.has_bf16_products():
        return "bf16"
    return "fp32"
