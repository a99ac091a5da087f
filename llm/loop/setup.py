"""Everything that is decided before step 0, rank 0 deciding where there are several processes."""

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llm.config.entry import Job
from llm.config.errors import Refused

if TYPE_CHECKING:
    from llm.data.mixture import PreparedMixture
    from llm.data.prepare import Prepared
    from llm.evaluate import Examination
    from llm.hardware.machine import Machine
    from llm.hardware.world import World
    from llm.hf.start import Start
    from llm.reading import Reading
    from llm.runs.directory import Run


class Setup(NamedTuple):
    """What `prepare_run` decided."""

    config: dict[str, Any]
    reading: "Reading"
    prepared: "Prepared | PreparedMixture"
    exam: "Examination"
    machine: "Machine"
    run: "Run"
    world: "World"
    start: "Start | None"  # weights of another model


def prepare_run(job: Job, world: "World | None" = None) -> Setup:
    """Refuse what can be refused, prepare the data, and claim the run."""
    from llm.build import build_model, caveats
    from llm.config.instantiate import instantiate
    from llm.evaluate import examination
    from llm.hardware.world import World
    from llm.hf.start import begin_from
    from llm.moe.exchange import check_split
    from llm.prepare import prepare_data
    from llm.reading import Reading
    from llm.runs.code import code_facts, packages
    from llm.runs.directory import Run, claim, folder_of
    from llm.runs.identity import config_hash, git_state, identify, versions

    world = world or World()
    job, start = begin_from(job)
    config, names, plugins = job.config, job.chosen, job.config["plugins"]
    hardware = instantiate(config["hardware"], "hardware", plugins)
    machine = hardware.resolve(world)
    if config["train"]["batch_size"] % world.size:
        raise Refused(
            f"is {config['train']['batch_size']} sequences over all processes, "
            f"which {world.size} of them cannot share evenly",
            "train.batch_size",
        )
    instantiate(config["tracking"], "tracking", plugins)
    recipe = instantiate(config["optimizer"], "optimizer", plugins)
    try:
        model = build_model(config, 256, plugins, device="meta")
    except RuntimeError as error:  # sizes beyond what a tensor can count
        raise Refused(f"model: cannot be built: {str(error).splitlines()[0]}") from None
    check_split(model, hardware.expert_parallel)
    if world.first:
        for note in [*job.validated.notes, *caveats(model), *recipe.caveats(model)]:
            print(note, file=sys.stderr)

    # The data's fingerprint is part of the run's identity; how many processes there are is not.
    outputs = Path(config["outputs"])
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
    name, identity = identify(
        names,
        job.validated.identity,
        machine.facts(),
        prepared.fingerprint,
        None if start is None else (start.name, start.fingerprint),
    )
    parts = {n: part.fingerprint for n, part in getattr(prepared, "parts", {}).items()}
    claimed: list[Run] = []

    def decide() -> dict[str, Any]:
        facts = {
            "state": "running",
            "config_hash": config_hash(identity),
            **code_facts(*packages(plugins)),
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
        claimed.append(claim(outputs / "runs", name, config, facts, existing, code_changed, waits))
        return claimed[0].facts

    facts = world.decide(decide)
    run = claimed[0] if claimed else Run(folder_of(outputs / "runs", name), facts, None)
    return Setup(config, reading, prepared, exam, machine, run, world, start)
