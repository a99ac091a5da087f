"""What a run consists of while it trains, and what the loop does with it."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from llm import evaluate
from llm.build import account_for, build_model
from llm.config.errors import Interrupted
from llm.config.instantiate import instantiate
from llm.config.root import Budget
from llm.data.batches import Batch, mix
from llm.data.feed import Feed
from llm.data.mixture import training_order
from llm.hardware.blocks import compile_blocks, recompute_blocks
from llm.hardware.machine import eager_step_seconds
from llm.hardware.parallel import Parallel, expert_mesh
from llm.hardware.peak import measured_peak
from llm.hardware.profile import profiler
from llm.hardware.signals import StopSignals
from llm.hardware.stopwatch import Stopwatch, memory_peak
from llm.model.transformer import Transformer
from llm.moe.alarm import CollapseAlarm, active_experts
from llm.moe.balance import after_step
from llm.moe.exchange import split_experts
from llm.moe.preflight import preflight
from llm.moe.statistics import summarise
from llm.objective.base import Objective
from llm.optimizer.norms import Norms, Steps
from llm.report import card
from llm.report.observatory import Observatory
from llm.runs import checkpoint
from llm.tokenizer import base as tokenizers
from llm.tracking import curve
from llm.tracking.log import MetricLog, PerfLog
from llm.tracking.progress import Progress
from llm.training.guard import SpikeGuard
from llm.training.history import CheckpointHistory
from llm.training.null_sink import NullSink
from llm.training.outcome import Course, diagnosis, results
from llm.training.prepare import Setup
from llm.training.state import TrainState
from llm.training.step import Gradients, Totals, find_batch, micro_batch

#: Seconds between two drawings of the loss curve.
_CURVE_EVERY = 30


class Trainer:
    """A claimed run, built and restored from its newest checkpoint.

    Every process of a job has one, and calls the same methods in the same order; the first one
    decides and writes.

    Args:
        sweep: name of the sweep that the run belongs to
    Attributes:
        state: where the run stands; course: how far that is from the end
        lr, step_begun: of the step under way
        rows, samples: the metric log and the last texts, when the run has finished
    """

    def __init__(self, setup: Setup, sweep: str | None):
        self.config, self.reading, prepared, self.exam, machine, run, world, start = setup
        self.machine, self.run, self.world, self.sweep = machine, run, world, sweep
        self.settings, self.seed = self.config["train"], self.config["seed"]
        plugins = self.config["plugins"]
        hardware = instantiate(self.config["hardware"], "hardware", plugins)
        self.recipe = instantiate(self.config["optimizer"], "optimizer", plugins)
        self.tracker: Any = NullSink()
        if world.first:
            self.tracker = instantiate(self.config["tracking"], "tracking", plugins)

        world.start(machine.device)
        world.watch(lambda failure: run.update(state="failed", reason=str(failure)))
        decided = hardware.start(machine, run.facts, world)
        self.model = self._new_model()
        if start is not None:
            start.fill(self.model)
        self.model.z_loss = self.settings["z_loss"]
        self.costs = account_for(self.config, self.model)
        self.rows_per_step = self.settings["batch_size"] * self.settings["grad_accum_steps"]
        micro_rows = self._try_out(hardware)
        self.peak = world.size * float(world.decide(lambda: measured_peak(machine)))
        order = training_order(prepared, self.reading.seq_len, self.seed)
        make: Any = instantiate(self.config["objective"], "objective", plugins)
        self.objective: Objective = make(order, self.exam, self.rows_per_step)
        self.state = TrainState()
        self.course = self._course(order.rows_per_epoch)
        decided["compile"] = hardware.compiles(machine, run.facts, self.course.seconds)
        if decided["compile"]:
            compile_blocks(self.model)
        scheme, split = hardware.scheme(world), hardware.expert_parallel
        mesh = expert_mesh(machine.device, split, world)
        if mesh is not None:
            split_experts(self.model, mesh["experts"])
        self.parallel = Parallel(self.model, scheme, world, mesh)
        self.recipe.settle(self.model, self.rows_per_step * self.reading.seq_len)
        self.optimizer, self.scaler = self.recipe.optimizer(self.model), machine.scaler()
        if world.first:
            tokenizers.save(self.reading.tokenizer, run.folder)
            if start is None:  # other weights know other ids and beginnings
                self.reading = self.reading.learnt_from(prepared)
        run.update(
            **decided,
            processes=world.size,
            parallel=scheme,
            vocab_size=self.reading.tokenizer.vocab_size,
            expert_parallel=split,
            floor=self.exam.floor,
            reading=self.reading.stored(),
            **asdict(self.costs),
        )
        self._restore()
        self._watch(micro_rows)

    def _new_model(self) -> Transformer:
        vocab_size, plugins = self.reading.tokenizer.vocab_size, self.config["plugins"]
        return build_model(self.config, vocab_size, plugins, self.machine.device)

    def _try_out(self, hardware: Any) -> int:
        """Prove that the model learns, where that is asked for; rows of a micro-step that fit."""
        model, run, world = self.model, self.run, self.world
        micro_rows: int = self.settings["batch_size"]
        if self.settings["preflight"] and not checkpoint.list_steps(run.checkpoints):
            autocast = partial(self.reading.autocast, self.machine.device)
            preflight(model, self.reading.tokenizer.vocab_size, autocast)
        if hardware.recompute:
            recompute_blocks(model)
        if hardware.find_batch:  # of the model as it will be called
            rows, near = self.rows_per_step // world.size, world.local_size
            trial = partial(find_batch, model, self.machine, rows, self.reading, near)
            micro_rows = micro_batch(run, world, trial)
            # A process evaluates such a part alone.
            most = min(self.reading.eval_rows, micro_rows // world.size)
            self.reading = replace(self.reading, eval_rows=most)
        return micro_rows

    def _course(self, rows_per_epoch: float) -> Course:
        seq_len, flops = self.reading.seq_len, self.costs.flops_per_token
        course = Course(
            Budget.parse(self.settings["budget"]),
            self.state,
            self.rows_per_step,
            seq_len,
            rows_per_epoch,
            flops,
            eager_step_seconds(self.rows_per_step * seq_len * flops, self.peak),
        )
        for caveat in course.caveats if self.world.first else []:
            print(caveat, file=sys.stderr)
        return course

    def _restore(self) -> None:
        """What a checkpoint holds, from the newest whole one."""
        settings, run, first = self.settings, self.run, self.world.first
        self.guard = SpikeGuard(settings["spike_factor"], settings["spike_patience"])
        step_tokens = self.rows_per_step * self.reading.seq_len
        self.alarm = CollapseAlarm(active_experts(self.model), step_tokens)
        self.metric_log: Any = MetricLog(run.folder) if first else NullSink()
        self.perf_log: Any = PerfLog(run.folder) if first else NullSink()
        parts: dict[str, Any] = {"scaler": self.scaler, "guard": self.guard, "alarm": self.alarm}
        parts["objective"] = self.objective
        self.history = CheckpointHistory(
            run,
            self.world,
            self.metric_log,
            self.model,
            self.optimizer,
            self.state,
            parts,
            settings,
            lambda line: self.progress.say(line),  # made when it is known where the run stands
        )
        self.history.resume()
        run.update(state="running", reason=None)

    def _watch(self, micro_rows: int) -> None:
        """What reads, measures and shows the steps that come."""
        state, machine, world = self.state, self.machine, self.world
        amount, unit = self.course.budget.amount, self.course.budget.name
        spent = min(self.course.spent, amount)
        self.progress = Progress(amount, unit, spent, quiet=not world.first)
        self.signals = StopSignals()
        self.trace = profiler(self.run.folder, self.settings["profile"] and world.first)
        folder = self.run.folder if world.first else None
        self.observatory = Observatory(
            folder, self.exam, self.reading.tokenizer, state.step, self.progress.say
        )
        self.stopwatch, self.norms = Stopwatch(machine.device), Norms(self.model, world.size)
        self.feed = Feed(self._draw, ahead=self.objective.reads_ahead)
        self.gradients = Gradients(
            self.parallel,
            machine,
            self.scaler,
            self.norms,
            self.signals,
            self.stopwatch,
            self.seed,
            micro_rows,
            self.reading,
        )
        self.stop: int | None = None
        self.begun = self.curve_drawn = time.monotonic() - state.seconds

    @contextmanager
    def open(self) -> Iterator[None]:
        """Around the loop: whatever ends it, what was written is settled and closed."""
        try:
            yield
            self.tracker.finish(0)
        except BaseException as problem:
            self.history.writer.settle()
            code = 130 if isinstance(problem, KeyboardInterrupt) else 1
            self.tracker.finish(getattr(problem, "exit_code", code))
            raise
        finally:
            logs = (self.metric_log, self.perf_log)
            for part in (self.progress, self.feed, self.history.writer, *logs):
                part.close()

    def start(self) -> None:
        run, step, flops = self.run, self.state.step, self.costs.flops_per_token
        self.tracker.start(
            run.id, run.folder, self.config, self.sweep, step, flops, self.progress.say
        )
        self.model.train()

    def stop_if_asked(self) -> None:
        """Save and raise Interrupted where a process got a signal."""
        self.stop = self.stop or (self.signals.received if self.world.size == 1 else None)
        if self.stop is not None:
            self.history.save(needed=True)
            raise Interrupted(self.stop)

    def begin_step(self) -> None:
        """All randomness in a step is keyed by the seed and the step."""
        self.step_begun = time.monotonic()
        torch.manual_seed(mix(self.seed, self.state.step) >> 1)
        self.lr = self.recipe.lr_at(self.state.step, self.course.share, self.course.reached)
        self.recipe.set_lr(self.optimizer, self.lr)

    @property
    def _first_row(self) -> int:
        """The row of the data at which the step begins."""
        return self.state.step * self.rows_per_step + self.state.passed_over

    def _draw(self, first: int) -> Batch:
        return self.objective.batch(first, self.model, self.reading, self.world)

    def next_batch(self) -> Batch:
        with self.stopwatch.phase("data"):
            if self.settings["overfit"]:
                return self.feed.take(0, 0)
            return self.feed.take(self._first_row, self._first_row + self.rows_per_step)

    def compute_gradients(self, batch: Batch) -> Totals:
        seconds = self.step_begun - self.begun
        totals = self.gradients.compute(self.optimizer, self.state.step, batch, seconds)
        self.stop = totals.stop
        return totals

    def accepts(self, totals: Totals) -> bool:
        """Whether to take the step."""
        overflowed = self.gradients.overflowed(totals)
        self.state.overflowed += overflowed
        return not overflowed and self.guard.accepts(totals.loss, totals.norm)

    def update(self, totals: Totals, measured: bool) -> dict[str, float]:
        """Take the step: how far it went by role, where that is measured."""
        with self.stopwatch.phase("optimizer", on_device=True):
            self.norms.clip(totals.norm, self.settings["clip_norm"])
            steps = Steps(self.norms) if measured else None
            self.scaler.step(self.optimizer)
            after_step(self.model, totals.router.get("load_E"))
        return steps.ratios(self.world.sum) if steps else {}

    def advance(self, batch: Batch, totals: Totals, applied: bool) -> None:
        """Count the step that is done."""
        state = self.state
        state.tokens += totals.n_targets if applied else 0
        # A document is read where its end-of-text is predicted.
        state.documents += int((batch.targets_RT == self.reading.tokenizer.eot).sum())
        self.trace.step()
        self.now = time.monotonic()
        # One clock for all processes: rank 0's, at the beginning of the step.
        state.seconds = self.now - self.begun if self.world.size == 1 else totals.seconds
        state.step_seconds += self.now - self.step_begun
        self.rate = totals.n_targets / (self.now - self.step_begun)

    def step_metrics(self, totals: Totals) -> dict[str, Any]:
        """The figures of the step that is done."""
        epochs = self.objective.epochs(self._first_row)
        metrics: dict[str, Any] = {
            "train/loss": totals.loss,
            "train/grad_norm": totals.norm,
            "train/lr": self.lr,
            "data/documents": self.state.documents,
            **{f"data/epoch/{name}".rstrip("/"): epoch for name, epoch in epochs.items()},
            **summarise(totals.router),
        }
        if self.guard.skipped:
            metrics["train/skipped"] = self.guard.skipped
        if self.state.overflowed:
            metrics["train/overflowed"] = self.state.overflowed
        if "load_E" in totals.router:
            warning = self.alarm.watch(self.state.step, totals.router["load_E"])
            metrics["moe/alarm"] = self.alarm.collapsed
            if warning:
                self.progress.say(warning)
        return metrics

    def go_back(self, totals: Totals) -> None:
        """To the last good checkpoint, and past the data since."""
        step, precision = self.state.step, self.machine.precision
        why = diagnosis(step, totals.loss, totals.norm, self.lr, precision)
        self.history.go_back(self.rows_per_step, why)
        self.guard.in_a_row = 0  # an old checkpoint may know of no guard
        self.observatory.go_back(self.state.step)

    def evaluate(self) -> dict[str, Any]:
        """The figures of the held-out text, and what each expert was given of it."""
        with self.stopwatch.phase("evaluation"):
            metrics: dict[str, Any] = {
                **self.objective.evaluate(
                    self.model, self.reading, self.world, self.observatory.watch
                )
            }
        if math.isfinite(self.objective.metric.cost(metrics)):
            metrics |= self.observatory.report(self.state.step, self.run.id, self.world.sum)
        return metrics

    def log(self, metrics: dict[str, Any]) -> None:
        state = self.state
        self.metric_log.append(state.step, state.tokens, metrics)
        self.tracker.log(state.step, state.tokens, metrics)
        self.progress.update(
            self.course.spent,
            step=state.step,
            loss=metrics["train/loss"],
            val_loss=metrics.get("val/loss"),
            tokens_per_second=self.rate,
            imbalance=metrics.get("moe/max_over_mean"),
            epoch=metrics["data/epoch"],
            tokens=state.tokens,
            documents=state.documents,
        )
        waited = self.now - self.curve_drawn
        if self.world.first and "val/loss" in metrics and waited > _CURVE_EVERY:
            curve.draw_curve(self.run.folder)
            self.curve_drawn = self.now

    def sample(self) -> None:
        """Let the model write, while it trains."""
        writer = self._whole_model()
        if writer is not None:
            with torch.compiler.set_stance("force_eager"):
                samples = card.sample_texts(writer, self.reading, self.seed, self.state.step)
            self.tracker.table(self.state.step, samples)
            self.progress.say(f"step {self.state.step} writes: {samples[0]['text']}")

    def save(self, last: bool, better: bool) -> None:
        """Write a checkpoint where one is due, and the best weights where these are."""
        # While steps are left out, who knows what the weights are worth?
        due = last or (self.history.due and not self.guard.in_a_row)
        with self.stopwatch.phase("checkpoint"):
            if due or better:
                self.history.save(needed=last, regular=due, best=better)
            self.history.writer.look()

    def log_speed(self) -> None:
        phases = self.stopwatch.take()
        self.perf_log.append(
            self.state.step,
            self.state.tokens,
            {
                "perf/seconds": self.state.seconds,
                "perf/tokens_per_second": self.rate,
                "perf/mfu": self.rate * self.costs.flops_per_token / self.peak,
                "perf/memory_peak": memory_peak(self.machine.device),
                **{f"perf/{name}": seconds for name, seconds in phases.items()},
            },
        )

    def finish(self) -> None:
        """The end, from the last checkpoint on: made again where a crash interrupts it."""
        writer, state = self._whole_model(), self.state
        if writer is None:
            return
        with self.signals.at_once():
            with torch.compiler.set_stance("force_eager"):
                self.progress.doing("writing samples")
                self.samples = card.sample_texts(writer, self.reading, self.seed, state.step)
                told = self.progress.doing
                shares = evaluate.acceptance(writer, self.reading, self.seed, told)
            if shares:
                self.metric_log.append(state.step, state.tokens, shares)
            curve.draw_curve(self.run.folder)
            self.tracker.table(state.step, self.samples)
            self.rows = MetricLog.read(self.metric_log.path)
            memory = memory_peak(self.machine.device)
            found = results(self.rows, state)
            self.run.update(state="finished", peak_memory=memory, **found)

    def _whole_model(self) -> Transformer | None:
        """The model in one piece on rank 0's device, where texts are written; else None."""
        if not self.parallel.sharded:
            return self.model if self.world.first else None
        weights = checkpoint.gathered(self.model.state_dict(), self.world.first)
        if not self.world.first:
            return None
        copy = self._new_model()
        copy.load_state_dict(weights)
        return copy
