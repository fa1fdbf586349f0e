"""New data sets: all ranks write the source as shards, and a manifest describes them."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from dpcnn.base import fields
from dpcnn.data.downloads import DOWNLOADS, Download, fetch
from dpcnn.data.inputs import check_memory
from dpcnn.data.layout import write_shard
from dpcnn.data.shard_files import ShardFile
from dpcnn.data.shards import MOST_SHARDS, SPLITS, Manifest, Shard, write_manifest
from dpcnn.data.sources import Source, read_source
from dpcnn.errors import DataError, printable
from dpcnn.nn.losses import CLASSES
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.tree import split_evenly

SHARDS = 8

Say = Callable[[str], None]
Job = tuple[str, str, int, int]
"""A shard to write: split, file name, first sample, end."""


@dataclass(frozen=True)
class Target:
    """The data set to be written.

    Attributes:
        out: its folder, which must not exist.
        name: the data set's name; None: that of the folder.
        shards: of the training split; those of other splits have about the same size.
        contiguous: whether the samples are stored without compression.
        shuffle: the seed of a random order of the samples of each split; None: the order of the source.
        targets: the kind of the labels, one of :data:`dpcnn.nn.losses.TARGETS`.
    """

    out: Path
    name: str | None = None
    shards: int = SHARDS
    contiguous: bool = False
    shuffle: int | None = None
    targets: str = CLASSES

    def check_free(self) -> None:
        """Make sure that nothing will be overwritten.

        Raises:
            DataError: ``out`` exists.
        """
        if os.path.lexists(self.out):
            raise DataError(f"{self.out}: exists already; give another --out, or remove it")


def prepare(comm: SerialComm, path: Path, target: Target, say: Say) -> None:
    """Write the data set of the source at ``path``. Each rank writes some shards.

    The bytes do not depend on the number of ranks.
    """
    with comm.fail_together():
        target.check_free()
        source = read_source(path, target.targets)
    write_set(comm, source, target, say)


def fetch_and_prepare(comm: SerialComm, name: str, mirror: str | None, target: Target, say: Say) -> None:
    """Download a known data set on rank 0 while the others wait, then prepare it on all ranks.

    Args:
        mirror: the address to download from; None: the known ones.
    """
    known = DOWNLOADS[name]
    folder = target.out.with_name(f"{target.out.name}.download")
    with comm.fail_together():
        target.check_free()
    with comm.fail_together():
        if comm.rank == 0:
            mirrors = (mirror,) if mirror else known.mirrors
            fetch(Download(mirrors, known.digests, known.licence), folder, say)
    with comm.fail_together():
        source = read_source(folder)
        source.origin["licence"] = known.licence
    write_set(comm, source, target, say)
    with comm.fail_together():
        if comm.rank == 0:
            shutil.rmtree(folder)


def write_set(comm: SerialComm, source: Source, target: Target, say: Say) -> None:
    """Write shards and manifest in a new folder beside ``target.out``, and move them there when all are complete."""
    if target.shuffle is not None:
        source.shuffle(target.shuffle)
    jobs = plan(source, target.shards)
    with _new_folder(comm, target.out) as folder:
        written = _write_shards(folder, comm, source, jobs, not target.contiguous)
        with comm.fail_together():
            if comm.rank == 0:
                manifest = _write_manifest(folder, source, written, target)
                folder.rename(target.out)
                say(f"{target.out}: {sum(map(manifest.samples, SPLITS)):,} samples in {len(jobs)} shards")


@contextmanager
def _new_folder(comm: SerialComm, out: Path) -> Iterator[Path]:
    """An empty folder beside ``out``, for a block that moves it. It is removed if the block fails."""
    parent = ""
    with comm.fail_together():
        if comm.rank == 0:
            out.parent.mkdir(parents=True, exist_ok=True)
            parent = tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent)
            os.mkdir(Path(parent, "set"))  # with the usual permissions; its parent is private
    parent = comm.broadcast_obj(parent)
    try:
        yield Path(parent, "set")
    finally:
        if comm.rank == 0:
            shutil.rmtree(parent, ignore_errors=True)


def plan(source: Source, shards: int) -> list[Job]:
    """All shards of a data set: ``shards`` of the training split, and test shards of about the same size."""
    jobs = []
    for split in SPLITS:
        samples = source.samples(split)
        count = min(samples, MOST_SHARDS, max(1, ceil(shards * samples / source.samples("train"))))
        bounds = split_evenly(samples, count)
        digits = max(2, len(str(count - 1)))
        jobs += [
            (split, f"{split}-{number:0{digits}}.h5", bounds[number], bounds[number + 1]) for number in range(count)
        ]
    return jobs


Written = dict[str, list[tuple[Shard, int]]]
"""The shards of each split, and the size of each file in bytes."""


def _write_shards(folder: Path, comm: SerialComm, source: Source, jobs: list[Job], compressed: bool) -> Written:
    """Write this rank's shards; the result, on every rank, describes all of them."""
    written = {}
    with comm.fail_together():
        for number in range(comm.rank, len(jobs), comm.size):
            split, name, start, stop = jobs[number]
            write_shard(folder / name, *source.part(split, start, stop), compressed=compressed)
            with ShardFile(folder, Shard(name, stop - start, "")) as file:
                written[str(number)] = [name, stop - start, file.sha256()], file.size
    records = {int(number): record for of_rank in comm.allgather_obj(written) for number, record in of_rank.items()}
    shards = [(Shard(*record), size) for _, (record, size) in sorted(records.items())]
    return {split: [shard for job, shard in zip(jobs, shards, strict=True) if job[0] == split] for split in SPLITS}


def _write_manifest(folder: Path, source: Source, written: Written, target: Target) -> Manifest:
    splits = {split: tuple(shard for shard, _ in each) for split, each in written.items()}
    manifest = describe(source, splits, target)
    for split, each in written.items():
        _check_readable(target.out, manifest, split, sum(size for _, size in each))
    write_manifest(folder, manifest)
    return manifest


def describe(source: Source, splits: dict[str, tuple[Shard, ...]], target: Target) -> Manifest:
    """The manifest of a data set."""
    height, width, channels = source.splits["train"][0].shape[1:]
    return Manifest(
        name=target.name or printable(target.out.name)[: fields.MOST_NAME],
        image_shape=(height, width, channels),
        classes=source.classes,
        compressed=not target.contiguous,
        splits=splits,
        content={split: source.sha256(split) for split in SPLITS},
        source=source.origin,
        targets=source.targets,
    )


def _check_readable(out: Path, manifest: Manifest, split: str, size: int) -> None:
    """Refuse a data set that :func:`dpcnn.data.dataset.load` would refuse, because it compresses too well."""
    if manifest.compressed:
        needed = manifest.samples(split) * manifest.sample_bytes
        check_memory(f"{out} ({split})", needed, size, "prepare it with --contiguous")
