"""Writes weights.js for the page in this folder: python report/explore/export.py, after report/reproduce.py.

It holds what the page runs of the first seed's models, some test images, and for each network one input with PyTorch's
output. The page computes that output, too, when it starts, and compares.

Numbers are float16 in base64. With the large linear layers, too, these would be 12 MB. So these layers hold 8-bit
numbers, 16 at a time with one float16 as their factor; the page's comparison includes what that costs. Batch
normalization is linear once the training is over, and so becomes part of the convolution before it.
"""

import base64
import json
import sys
from pathlib import Path

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
import vqvae
from comparisons import load


def pack(tensor, kind="f16"):
    """A tensor as {shape, kind, data}, and for 8-bit numbers, kind "i8", {scale}."""
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


def layers(sequential):
    """The layers of an nn.Sequential as the page runs them."""
    found = []
    for layer in sequential:
        kind = type(layer).__name__
        if isinstance(layer, nn.Linear):
            found.append({"kind": kind, "weight": pack(layer.weight, "i8" if layer.weight.numel() > 1e5 else "f16"),
                          "bias": pack(layer.bias)})
        elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            found.append({"kind": kind, "weight": layer.weight.detach(),
                          "bias": 0 if layer.bias is None else layer.bias,
                          "size": layer.kernel_size[0], "stride": layer.stride[0], "padding": layer.padding[0]})
        elif isinstance(layer, nn.BatchNorm2d):
            scale = layer.weight / (layer.running_var + layer.eps).sqrt()
            convolution = found[-1]
            shape = (1, -1, 1, 1) if convolution["kind"] == "ConvTranspose2d" else (-1, 1, 1, 1)
            convolution["weight"] = convolution["weight"] * scale.reshape(shape)
            convolution["bias"] = layer.bias + (convolution["bias"] - layer.running_mean) * scale
        elif isinstance(layer, vqvae.ResidualStack):
            assert not layer.relu_skip
            found.append({"kind": kind, "layers": [layers(inner) for inner in layer.layers]})
        elif isinstance(layer, nn.LeakyReLU):
            found.append({"kind": kind, "slope": layer.negative_slope})
        elif not isinstance(layer, (nn.Flatten, nn.Unflatten)):  # the page's numbers are flat anyway
            found.append({"kind": kind})
    for layer in found:
        if isinstance(layer.get("weight"), torch.Tensor):
            weight = layer["weight"]
            if layer["kind"] == "Conv2d":
                n_out = weight.shape[0]
                weight = weight.permute(1, 2, 3, 0)  # one row for each number of the patch that a place reads
            else:
                n_out = weight.shape[1]  # one row for each number of the place that writes a patch
            layer["weight"] = pack(weight)
            layer["bias"] = pack(layer["bias"] + torch.zeros(n_out))  # 0 where there is none
    return found


# {name in the page: script, run, class, file}
MODELS = {"ae": ("ae", "main", ae.Autoencoder, "model"), "plane": ("vae", "plane", vae.myVAE, "model"),
          "denoise_ae": ("denoise_ae", "main", denoise_ae.DenoiseAE, "model"),
          "vae": ("vae", "main", vae.myVAE, "model"), "cvae": ("cvae", "main", cvae.myVAE, "model"),
          "cvae_structured": ("cvae_structured", "main", cvae_structured.myVAE, "model"),
          "baseline": ("cvae_structured", "main", cvae_structured.BaselineNN, "baseline"),
          "vqvae": ("vqvae", "main", vqvae.VQVAE, "model")}


def network(name, model):
    """The part of a model that the page runs: nn.Sequential."""
    if name == "denoise_ae":
        return nn.Sequential(*model.encoder, *model.decoder)
    return model.net if name == "baseline" else model.decoder


@torch.no_grad()
def export():
    torch.manual_seed(0)
    x_train, _, x_test, y_test = common.load_mnist()
    chosen = torch.cat([(y_test == digit).nonzero()[:2].flatten() for digit in range(10)])  # two of each digit
    x, page = x_test[chosen], {"digits": pack(x_test[chosen].flatten(1), "u8"), "labels": y_test[chosen].tolist()}
    models = {name: load(script, run, 0, model_class, file)
              for name, (script, run, model_class, file) in MODELS.items()}
    inputs = {}  # one for each network

    codes = models["ae"].encoder(x_test[:2000])
    edges = torch.quantile(models["ae"].encoder(x_test), torch.tensor([0.03, 0.97]), dim=0).T.flatten().tolist()
    page["ae"], inputs["ae"] = {"codes": pack(codes), "extent": edges}, codes[:1]
    codes = models["plane"].encode(x_test[:2000])[0]
    page["plane"], inputs["plane"] = {"codes": pack(codes), "extent": [-4.0, 4.0, -4.0, 4.0]}, codes[:1]
    page["plane_labels"] = y_test[:2000].tolist()

    noisy = denoise_ae.add_noise(x_train[:10000], torch.Generator().manual_seed(0))
    # The filter's a and b: what it makes of two images of nothing but 0.4 and 0.5, where a blur changes nothing.
    flat = torch.tensor([0.4, 0.5]).reshape(2, 1, 1, 1).expand(2, 1, 28, 28)
    filtered, sigma = denoise_ae.gaussian_filter(x_train[:10000], noisy, flat)
    low, high = filtered[:, 0, 14, 14].tolist()
    page["filter"] = {"sigma": sigma, "a": (high - low) / 0.1, "b": high - 0.5 * (high - low) / 0.1}
    inputs["denoise_ae"] = noisy[:1]

    mu, logvar = models["vae"].encode(x)
    kl = models["vae"].kl_divergence(*models["vae"].encode(x_test)).mean(0)
    page["vae"], inputs["vae"] = {"mu": pack(mu), "logvar": pack(logvar), "kl": pack(kl)}, mu[:1]

    kl = models["cvae"].kl_divergence(*models["cvae"].encode(x_test, cvae.one_hot(y_test))).mean(0)
    page["cvae"] = {"kl": pack(kl)}
    inputs["cvae"] = torch.cat([torch.randn(1, len(kl)), cvae.one_hot(y_test[:1])], 1)

    inputs["baseline"] = x[:1].flatten(1)[:, cvae_structured.visible_pixels(1)]
    z = torch.randn(1, models["cvae_structured"].latent_dim)
    inputs["cvae_structured"] = torch.cat([z, inputs["baseline"]], 1)

    model, prior = models["vqvae"], load("vqvae", "main", 0, vqvae.Prior, "prior")
    photographs = common.load_cifar10()[1][:12]
    index, embed = vqvae.encode_all(model, photographs), model.quantizer.embed
    grids = embed(torch.arange(len(model.quantizer.codebook)).reshape(-1, 1, 1).expand(-1, 8, 8))
    page["vqvae"] = {"photographs": pack(photographs.flatten(1), "u8"), "index": index.tolist(),
                     "written": prior.sample(12).flatten(1).tolist(), "codebook": pack(model.quantizer.codebook),
                     "colors": pack(model.decode(grids)[:, :, 12:20, 12:20].mean((2, 3)).clamp(0, 1), "u8")}
    inputs["vqvae"] = embed(index[:1].reshape(1, 8, 8))

    page["networks"] = {name: {"layers": layers(network(name, model)), "shape": list(inputs[name].shape[1:]),
                               "input": pack(inputs[name]), "output": pack(network(name, model)(inputs[name]))}
                        for name, model in models.items()}
    script = f"const PAGE = {json.dumps(page, separators=(',', ':'))};\n"
    (HERE / "weights.js").write_text(script, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    export()
