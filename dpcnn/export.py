"""Write a network as ONNX, safetensors or NPZ: dpcnn export RUN|CHECKPOINT --format onnx|safetensors|npz"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dpcnn.base.files import write_file
from dpcnn.base.new_files import check_free
from dpcnn.cli import DONE, Parser, add_checkpoint, run_command
from dpcnn.errors import ConfigError
from dpcnn.interop.metadata import white
from dpcnn.interop.npz import as_npz
from dpcnn.interop.onnx import as_onnx
from dpcnn.interop.safetensors import as_safetensors
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.checkpoint import read
from dpcnn.runs.folder import find_checkpoint

FORMATS = {"npz": as_npz, "onnx": as_onnx, "safetensors": as_safetensors}
"""For each format, the function that makes a file's content of a checkpoint."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(command, make_parser, argv)


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn export", description=__doc__)
    add_checkpoint(parser)
    parser.add_argument(
        "--format", choices=list(FORMATS), help="the file's format (default: the ending of --out, or else onnx)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file (default ./step-STEP.FORMAT)")
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Write the file on rank 0; the other ranks of ``comm`` wait for its success or its error."""
    with comm.fail_together():
        if comm.rank == 0:
            kind = format_of(options)
            source = find_checkpoint(options.checkpoint)
            checkpoint = read(source)
            path = options.out or Path(f"step-{checkpoint.progress.step:08d}.{kind}")
            check_free(path)
            content = FORMATS[kind](checkpoint)
            write_file(path, content)
            model = f"{checkpoint.config.model} of step {checkpoint.progress.step}"
            print(f"{path}: {model}, for images of 0 to {white(checkpoint):g}, {len(content):,} bytes")
    return DONE


def format_of(options: Namespace) -> str:
    """The format of the file.

    Raises:
        ConfigError: the file's name is that of another format, or of no format.
    """
    named = options.out.suffix.lower()[1:] if options.out else ""
    if options.format and named in FORMATS and named != options.format:
        raise ConfigError(f"--out: {options.out} has the ending of {named}, but --format is {options.format}; drop one")
    if named and named not in FORMATS and not options.format:
        raise ConfigError(f"--out: {options.out} does not end in .{', .'.join(FORMATS)}; rename it, or give --format")
    return options.format or named or "onnx"


if __name__ == "__main__":
    sys.exit(main())
