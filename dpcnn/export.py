"""Take a trained net elsewhere: python -m dpcnn.export CHECKPOINT --format onnx|safetensors|npz"""

import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn import __version__
from dpcnn.base.files import write_file
from dpcnn.cli import DONE, Parser, parse, run
from dpcnn.errors import CheckpointError, LaunchError, not_installed
from dpcnn.interop.torch_layout import twins
from dpcnn.nn.activations import ReLU, Sigmoid, Tanh
from dpcnn.nn.layers import Conv2d, Dropout, Flatten, Linear, Scale
from dpcnn.nn.normalisation import BatchNorm, LocalResponseNorm
from dpcnn.nn.pooling import AvgPool2d, MaxPool2d
from dpcnn.parallel.comm import Alone
from dpcnn.runs.checkpoint import Checkpoint, read
from dpcnn.runs.folder import find_checkpoint

Weights = dict[str, NDArray[np.float32]]
OPSET, IR_VERSION = 17, 8  # of ONNX: old enough for any runtime in use


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda comm: export(comm, argv))


def export(comm: Alone, argv: Sequence[str] | None) -> int:
    """Write the file on rank 0; the other ranks of ``comm`` wait to hear whether it went well."""
    parser = Parser(prog="dpcnn.export", description=__doc__)
    parser.add_argument(
        "checkpoint", type=Path, metavar="RUN|CHECKPOINT", help="a run's folder: its best checkpoint; or a checkpoint"
    )
    parser.add_argument("--format", choices=sorted(FORMATS), default="onnx", help="of the file (default onnx)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file (default the checkpoint's name, here)")
    with comm.together():
        options = parse(parser, argv, comm)
    with comm.together():
        if comm.rank == 0:
            source = find_checkpoint(options.checkpoint)
            checkpoint = read(source)
            path = options.out or Path(f"{source.resolve().stem}.{options.format}")
            if path.exists() or path.is_symlink():
                raise CheckpointError(f"{path}: exists; give another --out, or delete it")
            content = FORMATS[options.format](checkpoint)
            write_file(path, content)
            print(f"{path}: {checkpoint.config.model} of step {checkpoint.cursor.step}, {len(content):,} bytes")
    return DONE


def metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """What goes with the weights in every format: a JSON object, named dpcnn.

    One, as safetensors writes several in no certain order; so the same net is the same bytes.
    """
    told = {
        "version": __version__,
        "config": asdict(checkpoint.config),
        "image_shape": list(checkpoint.image_shape),
        "classes": checkpoint.classes,
        "step": checkpoint.cursor.step,
        "weights_sha256": checkpoint.weights_sha256,
    }
    return {"dpcnn": json.dumps(told)}


def as_npz(checkpoint: Checkpoint) -> bytes:
    """Each parameter under its name, in our own layout, and the metadata."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {**checkpoint.parameters, **metadata(checkpoint)}
    np.savez(file, **arrays)
    return file.getvalue()


def as_safetensors(checkpoint: Checkpoint) -> bytes:
    """Each parameter under its name, laid out as PyTorch has it: see :func:`like_torch`."""
    try:
        from safetensors.numpy import save
    except ImportError:
        raise missing("safetensors") from None
    return bytes(save(like_torch(checkpoint), metadata=metadata(checkpoint)))


def like_torch(checkpoint: Checkpoint) -> Weights:
    """The parameters as PyTorch names them and lays them out: see :mod:`dpcnn.interop.torch_layout`."""
    parameters = checkpoint.parameters
    return {twin.theirs: twin.to_torch(parameters[twin.ours]) for twin in twins(checkpoint.network())}


def as_onnx(checkpoint: Checkpoint) -> bytes:
    """A graph from "images", float32 (N, H, W, C) of 0..255, to "logits" (N, classes).

    Raises:
        LaunchError: the package onnx is not installed.
    """
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError:
        raise missing("onnx") from None
    network = checkpoint.network()
    constants: list[Any] = []
    nodes = [helper.make_node("Transpose", ["images"], ["x0"], perm=[0, 3, 1, 2])]

    def constant(name: str, array: Any) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(operator: str, *inputs: str, **attributes: Any) -> None:
        here = nodes[-1].output[0]
        nodes.append(helper.make_node(operator, [here, *inputs], [f"x{len(nodes)}"], **attributes))

    for name, layer in zip(network.names, network.layers, strict=True):
        w, b, mean, variance = (checkpoint.parameters.get(f"{name}.{kind}") for kind in ("w", "b", "mean", "variance"))
        if isinstance(layer, Scale):
            add("Mul", constant(f"{name}.factor", np.float32(layer.span / 255)))
            add("Add", constant(f"{name}.low", np.float32(layer.low)))
        elif isinstance(layer, Conv2d):
            assert w is not None, "every convolution has weights"
            inputs = [constant(f"{name}.w", w.transpose(3, 2, 0, 1))]
            inputs += [constant(f"{name}.b", b)] if b is not None else []
            strides, pads = [layer.stride] * 2, [layer.padding] * 4
            add("Conv", *inputs, kernel_shape=list(layer.kernel), strides=strides, pads=pads)
        elif isinstance(layer, MaxPool2d | AvgPool2d):
            operator = "MaxPool" if isinstance(layer, MaxPool2d) else "AveragePool"
            add(operator, kernel_shape=[layer.window] * 2, strides=[layer.stride] * 2)
        elif isinstance(layer, ReLU | Sigmoid | Tanh):
            add({"ReLU": "Relu"}.get(type(layer).__name__, type(layer).__name__))
        elif isinstance(layer, BatchNorm):
            four = {"scale": w, "b": b, "mean": mean, "variance": variance}
            add("BatchNormalization", *(constant(f"{name}.{key}", v) for key, v in four.items()), epsilon=layer.epsilon)
        elif isinstance(layer, LocalResponseNorm):
            add("LRN", size=layer.size, alpha=layer.alpha * layer.size, beta=layer.beta, bias=layer.k)
        elif isinstance(layer, Flatten):
            add("Transpose", perm=[0, 2, 3, 1])  # our order of the features
            add("Flatten", axis=1)
        elif isinstance(layer, Linear):
            add("MatMul", constant(f"{name}.w", w))
            if b is not None:
                add("Add", constant(f"{name}.b", b))
        else:
            assert isinstance(layer, Dropout), f"no way to export {name}"  # which does nothing here
    add("Identity")
    nodes[-1].output[0] = "logits"
    graph = helper.make_graph(
        nodes,
        checkpoint.config.model,
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N", *checkpoint.image_shape])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", checkpoint.classes])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name, model.producer_version = "dpcnn", __version__
    helper.set_model_props(model, metadata(checkpoint))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def missing(package: str) -> LaunchError:
    """What to say where an extra is not installed."""
    return LaunchError(f"--format {package}: {not_installed(package, 'export')}")


FORMATS: dict[str, Callable[[Checkpoint], bytes]] = {"onnx": as_onnx, "safetensors": as_safetensors, "npz": as_npz}


if __name__ == "__main__":
    sys.exit(main())
