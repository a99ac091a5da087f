"""Training: the rooms put together, then one loop that reads top to bottom.

    python -m llm.train model=small moe=switch data=custom data.path=FILE_OR_FOLDER

Heavy imports stand inside the functions that need them: `--help` imports this file.
"""

import math
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llm.config.entry import Job, main
from llm.config.errors import Diverged, Failed, Interrupted, Refused
from llm.config.root import Budget

if TYPE_CHECKING:
    from torch import Tensor

    from llm.data.corpus import Corpus
    from llm.data.prepare import Prepared
    from llm.evaluate import Examination
    from llm.hardware.machine import Machine
    from llm.runs.directory import Run


class Setup(NamedTuple):
    """Everything that is decided before step 0."""

    config: dict[str, Any]
    corpus: "Corpus"
    prepared: "Prepared"
    exam: "Examination"
    machine: "Machine"
    run: "Run"


def train(job: Job) -> Path:
    """Train the run that `job` describes, or go on with it, or answer from it.

    The last line on standard output is the run directory, which is also returned.

    Raises:
        Refused: a contradiction in the config, or a run that must not be touched
        Failed: a loss that is not finite, a disk that takes nothing more
        Interrupted: a signal came; the run is saved and continues with the same command
    """
    setup = prepare_run(job)
    run = setup.run
    try:
        if run.state == "finished":
            print(f"finished already: {_summary(run.facts)}")
        else:
            _train(setup, job)
        print(run.folder)
    finally:
        run.release()
    return run.folder


def prepare_run(job: Job) -> Setup:
    """Refuse what can be refused, prepare the data, and claim the run."""
    from llm.build import build_model
    from llm.config.instantiate import instantiate
    from llm.data.prepare import prepare
    from llm.evaluate import examination
    from llm.runs.directory import claim
    from llm.runs.identity import code_hash, config_hash, git_state, identify, versions

    config, names, plugins = job.config, job.chosen, job.config["plugins"]
    machine = instantiate(config["hardware"], "hardware", plugins).resolve()
    for group in ("tracking", "optimizer"):
        instantiate(config[group], group, plugins)
    try:
        build_model(config, 256, plugins, device="meta")
    except RuntimeError as error:  # sizes beyond what a tensor can count
        raise Refused(f"model: cannot be built: {str(error).splitlines()[0]}") from None
    corpus = instantiate(config["data"], "data", plugins)
    tokenizer = instantiate(config["tokenizer"], "tokenizer", plugins)
    for note in job.validated.notes:
        print(note, file=sys.stderr)

    # The data's fingerprint is part of the run's identity.
    outputs = Path(config["outputs"])
    data_name = f"{names['data']}-{names['tokenizer']}"
    prepared = prepare(corpus, tokenizer, config["tokenizer"], data_name, outputs / "data")
    exam = examination(
        prepared, corpus, config["model"]["max_seq_len"], config["train"]["eval_tokens"]
    )
    name, identity = identify(names, job.validated.identity, machine.facts(), prepared.fingerprint)
    facts = {
        "state": "running",
        "config_hash": config_hash(identity),
        "code_hash": code_hash(),
        "data_fingerprint": prepared.fingerprint,
        "sweep": job.sweep,
        "host": platform.node(),
        "versions": versions(),
        **git_state(),
        **machine.facts(),
    }
    rules, waits = config["run"], job.sweep is not None
    run = claim(
        outputs / "runs", name, config, facts, rules["existing"], rules["code_changed"], waits
    )
    return Setup(config, corpus, prepared, exam, machine, run)


def _train(setup: Setup, job: Job) -> None:
    import torch
    from torch.nn.utils import clip_grad_norm_

    from llm.build import account_for, build_model
    from llm.config.instantiate import instantiate
    from llm.data.batches import TrainOrder, mix
    from llm.evaluate import acceptance, examine
    from llm.hardware.memory import peak_memory
    from llm.hardware.profile import profiler
    from llm.hardware.signals import StopSignals
    from llm.moe.statistics import summarise
    from llm.report.card import card, sample_texts
    from llm.runs import checkpoint
    from llm.tokenizer import base as tokenizers
    from llm.tracking.curve import draw_curve
    from llm.tracking.log import MetricLog, PerfLog
    from llm.tracking.progress import Progress

    config, corpus, prepared, exam, machine, run = setup
    settings, seed, plugins = config["train"], config["seed"], config["plugins"]
    seq_len = config["model"]["max_seq_len"]
    hardware = instantiate(config["hardware"], "hardware", plugins)
    tracker = instantiate(config["tracking"], "tracking", plugins)
    recipe = instantiate(config["optimizer"], "optimizer", plugins)

    threads = hardware.start(run.facts.get("threads"))
    tokenizers.save(prepared.tokenizer, run.folder)
    model = build_model(config, prepared.tokenizer.vocab_size, plugins, machine.device)
    optimizer, scaler = recipe.optimizer(model), machine.scaler()
    order = TrainOrder(prepared.tokens("train"), seq_len, seed)
    micro_rows, micro_steps = settings["batch_size"], settings["grad_accum_steps"]
    rows_per_step = micro_rows * micro_steps
    costs = account_for(config, model)
    vocab_size = prepared.tokenizer.vocab_size
    run.update(threads=threads, floor=exam.floor, vocab_size=vocab_size, **asdict(costs))

    # Where it stands: a few numbers, all of them in each checkpoint.
    step, tokens, best = 0, 0, math.inf
    seconds = step_seconds = 0.0
    metrics_bytes = 0
    found, damaged = checkpoint.newest(run.checkpoints)
    for line in damaged:
        print(f"{line}; going back to the one before", file=sys.stderr)
    if damaged and found is None:
        raise Failed(f"no checkpoint of {run.folder} is whole; run.existing=restart begins anew")
    if found is not None:
        model.load_state_dict(found.model)
        found.restore_optimizer(optimizer)
        scaler.load_state_dict(found.state["scaler"])
        step, tokens, metrics_bytes = (
            found.step,
            found.state["tokens"],
            found.state["metrics_bytes"],
        )
        seconds, step_seconds = found.state["seconds"], found.state["step_seconds"]
        best = math.inf if found.state["best"] is None else found.state["best"]
        print(f"going on with {run.folder} from step {step}", file=sys.stderr)
    log, perf = MetricLog(run.folder), PerfLog(run.folder)
    log.cut_back(metrics_bytes)
    checkpoint.drop_after(run.best, step)
    run.update(state="running", reason=None)

    def save(needed: bool) -> None:
        """Checkpoint now; where the disk refuses and it is not needed yet, say so and go on."""
        facts = {
            "tokens": tokens,
            "seconds": seconds,
            "step_seconds": step_seconds,
            "metrics_bytes": log.sync(),
            "best": None if math.isinf(best) else best,
            "scaler": scaler.state_dict(),
        }
        try:
            checkpoint.write(run.checkpoints, step, model, optimizer, facts, keep=2)
        except OSError as error:
            if needed:
                raise
            progress.say(f"no checkpoint at step {step}: {error}; {_last_good(run)}")

    def save_best() -> None:
        try:
            checkpoint.write(run.best, step, model, None, {"val_loss": best}, keep=1)
        except OSError as error:
            progress.say(f"the best weights so far could not be kept: {error}")

    budget = Budget.parse(settings["budget"])
    total, per_step = _extent(
        budget, rows_per_step, seq_len, order.rows_per_epoch, costs.flops_per_token
    )
    begun = drawn = time.monotonic() - seconds
    signals, trace = StopSignals(), profiler(run.folder, settings["profile"])
    progress = Progress(budget.amount, budget.name, start=min(step * per_step, budget.amount))
    try:
        with signals, progress, trace:
            tracker.start(
                run.id, run.folder, config, job.sweep, step, costs.flops_per_token, progress.say
            )
            model.train()
            while True:
                spent = seconds / 60 if budget.unit == "min" else step * per_step
                if spent >= budget.amount or (total is not None and step >= total):
                    break
                if signals.received is not None:
                    save(needed=True)
                    raise Interrupted(signals.received)

                # One optimizer step. All randomness in it is keyed by the seed and the step.
                step_begun = time.monotonic()
                torch.manual_seed(mix(seed, step) >> 1)
                lr = recipe.lr_at(step, spent / budget.amount)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                batch = order.rows(
                    0 if settings["overfit"] else step * rows_per_step, rows_per_step
                )
                n_targets = int((batch.targets_RT >= 0).sum())
                loss_sum: Tensor | float = 0.0
                optimizer.zero_grad(set_to_none=True)
                for micro in range(micro_steps):
                    part = slice(micro * micro_rows, (micro + 1) * micro_rows)
                    tokens_BT = torch.from_numpy(batch.tokens_RT[part]).to(machine.device)
                    targets_BT = torch.from_numpy(batch.targets_RT[part]).to(machine.device)
                    with machine.autocast():
                        output = model(tokens_BT, targets_BT)
                    # Tokens weigh equally whatever the split into micro-steps; so do the
                    # auxiliary losses, which are means over the tokens of their micro-step.
                    share = output.n_tokens / n_targets
                    loss = output.loss_sum / n_targets + share * sum(output.aux.values())
                    scaler.scale(loss).backward()
                    loss_sum = loss_sum + output.loss_sum.detach()
                scaler.unscale_(optimizer)
                norm = clip_grad_norm_(model.parameters(), settings["clip_norm"] or math.inf)
                train_loss = float(loss_sum) / n_targets
                if not math.isfinite(train_loss):
                    raise Diverged(_diagnosis(run, step, train_loss, lr, machine.precision))
                scaler.step(optimizer)
                scaler.update()
                step, tokens = step + 1, tokens + n_targets
                trace.step()

                now = time.monotonic()
                seconds, step_seconds = now - begun, step_seconds + now - step_begun
                done = seconds / 60 if budget.unit == "min" else step * per_step
                last = done >= budget.amount or (total is not None and step >= total)
                metrics: dict[str, Any] = {
                    "train/loss": train_loss,
                    "train/grad_norm": float(norm),
                    "train/lr": lr,
                    "data/epoch": step * rows_per_step / order.rows_per_epoch,
                    **summarise(output.router),
                }

                if last or step % settings["eval_every"] == 0:
                    metrics.update(examine(model, exam, machine, micro_rows))
                    if "load_E" in output.router:
                        metrics["moe/load"] = output.router["load_E"].tolist()
                    if metrics["val/loss"] < best:
                        best = metrics["val/loss"]
                        save_best()
                log.append(step, tokens, metrics)
                rate = n_targets / (now - step_begun)
                perf.append(step, tokens, {"perf/seconds": seconds, "perf/tokens_per_second": rate})
                tracker.log(step, tokens, metrics)
                progress.update(
                    done,
                    step=step,
                    loss=train_loss,
                    val_loss=metrics.get("val/loss"),
                    tokens_per_second=rate,
                    imbalance=metrics.get("moe/max_over_mean"),
                    epoch=metrics["data/epoch"],
                )
                if "val/loss" in metrics and now - drawn > 30:
                    draw_curve(run.folder)
                    drawn = now
                sample_every = settings["sample_every"]
                if sample_every and step % sample_every == 0 and not last:
                    texts = sample_texts(model, prepared, seed, step)
                    tracker.table(step, [{"text": text} for text in texts])
                    progress.say(f"step {step} writes: {texts[0]}")
                if last or step % settings["checkpoint_every"] == 0:
                    save(needed=last)
        # The end, from the last checkpoint on: made again where a crash interrupts it.
        texts = sample_texts(model, prepared, seed, step)
        shares = acceptance(model, prepared, corpus, seed)
        if shares:
            log.append(step, tokens, shares)
        draw_curve(run.folder)
        tracker.table(step, [{"text": text} for text in texts])
        rows = MetricLog.read(log.path)
        results = _results(rows, step, tokens, seconds, step_seconds)
        run.update(state="finished", peak_memory=peak_memory(machine.device), **results)
        tracker.finish(0)
    except BaseException as problem:
        state, code = (
            ("interrupted", problem) if isinstance(problem, Interrupted) else ("failed", 1)
        )
        run.update(state=state, reason=str(problem) or type(problem).__name__)
        tracker.finish(code.exit_code if isinstance(code, Interrupted) else code)
        if isinstance(problem, OSError):
            raise Failed(f"{problem}; {_last_good(run)}") from problem
        raise
    finally:
        log.close()
        perf.close()
    print(card(run.folder, run.facts, rows, texts))


def _extent(
    budget: Budget, rows_per_step: int, seq_len: int, rows_per_epoch: int, flops_per_token: int
) -> tuple[int | None, float]:
    """Steps in all (None where the clock decides), and what one step takes off the budget."""
    tokens = rows_per_step * seq_len
    per_step = {
        "tok": tokens,
        "step": 1,
        "epoch": rows_per_step / rows_per_epoch,
        "flops": tokens * flops_per_token,
        "min": math.nan,
    }[budget.unit]
    if budget.unit == "min":
        return None, 0.0
    return max(1, math.ceil(budget.amount / per_step - 1e-9)), per_step


def _results(
    rows: list[dict[str, Any]], step: int, tokens: int, seconds: float, step_seconds: float
) -> dict[str, Any]:
    """What run.json says of a finished run, from its metric log."""
    evaluations = [row for row in rows if "val/loss" in row]
    last, best = evaluations[-1], min(evaluations, key=lambda row: row["val/loss"])
    results = {
        "val_loss": last["val/loss"],
        "val_bpb": last["val/bpb"],
        "best_val_loss": best["val/loss"],
        "best_step": best["step"],
        "steps": step,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / step_seconds, 1),
    }
    if "val/floor" in last:
        results |= {"floor": last["val/floor"], "excess": last["val/excess"]}
        results["excess_by_skill"] = {
            name.removeprefix("val/excess/"): value
            for name, value in last.items()
            if name.startswith("val/excess/")
        }
        results |= {k.removeprefix("val/"): v for k, v in rows[-1].items() if "accepted" in k}
    return results


def _last_good(run: "Run") -> str:
    from llm.runs.checkpoint import list_steps

    kept = list_steps(run.checkpoints)
    return f"last good checkpoint: {kept[-1]}" if kept else "there is no checkpoint yet"


def _diagnosis(run: "Run", step: int, loss: float, lr: float, precision: str) -> str:
    cause = (
        f"fp16 overflows where bf16 does not; try hardware.precision=bf16, or a lower lr ({lr:.1e})"
        if precision == "fp16"
        else f"the likely cause is the learning rate, {lr:.1e} here; try a third, or more warm-up"
    )
    return f"the loss became {loss} at step {step}; {cause}; {_last_good(run)}"


def _summary(facts: dict[str, Any]) -> str:
    against = f" (floor {facts['floor']:.4f})" if facts.get("floor") is not None else ""
    return f"validation loss {facts['val_loss']:.4f}{against} after {facts['tokens']:,} tokens"


if __name__ == "__main__":
    main("llm.train", train)
