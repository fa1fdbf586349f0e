"""Make, fetch and inspect data sets: python -m dpcnn.data prepare|fetch|info"""

import os
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np

from dpcnn.base import fields
from dpcnn.base.fields import FieldError
from dpcnn.cli import DONE, Parser, parse, run
from dpcnn.data.dataset import check_labels, find_data
from dpcnn.data.downloads import DOWNLOADS, Download, fetch
from dpcnn.data.inputs import check_memory
from dpcnn.data.layout import read_labels, read_layout, write_shard
from dpcnn.data.shards import MOST_SHARDS, SPLITS, Manifest, Shard, ShardFile, read_manifest, write_manifest
from dpcnn.data.sources import Source, read_source
from dpcnn.errors import ConfigError, DataError, printable
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.tree import shares

SHARDS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda comm: dispatch(comm, argv))


def dispatch(comm: Alone, argv: Sequence[str] | None) -> int:
    """Do what the command line says, on every rank of ``comm``."""
    with comm.together():
        options = parse(_parser(), argv, comm)
        if options.command != "info":
            check_options(options)
    command = {"prepare": prepare, "fetch": fetch_and_prepare, "info": info}[options.command]
    command(comm, options)
    return DONE


def check_options(options: Namespace) -> None:
    """Check what was typed of a set to be made.

    Raises:
        ConfigError: with the flag that is wrong.
    """
    try:
        fields.integer(options.shards, "--shards", 1, MOST_SHARDS)
        if options.shuffle is not None:
            fields.integer(options.shuffle, "--shuffle")
        if options.command == "prepare" and options.name is not None:
            fields.name(options.name, "--name")
    except FieldError as error:
        raise ConfigError(str(error)) from None
    if options.command == "fetch" and not (options.mirror or "http:").startswith(("http:", "https:")):
        raise ConfigError(f"--mirror: expected an address http://.. or https://.., not {options.mirror!r}")


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
        uncompressed = "don't compress: such a set is read from its files as it is used, and may be larger than memory"
        command.add_argument("--contiguous", action="store_true", help=uncompressed)
        shuffled = "put the samples of each split in a random order, for sources that are sorted by class"
        command.add_argument("--shuffle", type=int, metavar="SEED", help=shuffled)
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
    if os.path.lexists(out):
        raise DataError(f"{out}: exists already; give another --out, or remove it")


def write_set(comm: Alone, source: Source, options: Namespace) -> None:
    """Write shards and manifest in a new folder beside ``options.out``, and move them there when all are whole."""
    room = ""
    with comm.together():
        if comm.rank == 0:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            room = tempfile.mkdtemp(prefix=f".{options.out.name}.", dir=options.out.parent)
            os.mkdir(Path(room, "set"))  # with the permissions of any new folder, while the room is private
    room = comm.broadcast_obj(room)
    try:
        _write_in(Path(room, "set"), comm, source, options)
    finally:
        if comm.rank == 0:
            shutil.rmtree(room, ignore_errors=True)


def _write_in(folder: Path, comm: Alone, source: Source, options: Namespace) -> None:
    if options.shuffle is not None:
        source.shuffle(options.shuffle)
    jobs = plan(source, options.shards)
    with comm.together():
        written = {}
        for number in range(comm.rank, len(jobs), comm.size):
            split, name, start, stop = jobs[number]
            write_shard(folder / name, *source.part(split, start, stop), compressed=not options.contiguous)
            with ShardFile(folder, Shard(name, stop - start, "")) as file:
                written[str(number)] = [name, stop - start, file.sha256()], file.size
    found = {int(number): told for part in comm.allgather_obj(written) for number, told in part.items()}
    of_split = {split: [found[n] for n in range(len(jobs)) if jobs[n][0] == split] for split in SPLITS}
    with comm.together():
        if comm.rank == 0:
            splits = {split: tuple(Shard(*told) for told, _ in each) for split, each in of_split.items()}
            manifest = describe(source, splits, options)
            for split, each in of_split.items():
                _check_readable(options.out, manifest, split, sum(size for _, size in each))
            write_manifest(folder, manifest)
            folder.rename(options.out)
            print(f"{options.out}: {sum(map(manifest.samples, SPLITS)):,} samples in {len(jobs)} shards")


def _check_readable(out: Path, manifest: Manifest, split: str, size: int) -> None:
    """Refuse a set that compresses so well that it would be refused when it is loaded."""
    if manifest.compressed:
        needed = manifest.samples(split) * (manifest.image_bytes + 1)
        check_memory(f"{out} ({split})", needed, size, "prepare it with --contiguous")


def plan(source: Source, shards: int) -> list[tuple[str, str, int, int]]:
    """Every shard as (split, file, first sample, end): ``shards`` of training, test ones as large."""
    jobs = []
    for split in SPLITS:
        samples = source.samples(split)
        count = min(samples, MOST_SHARDS, max(1, ceil(shards * samples / source.samples("train"))))
        bounds = shares(samples, count)
        digits = max(2, len(str(count - 1)))
        jobs += [
            (split, f"{split}-{number:0{digits}}.h5", bounds[number], bounds[number + 1]) for number in range(count)
        ]
    return jobs


def describe(source: Source, splits: dict[str, tuple[Shard, ...]], options: Namespace) -> Manifest:
    """The manifest of a source's data."""
    height, width, channels = source.splits["train"][0].shape[1:]
    return Manifest(
        name=options.name or printable(options.out.name)[: fields.MOST_NAME],
        image_shape=(height, width, channels),
        classes=1 + max(int(labels.max()) for _, labels in source.splits.values()),
        compressed=not options.contiguous,
        splits=splits,
        content={split: source.sha256(split) for split in SPLITS},
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
    with comm.together():
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
            with ShardFile(folder, shard) as file:
                file.verify()
                labels = np.empty(shard.samples, np.uint8)
                read_labels(file, read_layout(file, shard, manifest), labels)
            check_labels(file.path, labels, manifest.classes)
            counts[SPLITS.index(split)] += np.bincount(labels, minlength=manifest.classes)
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
