"""The way of a prepared corpus into the object store where the run is kept, so that every node finds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from raylm.data.dataset import open_dataset
from raylm.data.remote import below, without_secrets
from raylm.data.upload import upload_dataset
from raylm.errors import UserError


def publish(datasets: Mapping[str, Path], store: str, say: Callable[[str], None]) -> dict[str, str]:
    """The URIs of datasets below `store`/datasets, where they are copied to unless they are there already.

    Raises:
        UserError: the store cannot be reached or written to.
    """
    uris = {split: below(store, f"datasets/{folder.parent.name}/{split}") for split, folder in datasets.items()}
    for split, folder in datasets.items():
        if not _holds(uris[split], open_dataset(folder).dataset_id):
            say(f"copying the {split} text to {without_secrets(uris[split])}")
            upload_dataset(folder, uris[split])
    return uris


def _holds(uri: str, dataset_id: str) -> bool:
    try:
        return open_dataset(uri).dataset_id == dataset_id
    except UserError:
        return False  # not there, or not whole: it is copied
