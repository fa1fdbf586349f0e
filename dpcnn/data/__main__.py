"""Make, fetch and inspect data sets: python -m dpcnn.data prepare|fetch|info"""

import hashlib
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np

from dpcnn.cli import DONE, Parser, parse, run
from dpcnn.data.samples import check_labels, find_data
from dpcnn.data.shards import SPLITS, Manifest, Shard, open_shard, read_manifest, verify, write_manifest, write_shard
from dpcnn.data.sources import DOWNLOADS, Download, Source, fetch, read_source
from dpcnn.errors import ConfigError, DataError
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.split import shares

SHARDS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda comm: dispatch(comm, argv))


def dispatch(comm: Alone, argv: Sequence[str] | None) -> int:
    """Do what the command line says, on every rank of ``comm``."""
    with comm.together():
        options = parse(_parser(), argv, comm)
        if options.command != "info" and options.shards < 1:
            raise ConfigError(f"--shards: must be at least 1, not {options.shards}")
    command = {"prepare": prepare, "fetch": fetch_and_prepare, "info": info}[options.command]
    command(comm, options)
    return DONE


def _parser() -> Parser:
    parser = Parser(prog="dpcnn.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="prepare|fetch|info")
    make = commands.add_parser("prepare", help="make a data set of IDX files, CSV files or an NPZ file")
    make.add_argument("source", type=Path, help="folder of IDX or CSV files (.gz or not), or NPZ file with Keras' keys")
    make.add_argument("--out", type=Path, required=True, help="the new data set's folder")
    make.add_argument("--name", help="the data set's name (default: that of the folder)")
    get = commands.add_parser("fetch", help="download a data set, checked, and prepare it")
    get.add_argument("name", choices=sorted(DOWNLOADS))
    get.add_argument("--out", type=Path, help="the new data set's folder (default data/NAME)")
    get.add_argument("--mirror", help="base address to download from, in place of the known ones")
    for command in (make, get):
        command.add_argument("--shards", type=int, default=SHARDS, help=f"training shards (default {SHARDS})")
        uncompressed = "don't compress: such a set is mapped from its files, and may be larger than memory"
        command.add_argument("--contiguous", action="store_true", help=uncompressed)
    show = commands.add_parser("info", help="show what a data set holds, and verify every byte of it")
    show.add_argument("data", help="a name under data/, or a folder")
    return parser


def prepare(comm: Alone, options: Namespace) -> None:
    """Write a data set; the ranks share its shards, and the bytes are the same on any number of them."""
    with comm.together():
        check_free(options.out)
        source = read_source(options.source)
    write_set(comm, source, options)


def check_free(out: Path) -> None:
    """Refuse to write over anything.

    Raises:
        DataError: something is there.
    """
    if out.exists():
        raise DataError(f"{out}: exists already; give another --out, or remove it")


def write_set(comm: Alone, source: Source, options: Namespace) -> None:
    """Write shards and manifest beside ``options.out``, and move them there when all are whole."""
    partial = options.out.with_name(f".{options.out.name}.part")
    with comm.together():
        if comm.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
    jobs = plan(source, options.shards)
    with comm.together():
        written = {}
        for number in range(comm.rank, len(jobs), comm.size):
            split, name, start, stop = jobs[number]
            images, labels = source.splits[split]
            shard = write_shard(partial / name, images[start:stop], labels[start:stop], not options.contiguous)
            written[str(number)] = [shard.file, shard.samples, shard.sha256]
    found = {int(number): Shard(*fields) for part in comm.allgather_obj(written) for number, fields in part.items()}
    splits = {
        split: tuple(found[number] for number in range(len(jobs)) if jobs[number][0] == split) for split in SPLITS
    }
    with comm.together():
        if comm.rank == 0:
            write_manifest(partial, describe(source, splits, options))
            partial.rename(options.out)
            samples = sum(stop - start for _, _, start, stop in jobs)
            print(f"{options.out}: {samples:,} samples in {len(jobs)} shards")


def plan(source: Source, shards: int) -> list[tuple[str, str, int, int]]:
    """Every shard as (split, file, first sample, end): ``shards`` of training, test ones as large."""
    jobs = []
    training = len(source.splits["train"][1])
    for split in SPLITS:
        samples = len(source.splits[split][1])
        count = min(samples, max(1, ceil(shards * samples / training)))
        bounds = shares(samples, count)
        digits = max(2, len(str(count - 1)))
        jobs += [
            (split, f"{split}-{number:0{digits}}.h5", bounds[number], bounds[number + 1]) for number in range(count)
        ]
    return jobs


def describe(source: Source, splits: dict[str, tuple[Shard, ...]], options: Namespace) -> Manifest:
    """The manifest of a source's data."""
    train_images, _ = source.splits["train"]
    shape = train_images.shape[1:]
    if source.splits["test"][0].shape[1:] != shape:
        raise DataError(f"test images are {source.splits['test'][0].shape[1:]}, training images {shape}")
    return Manifest(
        name=options.name or options.out.name,
        image_shape=(shape[0], shape[1], shape[2]),
        classes=1 + max(int(labels.max()) for _, labels in source.splits.values()),
        compressed=not options.contiguous,
        splits=splits,
        content={
            split: hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
            for split, (images, labels) in source.splits.items()
        },
        source=source.origin,
    )


def fetch_and_prepare(comm: Alone, options: Namespace) -> None:
    """Download on rank 0 while the others wait, then prepare on all."""
    known = DOWNLOADS[options.name]
    options.out = options.out or Path("data") / options.name
    folder = options.out.with_name(f"{options.out.name}.download")
    with comm.together():
        check_free(options.out)
    with comm.together():
        if comm.rank == 0:
            mirrors = (options.mirror,) if options.mirror else known.mirrors
            fetch(Download(mirrors, known.digests, known.licence), folder, print)
    with comm.together():
        source = read_source(folder)
        source.origin["licence"] = known.licence
    write_set(comm, source, options)
    if comm.rank == 0:
        shutil.rmtree(folder)


def info(comm: Alone, options: Namespace) -> None:
    """Verify all checksums, labels and shapes, the ranks sharing the shards; show the counts."""
    with comm.together():
        folder = find_data(options.data)
        manifest = read_manifest(folder)
    jobs = [(split, shard) for split in SPLITS for shard in manifest.splits[split]]
    counts = np.zeros((len(SPLITS), manifest.classes), np.int64)
    with comm.together():
        for split, shard in jobs[comm.rank :: comm.size]:
            verify(folder, shard)
            file, _, labels = open_shard(folder, shard, manifest)
            with file:
                check_labels(folder / shard.file, labels[...], manifest.classes)
                counts[SPLITS.index(split)] += np.bincount(labels[...], minlength=manifest.classes)
    comm.allreduce(counts)
    if comm.rank == 0:
        print("\n".join(info_lines(folder, manifest, counts.tolist())))


def info_lines(folder: Path, manifest: Manifest, counts: list[list[int]]) -> list[str]:
    """What ``info`` prints of a verified data set."""
    lines = [
        f"{folder}: {manifest.name}, images {' x '.join(map(str, manifest.image_shape))}, {manifest.classes} classes, "
        f"{'compressed' if manifest.compressed else 'contiguous'}",
        "class   " + "".join(f"{number:>8}" for number in range(manifest.classes)) + "     all  shards",
    ]
    for split, row in zip(SPLITS, counts, strict=True):
        shards = len(manifest.splits[split])
        lines.append(f"{split:<8}" + "".join(f"{count:>8}" for count in row) + f"{sum(row):>8}{shards:>8}")
    lines += [f"source: {name} {text}" for name, text in manifest.source.items()]
    lines.append(f"every shard verified; data {manifest.checksum}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
