"""Everything that is decided before step 0, rank 0 deciding where there are several processes."""

import platform
import sys
from pathlib import Path
from typing import Any, NamedTuple

from llm.build import account_for, build_model, caveats
from llm.config.errors import Refused
from llm.config.instantiate import instantiate
from llm.config.outcome import Job
from llm.data.mixture import PreparedMixture
from llm.data.prepare import Prepared
from llm.evaluate import Examination, examination
from llm.hardware.machine import Machine
from llm.hardware.world import World
from llm.hf.start import Start, begin_from
from llm.moe.exchange import check_split
from llm.plan.cost import vocabulary
from llm.plan.memory import check_memory
from llm.prepare import prepare_data
from llm.reading import Reading
from llm.runs.code import code_facts, packages
from llm.runs.directory import Run, claim, folder_of
from llm.runs.identity import config_hash, git_state, identify, versions


class Setup(NamedTuple):
    """What `prepare_run` decided."""

    config: dict[str, Any]
    reading: Reading
    prepared: Prepared | PreparedMixture
    exam: Examination
    machine: Machine
    run: Run
    world: World
    start: Start | None  # weights of another model


def prepare_run(job: Job, world: World | None = None) -> Setup:
    """Refuse what can be refused, prepare the data, and claim the run."""
    world = world or World()
    job, start = begin_from(job)
    config = job.config
    machine = _check(job, world)

    # The data's fingerprint is part of the run's identity; how many processes there are is not.
    made = prepare_data(job) if world.first else None
    world.decide(lambda: "prepared")
    corpus, prepared = made or prepare_data(job)
    if start is not None:
        start.check_vocabulary(prepared.tokenizer)
    reading = Reading.of(config, prepared.tokenizer, corpus, machine.facts())
    exam = examination(prepared, reading, config["train"]["eval_tokens"])
    if exam.n_bytes is None and world.first:
        print(
            "val/bpb is not known: the vocabulary lacks characters of the validation text, and "
            "train.eval_tokens takes a part of it",
            file=sys.stderr,
        )
    run = _claim(job, world, machine, prepared, start)
    return Setup(config, reading, prepared, exam, machine, run, world, start)


def _check(job: Job, world: World) -> Machine:
    """Refuse what needs no data to be refused; the device and its precision."""
    config, plugins = job.config, job.config["plugins"]
    hardware = instantiate(config["hardware"], "hardware", plugins)
    machine: Machine = hardware.resolve(world)
    if config["train"]["batch_size"] % world.size:
        raise Refused(
            f"is {config['train']['batch_size']} sequences over all processes, "
            f"which {world.size} of them cannot share evenly",
            "train.batch_size",
        )
    instantiate(config["tracking"], "tracking", plugins)
    recipe = instantiate(config["optimizer"], "optimizer", plugins)
    vocab_size, known = vocabulary(config, {})
    vocab_size = vocab_size if known else 256  # any will do: it is fitted to texts still to be read
    try:
        model = build_model(config, vocab_size, plugins, device="meta")
    except RuntimeError as error:  # sizes beyond what a tensor can count
        raise Refused(f"model: cannot be built: {str(error).splitlines()[0]}") from None
    check_split(model, hardware.expert_parallel)
    params_total = account_for(config, model).params_total
    resolved = {**config, "hardware": {**config["hardware"], **machine.facts()}}
    warning = check_memory(resolved, params_total, vocab_size, world)
    notes = [*job.validated.notes, *caveats(model), *recipe.caveats(model)]
    for note in [*notes, *filter(None, [warning])] if world.first else []:
        print(note, file=sys.stderr)
    return machine


def _claim(
    job: Job,
    world: World,
    machine: Machine,
    prepared: Prepared | PreparedMixture,
    start: Start | None,
) -> Run:
    """The run that the job describes, claimed by rank 0 for all."""
    config, names = job.config, job.chosen
    name, identity = identify(
        names,
        job.validated.identity,
        machine.facts(),
        prepared.fingerprint,
        None if start is None else (start.name, start.fingerprint),
    )
    parts = {n: part.fingerprint for n, part in getattr(prepared, "parts", {}).items()}
    root, claimed = Path(config["outputs"]) / "runs", list[Run]()

    def decide() -> dict[str, Any]:
        facts = {
            "state": "running",
            "config_hash": config_hash(identity),
            **code_facts(*packages(config["plugins"])),
            "data_fingerprint": prepared.fingerprint,
            "text_fingerprint": prepared.text_fingerprint,
            **({"data_parts": parts} if parts else {}),
            "sweep": job.sweep,
            "host": platform.node(),
            "chosen": {group: o for group, o in names.items() if not group.startswith("hydra/")},
            **({} if start is None else {"init_from": start.fingerprint}),
            "versions": versions(),
            **git_state(),
            **machine.facts(),
        }
        existing, code_changed = config["run"]["existing"], config["run"]["code_changed"]
        waits = job.sweep is not None
        claimed.append(claim(root, name, config, facts, existing, code_changed, waits))
        return claimed[0].facts

    facts = world.decide(decide)
    return claimed[0] if claimed else Run(folder_of(root, name), facts, None)
