"""The gradients of one optimizer step, equal however its rows are split.

R rows of a step, B rows of one call, T tokens of a row
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm.data.batches import IGNORED, Batch, mix
from llm.hardware.blocks import one_kept
from llm.hardware.fit import largest_fitting
from llm.hardware.machine import Machine
from llm.hardware.parallel import Parallel
from llm.hardware.signals import STOPPING, StopSignals
from llm.hardware.stopwatch import Stopwatch
from llm.hardware.world import World
from llm.layers.noise import keyed
from llm.optimizer.norms import Norms
from llm.reading import Reading
from llm.runs.directory import Run


class Totals(NamedTuple):
    """What all processes know of a step before it is taken, the same in each."""

    loss: float  # mean cross-entropy of the step's targets, in nats
    n_targets: int
    norms: dict[str, float]  # of the gradients, before clipping, by role
    router: dict[str, Tensor]  # statistics, means over the step's rows, on the CPU
    stop: int | None  # a signal that one of the processes got
    seconds: float  # rank 0's clock

    @property
    def norm(self) -> float:
        """Of all gradients together."""
        return math.sqrt(sum(value**2 for value in self.norms.values()))


class Gradients:
    """Forward and backward of a step's micro-steps, in this process's share of their rows.

    A target weighs 1 / (targets of the step) wherever it is computed, and a row 1 / (rows of the
    step) in the auxiliary losses, which are means over the rows of a call. Noise is keyed by seed,
    step and row.

    Args:
        micro_rows: rows of one micro-step, over all processes, which share them evenly; it divides
            the rows of a step
    """

    def __init__(
        self,
        parallel: Parallel,
        machine: Machine,
        scaler: torch.amp.GradScaler,
        norms: Norms,
        signals: StopSignals,
        watch: Stopwatch,
        seed: int,
        micro_rows: int,
        reading: Reading,
    ):
        self.parallel, self.machine, self.scaler = parallel, machine, scaler
        self.norms, self.signals, self.watch = norms, signals, watch
        self.seed, self.micro_rows, self.reading = seed, micro_rows, reading
        self.world = parallel.world
        if micro_rows % self.world.size:
            raise ValueError(f"{self.world.size} processes cannot share {micro_rows} rows evenly")

    def compute(
        self, optimizer: torch.optim.Optimizer, step: int, batch: Batch, seconds: float
    ) -> Totals:
        """Fill the gradients of one step, unscaled; waits for the device once, at the end.

        Args:
            seconds: this process's clock; rank 0's goes to everybody
        """
        n_targets = int((batch.targets_RT != IGNORED).sum())
        micro_steps, left_over = divmod(len(batch.tokens_RT), self.micro_rows)
        if left_over:
            raise ValueError(f"{len(batch.tokens_RT)} rows are no multiple of {self.micro_rows}")
        optimizer.zero_grad(set_to_none=True)
        share = 1 / (micro_steps * self.world.size)  # of the step's rows, in one call
        loss_sum: Any = 0.0
        router: dict[str, Tensor] = {}
        for micro in range(micro_steps):
            with self.watch.phase("data"):
                rows = range(micro * self.micro_rows, (micro + 1) * self.micro_rows)
                inputs, keys_B2 = self._part(batch, step, rows)
            last = micro == micro_steps - 1
            with self.parallel.accumulating(last), keyed(keys_B2):
                with (
                    self.watch.phase("forward", on_device=True),
                    self.reading.autocast(self.machine.device),
                ):
                    output = self.parallel(**inputs)
                with self.watch.phase("backward", on_device=True):
                    loss = output.loss_sum / n_targets + share * sum(output.aux.values())
                    self.scaler.scale(loss * self.world.size).backward()
            loss_sum = loss_sum + output.loss_sum.detach()
            for name, value in output.router.items():
                router[name] = router.get(name, 0.0) + share * value
        self.scaler.unscale_(optimizer)
        return self._totals(loss_sum, n_targets, router, seconds)

    def overflowed(self, totals: Totals) -> bool:
        """Whether fp16's scale was too high for this step, which is no fault of the data."""
        lost = math.isfinite(totals.loss) and not math.isfinite(totals.norm)
        return lost and self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def _part(self, batch: Batch, step: int, rows: range) -> tuple[dict[str, Tensor], Tensor]:
        """This process's rows of a micro-step on the device, and the keys of their noise."""
        own = rows[self.world.share(len(rows))]
        part = slice(own.start, own.stop)
        words = [mix(self.seed, step, row, 5) for row in own]
        keys_B2 = torch.tensor([[w & 0xFFFFFFFF, w >> 32] for w in words]).to(torch.int32)
        inputs = {**self.reading.inputs(batch, part), "keys": keys_B2}
        if self.machine.device == "cuda":
            inputs = {n: t.pin_memory().to("cuda", non_blocking=True) for n, t in inputs.items()}
        else:
            inputs = {name: tensor.to(self.machine.device) for name, tensor in inputs.items()}
        keys_B2 = inputs.pop("keys")
        return inputs, keys_B2

    def _totals(
        self, loss_sum: Tensor, n_targets: int, router: dict[str, Tensor], seconds: float
    ) -> Totals:
        """Sum over the processes: one message, and one transfer to the host."""
        world, received = self.world, self.signals.received
        dtype = torch.float32 if self.machine.device == "mps" else torch.float64
        squares = self.norms.gradients().to(dtype)
        said = [seconds if world.first else 0.0, *(float(received == s) for s in STOPPING)]
        said_S = torch.tensor(said, dtype=dtype).to(squares.device, non_blocking=True)
        summed = [said_S, loss_sum.reshape(1)]
        summed += [value.reshape(-1) for value in router.values()]
        summed += [squares]
        vector = world.sum(torch.cat([part.to(dtype) for part in summed])).cpu()
        sizes = [1, len(STOPPING), 1, *(v.numel() for v in router.values()), len(squares)]
        clock, stops, loss, *values, lengths = vector.split(sizes)
        stopping = [number for number, count in zip(STOPPING, stops.tolist(), strict=True) if count]
        return Totals(
            float(loss) / n_targets,
            n_targets,
            dict(zip(self.norms.roles, lengths.sqrt().tolist(), strict=True)),
            {n: v.view(r.shape) for (n, r), v in zip(router.items(), values, strict=True)},
            stopping[0] if stopping else None,
            float(clock),
        )


def find_batch(
    model: Any, machine: Machine, rows: int, reading: Reading, local_size: int = 1
) -> int:
    """How many of a step's `rows` this process can take at once: `hardware.find_batch`.

    Args:
        model: as training calls it (`recompute_blocks` done), but not compiled: that would
            translate it for every number of rows tried, and keeps no more
        local_size: processes on this machine
    """
    vocab_size, device = model.embedding.shape[0], machine.device
    generator = torch.Generator().manual_seed(0)

    def trial(count: int) -> None:
        # Random ids: routers send equal ones to the same few experts.
        shape = (count, reading.seq_len)
        ids_BT = torch.randint(vocab_size, shape, generator=generator).to(device)
        documents_BT = torch.zeros_like(ids_BT) if reading.document_mask else None
        # A GPU's peak is measured; where kept tensors are counted, recomputed ones are not among.
        with reading.autocast(device), nullcontext() if device == "cuda" else one_kept(model):
            output = model(ids_BT, ids_BT, document_ids_BT=documents_BT)
        (output.loss_sum + sum(output.aux.values())).backward()
        model.zero_grad(set_to_none=True)

    optimizer = 8 * sum(parameter.numel() for parameter in model.parameters())
    return largest_fitting(rows, machine.device, trial, optimizer, local_size)


def micro_batch(run: Run, world: World, find: Callable[[], int]) -> int:
    """Rows of a micro-step over all processes, `find()` in each.

    It is found once for each number of processes and kept in run.json, so that a resume adds up in
    the same order.
    """
    processes = str(world.size)
    found = dict(run.facts.get("found_batch", {}))
    if processes not in found:
        found[processes] = world.decide(lambda: find() * world.size)
        run.update(found_batch=found)
    return found[processes]
