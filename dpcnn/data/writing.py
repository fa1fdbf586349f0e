"""The shards of a new data set, written by all ranks, some samples at a time."""

import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.data.file_names import write_names
from dpcnn.data.inputs import Reader, making
from dpcnn.data.layout import image_blocks, labels_of, most_rows, read_layout, write_shard
from dpcnn.data.moments import Moments
from dpcnn.data.pixels import stored_type
from dpcnn.data.rows import FileImages
from dpcnn.data.shard_files import ShardFile
from dpcnn.data.shards import MOST_SHARDS, SPLITS, Images, Manifest, Shard
from dpcnn.data.sources import BLOCK_CHUNKS, Source
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.terminal import image_bar, open_terminal, terminal
from dpcnn.parallel.tree import chunks, split_evenly

Say = Callable[[str], None]
Job = tuple[str, str, int, int]
"""A shard to write: split, file name, first sample, end."""

Blocks = Iterator[tuple[Images, Array]]
"""Images (n, H, W, C) and labels (n,) or (n, K), some at a time."""

SECONDS = 10.0
"""Between two lines on the progress."""

BAR = "writing {percentage:3.0f}% |{bar}| {rate_fmt}, {remaining} left"


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


def write_shards(
    folder: Path, comm: SerialComm, source: Source, jobs: list[Job], compressed: bool, say: Say, out: Path
) -> tuple[Written, Moments]:
    """Write this rank's shards; the result, on every rank, describes all of them and all training images.

    Args:
        out: the folder of the finished data set, for messages.
    """
    written, moments = {}, Moments(source.image_shape[-1], source.max_value)
    mine = sum(stop - start for _, _, start, stop in jobs[comm.rank :: comm.size])
    with comm.fail_together(), making(out), Pace(None if comm.rank else say, mine) as pace:
        for number in range(comm.rank, len(jobs), comm.size):
            split, name, start, stop = jobs[number]
            blocks, samples = pace.counted(source.blocks(split, start, stop)), stop - start
            blocks = moments.counted(blocks) if split == "train" else blocks
            if source.skips:
                source.taken.clear()
                blocks, samples = spooled(folder, blocks, source.image_shape)
            if not samples:
                continue
            shape, dtype = (samples, *source.image_shape), stored_type(source.pixels)
            write_shard(folder / name, blocks, shape, dtype, compressed)
            if source.skips:
                write_names(folder / name, source.taken)
            with ShardFile(folder, Shard(name, samples, "")) as file:
                written[str(number)] = [name, samples, file.sha256()], file.size
    moments.gather(comm)
    found = {int(number): told for part in comm.allgather_obj(written) for number, told in part.items()}
    shards = [(jobs[number][0], Shard(*told), size) for number, (told, size) in sorted(found.items())]
    return {split: [(shard, size) for of, shard, size in shards if of == split] for split in SPLITS}, moments


def spooled(folder: Path, blocks: Blocks, image_shape: Shape) -> tuple[Blocks, int]:
    """Blocks of samples through a nameless file in ``folder``: the same samples, and how many they are."""
    labels: list[Array] = [np.zeros(0, np.uint8)]
    with tempfile.TemporaryFile(dir=folder) as file:
        for images, of_images in blocks:
            file.write(images.data)
            labels.append(of_images)
        file.flush()
        every = np.concatenate(labels)
        stored = FileImages(Reader(folder, file), 0, (len(every), *image_shape))
    parts = chunks(len(every), BLOCK_CHUNKS * most_rows(math.prod(image_shape)))
    return ((stored[np.arange(start, stop)], every[start:stop]) for start, stop in parts), len(every)


class Pace:
    """Shows the progress of this rank: a bar on a terminal, otherwise a line from time to time.

    Args:
        say: prints a line; None: nothing is shown.
        samples: the number of all samples of this rank.
    """

    def __init__(self, say: Say | None, samples: int) -> None:
        self._say, self._samples, self._done = say, samples, 0
        self._started = self._said = time.monotonic()
        self._terminal = open_terminal(terminal(2)) if say else None
        self._bar = image_bar(self._terminal, samples, 0, BAR) if self._terminal else None

    def __enter__(self) -> "Pace":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._terminal is not None:
            self._terminal.close()

    def counted(self, blocks: Blocks) -> Blocks:
        """The same blocks; their samples are counted."""
        for block in blocks:
            yield block
            self._done += len(block[0])
            if self._bar is not None:
                self._bar.update(len(block[0]))
            elif self._say and time.monotonic() - self._said > SECONDS:
                self._said = time.monotonic()
                speed = self._done / (self._said - self._started)
                part = self._done / self._samples
                self._say(f"rank 0 has written {part:.0%} of its {self._samples:,} images, {speed:,.0f} images/s")


def content_sha256(folder: Path, manifest: Manifest, split: str) -> str:
    """The sha256 of all images' bytes and then all labels', as they are read from the shards."""
    found, every_label = hashlib.sha256(), []
    for shard in manifest.splits[split]:
        with ShardFile(folder, shard) as file:
            layout = read_layout(file, manifest)
            for images in image_blocks(file, layout, manifest):
                found.update(images.data)
            every_label.append(labels_of(file, layout, manifest))
    for labels in every_label:
        found.update(labels.data)
    return found.hexdigest()
