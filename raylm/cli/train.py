"""`raylm train`: prepare the data, train, print the perplexities. `jobs/train_ptb.py` is the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from raylm.checkpoint.locate import find
from raylm.checkpoint.mirror import Mirror
from raylm.cli.options import parse_run_config
from raylm.cli.running import COMPLETED, open_view, run
from raylm.config import RunConfig
from raylm.data.caching import default_cache_dir
from raylm.data.corpora import find_corpus
from raylm.data.prepare import prepare_corpus
from raylm.data.prepared import find_prepared
from raylm.data.publish import publish
from raylm.data.remote import below, without_secrets
from raylm.data.upload import is_uri
from raylm.errors import UserError
from raylm.guard.drills import parse_drills
from raylm.observe.run_folder import RunRecord, create_in_store, create_run_folder, remove_unstarted

SUMMARY = "Train a language model: by default a small one, for a few minutes, on the Penn Treebank or a sample."


def main(arguments: Sequence[str], program: str = "raylm train") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    config = _found_everywhere(parse_run_config(arguments, program=program))
    parse_drills(config.drill)
    folder, mirror = run_folder(config)
    view = open_view(config.report.plain_seconds)
    try:
        if mirror is not None:
            create_in_store(mirror)
        record = prepare(config, view.note)
        create_run_folder(folder, record)
        try:
            code = run(record, folder, view, mirror)
        except UserError:
            remove_unstarted(folder, mirror)
            raise
    finally:
        view.close()
    if code == COMPLETED and config.recipe == "quick":
        print(f"this was the quick look; the whole recipe, 13 epochs: {program} --recipe ptb-small")
    return code


def run_folder(config: RunConfig) -> tuple[Path, Mirror | None]:
    """Where the run is kept; in an object store, the mirror and its working folder. Raises: UserError: a bad URI."""
    name = config.name or f"{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    if is_uri(config.storage_path):
        mirror = Mirror(below(config.storage_path, name), "driver")
        return mirror.folder, mirror
    return (Path(config.storage_path).expanduser() / name).resolve(), None


def _found_everywhere(config: RunConfig) -> RunConfig:
    """The configuration with what it starts from as every worker finds it. Raises: UserError: there is none."""
    if config.start_from is None:
        return config
    found = find(config.start_from, "driver")
    if found.mirror is not None:
        return config
    return config.model_copy(update={"start_from": str(found.checkpoint or found.folder)})


def prepare(config: RunConfig, say: Callable[[str], None]) -> RunRecord:
    """Finds the corpus and turns it into datasets, or finds them in the cache.

    Raises:
        UserError: the corpus cannot be had, read or cached.
    """
    data = config.data
    datasets = find_prepared(data.corpus, data.tokenizer)
    if datasets is not None:
        name = without_secrets(data.corpus[0]).rpartition("/")[2]
        return RunRecord(config, name, "Your own text: perplexities are not PTB's.", datasets)
    cache = (data.cache_dir or default_cache_dir()).expanduser()
    corpus = find_corpus(
        data.corpus,
        data_dir=data.data_dir.expanduser() if data.data_dir else None,
        cache_dir=cache,
        say=say,
        as_bytes=data.tokenizer == "bytes",
    )
    tokenizer, size = data.tokenizer or "whitespace", data.vocabulary_size
    prepared = asdict(prepare_corpus(corpus, cache / "datasets", say, vocabulary_size=size, tokenizer=tokenizer))
    if is_uri(config.storage_path):
        datasets = publish(prepared, config.storage_path, say)
    else:
        datasets = {split: str(path) for split, path in prepared.items()}
    return RunRecord(config, corpus.name, corpus.note, datasets)
