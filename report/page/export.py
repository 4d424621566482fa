"""Writes what the page's panels need of the trained models, page/weights/*.js: python report/page/export.py [NAMES]

After report/reproduce.py, with its weights in runs/report/. Numbers are base64: float16, and for the weights of large
layers 12 bits with a factor for each output. With 8 bits files would be a third smaller, and some pixels and codes off
by up to 0.1. A layer has the names, the parameters and the order of PyTorch's weights; `rebuild` makes PyTorch's layers
of it again.
"""

import base64
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import ae
import common
import cvae
import cvae_structured
import denoise_ae
import reproduce
import vae
import vqvae
from comparisons import load

WEIGHTS = HERE / "weights"
LARGE = 10000  # layers with more weights than that are stored in 12 bits


# %% Numbers

def pack(tensor, kind="f16"):
    """A tensor as {shape, kind, data}, and for "i12", whole numbers of 12 bits, {scale}: a factor for each row. "u8" is
    for numbers from 0 to 1."""
    tensor, packed = tensor.detach().float(), {"shape": list(tensor.shape), "kind": kind}
    if kind == "i12":
        scale = (tensor.flatten(1).abs().amax(1) / 2047).clamp(min=1e-6).half().float()
        packed["scale"] = pack(scale)
        numbers = (tensor.flatten(1) / scale.unsqueeze(1)).round().clamp(-2048, 2047).int().flatten().numpy() + 2048
        even, odd = numbers[0::2], numbers[1::2]  # three bytes for two numbers
        array = np.stack([even & 255, even >> 8 | (odd & 15) << 4, odd >> 4], axis=1).astype(np.uint8)
    else:
        array = (tensor.half() if kind == "f16" else (tensor * 255).round().to(torch.uint8)).contiguous().numpy()
    packed["data"] = base64.b64encode(array.tobytes()).decode()
    return packed


def unpack(packed):
    """What `pack` has packed: a tensor of float32."""
    data, shape = base64.b64decode(packed["data"]), packed["shape"]
    if packed["kind"] == "f16":
        return torch.from_numpy(np.frombuffer(data, np.float16).astype(np.float32)).reshape(shape)
    numbers = np.frombuffer(data, np.uint8).astype(np.int32)
    if packed["kind"] == "u8":
        return torch.from_numpy(numbers).reshape(shape) / 255
    a, b, c = numbers.reshape(-1, 3).T
    numbers = torch.from_numpy(np.stack([a | (b & 15) << 8, b >> 4 | c << 4], axis=1) - 2048)
    return (numbers.reshape(shape[0], -1) * unpack(packed["scale"]).unsqueeze(1)).reshape(shape)


# %% Networks

def weights(layer, names=("weight", "bias")):
    """The tensors of a layer that have these names, packed; None where it has none."""
    tensors = {name: getattr(layer, name) for name in names}
    return {name: None if tensor is None else pack(tensor, "i12" if tensor.numel() > LARGE else "f16")
            for name, tensor in tensors.items()}


def layers(sequential):
    """The layers of an nn.Sequential as panels.js runs them."""
    found = []
    for layer in sequential:
        kind = {"kind": type(layer).__name__}
        if isinstance(layer, nn.Linear):
            found.append({**kind, **weights(layer)})
        elif isinstance(layer, nn.LayerNorm):
            found.append({**kind, **weights(layer), "eps": layer.eps})
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
        stack = vqvae.ResidualStack(1, 1, 0)
        stack.layers.extend(rebuild({"layers": block}) for block in layer["blocks"])
        return stack
    if layer["kind"] == "Linear":
        made = nn.Linear(*tensors["weight"].shape[::-1], bias="bias" in tensors)
    elif layer["kind"] in ("Conv2d", "ConvTranspose2d"):
        a, b = tensors["weight"].shape[:2]  # (out, in), and for the transposed one (in, out)
        channels = (b, a) if layer["kind"] == "Conv2d" else (a, b)
        made = getattr(nn, layer["kind"])(*channels, layer["size"], layer["stride"], layer["padding"],
                                          bias="bias" in tensors)
    elif layer["kind"] in ("BatchNorm2d", "LayerNorm"):
        made = getattr(nn, layer["kind"])(len(tensors["weight"]), layer["eps"])
    elif layer["kind"] == "LeakyReLU":
        made = nn.LeakyReLU(layer["negative_slope"])
    elif layer["kind"] == "MaxPool2d":
        made = nn.MaxPool2d(2, ceil_mode=True)
    else:
        made = getattr(nn, layer["kind"])()
    made.load_state_dict(tensors, strict=False)  # BatchNorm2d also has a counter
    return made


def rebuild_prior(packed):
    """The vqvae.Prior of what weights/prior.js holds."""
    state = {"token.weight": packed["token"], "place": packed["place"]}
    parts = {"layers.norm": packed["norm"], "head": packed["head"]}
    for i, block in enumerate(packed["blocks"]):
        parts |= {f"layers.layers.{i}.{name}": block[name] for name in ("norm1", "norm2", "linear1", "linear2")}
        name, attention = f"layers.layers.{i}.self_attn", block["self_attn"]
        parts[f"{name}.out_proj"] = attention["outwards"]
        state |= {f"{name}.in_proj_{key}": tensor for key, tensor in attention["inwards"].items()}
    state |= {f"{part}.{name}": value[name] for part, value in parts.items() for name in ("weight", "bias")}
    prior = vqvae.Prior(n_layers=len(packed["blocks"]), n_heads=packed["blocks"][0]["self_attn"]["heads"])
    prior.load_state_dict({name: unpack(value) for name, value in state.items()})
    return prior.eval()


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


def planes():
    """2,000 test images as one picture, 50 in a row, and where two encoders put them."""
    _, _, x_test, y_test = common.load_mnist()
    x, y = x_test[:2000], y_test[:2000]
    sheet = (x * 255).round().byte().reshape(40, 50, 28, 28).transpose(1, 2).reshape(1, 40 * 28, 50 * 28)
    model, plane = load("ae", "main", 0, ae.Autoencoder), load("vae", "plane", 0, vae.myVAE)
    edges = torch.quantile(model.encoder(x_test), torch.tensor([0.03, 0.97]), dim=0).T.flatten().tolist()
    return {"sheet": base64.b64encode(torchvision.io.encode_png(sheet).numpy().tobytes()).decode(),
            "labels": y.tolist(),
            "ae": {"codes": pack(model.encoder(x)), "extent": edges},
            "vae": {"codes": pack(plane.encode(x)[0]), "extent": [-4.0, 4.0, -4.0, 4.0]}}


def autoencoder():
    model = load("ae", "main", 0, ae.Autoencoder)
    return {"encoder": network((784,), model.encoder), "decoder": network((2,), model.decoder)}


def variational(model):
    """The four parts of a myVAE, with their names."""
    return {"encoder": network((784 + model.conditional_vec_dim,), model.encoder),
            **{name: network((model.mu_layer.in_features,), [getattr(model, name)])
               for name in ("mu_layer", "logvar_layer")},
            "decoder": network((model.latent_dim + model.conditional_vec_dim,), model.decoder)}


def mean_kl(model, *inputs):
    """The KL of each latent dimension, the mean over the test set."""
    return pack(model.kl_divergence(*model.encode(*inputs)).mean(0))


def vae_main():
    model = load("vae", "main", 0, vae.myVAE)
    return {**variational(model), "kl": mean_kl(model, common.load_mnist()[2])}


def cvae_main():
    model, (_, _, x, y) = load("cvae", "main", 0, cvae.myVAE), common.load_mnist()
    return {**variational(model), "kl": mean_kl(model, x, cvae.one_hot(y))}


def structured():
    """The decoder and the baseline: to complete a digit, no encoder is needed."""
    model = load("cvae_structured", "main", 0, cvae_structured.myVAE)
    baseline = load("cvae_structured", "main", 0, cvae_structured.BaselineNN, "baseline")
    return {"decoder": network((model.latent_dim + 196,), model.decoder), "baseline": network((196,), baseline.net),
            "latent_dim": model.latent_dim}


def vqvae_encoder():
    return {"encode": network((3, 32, 32), load("vqvae", "main", 0, vqvae.VQVAE).encoder)}


def vqvae_decoder():
    """With the codebook, the colour that each word decodes to, and twelve test images with their words."""
    model = load("vqvae", "main", 0, vqvae.VQVAE)
    codebook, photographs = model.quantizer.codebook, common.load_cifar10()[1][:12]
    grids = model.quantizer.embed(torch.arange(len(codebook)).reshape(-1, 1, 1).expand(-1, 8, 8))
    return {"decode": network((codebook.shape[1], 8, 8), model.decoder), "codebook": pack(codebook),
            "colors": pack(model.decode(grids)[:, :, 12:20, 12:20].mean((2, 3)).clamp(0, 1), "u8"),
            "photographs": pack(photographs.flatten(1), "u8"),
            "words": vqvae.encode_all(model, photographs).flatten(1).tolist()}


def prior():
    model = load("vqvae", "main", 0, vqvae.Prior, "prior")

    def norm(layer):
        return {**weights(layer), "eps": layer.eps}

    blocks = []
    for layer in model.layers.layers:
        attention = layer.self_attn
        inwards = {"weight": pack(attention.in_proj_weight, "i12"), "bias": pack(attention.in_proj_bias)}
        blocks.append({"norm1": norm(layer.norm1), "norm2": norm(layer.norm2), "linear1": weights(layer.linear1),
                       "linear2": weights(layer.linear2),
                       "self_attn": {"heads": attention.num_heads, "inwards": inwards,
                                     "outwards": weights(attention.out_proj)}})
    return {"token": pack(model.token.weight, "i12"), "place": pack(model.place), "blocks": blocks,
            "norm": norm(model.layers.norm), "head": weights(model.head)}


def runaway():
    """The histories of three runs of section 6.4, each with three seeds."""
    runs, keys = reproduce.read_runs("vqvae"), ("train_reconstruction", "test_z_norm", "test_perplexity")
    histories = {run: [entry["history"] for entry in runs[run]["seeds"].values()]
                 for run in ("push", "push-lambda-0", "push-without-outward")}
    return {"update": histories["push"][0]["update"],
            "runs": {run: [{key: history[key] for key in keys} for history in seeds]
                     for run, seeds in histories.items()}}


CONTENTS = {"digits": digits, "denoise_ae": denoising, "planes": planes, "ae": autoencoder,
            "vae_plane": lambda: variational(load("vae", "plane", 0, vae.myVAE)), "vae": vae_main, "cvae": cvae_main,
            "cvae_structured": structured, "vqvae_encoder": vqvae_encoder, "vqvae_decoder": vqvae_decoder,
            "prior": prior, "runaway": runaway}


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
