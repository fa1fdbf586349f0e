"""New data sets: all ranks write the source as shards, and a manifest describes them."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from dpcnn.base import fields
from dpcnn.base.files import write_file
from dpcnn.base.text import count_of
from dpcnn.data.archives import unpack
from dpcnn.data.classes import read_names
from dpcnn.data.downloads import DOWNLOADS, fetch
from dpcnn.data.info import count_split
from dpcnn.data.inputs import check_memory, making
from dpcnn.data.moments import Moments
from dpcnn.data.reading import read_source
from dpcnn.data.shards import SPLITS, Manifest, Shard, write_manifest
from dpcnn.data.source_options import SourceOptions
from dpcnn.data.sources import Source
from dpcnn.data.writing import Say, Written, content_sha256, plan, write_shards
from dpcnn.errors import DataError, printable
from dpcnn.nn.losses import CLASSES
from dpcnn.parallel.comm import SerialComm

SHARDS = 8

SKIPPED = "skipped.txt"
"""The file of a data set that lists the pictures of the source that could not be read."""

SHOWN = 20
"""The most skipped files, and warnings of one kind, that are printed."""


@dataclass(frozen=True)
class Target:
    """The data set to be written.

    Attributes:
        out: its folder, which must not exist.
        name: the data set's name; None: that of the folder.
        shards: of the training split; those of other splits have about the same size.
        contiguous: whether the samples are stored without compression.
        shuffle: the seed of a random order of the samples of each split; None: the order of the source.
        options: how to read the source.
    """

    out: Path
    name: str | None = None
    shards: int = SHARDS
    contiguous: bool = False
    shuffle: int | None = None
    options: SourceOptions = field(default_factory=SourceOptions)

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
        source = read_source(path, target.options)
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
            fetch(replace(known, mirrors=mirrors), folder, say)
            if known.members:
                (archive,) = known.digests
                unpack(folder, archive, known.members)
    with comm.fail_together():
        names = read_names(str(folder / known.names_file)) if known.names_file else known.class_names
        source = read_source(folder, SourceOptions(names=names, resize=known.resize))
        source.origin["licence"] = known.licence
    write_set(comm, source, target, say)
    with comm.fail_together():
        if comm.rank == 0:
            shutil.rmtree(folder)


def write_set(comm: SerialComm, source: Source, target: Target, say: Say) -> None:
    """Write shards and manifest in a new folder beside ``target.out``, and move them there when all are complete."""
    check_same(comm, source)
    if target.shuffle is not None:
        source.shuffle(target.shuffle)
    jobs = plan(source, target.shards)
    with _new_folder(comm, target.out) as folder:
        written, moments = write_shards(folder, comm, source, jobs, not target.contiguous, say, target.out)
        faults = sorted(chain.from_iterable(comm.allgather_obj(source.faults)))
        with comm.fail_together(), making(target.out):
            if comm.rank == 0:
                check_written(source, written, faults)
                if faults:
                    write_file(folder / SKIPPED, "".join(f"{fault}\n" for fault in faults).encode())
                manifest = _write_manifest(folder, source, written, moments, target)
                lines = [*shortened(source.remarks), *class_remarks(folder, manifest), *summary_of(faults, target.out)]
                folder.rename(target.out)
                for line in [*lines, f"{target.out}: {summary_of_shards(manifest)}"]:
                    say(line)


def check_same(comm: SerialComm, source: Source) -> None:
    """Make sure that all ranks see the same files and decode them alike.

    Raises:
        DataError: on every rank, if they do not.
    """
    mine = [source.origin, {split: source.samples(split) for split in SPLITS}, source.class_names]
    first = comm.broadcast_obj(mine)
    with comm.fail_together():
        if json.dumps(mine) != json.dumps(first):
            raise DataError(
                f"rank {comm.rank} sees {mine[:2]}, but rank 0 sees {first[:2]}; give all ranks the same files"
            )


def check_written(source: Source, written: Written, faults: list[str]) -> None:
    """Make sure that each split has samples, and record how many were skipped.

    Raises:
        DataError: none of the pictures of a split could be read.
    """
    for split, shards in written.items():
        if not shards:
            raise DataError(f"none of the {split} pictures can be read; the first: {faults[0]}")
    if faults:
        source.origin["skipped"] = f"{count_of(len(faults), 'file')} that can't be read, listed in {SKIPPED}"


def summary_of(faults: list[str], out: Path) -> list[str]:
    """The lines on the files that were skipped: the first of them, and how many there are."""
    if not faults:
        return []
    lines = [f"skipped {fault}" for fault in faults[:SHOWN]]
    return [*lines, f"{count_of(len(faults), 'file')} skipped, see {out / SKIPPED}"]


def shortened(remarks: list[str]) -> list[str]:
    """The first of some lines, and how many more there are."""
    more = len(remarks) - SHOWN
    return [*remarks[:SHOWN], *([f"{count_of(more, 'more warning')} of this kind"] if more > 0 else [])]


def class_remarks(folder: Path, manifest: Manifest) -> list[str]:
    """Warnings about a data set of one class only, and about classes with fewer than two training samples."""
    if manifest.targets != CLASSES:
        return []
    counts, names = count_split(folder, manifest, "train").tolist(), manifest.class_names
    lines = []
    if sum(count > 0 for count in counts) == 1:
        lines.append("warning: the training samples are all of one class; a network needs two or more")
    for count, words in ((0, "without training samples"), (1, "with a single training sample")):
        few = [name for name, found in zip(names, counts, strict=True) if found == count]
        if few:
            lines.append(f"warning: classes {words}: {', '.join(few[:SHOWN])}{', ..' * (len(few) > SHOWN)}")
    return lines


def summary_of_shards(manifest: Manifest) -> str:
    """How many samples and shards there are."""
    samples = sum(map(manifest.samples, SPLITS))
    return f"{count_of(samples, 'sample')} in {count_of(len(manifest.shards), 'shard')}"


@contextmanager
def _new_folder(comm: SerialComm, out: Path) -> Iterator[Path]:
    """An empty folder beside ``out``, for a block that moves it. It is removed if the block fails."""
    parent = ""
    with comm.fail_together(), making(out):
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


def _write_manifest(folder: Path, source: Source, written: Written, moments: Moments, target: Target) -> Manifest:
    splits = {split: tuple(shard for shard, _ in each) for split, each in written.items()}
    mean, deviation = moments.mean_and_deviation()
    manifest = replace(describe(source, splits, target), mean=mean, deviation=deviation)
    manifest = replace(manifest, content={split: content_sha256(folder, manifest, split) for split in SPLITS})
    for split, each in written.items():
        _check_readable(target.out, manifest, split, sum(size for _, size in each))
    write_manifest(folder, manifest)
    return manifest


def describe(source: Source, splits: dict[str, tuple[Shard, ...]], target: Target) -> Manifest:
    """The manifest of a data set, still without what the shards contain."""
    height, width, channels = source.image_shape
    return Manifest(
        name=target.name or printable(target.out.name)[: fields.MOST_NAME],
        image_shape=(height, width, channels),
        class_names=source.class_names,
        resize=source.resize,
        compressed=not target.contiguous,
        splits=splits,
        content=dict.fromkeys(SPLITS, ""),
        source=source.origin,
        targets=source.targets,
        pixels=source.pixels,
        max_value=source.max_value,
    )


def _check_readable(out: Path, manifest: Manifest, split: str, size: int) -> None:
    """Refuse a data set that :func:`dpcnn.data.dataset.load` would refuse, because it compresses too well."""
    if manifest.compressed:
        needed = manifest.samples(split) * manifest.sample_bytes
        check_memory(f"{out} ({split})", needed, size, "prepare it with --contiguous")
