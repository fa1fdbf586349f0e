"""Write two recipes of 30 convolutions, plain30.toml and shortcuts30.toml: see nets.md."""

import tomli_w


def network(name, shortcuts):
    """30 convolutions of 16 filters, with or without a shortcut around each two."""
    layers = [{"kind": "scale"}, {"kind": "conv2d", "filters": 16, "kernel_size": 3, "padding": 1}]
    layers += [{"kind": "maxpool2d", "kernel_size": 2}, {"kind": "relu"}]
    for number in range(14):
        layers[-1]["name"] = f"entry{number}"
        layers.append({"kind": "conv2d", "filters": 16, "kernel_size": 3, "padding": 1})
        layers.append({"kind": "relu"})
        layers.append({"kind": "conv2d", "filters": 16, "kernel_size": 3, "padding": 1})
        if shortcuts:
            layers.append({"kind": "add", "with": [f"entry{number}"]})
        layers.append({"kind": "relu"})
    layers += [{"kind": "conv2d", "filters": 16, "kernel_size": 3, "padding": 1}, {"kind": "relu"}]
    layers += [{"kind": "flatten"}, {"kind": "linear", "bias": True}]
    options = {
        "model": name,
        "batch": 128,
        "microbatch": 64,
        "optimizer": "momentum",
        "lr": 0.02,
        "init": "glorot",
        "max_steps": 200,
    }
    with open(f"{name}.toml", "wb") as file:
        tomli_w.dump({**options, "layers": layers}, file)


network("plain30", shortcuts=False)
network("shortcuts30", shortcuts=True)
