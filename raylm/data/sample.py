"""The sample corpus: the English that every CPython carries.

It is the text of `pydoc_data.topics` and the docstrings of the standard library, read with `ast` (nothing is
imported), prepared in the Penn Treebank's manner: lower case, numbers to N, clitics apart, words seen once to `<unk>`,
one distinct sentence a line. Punctuation stays, as tokens of its own. It lets training run where there is no network;
its perplexities compare with nothing but themselves on the same version of Python.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import sysconfig
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from raylm.data.caching import new_folder, write_file
from raylm.data.vocabulary import UNKNOWN
from raylm.errors import UserError

_ALGORITHM = 1
_LEFT_OUT = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "ensurepip", "__pycache__"}
)
_FEWEST_WORDS = 3
_FEWEST_COUNT = 2
_SENTENCE_END = re.compile(r"(?<=[.?!:;])[\"')]*\s+|\n\s*[-*]\s|\n\s*\n")
_TOKEN = re.compile(r"(?P<negation>[a-z]+n't\b)|'(?:s|re|ve|ll|d|m)\b|[a-z]+|(?P<number>\d+(?:[.,]\d+)*)|[.,;:()]")


def find_sample(cache_dir: Path, say: Callable[[str], None]) -> tuple[Path, Path, Path]:
    """The sample's train, valid and test files, made (in a few seconds) where the cache lacks them.

    Raises:
        UserError: the cache cannot be written to, or this Python carries no sources to read.
    """
    folder = cache_dir / f"sample-{_ALGORITHM}-{platform.python_implementation().lower()}-{platform.python_version()}"
    train, valid, test = paths = (folder / "train.txt", folder / "valid.txt", folder / "test.txt")
    if not all(path.is_file() for path in paths):
        say("making the sample corpus from the documentation that Python carries")
        with new_folder(folder) as staging:
            texts = build_sample(standard_library_texts(Path(sysconfig.get_path("stdlib"))))
            for path, text in zip(paths, texts, strict=True):
                write_file(staging / path.name, text.encode())
    return train, valid, test


def build_sample(texts: Iterable[str]) -> tuple[str, str, str]:
    """Train, valid and test text: of every ten distinct sentences eight, one and one.

    Raises:
        UserError: there are fewer than ten sentences.
    """
    distinct = dict.fromkeys(sentence for text in texts for sentence in sentences(text))
    if len(distinct) < 10:
        raise UserError(
            "this Python carries no documentation to make the sample corpus from; "
            "name text of your own with --corpus, or the Penn Treebank with --data-dir"
        )
    parts: tuple[list[tuple[str, ...]], ...] = ([], [], [])
    for number, sentence in enumerate(distinct):
        parts[max(number % 10 - 7, 0)].append(sentence)
    counts = Counter(word for sentence in parts[0] for word in sentence)
    kept = {word for word, count in counts.items() if count >= _FEWEST_COUNT}
    train, valid, test = (
        "".join(" ".join(word if word in kept else UNKNOWN for word in sentence) + "\n" for sentence in part)
        for part in parts
    )
    return train, valid, test


def sentences(text: str) -> Iterator[tuple[str, ...]]:
    """The sentences of a docstring, as tokens."""
    for sentence in _SENTENCE_END.split(text):
        tokens = tuple(_tokens(sentence.lower()))
        if len(tokens) >= _FEWEST_WORDS:
            yield tokens


def standard_library_texts(root: Path) -> Iterator[str]:
    """The docstrings and topics below a folder of Python sources, in an order that depends on names only."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in _LEFT_OUT)
        for name in sorted(files):
            if name.endswith(".py"):
                yield from _texts(Path(folder, name))


def _texts(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # a source that this Python cannot read has no part in the sample
    topics = path.parts[-2:] == ("pydoc_data", "topics.py")
    for node in ast.walk(tree) if topics else _statements(tree):
        if topics and isinstance(node, ast.Dict):
            values = (value.value for value in node.values if isinstance(value, ast.Constant))
            yield from (value for value in values if isinstance(value, str))
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from filter(None, [ast.get_docstring(node)])


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes that hold statements, in `ast.walk`'s order, without the expressions, which are most of a tree."""
    nodes: deque[ast.AST] = deque([tree])
    while nodes:
        node = nodes.popleft()
        for field in node._fields:
            below = getattr(node, field, None)
            if isinstance(below, list):
                nodes += [each for each in below if isinstance(each, (ast.stmt, ast.excepthandler, ast.match_case))]
        yield node


def _tokens(text: str) -> Iterator[str]:
    for match in _TOKEN.finditer(text):
        if match["negation"]:
            yield from filter(None, (match[0][:-3], "n't"))
        else:
            yield "N" if match["number"] else match[0]
