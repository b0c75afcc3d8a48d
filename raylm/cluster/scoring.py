"""Scores text files on Ray Data: each file is a task of its own, whose table is a Parquet file in a folder beside the
output; at the end the driver puts these together, in the order of the files.

The driver holds names and a part of one table. A task whose worker died is done again: it leaves nothing but a file of
its own name, which appears whole.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from raylm.cluster.preparation import on_cluster, on_ray
from raylm.data.caching import storing
from raylm.data.inputs import shown
from raylm.data.runners import Runner
from raylm.data.upload import is_uri
from raylm.model.language_model import LanguageModel
from raylm.training.export import export_weights
from raylm.training.inference import make_model
from raylm.training.loading import Trained, load_export
from raylm.training.score import joined, score_text, write_parquet


@dataclass(frozen=True)
class _Job:
    """What every task knows. folder: that all nodes reach, with the model in it. longest: as `score_text`'s."""

    folder: Path
    longest: int | None

    def part(self, number: int) -> Path:
        """Where the table of a file goes."""
        return self.folder / f"{number:06d}.parquet"


def score_on_ray(
    trained: Trained, files: Sequence[str], longest: int | None, output: Path, *, address: str | None, log: Path
) -> int:
    """Writes the table of all files to `output`, as `score_text` and `write_parquet` would; the number of tokens.

    What Ray prints goes to the file `log`.

    Raises:
        UserError: a file or a line of it cannot be read, the output cannot be written, or no cluster can be reached.
        WorkersLost: a task failed, or its workers died, too often.
    """
    with on_cluster(address, log):
        return score_parts(trained, files, longest, output, on_ray())


def score_parts(trained: Trained, files: Sequence[str], longest: int | None, output: Path, run: Runner) -> int:
    """The same with any runner."""
    output = output.absolute()
    with storing(output):
        folder = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    with folder as name:
        job = _Job(Path(name), longest)
        job.folder.chmod(0o755)  # other nodes may read it as another user
        export_weights(trained, job.folder / "model")
        places = [file if is_uri(file) else os.path.abspath(file) for file in files]
        for _ in run(partial(_score_file, job), list(enumerate(places))):
            pass
        parts = ((shown(file), job.part(number)) for number, file in enumerate(files))
        return write_parquet(joined(parts), output)


def _score_file(job: _Job, item: tuple[int, str]) -> int:
    """One task."""
    number, file = item
    model, trained = _model(job.folder / "model")
    tables = score_text(model, [file], trained.tokenizer, trained.vocabulary, job.longest)
    return write_parquet(tables, job.part(number))


@lru_cache(maxsize=1)
def _model(folder: Path) -> tuple[LanguageModel, Trained]:
    """The model of all tasks of one worker."""
    trained = load_export(folder)
    return make_model(trained), trained
