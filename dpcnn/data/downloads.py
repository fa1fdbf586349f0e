"""Data sets from the internet: mirrors, digests, and downloads that continue after an interruption."""

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dpcnn.base.files import Folder, open_plain
from dpcnn.data.cifar import CIFAR10, CIFAR100, NAMES_OF_10, NAMES_OF_100
from dpcnn.data.classes import Names
from dpcnn.data.emnist import CLASSES, names_of
from dpcnn.data.inputs import BLOCK, digest, reason
from dpcnn.data.shards import CROP, MNIST
from dpcnn.errors import DataError

MOST_DOWNLOAD = 1 << 30
"""The most bytes of a file; those of the known data sets are smaller."""

TIMEOUT = 30
"""Seconds without an answer after which a mirror has failed."""


@dataclass(frozen=True)
class Download:
    """A data set to download.

    Attributes:
        mirrors: base addresses.
        digests: "sha256:.." or "md5:.." by file name.
        licence: of the data.
        class_names: None: those of ``names_file``, or the labels' numbers.
        members: the files to unpack, if the download is an archive.
        names_file: the one of ``members`` with a class name per line; "": there is none.
        resize: how a picture becomes an image of this set, see :data:`dpcnn.data.shards.RESIZE`.
    """

    mirrors: tuple[str, ...]
    digests: dict[str, str]
    licence: str
    class_names: Names | None = None
    members: tuple[str, ...] = ()
    names_file: str = ""
    resize: str = CROP


FILES = tuple(f"{prefix}-{kind}-ubyte.gz" for prefix in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def _download(
    mirrors: tuple[str, ...], kind: str, digests: Sequence[str], licence: str, names: str = "", resize: str = CROP
) -> Download:
    by_name = {name: f"{kind}:{digest}" for name, digest in zip(FILES, digests, strict=True)}
    return Download(mirrors, by_name, licence, tuple(names.split(",")) if names else None, resize=resize)


def _cifar(archive: str, md5: str, files: Mapping[str, tuple[str, ...]], names_file: str) -> Download:
    mirrors, licence = ("https://www.cs.toronto.edu/~kriz/",), "Alex Krizhevsky, Vinod Nair and Geoffrey Hinton"
    members = (*files["train"], *files["test"], names_file)
    return Download(mirrors, {archive: f"md5:{md5}"}, licence, members=members, names_file=names_file)


def _emnist(division: str) -> Download:
    mirrors, digests = ("https://biometrics.nist.gov/cs_links/EMNIST/",), {"gzip.zip": f"md5:{MD5_OF_EMNIST}"}
    members = (*names_of(division, "train"), *names_of(division, "test"))
    licence = "NIST, and Gregory Cohen, Saeed Afshar, Jonathan Tapson and André van Schaik"
    return Download(mirrors, digests, licence, tuple(CLASSES[division]), members, resize=MNIST)


MD5_OF_EMNIST = "58c8d27c78d21e728a6bc7b3cc06412e"
"""The digest in torchvision (``torchvision.datasets.EMNIST.md5``); NIST publishes none."""


DOWNLOADS = {
    "mnist": _download(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        "sha256",
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        "CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
        resize=MNIST,
    ),
    "fashion-mnist": _download(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        "sha256",
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        "MIT, Zalando SE",
        "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot",
    ),
    "kmnist": _download(
        ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        "md5",
        (
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
        "CC BY-SA 4.0, ROIS-DS Center for Open Data in the Humanities",
        "o,ki,su,tsu,na,ha,ma,ya,re,wo",
    ),
    "cifar10": _cifar("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", CIFAR10, NAMES_OF_10),
    "cifar100": _cifar("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", CIFAR100, NAMES_OF_100),
    "emnist": _emnist("balanced"),
    **{f"emnist-{division}": _emnist(division) for division in CLASSES if division != "balanced"},
}


def fetch(download: Download, folder: Path, say: Callable[[str], None]) -> None:
    """Download the files that ``folder`` lacks, and check the digests of all.

    An interrupted download continues where it stopped; if a mirror fails, the next one is tried.

    Raises:
        DataError: every mirror failed, or an existing file has another digest.
        OSError: the folder can't be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Folder(folder.parent) as parent, parent.inside(folder.name) as opened:
        for name, known in download.digests.items():
            if name in opened.names():
                actual = _digest(folder / name, known)
                if actual != known:
                    raise DataError(f"{folder / name}: {_mismatch(actual, known)}; remove it and repeat this command")
            else:
                _fetch_file(name, known, download.mirrors, opened, say)


def _fetch_file(name: str, known: str, mirrors: Sequence[str], folder: Folder, say: Callable[[str], None]) -> None:
    part = f"{name}.part"
    failures = []
    for mirror in mirrors:
        address = mirror.rstrip("/") + "/" + name
        say(f"downloading {address}")
        with folder.appending(part) as file:
            try:
                _append(address, file)
            except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and HTTPError are OSErrors
                failures.append(f"{address}: {reason(getattr(error, 'reason', None) or error)}")
                continue
        actual = _digest(folder.path / part, known)
        if actual == known:
            os.replace(folder.path / part, folder.path / name)
            return
        folder.remove(part)
        failures.append(f"{address}: {_mismatch(actual, known)}")
    raise DataError(
        f"can't download {name}: {'; '.join(failures)}; copy the file to {folder.path} by hand and run this command "
        "again"
    )


def _append(address: str, part: BinaryIO) -> None:
    """Download ``address`` to the end of ``part``, or from its start if the server cannot continue."""
    have = os.fstat(part.fileno()).st_size
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing follows: the part is complete, and its digest will show it
            return
        raise
    with response:
        if response.status != 206:
            part.truncate(0)
        while block := response.read(BLOCK):
            part.write(block)
            if part.tell() > MOST_DOWNLOAD:
                raise ValueError(f"sends more than {MOST_DOWNLOAD:,} bytes")
        if response.length:  # http.client does not report this
            raise ConnectionError(f"the connection broke with {response.length} bytes missing")


def _digest(path: Path, known: str) -> str:
    """A file's digest, of the same kind as ``known``."""
    kind = known.partition(":")[0]
    with open_plain(path) as file:
        return f"{kind}:{digest(file, kind)}"


def _mismatch(actual: str, expected: str) -> str:
    kind, _, digest = actual.partition(":")
    return f"its {kind} is {digest[:16]}.., expected {expected.partition(':')[2][:16]}.."
