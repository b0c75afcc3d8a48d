"""Which text is trained on, and what is said when it cannot be had."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raylm.data.caching import default_cache_dir
from raylm.data.corpora import Corpus, find_corpus
from raylm.data.ptb import PTB_SHA256, Patience
from raylm.errors import UserError

HASTY = Patience(silent=0.3, total=1.0)
FILES = tuple(PTB_SHA256)

Answer = Callable[[BaseHTTPRequestHandler], None]


class Mirror:
    """A web server on loopback that answers as it is told."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[str] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                answer(self)

            def log_message(self, *args: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/data"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Mirror]]:
    mirrors: list[Mirror] = []

    def start(answer: Answer) -> Mirror:
        mirrors.append(Mirror(answer))
        return mirrors[-1]

    yield start
    for mirror in mirrors:
        mirror.server.shutdown()
        mirror.server.server_close()


@pytest.fixture(autouse=True)
def no_ptb_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYLM_PTB_DIR", raising=False)


def body(content: bytes, stated: int | None = None) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content) if stated is None else stated))
        request.end_headers()
        request.wfile.write(content)

    return answer


def files_of(folder: Path) -> Answer:
    return lambda request: body((folder / Path(request.path).name).read_bytes())(request)


def not_found(request: BaseHTTPRequestHandler) -> None:
    request.send_error(404)


def hang(request: BaseHTTPRequestHandler) -> None:
    time.sleep(1.5)


def drip(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(20):
        try:
            request.wfile.write(b"x")
        except OSError:
            return
        time.sleep(0.1)


def no_answer() -> str:
    """The address of a port where nobody listens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.server_close()
    return f"http://127.0.0.1:{server.server_address[1]}/data"


def find(corpus: str | list[str], cache: Path, **options: object) -> tuple[Corpus, list[str]]:
    said: list[str] = []
    settings = {"mirrors": (), "patience": HASTY, **options}
    return find_corpus(corpus, cache_dir=cache, say=said.append, **settings), said  # type: ignore[arg-type]


# The Penn Treebank


def test_auto_takes_ptb_from_the_named_folder_before_any_other_place(
    ptb_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLM_PTB_DIR", str(tmp_path))
    corpus, _ = find("auto", tmp_path / "cache", data_dir=ptb_dir)
    assert corpus.is_ptb
    assert corpus.note == ""
    assert corpus.train == (ptb_dir / "ptb.train.txt",)


def test_auto_takes_ptb_from_the_environment_and_then_from_the_cache(
    ptb_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ptb_dir, tmp_path / "cache")
    assert find("auto", tmp_path / "cache")[0].train == (tmp_path / "cache/ptb.train.txt",)
    monkeypatch.setenv("RAYLM_PTB_DIR", str(ptb_dir))
    assert find("ptb", tmp_path / "cache")[0].train == (ptb_dir / "ptb.train.txt",)


def test_ptb_is_downloaded_checked_and_cached_whole(
    ptb_dir: Path, tmp_path: Path, serve: Callable[[Answer], Mirror]
) -> None:
    mirror = serve(files_of(ptb_dir))
    corpus, said = find("auto", tmp_path / "cache", mirrors=(mirror.url,), patience=Patience())
    assert corpus.is_ptb
    assert "downloading" in said[0]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(FILES)
    find("ptb", tmp_path / "cache", mirrors=(mirror.url,))
    assert len(mirror.asked) == 3


def test_a_second_mirror_is_asked_when_the_first_one_fails(
    ptb_dir: Path, tmp_path: Path, serve: Callable[[Answer], Mirror]
) -> None:
    mirrors = (no_answer(), serve(not_found).url, serve(files_of(ptb_dir)).url)
    assert find("ptb", tmp_path, mirrors=mirrors, patience=Patience())[0].is_ptb


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (hang, "no answer"),
        (drip, "too slow"),
        (not_found, "HTTP 404"),
        (body(b"<html>please log in</html>"), "SHA-256"),
        (body(b"no it was", stated=4000), "SHA-256"),
    ],
    ids=["hanging", "dripping", "missing", "wrong digest", "truncated"],
)
def test_a_download_that_fails_is_given_up_soon_and_leaves_nothing(
    answer: Answer, reason: str, tmp_path: Path, serve: Callable[[Answer], Mirror]
) -> None:
    begin = time.monotonic()
    with pytest.raises(UserError, match=reason):
        find("ptb", tmp_path / "cache", mirrors=(serve(answer).url,))
    assert time.monotonic() - begin < 2 * HASTY.total
    assert not (tmp_path / "cache").exists()


def test_ptb_that_cannot_be_had_names_the_three_ways_to_provide_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        find("ptb", tmp_path, mirrors=(no_answer(),))
    for way in ("--data-dir", "$RAYLM_PTB_DIR", str(tmp_path)):
        assert way in str(error.value)


def test_auto_without_ptb_says_so_and_uses_the_sample(tmp_path: Path) -> None:
    corpus, said = find("auto", tmp_path, mirrors=(no_answer(),))
    assert corpus.name == "sample"
    assert "not PTB's" in corpus.note
    assert any("could not be had" in line for line in said)


def test_a_named_folder_must_be_there_and_hold_ptb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        find("sample", tmp_path, data_dir=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"--data-dir .* lacks ptb\.train\.txt"):
        find("auto", tmp_path, data_dir=tmp_path)
    monkeypatch.setenv("RAYLM_PTB_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"RAYLM_PTB_DIR .*nowhere is not a folder"):
        find("auto", tmp_path)


@pytest.mark.parametrize("place", ["data_dir", "cache"])
def test_a_digest_that_is_not_ptbs_names_file_expected_and_found(place: str, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text("not the real text\n")
    named = tmp_path if place == "data_dir" else None
    with pytest.raises(UserError, match=r"ptb\.train\.txt .*expected SHA-256 fcea919f\w+, found \w{64}"):
        find("auto", tmp_path, data_dir=named, mirrors=(no_answer(),))


def test_a_damaged_cache_is_downloaded_again(ptb_dir: Path, tmp_path: Path, serve: Callable[[Answer], Mirror]) -> None:
    for name in FILES:
        (tmp_path / name).write_text("damaged\n")
    corpus, said = find("auto", tmp_path, mirrors=(serve(files_of(ptb_dir)).url,), patience=Patience())
    assert corpus.is_ptb
    assert "downloading it again" in said[0]
    assert (tmp_path / "ptb.test.txt").read_bytes() == (ptb_dir / "ptb.test.txt").read_bytes()


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_dir() == Path("/somewhere/raylm")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/anna")
    assert default_cache_dir() == Path("/home/anna/.cache/raylm")


def test_a_cache_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.raises(UserError, match=r"cannot write to .*cache.*XDG_CACHE_HOME"):
        find("sample", tmp_path / "cache")


# The user's own text


def write(path: Path, text: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_files_are_divided_by_line_and_every_line_is_used_once(tmp_path: Path) -> None:
    first = write(tmp_path / "a.txt", "".join(f"line {n}\n\n" for n in range(60)))
    second = write(tmp_path / "b.txt", "".join(f"line {n}\n" for n in range(60, 101))[:-1])
    corpus, said = find([first, second], tmp_path / "cache")
    parts = [corpus.train[0].read_text(), corpus.valid[0].read_text(), corpus.test[0].read_text()]
    assert [part.count("\n") for part in parts] == [81, 10, 10]
    assert "".join(parts) == "".join(f"line {n}\n" for n in range(101))
    assert "81 train, 10 valid, 10 test" in said[0]
    assert "80 %" in corpus.note
    assert find([first, second], tmp_path / "cache") == (corpus, [])


@pytest.mark.parametrize("pattern", ["{}.txt", "ptb.{}.txt", "wiki.{}.tokens", "{}-00000.txt"])
def test_a_folder_with_train_valid_and_test_text_is_taken_as_it_is(pattern: str, tmp_path: Path) -> None:
    for role in ("train", "valid", "test"):
        write(tmp_path / pattern.format(role), f"a {role} line\n")
    write(tmp_path / "README.md", "not text to train on\n")
    corpus, _ = find(str(tmp_path), tmp_path / "cache")
    assert [path.name for path in (*corpus.train, *corpus.valid, *corpus.test)] == [
        pattern.format(role) for role in ("train", "valid", "test")
    ]
    assert not corpus.is_ptb
    assert (
        find([str(tmp_path / pattern.format(r)) for r in ("test", "train", "valid")], tmp_path)[0].train == corpus.train
    )


def test_ptb_named_as_a_folder_is_known_for_what_it_is(ptb_dir: Path, tmp_path: Path) -> None:
    assert find(str(ptb_dir), tmp_path)[0].is_ptb


def test_a_folder_that_is_not_clear_says_what_is_missing_or_double(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", "a\n")
    with pytest.raises(UserError, match="holds no valid text"):
        find(str(tmp_path), tmp_path)
    for name in ("valid.txt", "dev.txt", "test.txt"):
        write(tmp_path / name, "a\n")
    with pytest.raises(UserError, match=r"2 valid files \(dev\.txt, valid\.txt\)"):
        find(str(tmp_path), tmp_path)
    with pytest.raises(UserError, match="one folder or files, not both"):
        find([str(tmp_path), str(tmp_path / "train.txt")], tmp_path)


def test_bytes_that_are_one_line_are_divided_anywhere(tmp_path: Path) -> None:
    def divide(text: bytes) -> list[bytes]:
        file = Path(write(tmp_path / "text", text))
        corpus = find_corpus(str(file), cache_dir=tmp_path / "cache", say=lambda _: None, as_bytes=True)
        return [path.read_bytes() for (path,) in (corpus.train, corpus.valid, corpus.test)]

    text = b"a line without an end, " * 5000
    parts = divide(text)
    assert b"".join(parts) == text + b"\n"
    assert [round(len(part) / len(text), 2) for part in parts] == [0.8, 0.1, 0.1]
    with pytest.raises(UserError, match=r"text has fewer than the 1,000 bytes that it takes to divide it"):
        divide(b"a line")
    with pytest.raises(UserError, match="text is empty"):
        divide(b"")


def test_text_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.txt does not exist"):
        find(str(tmp_path / "nothing.txt"), tmp_path)
    with pytest.raises(UserError, match=r"empty\.txt is empty"):
        find(write(tmp_path / "empty.txt", " \n\n"), tmp_path)
    with pytest.raises(UserError, match=r"short\.txt has 3 of the at least 10 lines"):
        find(write(tmp_path / "short.txt", "a\nb\nc\n"), tmp_path)
    latin = write(tmp_path / "latin.txt", b"good\n" * 20 + "café\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt: line 21: not UTF-8: byte offset 103 \(0xe9\)"):
        find(latin, tmp_path)
    with pytest.raises(UserError, match="names nothing"):
        find([], tmp_path)
