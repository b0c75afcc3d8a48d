"""From text to datasets.

`prepare` is `raylm prepare`: any inputs, any tokenizer. It counts the words of every split of the inputs, chooses the
vocabulary, encodes every split, and seals what came of it. Who does the splits, a `Runner` says; the dataset is the
same byte for byte. `prepare_corpus` makes the three datasets that a training run reads.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from raylm.data.caching import new_folder
from raylm.data.corpora import Corpus
from raylm.data.dataset import open_dataset
from raylm.data.encode import Encoded, forget_encoder
from raylm.data.inputs import opening, plan_splits, shown
from raylm.data.options import WORDS_VOCABULARY_SIZE, PrepareOptions
from raylm.data.runners import Runner, run_here
from raylm.data.stages import Job, Report, Words, encode_splits, find_words, place_rejects, place_shards
from raylm.data.tokenize import TokenizerName
from raylm.data.upload import is_uri, refuse_existing_remote, upload_dataset
from raylm.data.workspace import open_workspace
from raylm.data.writer import partial_folder, refuse_existing, seal
from raylm.errors import UserError

_CORPUS_VERSION = 2


@dataclass(frozen=True)
class PrepareResult:
    """What was prepared.

    lines: read from the inputs. empty_lines: of these, without tokens. long_rows: rows over the limit.
    unknowns: tokens that are `<unk>`. seconds, tokens_per_second: wall time of it all.
    """

    dataset_id: str
    output: str
    tokens: int
    rows: int
    vocabulary: int
    unknowns: int
    lines: int
    empty_lines: int
    long_rows: int
    rejects: int
    seconds: float
    tokens_per_second: float


def prepare(
    inputs: Sequence[str | Path],
    output: str | Path,
    options: PrepareOptions | None = None,
    *,
    run: Runner = run_here,
    report: Report = lambda progress: None,
) -> PrepareResult:
    """Make a dataset of text, gzip or zstd text, or Parquet, at `output`: a path, or a URI that is uploaded to.

    The `dataset_id` depends on the text and the options, not on `run`.

    Raises:
        UserError: an input cannot be read or has no tokens; too many lines are rejected; there is something at
            `output` already, or it cannot be written.
    """
    options = options or PrepareOptions()
    begin = time.perf_counter()
    if is_uri(output):
        refuse_existing_remote(str(output))
    splits = plan_splits(inputs, split_bytes=options.split_bytes)
    if not splits:
        raise UserError(f"{shown(inputs[0]) if inputs else 'the list of inputs'} is empty: there is no text to prepare")
    with ExitStack() as stack:
        sealed = Path(output)
        if is_uri(output):
            sealed = Path(stack.enter_context(TemporaryDirectory(prefix="raylm-prepare-")), "dataset")
        refuse_existing(sealed)
        staging = partial_folder(sealed)
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        stack.callback(forget_encoder)
        work = open_workspace(output, staging)
        try:
            made = _make(Job(splits, options, work, run, report), [shown(source) for source in inputs], staging, sealed)
            if is_uri(output):
                upload_dataset(sealed, str(output))
        except BaseException:
            work.discard()
            raise
    return _result(made, shown(output), time.perf_counter() - begin)


@dataclass(frozen=True)
class _Made:
    dataset_id: str
    words: Words
    encoded: Sequence[Encoded]


def _make(job: Job, sources: Sequence[str], staging: Path, sealed: Path) -> _Made:
    """The dataset in the folder `sealed`; its shards are where the workspace places them."""
    words = find_words(job)
    encoded = encode_splits(job, words)
    shards, rejects = place_shards(job, encoded), place_rejects(job, encoded, staging)
    job.work.remove()
    dataset_id = seal(
        staging,
        sealed,
        words.vocabulary,
        shards,
        rejected=sum(part.rejected for part in encoded),
        rejects=rejects,
        provenance={
            "sources": sources,
            "tokenizer": words.tokenizer,
            "vocabulary_of": words.given_by,
            "options": job.options.model_dump(mode="json", exclude={"vocab"}),
        },
    )
    return _Made(dataset_id, words, encoded)


def _result(made: _Made, output: str, seconds: float) -> PrepareResult:
    encoded = made.encoded
    chunks = [chunk for part in encoded for _, shard in part.shards for chunk in shard.chunks]
    tokens = sum(chunk.tokens for chunk in chunks)
    return PrepareResult(
        dataset_id=made.dataset_id,
        output=output,
        tokens=tokens,
        rows=sum(chunk.rows for chunk in chunks),
        vocabulary=len(made.words.vocabulary),
        unknowns=sum(chunk.unknowns for chunk in chunks),
        lines=sum(sum(part.piece_lines) for part in encoded),
        empty_lines=sum(part.empty for part in encoded),
        long_rows=sum(part.long for part in encoded),
        rejects=sum(part.rejected for part in encoded),
        seconds=seconds,
        tokens_per_second=tokens / seconds,
    )


@dataclass(frozen=True)
class Prepared:
    """Three datasets that share the vocabulary of train."""

    train: Path
    valid: Path
    test: Path


def prepare_corpus(
    corpus: Corpus,
    destination: Path,
    say: Callable[[str], None],
    *,
    vocabulary_size: int = WORDS_VOCABULARY_SIZE,
    tokenizer: TokenizerName = "whitespace",
) -> Prepared:
    """The three datasets of a corpus, below `destination`; taken from there when the same text was prepared before.

    Every line ends with `<eos>`, lines without words are left out (of bytes, none). PTB and the sample keep their own
    words; text of the user's own keeps its `vocabulary_size` most frequent.

    Raises:
        UserError: text is missing, unreadable, empty or not UTF-8, or the destination cannot be written to.
    """
    size = vocabulary_size if corpus.name == "text" else None
    parts = {"train": corpus.train, "valid": corpus.valid, "test": corpus.test}
    head = f"{_CORPUS_VERSION} {size}" + (f" {tokenizer}" if tokenizer != "whitespace" else "")
    folder = destination / f"{corpus.name}-{_digest(head, parts)[:16]}"
    prepared = Prepared(folder / "train", folder / "valid", folder / "test")
    if folder.is_dir():
        try:
            for path in (prepared.train, prepared.valid, prepared.test):
                open_dataset(path)
            return prepared
        except UserError as damaged:
            say(f"{damaged}; preparing it again")
            shutil.rmtree(folder, ignore_errors=True)
    say(f"preparing {corpus.name} text")
    options = PrepareOptions(tokenizer=tokenizer, malformed="error")
    with new_folder(folder) as staging:
        prepare(corpus.train, staging / "train", options.model_copy(update={"vocab_size": size}))
        held_out = options.model_copy(update={"vocab": str(staging / "train")})
        prepare(corpus.valid, staging / "valid", held_out)
        prepare(corpus.test, staging / "test", held_out)
    return prepared


def _digest(head: str, parts: Mapping[str, tuple[Path, ...]]) -> str:
    digest = hashlib.sha256(head.encode())
    for name, paths in parts.items():
        for path in paths:
            with opening(path), path.open("rb") as file:
                digest.update(f" {name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()
