"""Where the text comes from: the Penn Treebank, the sample that every Python carries, or the user's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylm.data import owntext, ptb, sample
from raylm.data.caching import default_cache_dir
from raylm.data.ptb import PTB_MIRRORS, SECONDS_NOT_MINUTES, Patience
from raylm.errors import UserError

PTB_DIR_VARIABLE = "RAYLM_PTB_DIR"
WAYS_TO_PROVIDE_PTB = (
    "put ptb.train.txt, ptb.valid.txt and ptb.test.txt in a folder and name it with --data-dir, "
    f"or with ${PTB_DIR_VARIABLE}, or copy them into the cache"
)


@dataclass(frozen=True)
class Corpus:
    """Text files for training, validation and test.

    name: "ptb", "sample" or "text".
    note: one line to show with every table of results that are not PTB's; empty for PTB.
    """

    name: str
    train: tuple[Path, ...]
    valid: tuple[Path, ...]
    test: tuple[Path, ...]
    is_ptb: bool
    note: str


def find_corpus(
    corpus: str | Sequence[str],
    *,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    say: Callable[[str], None],
    mirrors: Sequence[str] = PTB_MIRRORS,
    patience: Patience = SECONDS_NOT_MINUTES,
    as_bytes: bool = False,
) -> Corpus:
    """The corpus that is asked for; with `as_bytes` text of the user's own is divided with its empty lines, in any
    encoding.

    `auto` is PTB from `data_dir`, `$RAYLM_PTB_DIR` or the cache, else downloaded, else the sample. `ptb` is PTB or an
    error; `sample` the sample. Anything else names the user's own text: files, or one folder with train, valid and
    test text. `say` is given a line for each thing that takes time or that one would want to know.

    Raises:
        UserError: what is asked for is missing, unreadable, empty, not UTF-8, or not PTB though it should be.
    """
    asked = (corpus,) if isinstance(corpus, str) else tuple(corpus)
    cache_dir = cache_dir or default_cache_dir()
    if data_dir is not None and not data_dir.is_dir():
        what = "is not a folder" if data_dir.exists() else "does not exist"
        raise UserError(f"--data-dir {data_dir} {what}; name the folder that holds ptb.train.txt")
    if asked in {("auto",), ("ptb",)}:
        try:
            return _ptb_in(_find_ptb(data_dir, cache_dir, say, mirrors, patience))
        except ptb.UnavailableError as reason:
            if asked == ("ptb",):
                raise UserError(
                    f"the Penn Treebank could not be had ({reason}): {WAYS_TO_PROVIDE_PTB} ({cache_dir})"
                ) from None
            say(f"the Penn Treebank could not be had ({reason}); using the sample corpus instead")
            return _sample(cache_dir, say)
    if asked == ("sample",):
        return _sample(cache_dir, say)
    if not asked:
        raise UserError("--corpus names nothing; give auto, ptb, sample, text files or a folder")
    train, valid, test, how = owntext.find_text([Path(name) for name in asked], cache_dir, say, as_bytes)
    if ptb.is_ptb((*train, *valid, *test)):
        return Corpus("ptb", train, valid, test, is_ptb=True, note="")
    return Corpus("text", train, valid, test, False, f"Your own text ({how}): perplexities are not PTB's.")


def _find_ptb(
    data_dir: Path | None,
    cache_dir: Path,
    say: Callable[[str], None],
    mirrors: Sequence[str],
    patience: Patience,
) -> Path:
    """The folder that holds PTB, digests checked."""
    named = os.environ.get(PTB_DIR_VARIABLE, "")
    for folder, how in ((data_dir, "--data-dir"), (Path(named) if named else None, f"${PTB_DIR_VARIABLE}")):
        if folder is not None:
            if not folder.is_dir():
                raise UserError(f"{how} {folder} is not a folder; name the one that holds ptb.train.txt")
            if missing := ptb.missing_from(folder):
                raise UserError(
                    f"{how} {folder} lacks {', '.join(missing)}; for text of your own use --corpus {folder}"
                )
            ptb.check_digests(folder)
            return folder
    if not ptb.missing_from(cache_dir):
        try:
            ptb.check_digests(cache_dir)
            return cache_dir
        except UserError as damaged:
            say(f"{damaged}; downloading it again")
            try:
                ptb.download(cache_dir, mirrors, patience, say)
            except ptb.UnavailableError as reason:
                raise UserError(f"{damaged}; downloading it again failed ({reason}): remove that file") from None
            return cache_dir
    ptb.download(cache_dir, mirrors, patience, say)
    return cache_dir


def _ptb_in(folder: Path) -> Corpus:
    train, valid, test = (folder / name for name in ptb.PTB_SHA256)
    return Corpus("ptb", (train,), (valid,), (test,), is_ptb=True, note="")


def _sample(cache_dir: Path, say: Callable[[str], None]) -> Corpus:
    train, valid, test = sample.find_sample(cache_dir, say)
    note = "The sample corpus (Python's own documentation): these perplexities are not PTB's."
    return Corpus("sample", (train,), (valid,), (test,), is_ptb=False, note=note)
