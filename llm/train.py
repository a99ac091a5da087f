"""Training: the rooms put together, then one loop that reads top to bottom.

    python -m llm.train model=small moe=switch data=custom data.path=FILE_OR_FOLDER
    torchrun --nproc-per-node 4 -m llm.train model=small hardware.parallel=fsdp

Heavy imports stand inside the functions that need them: `--help` imports this file.
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.config.entry import Job, in_process, main
from llm.config.errors import Interrupted
from llm.config.root import Budget
from llm.config.terminal import shown
from llm.loop.outcome import Course, diagnosis, results, summary
from llm.loop.setup import Setup, prepare_run

if TYPE_CHECKING:
    from llm.model.transformer import Transformer
    from llm.runs.reopen import OpenRun


def train(job: Job) -> Path:
    """Train the run that `job` describes, or go on with it, or answer from it.

    The last line on standard output is the run directory, which is also returned.

    Raises:
        Refused: a contradiction in the config, or a run that must not be touched
        Failed: a loss that is not finite, a disk that takes nothing more
        Interrupted: a signal came; the run is saved and continues with the same command
        Elsewhere: another process of the job raised one of these, and has said so
    """
    from llm.hardware.world import World
    from llm.loop.ending import recorded

    with World() as world:
        setup = prepare_run(job, world)
        run = setup.run
        with recorded(run, world):
            if run.state != "finished":
                _train(setup, job)
            elif world.first:
                print(f"finished already: {summary(run.facts)}")
            if world.first:
                print(run.folder)
        return run.folder


def fit(overrides: Sequence[str] = ()) -> "OpenRun":
    """Train as `python -m llm.train OVERRIDES` does, in this process: the run, opened.

    The same run directory, whichever of the two began it: it goes on where it was interrupted, and
    is answered where it is finished.

    Args:
        overrides: settings as they are typed: `["model=nano", "data=custom", "data.path=my.txt"]`
    Raises: what `train` raises
    """
    from llm.runs.reopen import load_run

    runs: list[OpenRun] = []

    def task(job: Job) -> None:
        runs.append(load_run(train(job), plugins=job.config["plugins"]))

    in_process("llm.fit", task, overrides)
    return runs[0]


def _train(setup: Setup, job: Job) -> None:
    import torch

    from llm.build import account_for, build_model
    from llm.config.instantiate import instantiate
    from llm.data.batches import mix
    from llm.data.feed import Feed
    from llm.data.mixture import training_order
    from llm.evaluate import acceptance, examine
    from llm.hardware.blocks import compile_blocks, recompute_blocks
    from llm.hardware.machine import eager_step_seconds
    from llm.hardware.parallel import Parallel, expert_mesh
    from llm.hardware.peak import measured_peak
    from llm.hardware.profile import profiler
    from llm.hardware.signals import StopSignals
    from llm.hardware.stopwatch import Stopwatch, memory_peak
    from llm.loop.history import History
    from llm.loop.silent import Silent
    from llm.loop.step import Gradients, find_batch, micro_batch
    from llm.moe.alarm import CollapseAlarm, active_experts
    from llm.moe.balance import after_step
    from llm.moe.exchange import split_experts
    from llm.moe.preflight import preflight
    from llm.moe.statistics import summarise
    from llm.optimizer.guard import Guard
    from llm.optimizer.norms import Norms, Steps
    from llm.report.card import card, sample_texts
    from llm.report.observatory import Observatory
    from llm.runs import checkpoint
    from llm.runs.position import Position
    from llm.tokenizer import base as tokenizers
    from llm.tracking.curve import draw_curve
    from llm.tracking.log import MetricLog, PerfLog
    from llm.tracking.progress import Progress

    config, reading, prepared, exam, machine, run, world, start = setup
    settings, seed, plugins = config["train"], config["seed"], config["plugins"]
    seq_len = reading.seq_len
    hardware = instantiate(config["hardware"], "hardware", plugins)
    recipe = instantiate(config["optimizer"], "optimizer", plugins)
    tracker: Any = instantiate(config["tracking"], "tracking", plugins) if world.first else Silent()

    world.start(machine.device)
    world.watch(lambda failure: run.update(state="failed", reason=str(failure)))
    decided = hardware.start(machine, run.facts, world)
    vocab_size = reading.tokenizer.vocab_size
    model = build_model(config, vocab_size, plugins, machine.device)
    if start is not None:
        start.fill(model)
    model.z_loss = settings["z_loss"]
    costs = account_for(config, model)
    micro_rows = settings["batch_size"]
    rows_per_step = micro_rows * settings["grad_accum_steps"]
    if settings["preflight"] and not checkpoint.list_steps(run.checkpoints):
        preflight(model, vocab_size, partial(reading.autocast, machine.device))
    if hardware.recompute:
        recompute_blocks(model)
    if hardware.find_batch:  # of the model as it will be called
        rows, near = rows_per_step // world.size, world.local_size
        micro_rows = micro_batch(
            run, world, lambda: find_batch(model, machine, rows, reading, near)
        )
        # A process evaluates such a part alone.
        reading = replace(reading, eval_rows=min(reading.eval_rows, micro_rows // world.size))
    peak = world.size * float(world.decide(lambda: measured_peak(machine)))
    order = training_order(prepared, seq_len, seed)
    budget, at = Budget.parse(settings["budget"]), Position()
    a_step = eager_step_seconds(rows_per_step * seq_len * costs.flops_per_token, peak)
    course = Course(
        budget, at, rows_per_step, seq_len, order.rows_per_epoch, costs.flops_per_token, a_step
    )
    for caveat in course.caveats if world.first else []:
        print(caveat, file=sys.stderr)
    decided["compile"] = hardware.compiles(machine, run.facts, course.seconds)
    if decided["compile"]:
        compile_blocks(model)
    scheme = hardware.scheme(world)
    mesh = expert_mesh(machine.device, hardware.expert_parallel, world)
    if mesh is not None:
        split_experts(model, mesh["experts"])
    parallel = Parallel(model, scheme, world, mesh)
    recipe.settle(model, rows_per_step * seq_len)
    optimizer, scaler = recipe.optimizer(model), machine.scaler()
    if world.first:
        tokenizers.save(reading.tokenizer, run.folder)
        if start is None:  # other weights know other ids and beginnings
            reading = reading.learnt_from(prepared)
    run.update(
        **decided,
        processes=world.size,
        parallel=scheme,
        vocab_size=vocab_size,
        expert_parallel=hardware.expert_parallel,
        floor=exam.floor,
        reading=reading.stored(),
        **asdict(costs),
    )

    # Where it stands, from the newest whole checkpoint.
    guard = Guard(settings["spike_factor"], settings["spike_patience"])
    alarm = CollapseAlarm(active_experts(model), rows_per_step * seq_len)
    log: Any = MetricLog(run.folder) if world.first else Silent()
    perf: Any = PerfLog(run.folder) if world.first else Silent()
    parts = {"scaler": scaler, "guard": guard, "alarm": alarm}
    # Lines go through `progress`, which is made when it is known where the run stands.
    history = History(
        run, world, log, model, optimizer, at, parts, settings, lambda line: progress.say(line)
    )
    history.resume()
    run.update(state="running", reason=None)

    progress = Progress(
        budget.amount, budget.name, min(course.spent, budget.amount), quiet=not world.first
    )

    def go_back() -> None:
        """To the last good checkpoint, and past the data since."""
        why = diagnosis(at.step, totals.loss, totals.norm, lr, machine.precision)
        history.go_back(rows_per_step, why)
        guard.in_a_row = 0  # an old checkpoint may know of no guard
        observatory.go_back(at.step)

    def whole_model() -> "Transformer | None":
        """The model in one piece on rank 0's device, where texts are written; else None."""
        if not parallel.sharded:
            return model if world.first else None
        weights = checkpoint.gathered(model.state_dict(), world.first)
        if not world.first:
            return None
        copy = build_model(config, vocab_size, plugins, machine.device)
        copy.load_state_dict(weights)
        return copy

    signals, trace = StopSignals(), profiler(run.folder, settings["profile"] and world.first)
    folder = run.folder if world.first else None
    observatory = Observatory(folder, exam, reading.tokenizer, at.step, progress.say)
    watch, norms = Stopwatch(machine.device), Norms(model, world.size)
    feed = Feed(lambda first: order.rows(first, rows_per_step))
    gradients = Gradients(
        parallel, machine, scaler, norms, signals, watch, seed, micro_rows, reading
    )
    begun = drawn = time.monotonic() - at.seconds
    stop: int | None = None
    try:
        with signals, trace:
            tracker.start(
                run.id, run.folder, config, job.sweep, at.step, costs.flops_per_token, progress.say
            )
            model.train()
            while not course.over:
                stop = stop or (signals.received if world.size == 1 else None)
                if stop is not None:
                    history.save(needed=True)
                    raise Interrupted(stop)

                # One optimizer step. All randomness in it is keyed by the seed and the step.
                step_begun = time.monotonic()
                torch.manual_seed(mix(seed, at.step) >> 1)
                lr = recipe.lr_at(at.step, course.share, course.reached)
                recipe.set_lr(optimizer, lr)
                with watch.phase("data"):
                    first = at.step * rows_per_step + at.passed_over
                    batch = (
                        feed.take(0, 0)
                        if settings["overfit"]
                        else feed.take(first, first + rows_per_step)
                    )
                totals = gradients.compute(optimizer, at.step, batch, step_begun - begun)
                stop = totals.stop
                examined = (at.step + 1) % settings["eval_every"] == 0
                moved: dict[str, float] = {}
                overflowed = gradients.overflowed(totals)
                at.overflowed += overflowed
                taken = not overflowed and guard.accepts(totals.loss, totals.norm)
                if taken:
                    with watch.phase("optimizer", on_device=True):
                        norms.clip(totals.norm, settings["clip_norm"])
                        steps = Steps(norms) if examined else None
                        scaler.step(optimizer)
                        after_step(model, totals.router.get("load_E"))
                    moved = steps.ratios(world.sum) if steps else {}
                scaler.update()
                at.step += 1
                if guard.exhausted:
                    go_back()
                    continue
                at.tokens += totals.n_targets if taken else 0
                # A document is read where its end-of-text is predicted.
                at.documents += int((batch.targets_RT == reading.tokenizer.eot).sum())
                epochs = order.epochs(first + rows_per_step)
                trace.step()

                now = time.monotonic()
                # One clock for all processes: rank 0's, at the beginning of the step.
                at.seconds = now - begun if world.size == 1 else totals.seconds
                at.step_seconds += now - step_begun
                last = course.over
                metrics: dict[str, Any] = {
                    "train/loss": totals.loss,
                    "train/grad_norm": totals.norm,
                    "train/lr": lr,
                    "data/documents": at.documents,
                    **{f"data/epoch/{name}".rstrip("/"): epoch for name, epoch in epochs.items()},
                    **summarise(totals.router),
                }
                if guard.skipped:
                    metrics["train/skipped"] = guard.skipped
                if at.overflowed:
                    metrics["train/overflowed"] = at.overflowed
                if "load_E" in totals.router:
                    warning = alarm.watch(at.step, totals.router["load_E"])
                    metrics["moe/alarm"] = alarm.collapsed
                    if warning:
                        progress.say(warning)

                better = False
                if last or examined:
                    metrics |= {f"grad_norm/{role}": x for role, x in totals.norms.items()}
                    metrics |= {f"update_ratio/{role}": x for role, x in moved.items()}
                    with watch.phase("evaluation"):
                        metrics |= examine(model, exam, reading, world, observatory.watch)
                    if not math.isfinite(metrics["val/loss"]):  # the weights are spoilt
                        go_back()
                        continue
                    metrics |= observatory.report(at.step, run.id, world.sum)
                    better = metrics["val/loss"] < at.best
                    at.best = min(at.best, metrics["val/loss"])
                log.append(at.step, at.tokens, metrics)
                rate = totals.n_targets / (now - step_begun)
                tracker.log(at.step, at.tokens, metrics)
                progress.update(
                    course.spent,
                    step=at.step,
                    loss=totals.loss,
                    val_loss=metrics.get("val/loss"),
                    tokens_per_second=rate,
                    imbalance=metrics.get("moe/max_over_mean"),
                    epoch=metrics["data/epoch"],
                    tokens=at.tokens,
                    documents=at.documents,
                )
                if world.first and "val/loss" in metrics and now - drawn > 30:
                    draw_curve(run.folder)
                    drawn = now
                sample_every = settings["sample_every"]
                if sample_every and at.step % sample_every == 0 and not last:
                    writer = whole_model()
                    if writer is not None:
                        with torch.compiler.set_stance("force_eager"):
                            samples = sample_texts(writer, reading, seed, at.step)
                        tracker.table(at.step, samples)
                        progress.say(f"step {at.step} writes: {samples[0]['text']}")
                # While steps are left out, who knows what the weights are worth?
                due = last or (history.due and not guard.in_a_row)
                with watch.phase("checkpoint"):
                    if due or better:
                        history.save(needed=last, regular=due, best=better)
                    history.keeper.look()
                perf.append(
                    at.step,
                    at.tokens,
                    {
                        "perf/seconds": at.seconds,
                        "perf/tokens_per_second": rate,
                        "perf/mfu": rate * costs.flops_per_token / peak,
                        "perf/memory_peak": memory_peak(machine.device),
                        **{f"perf/{name}": seconds for name, seconds in watch.take().items()},
                    },
                )
        # The end, from the last checkpoint on: made again where a crash interrupts it.
        writer = whole_model()
        if writer is not None:
            with signals.at_once():
                with torch.compiler.set_stance("force_eager"):
                    progress.doing("writing samples")
                    samples = sample_texts(writer, reading, seed, at.step)
                    shares = acceptance(writer, reading, seed, progress.doing)
                if shares:
                    log.append(at.step, at.tokens, shares)
                draw_curve(run.folder)
                tracker.table(at.step, samples)
                rows = MetricLog.read(log.path)
                memory = memory_peak(machine.device)
                run.update(state="finished", peak_memory=memory, **results(rows, at))
        tracker.finish(0)
    except BaseException as problem:
        history.keeper.settle()
        code = 130 if isinstance(problem, KeyboardInterrupt) else 1
        tracker.finish(getattr(problem, "exit_code", code))
        raise
    finally:
        progress.close()
        feed.close()
        history.keeper.close()
        log.close()
        perf.close()
    if world.first:
        print(shown(card(run.folder, run.facts, rows, samples), sys.stdout))


if __name__ == "__main__":
    main("llm.train", train)
