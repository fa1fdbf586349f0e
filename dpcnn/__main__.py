"""dpcnn COMMAND: the same as python -m dpcnn.COMMAND"""

import importlib
import sys

from dpcnn import __version__
from dpcnn.errors import nearest, printable

COMMANDS = {
    "train": "train a network",
    "evaluate": "what a checkpoint gets right and wrong",
    "predict": "say what is in pictures",
    "plot": "draw runs, and what a net's first layer sees",
    "report": "a run as one HTML page",
    "export": "take a trained net elsewhere: ONNX, safetensors, NPZ",
    "import": "bring a net in: safetensors",
    "doctor": "whether this machine or job is fit for training",
    "submit": "write a batch job of a training, for Slurm or PBS",
    "verify": "prove that ranks change nothing, here",
    "bench": "measure speed, also against PyTorch DDP",
    "reproduce": "run recipes anew, and hold them against what was published",
    "forecast": "predict the speed on more ranks from measured ones",
    "data": "make, fetch and inspect data sets",
}


def main() -> int:
    """The command; returns its exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name == "--version":
        print(f"dpcnn {__version__}")
        return 0
    if name in ("", "-h", "--help"):
        print("usage: dpcnn COMMAND [--help]\n", *(f"  {key:<11}{text}" for key, text in COMMANDS.items()), sep="\n")
        return 0 if name else 2
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS)
        print(f"dpcnn: error: no command {printable(name)!r}; {hint}; see dpcnn --help", file=sys.stderr)
        return 2
    module = importlib.import_module("dpcnn.data.__main__" if name == "data" else f"dpcnn.{name}")
    status: int = module.main(sys.argv[2:])
    return status


if __name__ == "__main__":
    sys.exit(main())
