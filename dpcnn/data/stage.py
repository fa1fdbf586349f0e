"""Copies of data sets on each node's own disk or memory, one per node."""

import shutil
import tempfile
from pathlib import Path

from dpcnn.base.files import open_plain
from dpcnn.data.inputs import BLOCK
from dpcnn.data.shards import MANIFEST, SPLITS, read_manifest
from dpcnn.errors import DataError
from dpcnn.parallel.comm import SerialComm


def stage(folder: Path, place: Path, comm: SerialComm) -> Path:
    """Copy a data set to every node of ``comm``; the first rank of each node does this, unless the copy exists.

    The copy appears in one move, under a digest of the data set's manifest. Loading it checks every shard.

    Args:
        folder: of the data set.
        place: a folder that each node has for itself, such as a job's TMPDIR or /dev/shm.

    Returns:
        The copy's folder.

    Raises:
        DataError: on every rank, if a node has no room, the data set can't be read, or something else has taken
            the copy's place.
    """
    node = comm.node()
    target = place
    with comm.fail_together():
        if node.rank == 0:
            manifest = read_manifest(folder)
            target = place / f"dpcnn-{manifest.digest[:16]}"
            if not (target / MANIFEST).is_file():
                copy(folder, [s.file for split in SPLITS for s in manifest.splits[split]], target)
            if read_manifest(target) != manifest:
                raise DataError(f"--stage: {target} is not a copy of {folder}; remove it, or give another folder")
    return Path(node.broadcast_obj(str(target)))


def copy(folder: Path, names: list[str], target: Path) -> None:
    """Copy the manifest and these files, so that ``target`` is either complete or absent.

    Raises:
        DataError: it can't be written.
    """
    temporary = target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        for name in [*names, MANIFEST]:
            with open_plain(folder / name) as source, open(temporary / name, "xb") as destination:
                shutil.copyfileobj(source, destination, BLOCK)
        temporary.rename(target)
    except OSError as error:
        if temporary != target:
            shutil.rmtree(temporary, ignore_errors=True)
        if (target / MANIFEST).is_file():  # another job was faster
            return
        raise DataError(
            f"--stage: {folder} can't be copied to {target} ({error.strerror}); give another folder"
        ) from None
