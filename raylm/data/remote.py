"""A dataset in an object store (`s3://`, `gs://`), read before it is here.

What is needed first is asked for by byte range; meanwhile whole shards come in the background into a bounded
cache, and are mapped from there once they are whole. A request that fails is made again, with longer and longer
waits between. S3-compatible stores are named in the URI:
`s3://KEY:SECRET@bucket/path?endpoint_override=HOST:PORT&scheme=http`.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from raylm.data.caching import default_cache_dir
from raylm.data.manifest import FileRecord
from raylm.data.shardcache import ShardCache
from raylm.data.storage import LocalStorage, Storage, unreadable
from raylm.errors import UserError

Result = TypeVar("Result")

WAITS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds between the attempts at one request."""

PIECE = 8 << 20
"""Bytes of a shard that are fetched at a time in the background."""


class RemoteStorage:
    """A folder in an object store.

    `problems` lists what went wrong in the background: a shard that could not be fetched whole is still read by
    ranges.
    """

    memory_limit: int | None = 256 << 20
    parallel = 16

    def __init__(
        self,
        uri: str,
        cache: ShardCache,
        waits: tuple[float, ...] = WAITS,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.problems: list[str] = []
        self._place = without_secrets(uri)
        self._cache = cache
        self._waits = waits
        self._wait = wait
        self._files: dict[str, pa.NativeFile] = {}
        self._records: dict[str, FileRecord] = {}
        self._asked: set[str] = set()
        self._queue: SimpleQueue[str] = SimpleQueue()
        self._lock = threading.Lock()
        self._fetcher: threading.Thread | None = None
        self._store, self._path = self._persist(lambda: connect(uri), self._place)

    def place(self, name: str) -> str:
        return f"{self._place}/{name}"

    def size(self, name: str) -> int:
        def ask() -> int:
            facts = self._store.get_file_info(f"{self._path}/{name}")
            if facts.type != pafs.FileType.File:
                raise FileNotFoundError(name)
            return int(facts.size)

        return self._persist(ask, self.place(name))

    def read(self, name: str) -> bytes:
        def ask() -> bytes:
            with self._store.open_input_stream(f"{self._path}/{name}") as file:
                return bytes(file.read())

        return self._persist(ask, self.place(name))

    def expect(self, files: Mapping[str, FileRecord]) -> None:
        self._records = dict(files)

    def read_range(self, name: str, offset: int, length: int) -> pa.Buffer:
        record = self._records.get(name)
        path = self._cache.find(record) if record else None
        if path is not None:
            try:
                return pa.memory_map(str(path)).read_at(length, offset)
            except OSError:
                pass  # it was evicted this instant: the store still has it
        if record is not None and self._cache.holds(record):
            self._fetch_in_background(name)
        return self._read_remote(name, offset, length)

    def read_again(self, name: str, offset: int, length: int) -> pa.Buffer | None:
        if name in self._records:
            self._cache.drop(self._records[name])
        return self._read_remote(name, offset, length)

    def _read_remote(self, name: str, offset: int, length: int) -> pa.Buffer:
        def ask() -> pa.Buffer:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = self._store.open_input_file(f"{self._path}/{name}")
            try:
                return pa.py_buffer(file.read_at(length, offset))
            except OSError:
                self._files.pop(name, None)
                raise

        return self._persist(ask, self.place(name))

    def _fetch_in_background(self, name: str) -> None:
        with self._lock:
            if name in self._asked:
                return
            self._asked.add(name)
            self._queue.put(name)
            if self._fetcher is None:
                self._fetcher = threading.Thread(target=self._fetch_all, name="raylm-shards", daemon=True)
                self._fetcher.start()

    def _fetch_all(self) -> None:
        while True:
            name = self._queue.get()
            record = self._records[name]
            if self._cache.find(record) is not None:
                continue
            try:
                whole = self._cache.add(record, self._pieces(name, record.bytes))
            except (OSError, UserError) as error:
                self.problems.append(f"{self.place(name)}: not kept here ({error})")
            else:
                if not whole:
                    self.problems.append(f"{self.place(name)}: what came has not the digest of the manifest")

    def _pieces(self, name: str, size: int) -> Iterator[memoryview]:
        for offset in range(0, size, PIECE):
            yield memoryview(self._read_remote(name, offset, min(PIECE, size - offset)))

    def _persist(self, ask: Callable[[], Result], place: str) -> Result:
        """The answer to a request, made again after each wait until it succeeds or there is no hope."""
        for pause in (*self._waits, None):
            try:
                return ask()
            except OSError as error:
                if pause is None or hopeless(error):
                    raise unreadable(place, error) from None
                self._wait(pause)
        raise AssertionError("the last attempt returns or raises")


def open_storage(location: str | Path, cache: ShardCache | None = None) -> Storage:
    """The storage at a path or URI; without a cache of its own, a store has the user's.

    Raises:
        UserError: the URI cannot be used, or the store not be reached.
    """
    if "://" not in str(location):
        return LocalStorage(Path(location))
    return RemoteStorage(str(location), cache or ShardCache(default_cache_dir() / "shards"))


def connect(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI, and the path in it.

    Raises:
        UserError: the URI is malformed or of an unknown kind.
        OSError: the store cannot be reached.
    """
    try:
        if uri.startswith("s3://"):
            return _connect_s3(uri)
        if uri.startswith("gs://") and "retry_limit_seconds=" not in uri:  # by itself it tries for a quarter of an hour
            uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds=2"
        store, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise UserError(f"{without_secrets(uri)}: {error}; use a path, s3:// or gs://") from None
    return store, path.rstrip("/")


def _connect_s3(uri: str) -> tuple[pafs.FileSystem, str]:
    """As `FileSystem.from_uri`, but a request fails at once: the waits between attempts are ours alone."""
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    unknown = sorted(set(options) - {"endpoint_override", "scheme", "region"})
    bucket = parts.netloc.rpartition("@")[2]
    if unknown or not bucket:
        raise ValueError(f"unknown option {unknown[0]!r}" if unknown else "there is no bucket in it")
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if named and "endpoint_override" not in options:  # every other program of AWS's family goes by it
        endpoint = urlsplit(named)
        options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
    if "region" not in options and "endpoint_override" not in options:
        options["region"] = pafs.resolve_s3_region(bucket)
    secrets = {}
    if parts.username:
        secrets = {"access_key": unquote(parts.username), "secret_key": unquote(parts.password or "")}
    once = pafs.AwsStandardS3RetryStrategy(max_attempts=1)
    store = pafs.S3FileSystem(**options, **secrets, retry_strategy=once, connect_timeout=5, request_timeout=30)
    return store, f"{bucket}{parts.path}".rstrip("/")


def below(place: str, name: str) -> str:
    """What a folder or URI has under a name; a URI's options stay at its end."""
    base, question, options = place.partition("?") if "://" in place else (place, "", "")
    return f"{base.rstrip('/')}/{name}{question}{options}"


def without_secrets(uri: str) -> str:
    """A URI without its credentials and options, to be shown."""
    return without_credentials(uri.split("?")[0]).rstrip("/")


def without_credentials(uri: str) -> str:
    """A URI to be kept: without its credentials, with its options."""
    return re.sub(r"://[^/@]*@", "://", uri)


def with_credentials_of(uri: str, other: str) -> str:
    """A URI with the credentials of another one, where it has none itself."""
    found = re.match(r"\w+://([^/@]*@)", other)
    return uri.replace("://", f"://{found[1]}", 1) if found and uri == without_credentials(uri) else uri


_FINAL = ("ACCESS_DENIED", "NO_SUCH", "NoSuch")


def hopeless(error: OSError) -> bool:
    """Whether asking again cannot help: the file is not there, or we may not read it."""
    told = str(error)
    return isinstance(error, FileNotFoundError | PermissionError) or any(word in told for word in _FINAL)
