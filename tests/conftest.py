"""What tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest

# Before any test imports TensorFlow: no chatter, no Keras (seconds to import), and the CPU, whose arithmetic repeats.
for name, value in {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": "-1"}.items():
    os.environ.setdefault(name, value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that train in processes of their own first: they have few tests and take longest, and a worker that begins
    one last keeps the other waiting. By itself xdist begins with the files of most tests."""
    items.sort(key=lambda item: "training_runner" not in _modules_used(item))


def _modules_used(item: pytest.Item) -> set[str]:
    module = item.getparent(pytest.Module)
    used = vars(module.obj).values() if module else ()
    named = {str(getattr(each, "__module__", None) or getattr(each, "__name__", "")) for each in used}
    return named | ({"training_runner"} if "guard_runs" in named else set())


@pytest.fixture(scope="session")
def ptb_dir() -> Path:
    """The Penn Treebank: `$RAYLM_PTB_DIR`, else `../shared/ptb` beside the repository, else the test is skipped."""
    named = os.environ.get("RAYLM_PTB_DIR", "")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "ptb"
    if not (folder / "ptb.train.txt").is_file():
        pytest.skip(f"needs the Penn Treebank: {folder} has no ptb.train.txt (name a folder with RAYLM_PTB_DIR)")
    return folder


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A URI with credentials of an empty object store on loopback, `{}` where the path goes."""
    moto_server = pytest.importorskip("moto.server", reason="moto[server] (in raylm[dev]) plays the object store")
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    options = f"endpoint_override=127.0.0.1:{server.get_host_and_port()[1]}&scheme=http&region=us-east-1"
    filesystem, _ = pafs.FileSystem.from_uri(f"s3://key:hidden@bucket/?{options}&allow_bucket_creation=true")
    filesystem.create_dir("bucket")
    yield f"s3://key:hidden@bucket/{{}}?{options}"
    server.stop()
