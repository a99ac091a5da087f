"""The training loop."""

import math
import sys
from pathlib import Path

from llm.config.outcome import Job
from llm.config.terminal import shown
from llm.hardware.world import World
from llm.report import card
from llm.training.ending import recorded
from llm.training.outcome import summary
from llm.training.prepare import prepare_run
from llm.training.trainer import Trainer


def fit(job: Job) -> Path:
    """Train the run that `job` describes, continue it, or answer from it: see `llm.train`."""
    with World() as world:
        setup = prepare_run(job, world)
        run = setup.run
        with recorded(run, world):
            if run.state != "finished":
                _train(Trainer(setup, job.sweep))
            elif world.first:
                print(f"finished already: {summary(run.facts)}")
            if world.first:
                print(run.folder)
        return run.folder


def _train(trainer: Trainer) -> None:
    state, course, settings = trainer.state, trainer.course, trainer.settings
    with trainer.open():
        with trainer.signals, trainer.trace:
            trainer.start()
            while not course.over:
                trainer.stop_if_asked()
                trainer.begin_step()
                batch = trainer.next_batch()
                totals = trainer.compute_gradients(batch)
                evaluates = (state.step + 1) % settings["eval_every"] == 0
                applied = trainer.accepts(totals)
                ratios = trainer.update(totals, measured=evaluates) if applied else {}
                trainer.scaler.update()
                state.step += 1
                if trainer.guard.exhausted:  # leaving out steps does not help
                    trainer.go_back(totals)
                    continue
                trainer.advance(batch, totals, applied)

                last, better = course.over, False
                metrics = trainer.step_metrics(totals)
                if last or evaluates:
                    metrics |= {f"grad_norm/{role}": norm for role, norm in totals.norms.items()}
                    metrics |= {f"update_ratio/{role}": ratio for role, ratio in ratios.items()}
                    metrics |= trainer.evaluate()
                    cost = trainer.objective.metric.cost(metrics)
                    if not math.isfinite(cost):  # the weights are spoilt
                        trainer.go_back(totals)
                        continue
                    better = cost < state.best
                    state.best = min(state.best, cost)
                trainer.log(metrics)
                sample_every = settings["sample_every"]
                if sample_every and state.step % sample_every == 0 and not last:
                    trainer.sample()
                trainer.save(last, better)
                trainer.log_speed()
        trainer.finish()
    if trainer.world.first:
        told = card.card(trainer.run.folder, trainer.run.facts, trainer.rows, trainer.samples)
        print(shown(told, sys.stdout))
