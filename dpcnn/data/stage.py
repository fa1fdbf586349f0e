"""Copies of data sets on each node's own disk or memory, one per node."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from dpcnn.base.arrays import Array
from dpcnn.base.files import open_plain
from dpcnn.data.inputs import BLOCK, why
from dpcnn.data.layout import image_blocks, labels_of, read_layout, write_shard
from dpcnn.data.shard_files import ShardFile
from dpcnn.data.shards import MANIFEST, SPLITS, Images, Manifest, Shard, read_manifest, write_manifest
from dpcnn.errors import DataError
from dpcnn.parallel.comm import SerialComm


def stage(folder: Path, place: Path, comm: SerialComm) -> Path:
    """Copy a data set to every node of ``comm``; the first rank of each node does this, unless the copy exists.

    The copy is contiguous: it is read by sample, so it may be larger than memory. It appears in one move, under a
    digest of the data set's manifest. Loading it checks every shard.

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
            target = place / f"dpcnn-{manifest.digest[:16]}{'-unpacked' * manifest.compressed}"
            if not (target / MANIFEST).is_file():
                _make(folder, target, lambda new: (unpack if manifest.compressed else copy)(folder, manifest, new))
            if not is_copy(target, manifest):
                raise DataError(f"--stage: {target} is not your copy of {folder}; remove it, or give another folder")
    return Path(node.broadcast_obj(str(target)))


def is_copy(target: Path, manifest: Manifest) -> bool:
    """Whether the data set in ``target`` is a contiguous copy of the one of ``manifest``.

    The data set's manifest has no checksums of an unpacked copy, so this user must own the copy.
    """
    found = read_manifest(target)
    if not manifest.compressed:
        return found == manifest
    own = target.stat().st_uid == os.geteuid()
    return own and not found.compressed and _without_bytes(found) == _without_bytes(manifest)


def _without_bytes(manifest: Manifest) -> Manifest:
    """The manifest without what depends on compression."""
    splits = {split: tuple(replace(shard, sha256="") for shard in shards) for split, shards in manifest.splits.items()}
    return replace(manifest, compressed=False, splits=splits)


def _make(folder: Path, target: Path, write: Callable[[Path], None]) -> None:
    """Make the folder ``target`` by ``write``, so that it is either complete or absent.

    Raises:
        DataError: it can't be written.
    """
    temporary = target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        write(temporary)
        temporary.rename(target)
    except OSError as error:
        if (target / MANIFEST).is_file():  # another job was faster
            return
        raise DataError(f"--stage: {folder} can't be copied to {target} ({why(error)}); give another folder") from None
    finally:
        if temporary != target:
            shutil.rmtree(temporary, ignore_errors=True)


def copy(folder: Path, manifest: Manifest, new: Path) -> None:
    """Copy the files of a data set."""
    for name in [*(shard.file for shard in manifest.shards), MANIFEST]:
        with open_plain(folder / name) as source, open(new / name, "xb") as destination:
            shutil.copyfileobj(source, destination, BLOCK)


def unpack(folder: Path, manifest: Manifest, new: Path) -> None:
    """Write a compressed data set as a contiguous one, some samples at a time.

    Raises:
        DataError: a shard is damaged.
    """
    splits = {
        split: tuple(_unpack_shard(folder, manifest, shard, new) for shard in manifest.splits[split])
        for split in SPLITS
    }
    write_manifest(new, replace(manifest, compressed=False, splits=splits))


def _unpack_shard(folder: Path, manifest: Manifest, shard: Shard, new: Path) -> Shard:
    with ShardFile(folder, shard) as file:
        file.verify()
        shape = shard.samples, *manifest.image_shape
        write_shard(new / shard.file, _blocks(file, manifest), shape, manifest.images_type, compressed=False)
    with ShardFile(new, shard) as written:
        return replace(shard, sha256=written.sha256())


def _blocks(file: ShardFile, manifest: Manifest) -> Iterator[tuple[Images, Array]]:
    """The images and labels of a compressed shard, a chunk at a time."""
    layout = read_layout(file, manifest)
    labels, start = labels_of(file, layout, manifest), 0
    for images in image_blocks(file, layout, manifest):
        yield images, labels[start : start + len(images)]
        start += len(images)
