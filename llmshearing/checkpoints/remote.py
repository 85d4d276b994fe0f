"""Checkpoints that are elsewhere, through the clients Composer brings along."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ['local_copy']


@contextlib.contextmanager
def local_copy(checkpoint: str, progress: bool = True) -> Iterator[Path]:
    """The checkpoint as a local path; a remote one is fetched into a temporary folder and removed afterwards.

    Args:
        checkpoint (str): Local path, or a URI of a ``.pt`` file or of a sharded checkpoint's folder that Composer can
            read (``s3://``, ``gs://``, ``oci://``, ``hf://`` and others).
        progress (bool): Show a progress bar.

    Raises:
        FileNotFoundError: If a remote folder holds no files.
    """
    if '://' not in checkpoint:
        yield Path(checkpoint)
        return
    from composer.utils import get_file, maybe_create_object_store_from_uri, parse_uri  # only for remote addresses

    with tempfile.TemporaryDirectory(prefix='checkpoint-') as folder:
        if Path(checkpoint).suffix == '.pt':
            path = Path(folder) / Path(checkpoint).name
            get_file(checkpoint, str(path), progress_bar=progress)
            yield path
            return
        store, (_, _, prefix) = maybe_create_object_store_from_uri(checkpoint), parse_uri(checkpoint)
        names = [] if store is None else store.list_objects(f'{prefix.rstrip("/")}/')
        if store is None or not names:
            raise FileNotFoundError(
                f'{checkpoint} holds no files; give a .pt file or the folder of a sharded checkpoint.'
            )
        for name in names:
            store.download_object(name, str(Path(folder) / Path(name).name))
        yield Path(folder)
