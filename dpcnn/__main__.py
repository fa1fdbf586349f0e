"""Run a command: ``dpcnn COMMAND`` is the same as ``python -m dpcnn.COMMAND``."""

import importlib
import sys

from dpcnn import __version__
from dpcnn.errors import nearest, printable

COMMANDS = {
    "train": "train a network",
    "summary": "show a network's layers, shapes, parameters, operations and memory, before any run",
    "evaluate": "evaluate a checkpoint on test or validation samples",
    "predict": "predict the classes of pictures",
    "plot": "draw the curves of runs, and the first layer",
    "report": "write a run's report, one HTML page",
    "export": "export a trained network: ONNX, safetensors, NPZ",
    "import": "import a network: safetensors",
    "doctor": "check whether this machine or job is fit for training",
    "submit": "write a batch job that trains, for Slurm or PBS",
    "verify": "prove on this machine that the number of ranks does not change the result",
    "bench": "measure the speed, also of PyTorch DDP",
    "reproduce": "train published recipes again, and compare the results",
    "forecast": "predict the speed on more ranks from measurements",
    "data": "prepare, fetch and inspect data sets",
}


def main() -> int:
    """Run the command that the first word names, and return its exit status."""
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
    sys.argv[:2] = [f"dpcnn {name}"]
    status: int = module.main()
    return status


if __name__ == "__main__":
    sys.exit(main())
