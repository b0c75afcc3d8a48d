"""What facts of machines mean: a row for everything that a run needs, and for what is wrong the next step. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "wrong"]

LEAST_FREE = 1 << 30
LITTLE_FREE = 10 << 30
"""Bytes on the disk of the run folders below which a run will not live, or not for long."""

MOST_APART = 5.0
"""Seconds between clocks: a run's events, and the marks of its watchdog, are of several machines. A store's signatures
stand fifteen minutes."""


@dataclass(frozen=True)
class NodeFacts:
    """What was found on one machine (`raylm.cluster.facts`).

    place: its address. ray_gpus: those that Ray has there; None without a cluster. clock_ahead: seconds that its clock
    is before ours, known to ± clock_within.
    """

    place: str
    versions: Mapping[str, str]
    machine_gpus: Sequence[str] = ()
    tensorflow_gpus: int | None = 0
    tensorflow_problem: str = ""
    nccl: str = ""
    free_bytes: int | None = None
    storage_problem: str = ""
    missing_marks: Sequence[str] = ()
    dataset_problem: str = ""
    ray_gpus: int | None = None
    clock_ahead: float = 0.0
    clock_within: float = 0.0


@dataclass(frozen=True)
class Asked:
    """What the machines were asked about: where runs are kept, and what is trained on.

    storage_mark, cache_mark: files that were put there for machines that share these folders; empty where none need to.
    dataset: what the data are, in words; dataset_note: what is to be known of them; dataset_problem: what is wrong with
    them on this machine already.
    """

    storage: str
    dataset: str
    dataset_note: str = ""
    dataset_problem: str = ""
    cache: str = ""
    storage_mark: str = ""
    cache_mark: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table. advice: what to do, empty where it is well."""

    check: str
    where: str
    state: State
    found: str
    advice: str = ""


def judge(asked: Asked, here: Mapping[str, str], nodes: Sequence[NodeFacts], silent: Mapping[str, str]) -> list[Row]:
    """All rows. here: versions of this process. silent: nodes that gave no facts, and why."""
    rows = [Row("answers", place, "wrong", why, _SILENT) for place, why in silent.items()]
    rows += [_version(name, here[name], nodes) for name in here]
    for check in (_gpus, _nccl):
        rows += [row for node in nodes for row in check(node)]
    for node in nodes:
        rows += [_storage(node, asked), *_disk(node), *_clock(node), _dataset(node, asked)]
    order = {check: number for number, check in enumerate(dict.fromkeys(row.check for row in rows))}
    return sorted(rows, key=lambda row: order[row.check])


_SILENT = "look at the machine and at `ray status`; take it out of the cluster where it stays so"
_INSTALL = "pip install -c constraints.txt -e . there, from the same folder, then start Ray anew"


def token_row(mode: str, found: bool, cluster: bool) -> Row:
    """The token of a cluster, without which nobody is to get in. mode: $RAY_AUTH_MODE."""
    if mode == "token" and not found:
        advice = "ray get-auth-token --generate, or copy ~/.ray/auth_token from the head"
        return Row("token", "here", "wrong", "RAY_AUTH_MODE=token, and there is no token", advice)
    if mode == "token":
        return Row("token", "here", "ok", "RAY_AUTH_MODE=token, with a token")
    if not cluster:
        return Row("token", "here", "ok", "not needed: no cluster")
    advice = "whoever reaches the cluster can run code on it: start Ray with RAY_AUTH_MODE=token"
    return Row("token", "here", "note", "the cluster asks for none", advice)


def _version(name: str, ours: str, nodes: Sequence[NodeFacts]) -> Row:
    others = {node.place: node.versions.get(name, "") for node in nodes if node.versions.get(name, "") != ours}
    if not ours and not others:
        return Row(name, "here", "wrong", "missing", "pip install -c constraints.txt -e .")
    if not others:
        where = f"all {len(nodes)} nodes" if len(nodes) > 1 else "here"
        return Row(name, where, "ok", ours)
    found = ", ".join(f"{found or 'missing'} on {place}" for place, found in others.items())
    return Row(name, ", ".join(others), "wrong", f"{found}; {ours or 'missing'} here", _INSTALL)


def _gpus(node: NodeFacts) -> Iterator[Row]:
    count, tensorflow, ray = len(node.machine_gpus), node.tensorflow_gpus, node.ray_gpus
    found = f"{count} in the machine" + (f" ({node.machine_gpus[0].split(',')[0]})" if count else "")
    found += "" if ray is None else f", {ray} for Ray"
    if tensorflow is None:
        advice = "python -c 'import tensorflow' there says more"
        yield Row("GPUs", node.place, "wrong", f"{found}; TensorFlow: {node.tensorflow_problem}", advice)
        return
    found += f", {tensorflow} for TensorFlow"
    if ray is not None and ray > count:
        advice = "start Ray there without --num-gpus, or mend its NVIDIA driver (nvidia-smi)"
    elif ray is not None and ray < count:
        advice = "start Ray there anew without --num-gpus and CUDA_VISIBLE_DEVICES, or leave it so on purpose"
    elif tensorflow < count:
        advice = "pip install -e '.[gpu]' there; the NVIDIA driver must be 525 or newer"
    else:
        yield Row("GPUs", node.place, "ok", found)
        return
    yield Row("GPUs", node.place, "note" if ray is not None and ray < count else "wrong", found, advice)


def _nccl(node: NodeFacts) -> Iterator[Row]:
    if not node.machine_gpus:
        yield Row("NCCL", node.place, "ok", f"{node.nccl or 'missing'}, and not needed: no GPU")
    elif node.nccl:
        yield Row("NCCL", node.place, "ok", node.nccl)
    else:
        yield Row("NCCL", node.place, "wrong", "libnccl.so.2 is not found", "pip install -e '.[gpu]' there")


def _storage(node: NodeFacts, asked: Asked) -> Row:
    if node.storage_problem:
        advice = "name another --storage-path, or mend its rights"
        return Row("storage", node.place, "wrong", f"{asked.storage}: {node.storage_problem}", advice)
    if asked.storage_mark in node.missing_marks:
        advice = "name a --storage-path that every node reaches: a shared folder, or s3://BUCKET/PATH"
        return Row("storage", node.place, "wrong", f"{asked.storage} is another folder there", advice)
    return Row("storage", node.place, "ok", f"{asked.storage} can be written")


def _disk(node: NodeFacts) -> Iterator[Row]:
    if node.free_bytes is not None:
        little = node.free_bytes < LITTLE_FREE
        state: State = "wrong" if node.free_bytes < LEAST_FREE else "note" if little else "ok"
        advice = "`raylm plan` says how much a run writes; make room, or name another --storage-path" if little else ""
        yield Row("disk", node.place, state, f"{node.free_bytes / (1 << 30):,.1f} GiB free", advice)


def _clock(node: NodeFacts) -> Iterator[Row]:
    if node.ray_gpus is None:
        return
    apart = abs(node.clock_ahead)
    wrong = apart - node.clock_within > MOST_APART
    found = f"{apart:.2f} s {'ahead' if node.clock_ahead > 0 else 'behind'} (± {node.clock_within:.2f})"
    yield Row("clock", node.place, "wrong" if wrong else "ok", found, "timedatectl set-ntp true there" if wrong else "")


def _dataset(node: NodeFacts, asked: Asked) -> Row:
    problem = asked.dataset_problem or node.dataset_problem
    if problem:
        return Row("dataset", node.place, "wrong", problem, "name what is there with --corpus")
    if asked.cache_mark in node.missing_marks:
        advice = "name a --cache-dir that every node reaches, or keep runs (and so their data) in s3://BUCKET/PATH"
        return Row("dataset", node.place, "wrong", f"{asked.cache}, where it is prepared, is another there", advice)
    return Row("dataset", node.place, "note" if asked.dataset_note else "ok", asked.dataset, asked.dataset_note)
