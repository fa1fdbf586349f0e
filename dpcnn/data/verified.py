"""The record of the verified shards of a data set: each is hashed once, and not at every start.

``verified.json``, beside the manifest, has the size, times, inode and sha256 of each shard when its bytes were
compared with the manifest. A shard is not read again if all of them are unchanged. The record is not needed: a
shard that it does not contain is verified, and a record that can't be read or written is left alone.

The system sets the time of the last change of a file's content or properties (ctime), which no program can set back.
"""

import json
import time
from pathlib import Path

from dpcnn.base.fields import FieldError, Table, load_json
from dpcnn.base.files import MOST_JSON, Folder, read_bytes
from dpcnn.data.shard_files import FileState, ShardFile
from dpcnn.data.shards import Manifest
from dpcnn.parallel.comm import SerialComm

RECORD, FORMAT = "verified.json", 1

SETTLED = 2_000_000_000
"""Nanoseconds after a file's last change until it is recorded. On coarse file systems, a second change within this
time may have the same ctime as the first."""

MOST = 2**64

Entry = dict[str, int | str]
"""The fields of a :class:`FileState`, and the sha256."""


class Verification:
    """Verifies the shards of a data set, except those of the record. All ranks of a node make one together.

    Args:
        node: the ranks that see the same files; the first of them reads and writes the record.
        folder: of the data set.
        manifest: of the data set.
        again: whether to verify every shard.
    """

    def __init__(self, node: SerialComm, folder: Path, manifest: Manifest, again: bool = False) -> None:
        self._node, self._folder, self._again = node, folder, again
        self._known: dict[str, Entry] = node.broadcast_obj(_read(folder, manifest) if node.rank == 0 else None)
        self._new: dict[str, Entry] = {}

    def check(self, file: ShardFile) -> None:
        """Compare a shard's bytes with the manifest, unless the record contains the file as it is.

        Raises:
            DataError: they differ.
        """
        found: Entry = {**file.state._asdict(), "sha256": file.shard.sha256}
        if not self._again and self._known.get(file.shard.file) == found:
            return
        settled = time.time_ns() - file.state.ctime_ns > SETTLED
        file.verify()
        if settled:
            self._new[file.shard.file] = found

    def save(self) -> None:
        """Add the shards that the ranks of the node have verified to the record, if it can be written."""
        new = {name: each for part in self._node.allgather_obj(self._new) for name, each in part.items()}
        if new and self._node.rank == 0:
            _write(self._folder, self._known | new)


def _read(folder: Path, manifest: Manifest) -> dict[str, Entry]:
    """The record's entries by file; empty if there is no valid record."""
    names = [shard.file for shard in manifest.shards]
    try:
        table = Table(load_json(read_bytes(folder / RECORD, MOST_JSON)))
        table.integer("format", FORMAT, FORMAT)
        files = table.table("files")
        return {name: _parse(files.table(name)) for name in names if name in files}
    except (OSError, FieldError):
        return {}


def _parse(table: Table) -> Entry:
    return {**{key: table.integer(key, -MOST, MOST) for key in FileState._fields}, "sha256": table.sha256("sha256")}


def _write(folder: Path, known: dict[str, Entry]) -> None:
    content = json.dumps({"format": FORMAT, "files": known}, indent=1, sort_keys=True).encode() + b"\n"
    try:
        with Folder(folder) as opened:
            opened.write(RECORD, content)
    except OSError:  # the folder may be read-only: then each start verifies
        return
