"""`raylm plan`: what a run will take, before it costs anything: memory, checkpoints, steps, hours, money.

Exit codes: 0 it fits · 2 it does not, or a mistake that the user can mend.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from raylm.cli.options import parse_run_config
from raylm.cli.tables import Facts, print_facts, print_json
from raylm.cli.train import prepare
from raylm.cli.trial import measured_pace
from raylm.cli.words import positive
from raylm.cluster.facts import machine_gpus
from raylm.config import RunConfig
from raylm.data.dataset import open_dataset
from raylm.data.streams import Streams
from raylm.errors import UserError
from raylm.observe.figures import count, duration
from raylm.observe.run_folder import RunRecord
from raylm.training.datasets import open_source
from raylm.training.devices import GIB, GPUS, Device, cpu, speed
from raylm.training.pace import time_of
from raylm.training.plan import LEAST_HELD, MOST_HELD, Plan, Text, make_plan, refuse_what_does_not_fit
from raylm.training.topology import Topology

SUMMARY = "Say what a run will take before it begins: memory, checkpoints, hours and money; refuse what cannot fit."


def main(arguments: Sequence[str], program: str = "raylm plan") -> int:
    """The exit code. Raises: UserError: it does not fit, or a mistake of the user's."""
    options, rest = _parser(program).parse_known_args(arguments)
    config = parse_run_config(rest, program=program)
    device, replicas = _device(options.gpu, options.gpu_memory)
    workers, replicas = config.cluster.most_workers, config.cluster.replicas or replicas
    topology = Topology(0, workers, replicas, config.data.lanes, config.cluster.fixed_shards)
    device = device or cpu((os.cpu_count() or 1) / (workers * replicas))

    def say(line: str) -> None:
        print(f"{program}: {line}", file=sys.stderr)

    record = prepare(config, say)
    text = _text(config, record)
    plan = make_plan(config, text, topology, device)
    sizes = _sizes(config, plan, topology, device)
    try:
        refuse_what_does_not_fit(plan, device, config)
    except UserError:
        if not options.json:
            print_facts(sys.stdout, _size_facts(sizes))
        raise
    pace = measured_pace(record, say) if options.measure else None
    hours = _hours(config, plan, text, topology, device, pace, options.price)
    if options.json:
        print_json(sys.stdout, sizes | hours)
    else:
        print_facts(sys.stdout, [*_size_facts(sizes), *_hour_facts(hours)])
    return 0


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        program,
        description=SUMMARY + " The options of `raylm train` follow.",
        epilog=f"example: {program} --gpu L4 --price 0.80 --recipe ptb-large --corpus ptb --workers 2 --replicas 4",
        allow_abbrev=False,
    )
    parser.add_argument("--gpu", metavar="TYPE", help=f"{', '.join(GPUS)} (default: the one in this machine, or none)")
    parser.add_argument("--gpu-memory", type=positive, metavar="GIB", help="of each GPU (default: by its type)")
    parser.add_argument("--price", type=positive, metavar="PRICE", help="of a GPU for an hour, in any currency")
    parser.add_argument("--measure", action="store_true", help="train for half a minute, to know the pace; needs Ray")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the lines")
    return parser


def _device(name: str | None, gib: float | None) -> tuple[Device | None, int]:
    """The GPU that is stated or is here, and how many of it are here; None where there is none.

    Raises:
        UserError: the type is not known.
    """
    seen = machine_gpus()
    if name is None and seen:
        name, _, mebibytes = seen[0].partition(", ")
        known = sorted((key for key in GPUS if key in name), key=len)
        gib = gib or int(mebibytes) / 1024
        name = known[-1] if known else "L4"
    elif name is None and gib is None:
        return None, 1
    if name is not None and name not in GPUS:
        raise UserError(f"--gpu {name}: there are {', '.join(GPUS)}; for another one take the nearest and --gpu-memory")
    device = GPUS[name or "L4"]
    return device if gib is None else device.with_memory(int(gib * GIB)), max(1, len(seen))


def _text(config: RunConfig, record: RunRecord) -> Text:
    whole = Topology(0, 1, 1, config.data.lanes)
    train, *held_out = (open_dataset(record.datasets[split]) for split in ("train", "valid", "test"))
    source = open_source(config, train, whole)
    targets = (held_out[0].tokens - 1, held_out[1].tokens - 1)
    windows = [source.windows_per_epoch(epoch) for epoch in range(config.epochs)]
    longest = source.window if isinstance(source, Streams) else max(config.data.buckets)
    return Text(len(train.vocabulary), source.targets_per_epoch, windows[0], sum(windows), longest, targets)


def _sizes(config: RunConfig, plan: Plan, topology: Topology, device: Device) -> dict[str, Any]:
    return {
        "recipe": config.recipe,
        "parameters": plan.parameters,
        "device": device.name,
        "device_memory": device.memory,
        "workers": topology.workers,
        "replicas": topology.replicas,
        "lanes_per_replica": plan.lanes,
        "memory": {**plan.memory, "total": sum(plan.memory.values())},
        "snapshots_on_host": plan.host,
        "checkpoint_bytes": plan.checkpoint,
        "checkpoints_kept_bytes": plan.kept,
        "steps": plan.steps,
        "tokens": round(plan.targets),
    }


def _hours(
    config: RunConfig,
    plan: Plan,
    text: Text,
    topology: Topology,
    device: Device,
    pace: float | None,
    price: float | None,
) -> dict[str, Any]:
    """pace: tokens a second, where it was measured."""
    time = time_of(config, plan, text, topology, device, pace)
    devices = topology.workers * topology.replicas
    return {
        "tokens_per_hour": time.tokens_per_second * 3600,
        "measured": pace is not None,
        "assumption": "" if pace else speed(config, device).assumption + ", sums over replicas free" * (devices > 1),
        "training_seconds": time.training,
        "evaluation_seconds": time.evaluation,
        "checkpoint_bytes_per_hour": time.checkpoints * plan.checkpoint / time.training * 3600,
        "cost": None if price is None else price * devices * (time.training + time.evaluation) / 3600,
        "price": price,
        "devices": devices,
    }


def _size_facts(sizes: dict[str, Any]) -> Facts:
    parts = [(name, size) for name, size in sizes["memory"].items() if size and name != "total"]
    memory = sizes["device_memory"]
    needed = sizes["memory"]["total"]
    room = "" if memory is None else f" of {_bytes(memory)}"
    tight = ": it may not fit" if memory is not None and needed <= memory < MOST_HELD * needed else ""
    return [
        ("run", f"{sizes['recipe']}, {count(sizes['steps'])} updates, {count(sizes['tokens'])} tokens"),
        ("parameters", count(sizes["parameters"])),
        (
            "devices",
            f"{sizes['workers']} × {sizes['replicas']} {sizes['device']}, {sizes['lanes_per_replica']} lanes each",
        ),
        ("memory of each", f"{_bytes(needed)}{room}, counted, not tried{tight}"),
        ("", f"(on a processor, steps held {LEAST_HELD:g} to {MOST_HELD:g} times what is counted)"),
        *((f"  {name}", _bytes(size)) for name, size in parts),
        ("host memory", f"{_bytes(sizes['snapshots_on_host'])} for the snapshots of each worker"),
        ("checkpoint", f"{_bytes(sizes['checkpoint_bytes'])}, {_bytes(sizes['checkpoints_kept_bytes'])} for all kept"),
    ]


def _hour_facts(hours: dict[str, Any]) -> Facts:
    how = "measured" if hours["measured"] else f"estimated: {hours['assumption']}; --measure tries it"
    whole = hours["training_seconds"] + hours["evaluation_seconds"]
    facts = [
        ("tokens an hour", f"{count(hours['tokens_per_hour'])} ({how})"),
        ("time", f"{duration(whole)}, of it about {duration(hours['evaluation_seconds'])} for evaluations (estimated)"),
        ("checkpoints", f"{_bytes(hours['checkpoint_bytes_per_hour'])} an hour"),
    ]
    if hours["cost"] is not None:
        facts.append(("cost", f"{hours['cost']:,.2f}, at {hours['price']:g} an hour × {hours['devices']}"))
    return facts


def _bytes(size: float) -> str:
    for unit, name in ((GIB, "GiB"), (1 << 20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.2f} {name}"
    return f"{size / 1024:,.1f} KiB"
