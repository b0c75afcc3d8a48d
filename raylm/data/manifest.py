"""The manifest: what a dataset is made of, and the digest that names it.

`manifest.json` is written last, so a folder with one is complete. Its `content` (format version, sizes and
SHA-256 of every file, totals, vocabulary digest) alone decides the `dataset_id`; `provenance` and `rejects`
say where the content came from and do not, so the same text prepared from another folder is the same dataset.
`checksum` covers all of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from raylm.errors import UserError

MANIFEST = "manifest.json"
VOCABULARY = "vocab.arrow"
INDEX = "index.arrow"
SHARDS = "shards"
REJECTS = "rejects/rejects.jsonl"
FORMAT = "raylm-dataset"
VERSION = 1


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 (hex) of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Totals:
    """Counts over a whole dataset; `words` is the size of its vocabulary."""

    tokens: int
    rows: int
    chunks: int
    unknowns: int
    words: int


@dataclass(frozen=True)
class Manifest:
    """One dataset: its files by name relative to its folder, its totals and where it came from.

    `id_type` is "uint16" or "uint32"; `vocabulary_sha256` is `Vocabulary.sha256`. `rejects` is the record of
    the list of rejected lines, None where no line was rejected.
    """

    id_type: str
    totals: Totals
    vocabulary_sha256: str
    files: Mapping[str, FileRecord]
    rejected: int
    rejects: FileRecord | None
    provenance: Mapping[str, object]

    def content(self) -> dict[str, object]:
        """The part that the `dataset_id` is the digest of, as plain JSON."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "id_type": self.id_type,
            "totals": asdict(self.totals),
            "vocabulary_sha256": self.vocabulary_sha256,
            "files": {name: asdict(record) for name, record in self.files.items()},
        }

    @property
    def dataset_id(self) -> str:
        """SHA-256 (hex) of the canonical JSON of `content()`."""
        return _digest(self.content())


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`: the same manifest always gives the same bytes."""
    document: dict[str, object] = {
        "content": manifest.content(),
        "dataset_id": manifest.dataset_id,
        "rejected": manifest.rejected,
        "rejects": asdict(manifest.rejects) if manifest.rejects else None,
        "provenance": dict(manifest.provenance),
    }
    return _pretty({**document, "checksum": _digest(document)})


def load_manifest(data: bytes, place: str) -> Manifest:
    """The manifest in `data`, the bytes of the file `place`.

    Raises:
        UserError: it is not JSON, not a manifest, of a newer version, or a byte of it was changed.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        at = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        if isinstance(error, json.JSONDecodeError):
            at = f" at byte {len(error.doc[: error.pos].encode())}"
        raise UserError(f"{place}: expected JSON, found something else{at}; {_AGAIN}") from None
    content = document.get("content") if isinstance(document, dict) else None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{place}: expected the manifest of a {FORMAT}, found other JSON; {_AGAIN}")
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"{place}: this dataset has format version {version}, this raylm reads up to version {VERSION}; "
            "upgrade raylm, or prepare the text again with this one"
        )
    return _checked(document, content, data, place)


_AGAIN = "copy the dataset again, or prepare it again"


def _checked(document: dict[str, object], content: dict[str, object], data: bytes, place: str) -> Manifest:
    stated = document.pop("checksum", None)
    found = _digest(document)
    if stated != found:
        raise UserError(f"{place}: expected checksum {stated}, found {found}: it was changed; {_AGAIN}")
    expected_bytes = _pretty({**document, "checksum": found})
    if data != expected_bytes:
        pairs = zip(data, expected_bytes, strict=False)
        at = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(data), len(expected_bytes)))
        raise UserError(f"{place}: byte {at} is not as it was written; {_AGAIN}")
    try:
        manifest = _parse(document, content)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place}: a part of the manifest is missing or wrong ({error}); {_AGAIN}") from None
    if manifest.dataset_id != document["dataset_id"] or manifest.content() != content:
        raise UserError(
            f"{place}: its dataset_id is {document['dataset_id']}, its content gives {manifest.dataset_id}; {_AGAIN}"
        )
    return manifest


def _parse(document: dict[str, object], content: dict[str, object]) -> Manifest:
    files, totals, rejects = content["files"], content["totals"], document["rejects"]
    provenance, rejected = document["provenance"], document["rejected"]
    if not (isinstance(files, dict) and isinstance(totals, dict) and isinstance(provenance, dict)):
        raise TypeError("files, totals and provenance are objects")
    if not isinstance(rejected, int) or not isinstance(rejects, dict | None):
        raise TypeError("rejected is a count, rejects a record or null")
    return Manifest(
        id_type=str(content["id_type"]),
        totals=Totals(**totals),
        vocabulary_sha256=str(content["vocabulary_sha256"]),
        files={str(name): FileRecord(**record) for name, record in files.items()},
        rejected=rejected,
        rejects=FileRecord(**rejects) if rejects else None,
        provenance=provenance,
    )


def _digest(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _pretty(document: object) -> bytes:
    return (json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()
