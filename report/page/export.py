"""Writes what the page's panels need of the trained models, page/weights/*.js: python report/page/export.py [NAMES]

After report/reproduce.py, with its weights in runs/report/. Numbers are base64. Most are float16. Of the large layers
they would be 12 MB, so these hold 8-bit numbers, 16 at a time with one float16 as their factor. A layer has the names,
the parameters and the order of PyTorch's weights; `rebuild` makes PyTorch's layers of it again.
"""

import base64
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import ae
import common
import cvae
import cvae_structured
import denoise_ae
import vae
from comparisons import load

WEIGHTS = HERE / "weights"
LARGE = 10000  # layers with more weights than that are stored in 8 bits
DTYPES = {"f16": np.float16, "i8": np.int8, "u8": np.uint8}


# %% Numbers

def pack(tensor, kind="f16"):
    """A tensor as {shape, kind, data}, and for 8-bit numbers with a sign, kind "i8", {scale}. "u8" is for 0 to 1."""
    tensor, packed = tensor.detach().float(), {"shape": list(tensor.shape), "kind": kind}
    if kind == "i8":
        groups = tensor.reshape(-1, 16)
        scale = (groups.abs().amax(1) / 127).half().float().clamp(min=1e-7)
        packed["scale"] = pack(scale)
        array = (groups / scale.unsqueeze(1)).round().clamp(-127, 127).to(torch.int8)
    else:
        array = tensor.half() if kind == "f16" else (tensor * 255).round().to(torch.uint8)
    packed["data"] = base64.b64encode(array.contiguous().numpy().tobytes()).decode()
    return packed


def unpack(packed):
    """What `pack` has packed: a tensor of float32."""
    array = np.frombuffer(base64.b64decode(packed["data"]), DTYPES[packed["kind"]])
    numbers = torch.from_numpy(array.astype(np.float32))
    if packed["kind"] == "i8":
        numbers = numbers.reshape(-1, 16) * unpack(packed["scale"]).unsqueeze(1)
    return (numbers / 255 if packed["kind"] == "u8" else numbers).reshape(packed["shape"])


# %% Networks

def weights(layer, names=("weight", "bias")):
    """The tensors of a layer that have these names, packed; None where it has none."""
    tensors = {name: getattr(layer, name) for name in names}
    return {name: None if tensor is None else pack(tensor, "i8" if tensor.numel() > LARGE else "f16")
            for name, tensor in tensors.items()}


def layers(sequential):
    """The layers of an nn.Sequential as panels.js runs them."""
    found = []
    for layer in sequential:
        kind = {"kind": type(layer).__name__}
        if isinstance(layer, nn.Linear):
            found.append({**kind, **weights(layer)})
        elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            found.append({**kind, **weights(layer), "size": layer.kernel_size[0], "stride": layer.stride[0],
                          "padding": layer.padding[0]})
        elif isinstance(layer, nn.BatchNorm2d):
            found.append({**kind, **weights(layer, ("weight", "bias", "running_mean", "running_var")),
                          "eps": layer.eps})
        elif isinstance(layer, nn.LeakyReLU):
            found.append({**kind, "negative_slope": layer.negative_slope})
        elif isinstance(layer, nn.MaxPool2d):
            assert (layer.kernel_size, layer.stride, layer.ceil_mode) == (2, 2, True)
            found.append(kind)
        elif hasattr(layer, "relu_skip"):  # vqvae.ResidualStack
            assert not layer.relu_skip
            found.append({**kind, "blocks": [layers(block) for block in layer.layers]})
        elif not isinstance(layer, (nn.Flatten, nn.Unflatten)):  # the page's numbers are flat anyway
            found.append(kind)
    return found


def network(shape, *sequentials):
    """A network that takes numbers of this shape: on the page, a function."""
    return {"layers": [layer for sequential in sequentials for layer in layers(sequential)], "shape": list(shape)}


def rebuild(packed):
    """PyTorch's layers of what `network` returned: nn.Sequential."""
    return nn.Sequential(*map(rebuild_layer, packed["layers"])).eval()


def rebuild_layer(layer):
    tensors = {name: unpack(value) for name, value in layer.items() if isinstance(value, dict) and "data" in value}
    if layer["kind"] == "ResidualStack":
        import vqvae
        stack = vqvae.ResidualStack(1, 1, 0)
        stack.layers.extend(rebuild({"layers": block}) for block in layer["blocks"])
        return stack
    if layer["kind"] == "Linear":
        made = nn.Linear(*tensors["weight"].shape[::-1])
    elif layer["kind"] in ("Conv2d", "ConvTranspose2d"):
        a, b = tensors["weight"].shape[:2]  # (out, in), and for the transposed one (in, out)
        channels = (b, a) if layer["kind"] == "Conv2d" else (a, b)
        made = getattr(nn, layer["kind"])(*channels, layer["size"], layer["stride"], layer["padding"],
                                          bias="bias" in tensors)
    elif layer["kind"] == "BatchNorm2d":
        made = nn.BatchNorm2d(len(tensors["weight"]), layer["eps"])
    elif layer["kind"] == "LeakyReLU":
        made = nn.LeakyReLU(layer["negative_slope"])
    elif layer["kind"] == "MaxPool2d":
        made = nn.MaxPool2d(2, ceil_mode=True)
    else:
        made = getattr(nn, layer["kind"])()
    made.load_state_dict(tensors, strict=False)  # BatchNorm2d also has a counter
    return made


def read(name):
    """What weights/NAME.js holds, packed as it is."""
    text = (WEIGHTS / f"{name}.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix(f'Panels.weights("{name}", ').removesuffix(");\n"))


# %% What each file holds: a function for each, with the name of the file

def digits():
    """Two test images of each digit."""
    _, _, x, y = common.load_mnist()
    chosen = torch.cat([(y == digit).nonzero()[:2].flatten() for digit in range(10)])
    return {"images": pack(x[chosen].flatten(1), "u8"), "labels": y[chosen].tolist()}


def denoising():
    model = load("denoise_ae", "main", 0, denoise_ae.DenoiseAE)
    x = common.load_mnist()[0][:10000]
    noisy = denoise_ae.add_noise(x, torch.Generator().manual_seed(0))
    # The filter's a and b: what it makes of two images of nothing but 0.4 and 0.5, where a blur changes nothing.
    flat = torch.tensor([0.4, 0.5]).reshape(2, 1, 1, 1).expand(2, 1, 28, 28)
    filtered, sigma = denoise_ae.gaussian_filter(x, noisy, flat)
    low, high = filtered[:, 0, 14, 14].tolist()
    a = (high - low) / 0.1
    return {"denoise": network((1, 28, 28), model.encoder, model.decoder),
            "filter": {"sigma": sigma, "a": a, "b": high - 0.5 * a}}


CONTENTS = {"digits": digits, "denoise_ae": denoising}


@torch.no_grad()
def export(names):
    WEIGHTS.mkdir(exist_ok=True)
    for name in names:
        torch.manual_seed(0)
        content = json.dumps(CONTENTS[name](), separators=(",", ":"))
        path = WEIGHTS / f"{name}.js"
        path.write_text(f'Panels.weights("{name}", {content});\n', encoding="utf-8", newline="\n")
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    export(sys.argv[1:] or CONTENTS)
