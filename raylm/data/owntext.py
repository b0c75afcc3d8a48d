"""The user's own text: a folder that holds train, valid and test text, or files to be divided into them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from raylm.data.caching import new_folder
from raylm.data.inputs import lines_before, opening, plan_splits, read_piece
from raylm.data.lines import without_malformed
from raylm.errors import UserError

Paths = tuple[Path, ...]

_ROLES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
_FEWEST_LINES = 10
_PIECES = 1000  # of bytes with fewer lines, which are cut anywhere


def find_text(
    named: Sequence[Path], cache_dir: Path, say: Callable[[str], None], as_bytes: bool = False
) -> tuple[Paths, Paths, Paths, str]:
    """Train, valid and test files, and how they came to be so. as_bytes: no line is left out, whatever its bytes.

    A folder must hold one file for each (`train.txt`, `ptb.train.txt`, `wiki.train.tokens`, `train-00.parquet`...);
    files named so are taken as that too. Any other files are divided by line, in their order: the first 80 % to
    train on, the next 10 % to validate, the last 10 % to test. Bytes that have not the lines for it are cut anywhere.

    Raises:
        UserError: missing, unreadable, empty, not UTF-8, too short to divide, or a folder where it is not clear.
    """
    folders = [path for path in named if path.is_dir()]
    if folders and len(named) > 1:
        raise UserError(f"{folders[0]} is a folder; name one folder or files, not both")
    for path in named:
        if not path.exists():
            raise UserError(f"{path} does not exist; --corpus takes auto, ptb, sample, text files or a folder")
    if folders:
        with opening(folders[0]):
            files = sorted(path for path in folders[0].iterdir() if path.is_file() and path.name[0] != ".")
        by_role = _by_role(files)
        for role in ("train", "valid", "test"):
            found = by_role.get(role, ())
            if not found:
                raise UserError(f"{folders[0]} holds no {role} text: it needs one file each for train, valid and test")
            if len(found) > 1:
                raise UserError(
                    f"{folders[0]} holds {len(found)} {role} files ({found[0].name}, {found[1].name}): leave one"
                )
        return by_role["train"], by_role["valid"], by_role["test"], f"train, valid and test text of {folders[0]}"
    by_role = _by_role(named)
    if sorted(by_role) == ["test", "train", "valid"] and len(named) == 3:
        return by_role["train"], by_role["valid"], by_role["test"], "train, valid and test as named"
    return *_divide(
        tuple(named), cache_dir, say, as_bytes
    ), "divided in its order: first 80 % train, next 10 % valid, last 10 % test"


def _by_role(files: Sequence[Path]) -> dict[str, Paths]:
    by_role: dict[str, Paths] = {}
    for path in files:
        roles = {_ROLES[part] for part in re.split(r"[._\-]", path.name.lower()) if part in _ROLES}
        if len(roles) == 1:
            role = roles.pop()
            by_role[role] = (*by_role.get(role, ()), path)
    return by_role


def _divide(files: Paths, cache_dir: Path, say: Callable[[str], None], as_bytes: bool) -> tuple[Paths, Paths, Paths]:
    digest = hashlib.sha256()
    lines = size = 0
    for line in _lines(files, as_bytes):
        digest.update(line)
        lines += 1
        size += len(line)
    if not lines:
        raise UserError(f"{files[0]} is empty: there is nothing to train on")
    longest, few = size, f"{lines} of the at least {_FEWEST_LINES} lines"
    if as_bytes and lines < _FEWEST_LINES:
        longest, few = size // _PIECES, f"fewer than the {_PIECES:,} bytes"
        lines = sum(1 for _ in _pieces(files, as_bytes, longest)) if longest else 0
    if lines < _FEWEST_LINES:
        raise UserError(
            f"{files[0]} has {few} that it takes to divide it into train, valid and test; or name a folder that holds "
            "the three"
        )
    folder = cache_dir / "text" / digest.hexdigest()[:32]
    held_out = lines // 10
    train, valid, test = (folder / name for name in ("train.txt", "valid.txt", "test.txt"))
    if not folder.is_dir():
        unit = "lines" if longest == size else "pieces"
        say(f"dividing {lines:,} {unit}: {lines - 2 * held_out:,} train, {held_out:,} valid, {held_out:,} test")
        with new_folder(folder) as staging, ExitStack() as stack:
            outputs = [stack.enter_context((staging / path.name).open("wb")) for path in (train, valid, test)]
            for number, piece in enumerate(_pieces(files, as_bytes, longest)):
                role = 0 if number < lines - 2 * held_out else 1 if number < lines - held_out else 2
                outputs[role].write(piece)
    return (train,), (valid,), (test,)


def _pieces(files: Paths, as_bytes: bool, longest: int) -> Iterator[bytes]:
    """The lines, none of them longer than so many bytes."""
    for line in _lines(files, as_bytes):
        yield from (line[at : at + longest] for at in range(0, len(line), longest))


def _lines(files: Paths, as_bytes: bool) -> Iterator[bytes]:
    """Lines that hold anything, of bytes all lines, each ending in b"\\n"."""
    for split in plan_splits(files):
        for piece in split.pieces:
            for block in read_piece(piece):
                if as_bytes:
                    yield from (line + b"\n" for line in block.data.removesuffix(b"\n").split(b"\n"))
                    continue
                _, malformed = without_malformed(block)
                if malformed:
                    number = lines_before(piece) + block.number(malformed[0].line) + 1
                    raise UserError(f"{piece.source}: line {number:,}: {malformed[0].reason}; save the text as UTF-8")
                yield from (line + b"\n" for line in block.data.split(b"\n") if line.strip())
