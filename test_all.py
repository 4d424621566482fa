"""Smoke tests: `python test_all.py` runs them all in one to two minutes, and so does `pytest test_all.py`.

Nothing is trained for real and no network is needed. The models and losses are held against independent computations,
every script runs from end to end with --smoke, and every measured number in report.md and README.md is held against
the metrics.json that it comes from.
"""

import contextlib
import functools
import inspect
import io
import json
import math
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch.overrides import TorchFunctionMode

matplotlib.use("Agg")

import ae
import common
import cvae
import cvae_structured
import denoise_ae
import vae
import vqvae

ROOT = Path(__file__).resolve().parent
SCRIPTS = {"ae": ae, "denoise_ae": denoise_ae, "vae": vae, "cvae": cvae, "cvae_structured": cvae_structured,
           "vqvae": vqvae}
MODELS = {  # what builds each model as its script does
    "ae": ae.Autoencoder, "denoise_ae": denoise_ae.DenoiseAE, "vae": vae.myVAE,
    "cvae": functools.partial(cvae.myVAE, conditional_vec_dim=10),
    "cvae_structured": functools.partial(cvae_structured.myVAE, conditional_vec_dim=196),
    "vqvae": vqvae.VQVAE,
}
BUDGETS = {"ae": 1_500_000, "denoise_ae": 15_000, "vae": 1_500_000, "cvae": 1_500_000}  # trainable parameters
FLAGS = {  # go everywhere, fast
    "ae": ["--sweep"], "denoise_ae": ["--sweep"], "vae": ["--sweep"], "cvae": ["--compare"],
    "cvae_structured": ["--quadrants", "1", "3"],
    "vqvae": ["--study", "--batch-size", "8", "--hidden-dim", "32"],
}
NOT_NEGATIVE = {"vqvae": ["--codebook-size", "--commitment-cost"]}
FIGURES = {"ae": "loss latent_space latent_space_images reconstructions sweep", "denoise_ae": "loss denoised sweep",
           "vae": "loss samples variance walk traversals rate_distortion beta", "cvae": "loss digits style",
           "cvae_structured": "loss samples best_of_k",
           "vqvae": "loss codebook commitment reconstructions samples start codebook_loss"}
WEIGHTS = {"cvae_structured": {"model.pt", "baseline.pt"}, "vqvae": {"model.pt", "prior.pt"}}


# %% Helpers

# Some thirty smoke runs below read MNIST: half a second for each that shares the first one's copy.
common.load_mnist = functools.cache(common.load_mnist)


def mnist():
    return common.load_mnist(None, "cpu")


@functools.cache
def sample_dir():
    """A folder with the embedded sample of CIFAR-10, and surely no cache of the whole."""
    folder = Path(tempfile.mkdtemp())
    shutil.copy(common.DATA_DIR / "cifar10-sample.png", folder)
    return folder


@functools.cache
def cifar10():
    """The embedded sample: x_train (5000, 3, 32, 32), x_test (1000, 3, 32, 32)"""
    return quiet(functools.partial(common.load_cifar10, sample_dir(), download=False))[0][:2]


def some_images(script, n):
    """The first n training images that the script learns from, and their labels."""
    return (cifar10()[0][:n], None) if script == "vqvae" else (mnist()[0][:n], mnist()[1][:n])


def quiet(function, *args):
    """(result or None, exit status or 0, stdout, stderr) of a call."""
    out, err = io.StringIO(), io.StringIO()
    result, status = None, 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            result = function(*args)
        except SystemExit as stop:
            status = stop.code
            if isinstance(status, str):  # sys.exit("a message"): to stderr, exit status 1
                print(status, file=err)
                status = 1
    return result, status, out.getvalue(), err.getvalue()


def command(script, *flags):
    """(exit status, stdout, stderr) of `python script.py flags`, run in this process."""
    argv, sys.argv = sys.argv, [f"{script}.py", *flags]
    try:
        return quiet(lambda: runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__"))[1:]
    finally:
        sys.argv = argv


def is_an_error(err, script, *words):
    """Is the last line on stderr an error message with these words, without a traceback?"""
    last = err.splitlines()[-1]
    return last.startswith(f"{script}.py: error: ") and "Traceback" not in err and all(word in last for word in words)


def tensors(value):
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    value = list(value.values()) if isinstance(value, dict) else value
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


class PretendGPU(TorchFunctionMode):
    """Stands for an accelerator without float64, as Apple's is, on a machine that has none. What `.to(device)` or
    `device=...` makes is on the device, and so is what is computed from it; `.cpu()` and what is made without naming a
    device is not. Raises where float64, numpy or a missing kernel meets the device, or where both sides meet in one
    call. Counts the calls that would wait for the device."""
    WAITS = {"item", "tolist", "cpu", "nonzero", "bincount", "unique", "__float__", "__int__", "__bool__", "__index__"}
    NO_KERNEL = {"cummin", "cummax", "numpy", "__array__"}

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        if name == "__set__" and isinstance(args[1], torch.Tensor):  # param.data = ..., as module.to(device) does
            args[0].on_device = getattr(args[1], "on_device", False)
            return result
        inputs = tensors([args, kwargs])
        there = any(getattr(t, "on_device", False) for t in inputs)
        moved = name == "to" and any(isinstance(a, (str, torch.device)) for a in [*args, *kwargs.values()])
        made = moved or kwargs.get("device") is not None
        if there and not made and not name.startswith("_") and name != "copy_":
            if any(t.dim() and not getattr(t, "on_device", False) for t in inputs):
                raise RuntimeError(f"{name}: tensors on the CPU and on the device in one call")
        if there and name in self.NO_KERNEL:
            raise NotImplementedError(f"{name} of a tensor on the device")
        masked = name in ("__getitem__", "__setitem__") and any(t.dtype == torch.bool for t in tensors([args[1]]))
        self.waits += there and (name in self.WAITS or masked)
        if name in ("to", "cpu"):
            result = torch.ops.aten.alias(result)  # on a CPU these return the very same tensor
        for t in tensors([result]):
            t.on_device = made or (there and name != "cpu")
            if t.on_device and t.dtype == torch.float64:
                raise TypeError(f"{name}: float64 on a device that has none")
        return result


@functools.cache
def smoke(script):
    """Runs the script in smoke size, once, on a pretended device; returns its output folder and the metrics."""
    out_dir = Path(tempfile.mkdtemp())
    flags = ["--smoke", "--out-dir", str(out_dir), *FLAGS.get(script, [])]
    load, common.load_mnist = common.load_mnist, common.load_mnist.__wrapped__  # the copy is not on that device
    try:
        with PretendGPU():
            result, status, _, err = quiet(SCRIPTS[script].main, flags)
    finally:
        common.load_mnist = load
    assert status == 0, err
    return out_dir / script, json.loads(json.dumps(result[-1], default=str))


def close(a, b, tolerance=1e-5):
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


def loss_of(script, model, x, y):
    """The script's training loss on a batch of images x and labels y, with the condition that the script would give."""
    if script == "cvae_structured":
        return cvae_structured.loss_terms(model, x, *cvae_structured.split_pixels(1))["loss"]
    if script == "vqvae":
        x_hat, z, e, _ = model(x)
        return vqvae.loss_function(model, x_hat, x, z, e, variance=0.06)["loss"]
    if script in ("vae", "cvae"):
        x_hat, mu, logvar = model(x, cvae.one_hot(y) if script == "cvae" else None)
        return model.loss_function(x_hat, x, mu, logvar)["loss"]
    return SCRIPTS[script].criterion(model(x), x)


def numbers(metrics):
    """The metrics without what may differ between two runs with the same seed: times, flags, and what FLAGS add."""
    if not isinstance(metrics, dict):
        return metrics
    return {key: numbers(value) for key, value in metrics.items()
            if "seconds" not in key and key not in ("settings", "sweep", "quadrants", "without_label")}


# %% Data and plots (common.py)

def test_mnist_is_what_totensor_gives():
    x_train, y_train, x_test, y_test = mnist()
    assert x_train.shape == (60000, 1, 28, 28) and x_test.shape == (10000, 1, 28, 28)
    assert x_train.dtype == torch.float32 and y_train.dtype == torch.int64
    assert y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4] and y_test[:5].tolist() == [7, 2, 1, 0, 4]
    with tempfile.TemporaryDirectory() as tmp:
        raw = Path(tmp) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for file in (common.DATA_DIR / "MNIST" / "raw").glob("*.gz"):
            (raw / file.name).write_bytes(file.read_bytes())
        usual = torchvision.datasets.MNIST(tmp, download=True, transform=torchvision.transforms.ToTensor())
    for i in (0, 1, 777, 59999):
        assert torch.equal(x_train[i], usual[i][0]) and y_train[i] == usual[i][1]


def test_damaged_or_missing_mnist_is_named():
    with tempfile.TemporaryDirectory() as tmp:
        raw = Path(tmp) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for file in (common.DATA_DIR / "MNIST" / "raw").glob("*.gz"):
            (raw / file.name).write_bytes(file.read_bytes())
        broken = raw / "t10k-images-idx3-ubyte.gz"
        broken.write_bytes(broken.read_bytes()[:1000])
        status, _, err = command("ae", "--smoke", "--data-dir", tmp, "--out-dir", tmp)
        assert status == 2 and is_an_error(err, "ae", str(broken), "damaged"), err
        for file in raw.glob("*"):
            file.unlink()
        with no_network():
            status, _, err = command("ae", "--smoke", "--data-dir", tmp, "--out-dir", tmp)
        assert status == 2 and is_an_error(err, "ae", str(raw)), err


def test_validation_images_are_held_out_of_the_training_set():
    x_train, y_train, _, _ = mnist()
    held_out = common.load_mnist(None, "cpu", True)
    for got, expected in zip(held_out, (x_train[:50000], y_train[:50000], x_train[50000:], y_train[50000:])):
        assert torch.equal(got, expected)
    images, _ = cifar10()
    (x_train, x_test, _), _, _, _ = quiet(lambda: common.load_cifar10(sample_dir(), validation=True, download=False))
    assert torch.equal(x_train, images[:4500]) and torch.equal(x_test, images[4500:])


@contextlib.contextmanager
def no_network(silent=False):
    """Sends torchvision's downloads to a port of this machine where nobody listens; with silent=True, to one that
    takes connections and never answers."""
    mnist_set, cifar_set = torchvision.datasets.MNIST, torchvision.datasets.CIFAR10
    saved = mnist_set.mirrors, cifar_set.url, common.NETWORK_TIMEOUT
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        if silent:
            server.listen()
        mnist_set.mirrors, cifar_set.url, common.NETWORK_TIMEOUT = [url], url + "cifar.tar.gz", 0.5
        try:
            yield
        finally:
            mnist_set.mirrors, cifar_set.url, common.NETWORK_TIMEOUT = saved


def test_cifar10_falls_back_to_the_sample():
    for silent in (False, True):  # a network that refuses, and one that never answers
        with tempfile.TemporaryDirectory() as tmp, no_network(silent):
            shutil.copy(common.DATA_DIR / "cifar10-sample.png", tmp)
            start = time.perf_counter()
            (x_train, x_test, source), _, _, err = quiet(common.load_cifar10, tmp)
            assert time.perf_counter() - start < 10
    assert x_train.shape == (5000, 3, 32, 32) and x_test.shape == (1000, 3, 32, 32) and source == "CIFAR-10 sample"
    assert "sample" in err and err.count("\n") == 1
    # The first training image is the well-known frog, the first test image the cat: their first pixels.
    assert (x_train[0, :, 0, 0] * 255).round().tolist() == [59, 62, 63]
    assert (x_test[0, :, 0, 0] * 255).round().tolist() == [158, 112, 49]


def test_cifar10_cache_is_used_and_checked():
    with tempfile.TemporaryDirectory() as tmp:
        cache = Path(tmp) / "cifar10.npz"
        cache.write_bytes(b"PK\x03\x04 half a file")
        try:
            common.load_cifar10(tmp, download=False)
            raise AssertionError("a damaged cache was taken")
        except common.DataError as error:
            assert str(cache) in str(error)
        train, test = np.zeros((50000, 32, 32, 3), np.uint8), np.full((10000, 32, 32, 3), 51, np.uint8)
        train[1, 2, 3] = [10, 20, 30]
        np.savez(cache, train_images=train, test_images=test)
        x_train, x_test, source = common.load_cifar10(tmp, download=False)
        assert source == "CIFAR-10" and close(x_train[1, :, 2, 3] * 255, [10, 20, 30]) and close(x_test, 0.2)


def test_minibatches_pass_over_everything_once():
    a, b = torch.arange(10), torch.arange(10) * 2
    torch.manual_seed(0)
    epochs = [list(common.minibatches(4, a, b)) for _ in range(2)]
    for epoch in epochs:
        assert [len(x) for x, _ in epoch] == [4, 4, 2]
        assert sorted(torch.cat([x for x, _ in epoch]).tolist()) == list(range(10))
        assert all(torch.equal(2 * x, y) for x, y in epoch)
    assert epochs[0][0][0].tolist() != epochs[1][0][0].tolist() != [0, 1, 2, 3]  # a new order at every call
    assert [x.tolist() for (x,) in common.minibatches(100, a, shuffle=False)] == [list(range(10))]


def test_files_are_replaced_whole_or_not_at_all():
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / "new" / "file.txt"
        with common.replacing(path) as temporary:
            Path(temporary).write_text("first")
        try:
            with common.replacing(path) as temporary:
                Path(temporary).write_text("half")
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        assert path.read_text() == "first" and [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_figures_stay_open_in_a_notebook_only():
    common.plt.close("all")
    for in_notebook in (True, False):
        with tempfile.TemporaryDirectory() as tmp:
            common.IN_NOTEBOOK, before = in_notebook, common.IN_NOTEBOOK
            try:
                common.save_figures({"empty": common.plt.figure()}, tmp)
            finally:
                common.IN_NOTEBOOK = before
            assert bool(common.plt.get_fignums()) == in_notebook  # what is open is shown under the cell
            common.plt.close("all")
            assert [p.name for p in Path(tmp).iterdir()] == ["empty.png"]


def test_images_are_tiled_in_reading_order():
    images = torch.arange(6).reshape(2, 3, 1, 1, 1) / 10 * torch.ones(2, 3, 1, 4, 5)
    sheet = common.tile(images, pad=1)
    assert sheet.shape == (2 * 5 - 1, 3 * 6 - 1, 1)
    for row in range(2):
        for column in range(3):
            assert close(sheet[row * 5:row * 5 + 4, column * 6:column * 6 + 5, 0], (3 * row + column) / 10)
    assert close(sheet[4], 1) and close(sheet[:, 5], 1)  # white between them
    figure = common.plot_images(images, ["a", "b"], ["x", "y", "z"])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_latent_space_figures_correspond():
    extent = (-1.0, 3.0, 10.0, 20.0)
    figure = common.plot_latent_space(torch.tensor([[0.0, 12.0], [1.0, 15.0]]), torch.tensor([3, 8]), extent)
    axis = figure.axes[0]
    assert axis.get_xlim() == (-1, 3) and axis.get_ylim() == (10, 20)
    colors = {tuple(c.get_offsets()[0]): c.get_facecolor()[0] for c in axis.collections if len(c.get_offsets())}
    assert close(colors[0.0, 12.0][:3], matplotlib.colors.to_rgb(common.DIGIT_COLORS[3]))
    for text, digit, point in zip(axis.texts, "38", ((0, 12), (1, 15))):  # each number stands on its digit
        assert text.get_text() == digit and np.abs(np.subtract(text.get_position(), point)).max() < 0.5
    asked = []

    def decode(z):  # one pixel an image, the brighter the larger z2
        asked.append(z)
        return z[:, 1].reshape(-1, 1, 1, 1) / 20

    figure = common.plot_latent_space_images(decode, extent, rows=4, columns=4)
    points = asked[0]
    assert points.shape == (16, 2) and close(points[0], [-0.5, 18.75]) and close(points[-1], [2.5, 11.25])
    image = figure.axes[0].images[0]
    assert close(image.get_array()[0], 18.75 / 20) and image.get_extent() == list(extent)  # large z2 is at the top


def test_loss_curves_show_the_history():
    history = {"train_loss": [3.0, 2.0], "test_loss": [4.0, 3.0], "train_kl": [1.0, 1.0], "test_kl": [1.0, 2.0]}
    figure = common.plot_losses(history, {"loss": "loss, nats", "kl": "KL"})
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss, nats", "KL"]
    loss, kl = figure.axes
    assert loss.lines[1].get_ydata().tolist() == [4, 3] and kl.lines[0].get_xdata().tolist() == [1, 2]


# %% Models

def test_shapes():
    for n in (1, 2, 7):
        x = torch.rand(n, 1, 28, 28)
        for latent_dim in (1, 2, 5):
            model = ae.Autoencoder(latent_dim=latent_dim)
            assert model.encoder(x).shape == (n, latent_dim) and model(x).shape == x.shape
        model = denoise_ae.DenoiseAE().eval()
        assert model(x).shape == x.shape and model.encoder(x).shape[0] == n
        assert model.encoder(x)[0].numel() < 784  # a bottleneck
        for c in (None, torch.rand(n, 3)):
            model = vae.myVAE(latent_dim=6, conditional_vec_dim=0 if c is None else 3)
            for image in (x, x.flatten(1)):
                x_hat, mu, logvar = model(image, c)
                assert x_hat.shape == x.shape and mu.shape == logvar.shape == (n, 6)
            assert model.decode(torch.randn(n, 6), c).shape == x.shape
    assert denoise_ae.DenoiseAE()(torch.rand(1, 1, 28, 28)).shape == (1, 1, 28, 28)  # in training mode too


def test_layers_are_what_was_asked():
    kinds = [type(m).__name__ for m in ae.Autoencoder().modules()]
    assert set(kinds) == {"Autoencoder", "Sequential", "Flatten", "Linear", "LeakyReLU", "Unflatten", "Sigmoid"}
    assert isinstance(ae.Autoencoder().encoder[-1], torch.nn.Linear)
    assert isinstance(ae.Autoencoder().decoder[-1], torch.nn.Sigmoid)
    encoder = [type(m).__name__ for m in denoise_ae.DenoiseAE().encoder]
    assert encoder == ["Conv2d", "BatchNorm2d", "LeakyReLU", "MaxPool2d"] * 3
    decoder = [type(m).__name__ for m in denoise_ae.DenoiseAE().decoder]
    assert decoder.count("ConvTranspose2d") == 3 and decoder[-1] == "Sigmoid"
    assert isinstance(vae.myVAE().encoder, torch.nn.Sequential)
    assert isinstance(vae.myVAE().decoder, torch.nn.Sequential)
    assert isinstance(vae.myVAE().decoder[-1], torch.nn.Sigmoid)
    assert 12 <= vae.myVAE().latent_dim <= 18


def test_parameter_budgets():
    for script, budget in BUDGETS.items():
        n = sum(p.numel() for p in MODELS[script]().parameters() if p.requires_grad)
        assert budget / 2 < n <= budget, (script, n)


def test_every_parameter_gets_a_gradient():
    for script, model_class in {**MODELS, "BaselineNN": cvae_structured.BaselineNN}.items():
        torch.manual_seed(0)
        model = model_class()
        loss_of("cvae_structured" if script == "BaselineNN" else script, model, *some_images(script, 32)).backward()
        for name, p in model.named_parameters():
            # A bias right before a batch normalization has gradient 0 by construction: there should be none.
            assert not p.requires_grad or p.grad is not None and p.grad.abs().max() > 1e-9, (script, name)


def test_one_batch_can_be_overfitted():
    for script, model_class in MODELS.items():
        x, y = some_images(script, 8)
        torch.manual_seed(0)
        model = model_class()
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
        losses = []
        for _ in range(100):
            loss = loss_of(script, model, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] * 0.3, (script, losses[0], losses[-1])


# %% Losses and evaluation

def test_mse_is_the_mean_over_images_and_pixels():
    x_hat, x = torch.rand(3, 1, 2, 2), torch.rand(3, 1, 2, 2)
    by_hand = sum((a - b) ** 2 for a, b in zip(x_hat.flatten().tolist(), x.flatten().tolist())) / (3 * 4)
    assert close(ae.criterion(x_hat, x), by_hand) and close(denoise_ae.criterion(x_hat, x), by_hand)
    # Over a set that is no multiple of the evaluation's batches, the mean is over images, not over batches.
    torch.manual_seed(0)
    model, x = ae.Autoencoder(), torch.rand(1003, 1, 28, 28) * torch.linspace(0, 1, 1003).reshape(-1, 1, 1, 1)
    assert close(ae.evaluate(model, x), ((model(x) - x) ** 2).mean().item())


def test_pca_against_svd():
    x_train, x_test = mnist()[0][:300], mnist()[2][:100]
    train, test = x_train.flatten(1).double(), x_test.flatten(1).double()
    _, _, v = torch.linalg.svd(train - train.mean(0), full_matrices=False)
    *errors, nothing, less = ae.pca_mse(x_train, x_test, (1, 5, 784, 1000))
    for k, error in zip((1, 5), errors):
        x_hat = train.mean(0) + (test - train.mean(0)) @ v[:k].T @ v[:k]
        assert close(error, F.mse_loss(x_hat, test).item())
    assert nothing == less == 0


def test_noise():
    torch.manual_seed(0)
    grey = torch.full((200, 1, 28, 28), 0.5)
    y = denoise_ae.add_noise(grey)
    inside = (y > 0) & (y < 1)
    assert y.min() == 0 and y.max() == 1 and abs(inside.float().mean() - 0.6827) < 0.01  # within one standard deviation
    assert not torch.equal(y, denoise_ae.add_noise(grey))  # new noise at every call
    fixed = [denoise_ae.add_noise(grey, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*fixed)


def test_training_noise_is_new_in_every_batch_and_the_target_clean():
    x, seen = mnist()[0][:6], []
    original = denoise_ae.criterion
    model = denoise_ae.DenoiseAE()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]) if model.training else None)
    targets = []
    denoise_ae.criterion = lambda x_hat, target: targets.append(target) or original(x_hat, target)
    try:
        args = denoise_ae.parser.parse_args(["--n-epochs", "2", "--batch-size", "10", "--out-dir", tempfile.mkdtemp()])
        quiet(denoise_ae.train, model, x, x, x, args)
    finally:
        denoise_ae.criterion = original
    assert len(seen) == 2
    for noisy, clean in zip(seen, targets[::2]):  # the targets between are the evaluation's
        assert sorted(clean.flatten(1).sum(1).tolist()) == sorted(x.flatten(1).sum(1).tolist())
        assert 0.08 < F.mse_loss(noisy, clean) < 0.14  # what the noise costs, after clipping
    assert not torch.equal(seen[0].sort(0).values, seen[1].sort(0).values)


def test_psnr_and_the_classical_denoiser():
    x = torch.zeros(2, 1, 2, 2)
    x_hat = torch.stack([torch.full((1, 2, 2), 0.1), torch.full((1, 2, 2), 0.01)])
    assert close(denoise_ae.psnr_db(x_hat, x), (20 + 40) / 2)
    x = mnist()[2][:200]
    y = denoise_ae.add_noise(x, torch.Generator().manual_seed(0))
    x_hat, sigma = denoise_ae.classical(x, y, y)
    nothing, filtered = F.mse_loss(y, x), F.mse_loss(x_hat, x)
    assert 0.105 < nothing < 0.125 and filtered < 0.4 * nothing and 0.5 < sigma < 2
    blur = torchvision.transforms.functional.gaussian_blur
    assert all(F.mse_loss(blur(y, 11, s), x) > filtered for s in (0.6, 0.8, 1.0, 1.2, 1.4, 1.6))  # contrast helps


def test_bce_and_kl_against_independent_computations():
    torch.manual_seed(0)
    model = vae.myVAE(latent_dim=3)
    x_hat, x = torch.rand(5, 1, 28, 28), torch.rand(5, 1, 28, 28)
    mu, logvar = torch.randn(5, 3), torch.randn(5, 3)
    bce = -(x * x_hat.log() + (1 - x) * (1 - x_hat).log()).double().sum(dim=(1, 2, 3)).mean()
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mu, (0.5 * logvar).exp()), normal(0.0, 1.0))
    assert close(model.kl_divergence(mu, logvar), kl)
    terms = model.loss_function(x_hat, x, mu, logvar)
    assert close(terms["bce"], bce) and close(terms["kl"], kl.sum(1).mean())
    assert close(terms["loss"], bce + kl.sum(1).mean())
    assert close(vae.bce_floor(x), -(x * x.log() + (1 - x) * (1 - x).log()).sum().item() / 5, 1e-4)


def test_loss_stays_finite_at_the_edges():
    model = vae.myVAE(latent_dim=3)
    x, wrong = torch.ones(2, 1, 28, 28), torch.zeros(2, 1, 28, 28)
    assert torch.isfinite(model.loss_function(wrong, x, torch.zeros(2, 3), torch.zeros(2, 3))["loss"])
    with torch.no_grad():
        model.logvar_layer.bias.fill_(1e6)
    x_hat, mu, logvar = model(x)
    assert torch.isfinite(model.loss_function(x_hat, x, mu, logvar)["loss"])


def test_reparameterize():
    torch.manual_seed(0)
    model = vae.myVAE(latent_dim=2)
    mu = torch.tensor([[1.0, -2.0]]).repeat(100000, 1).requires_grad_()
    logvar = torch.tensor([[0.0, math.log(4)]]).repeat(100000, 1).requires_grad_()
    z = model.reparameterize(mu, logvar)
    assert close(z.mean(0), [1, -2], 0.02) and close(z.std(0), [1, 2], 0.02)
    z.sum().backward()
    assert close(mu.grad, 1)  # dz/dmu = 1, dz/dlogvar = (z - mu) / 2
    assert close(logvar.grad, (z - mu) / 2)


def test_the_three_vaes_are_one():
    sources = [inspect.getsource(module.myVAE) for module in (vae, cvae, cvae_structured)]
    assert sources[0] == sources[1] == sources[2]
    # Without a condition, cvae.py's training and evaluation are those of vae.py: same seed, same numbers.
    settings, without = smoke("cvae")[1]["settings"], smoke("cvae")[1]["without_label"]
    flags = [f"--{name}={settings[name.replace('-', '_')]}" for name in ("latent-dim", "batch-size", "lr")]
    (_, plain), _, _, _ = quiet(vae.main, ["--smoke", *flags, "--out-dir", tempfile.mkdtemp()])
    for key in ("test_loss", "test_bce", "test_kl"):
        assert plain[key] == without[key], key


def test_one_hot_condition():
    assert cvae.one_hot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    torch.manual_seed(0)
    model, x, z = cvae.myVAE(conditional_vec_dim=10), mnist()[0][:1].repeat(10, 1, 1, 1), torch.zeros(10, 16)
    c = cvae.one_hot(torch.arange(10))
    for answers in (model.encode(x, c)[0], model.decode(z, c).flatten(1)):  # encoder and decoder both see the label
        assert len(answers.unique(dim=0)) == 10
    assert cvae.condition(vae.myVAE(), torch.arange(3)) is None


def test_classifiers_on_z():
    class Fake:  # an "encoder" whose mu is what `encode` makes of the condition
        conditional_vec_dim = 10

        def __init__(self, encode, std):
            self.encode = lambda x, c: (encode(c), torch.full_like(encode(c), 2 * math.log(std)))
            self.reparameterize = cvae.myVAE.reparameterize.__get__(self)
            self.latent_dim = encode(torch.eye(10)).shape[1]

        def eval(self):
            return self

    torch.manual_seed(0)
    sets = (mnist()[0][:2000], mnist()[1][:2000], mnist()[2][:1000], mnist()[3][:1000])
    sign = torch.tensor([1.0, -1.0])
    for encode, std, linear, nearest, mu_nearest in (
            (lambda c: c + 0.01 * torch.randn(len(c), 10), 0.01, 1, 1, 1),  # plain to see
            (lambda c: torch.randn(len(c), 10), 0.01, 0.1, 0.1, 0.1),  # nothing to see
            (lambda c: 0.01 * c + 0.0001 * torch.randn(len(c), 10), 1.0, 0.1, 0.1, 1),  # in mu, but drowned in noise
            # Digit d lies on a circle of radius d, anywhere: curled up, but all there.
            (lambda c: c.argmax(1, keepdim=True) * F.normalize(torch.randn(len(c), 2)), 0.01, 0.12, 1, 1)):
        tested = cvae.probe_latents(Fake(encode, std), *sets)
        for name, expected in (("linear", linear), ("nearest", nearest), ("mu_nearest", mu_nearest)):
            assert abs(tested[f"latent_label_{name}"] - expected) < 0.07, (name, tested)


def test_judging_of_samples():
    class Fake:  # a "decoder" that marks the label as a white pixel in the first row, and draws a 0 for every third
        latent_dim = 2

        def decode(self, z, c):
            images = torch.zeros(len(z), 1, 28, 28)
            c = torch.where(torch.arange(len(c)).unsqueeze(1) % 3 == 0, cvae.one_hot(torch.zeros(len(c)).long()), c)
            images[:, 0, 0, :10] = c
            return images

    y = torch.arange(1, 10).repeat(30)
    real = torch.zeros(len(y), 1, 28, 28)
    real[::2] = 1  # within every digit half of the images are white, half black,
    real[y == 5] = 1  # but all of the fives are white: their variance is 0, that of the others 1/4 (times 30/29)
    result = cvae.judge_samples(Fake(), lambda images: images[:, 0, 0, :10], real, y)
    assert abs(result["sample_accuracy"] - 2 / 3) < 1e-6 and abs(result["judge_test_accuracy"]) < 1e-6
    assert close(result["test_std"], math.sqrt(8 / 9 * 0.25 * 30 / 29)) and result["sample_std"] < 0.1


def test_quadrants():
    places = {quadrants: cvae_structured.split_pixels(quadrants) for quadrants in (1, 2, 3)}
    corners = {"lower left": 27 * 28, "upper left": 0, "upper right": 27, "lower right": 783}
    seen = {q: {name for name, place in corners.items() if place in visible} for q, (visible, _) in places.items()}
    assert seen == {1: {"lower left"}, 2: {"lower left", "upper left"}, 3: {"lower left", "upper left", "upper right"}}
    for quadrants, (visible, unseen) in places.items():
        assert len(visible) == 196 * quadrants and sorted([*visible.tolist(), *unseen.tolist()]) == list(range(784))
    x = mnist()[0][:3]
    assert torch.equal(cvae_structured.take(x, places[1][0]), x[:, 0, 14:, :14].flatten(1))


def test_only_unseen_pixels_count():
    torch.manual_seed(0)
    x, places = mnist()[0][:5], cvae_structured.split_pixels(2)
    model = cvae_structured.myVAE(conditional_vec_dim=392)
    baseline = cvae_structured.BaselineNN(conditional_vec_dim=392)
    c, y = x[:, 0, :, :14].flatten(1), x[:, 0, :, 14:].flatten(1)

    def bce(y_hat):
        return F.binary_cross_entropy(y_hat[:, 0, :, 14:].flatten(1), y, reduction="sum") / 5

    terms = cvae_structured.loss_terms(baseline, x, *places)
    assert close(terms["loss"].item(), bce(baseline(c)).item()) and terms["kl"] == 0
    state = torch.get_rng_state()
    terms = cvae_structured.loss_terms(model, x, *places)
    torch.set_rng_state(state)
    x_hat, mu, logvar = model(x, c)
    assert close(terms["kl"].item(), model.kl_divergence(mu, logvar).sum().item() / 5)
    assert close(terms["bce"].item(), bce(x_hat).item())
    assert close(terms["loss"].item(), (bce(x_hat) + terms["kl"]).item())
    n_decoder = sum(p.numel() for p in model.decoder.parameters())
    n_baseline = sum(p.numel() for p in baseline.parameters())
    assert 0.95 < n_baseline / n_decoder < 1.05  # of the same capacity


def test_conditional_likelihood_against_quadrature():
    torch.manual_seed(0)
    x, (visible, unseen) = mnist()[2][:4], cvae_structured.split_pixels(1)
    model = cvae_structured.myVAE(latent_dim=1, hidden_dim=8, conditional_vec_dim=196)
    baseline = cvae_structured.BaselineNN(hidden_dim=8)
    c, y = x.flatten(1)[:, visible], x.flatten(1)[:, unseen].double()
    with torch.no_grad():
        model.decoder[0].weight.mul_(3)  # so that z matters
        model.mu_layer.bias.fill_(0.5)  # and q(z|x,c) is not the prior
        model.logvar_layer.bias.fill_(-0.3)
        z = torch.linspace(-8, 8, 2001).unsqueeze(1)
        joint = []
        for i in range(4):
            y_hat = model.decode(z, c[i].expand(2001, -1)).flatten(1)[:, unseen].double()  # (2001, 588)
            log_p_y = (y[i] * y_hat.log() + (1 - y[i]) * (1 - y_hat).log()).sum(1)
            joint.append(log_p_y + torch.distributions.Normal(0, 1).log_prob(z).squeeze(1))
        exact = -(torch.logsumexp(torch.stack(joint), dim=1) + math.log(16 / 2000)).mean()
        results = [cvae_structured.measure(model, baseline, x, (visible, unseen), 1000) for _ in range(10)]
        for key in ("importance_nll_nats", "monte_carlo_nll_nats"):
            assert abs(sum(result[key] for result in results) / 10 - exact) < 0.03, (key, exact)
        result = results[0]
        best = result["best_of_k_mse"]
        assert best == sorted(best, reverse=True) and best[0] > best[-1]
        assert close(result["baseline_mse"], ((baseline(c).flatten(1)[:, unseen] - y) ** 2).mean().item())
        k = result["beats_baseline_at_k"]
        assert best[-1] >= result["baseline_mse"] if k is None else best[k - 1] < result["baseline_mse"]
        assert k is None or k == 1 or best[k - 2] >= result["baseline_mse"]
        one_by_one = torch.stack([model.decode(torch.randn(4, 1), c).flatten(1)[:, unseen] for _ in range(2000)])
        assert close(result["sample_std"], one_by_one.std(0).mean().item(), 0.03)
        assert close(best[0], ((one_by_one - y) ** 2).mean().item(), 0.1)


def test_shown_digits_are_picked_by_the_rule():
    class Fake:  # the brighter the first visible pixel, the more samples differ; the second is how much ink they have
        latent_dim = 2

        def decode(self, z, c):
            return (c[:, 1] + 0.01 * z[:, 0] * c[:, 0]).reshape(-1, 1, 1, 1).expand(-1, 1, 28, 28)

    torch.manual_seed(0)
    y, brightness = torch.randint(10, (1200,)), torch.rand(1200).round(decimals=1) + 0.1
    difficult, easy = {4: 70, 9: 71, 3: 72, 5: 73}, {0: 80, 1: 81, 7: 83}
    ink = torch.full((1200,), 0.5)
    rivals = {0: 90, 1: 91, 7: 93}  # their samples differ even less, but more for the little ink that they have
    for where, value, amount in ((difficult, 5.0, 0.5), (easy, 0.05, 0.9), (rivals, 0.03, 0.1)):
        for digit, index in where.items():
            y[index], brightness[index], ink[index] = digit, value, amount
    brightness[1100:], x = 9.0, torch.zeros(1200, 1, 28, 28)  # outside the first 1000: not looked at
    x[:, 0, 14, 0], x[:, 0, 14, 1] = brightness, ink
    picked = cvae_structured.pick_images(Fake(), x, y, cvae_structured.split_pixels(1))
    assert picked == [*difficult.values(), *easy.values()]


def test_importance_weighted_nll_against_quadrature():
    torch.manual_seed(0)
    model, x = vae.myVAE(latent_dim=1, hidden_dim=8), mnist()[2][:4]
    with torch.no_grad():
        model.decoder[0].weight.mul_(3)  # so that z matters
        z = torch.linspace(-8, 8, 4001).unsqueeze(1)
        x_hat = model.decode(z).flatten(1).double()
        x_flat = x.flatten(1).double()
        log_p_x = x_flat @ x_hat.log().T + (1 - x_flat) @ (1 - x_hat).log().T  # (4, 4001)
        log_joint = log_p_x + torch.distributions.Normal(0, 1).log_prob(z).squeeze(1)
        exact = -(torch.logsumexp(log_joint, dim=1) + math.log(16 / 4000)).mean()
        spread = float(log_p_x.std())
    assert spread > 1
    assert abs(vae.importance_weighted_nll(model, x, 20000) - exact) < 0.02
    test = vae.evaluate(model, x.repeat(250, 1, 1, 1))
    c = cvae.myVAE(latent_dim=1, hidden_dim=8, conditional_vec_dim=10)
    c.decoder[0].weight.data[:, 0] = 0  # a decoder that ignores z: -log p(x|c) is its BCE, whatever q is
    c.decoder[0].weight.data[:, 1:] *= 9  # the label matters
    x_hat = c.decode(torch.zeros(4, 1), cvae.one_hot(torch.arange(4)))
    bce = F.binary_cross_entropy(x_hat, x, reduction="sum") / 4
    assert abs(cvae.importance_weighted_nll(c, x, torch.arange(4), 1000) - bce) < 0.02
    assert test["loss"] > exact and close(test["bce"] + test["kl"], test["loss"])
    assert close(test["kl"], model.kl_divergence(*model.encode(x)).sum(1).mean().item())


# %% vqvae.py

def test_nearest_code_against_brute_force():
    torch.manual_seed(0)
    for k, d in ((512, 64), (7, 3), (1, 1)):
        quantizer = vqvae.VectorQuantizer(k, d).eval()
        z = torch.randn(2, d, 4, 5)
        e, index = quantizer(z)
        for n in range(2):
            for row in range(4):
                for column in range(5):
                    distances = [float(((z[n, :, row, column] - code) ** 2).sum()) for code in quantizer.codebook]
                    best = int(np.argmin(distances))
                    assert index[n, row, column] == best and torch.equal(e[n, :, row, column], quantizer.codebook[best])


def test_straight_through_gradient_is_the_identity():
    torch.manual_seed(0)
    model = vqvae.VQVAE().eval()
    seen = {}

    def decode(e):  # takes the decoder's place and notes what it is given
        seen["e"] = e
        e.retain_grad()
        return (e**3).sum()

    model.decode = decode
    x_hat, z, e, _ = model(cifar10()[0][:2])
    z.retain_grad()
    x_hat.backward()
    assert close(seen["e"], e) and not close(z, e)  # the decoder sees codes
    assert torch.equal(z.grad, seen["e"].grad) and close(z.grad, 3 * e**2, 1e-4)  # z gets the gradient of its code


def test_moving_average_against_its_formula():
    torch.manual_seed(0)
    quantizer = vqvae.VectorQuantizer(5, 3, decay=0.9, revive=False)
    count, total = np.zeros(5), quantizer.ema_sum.double().numpy().copy()
    assert not close(quantizer.ema_sum, quantizer.codebook.detach(), 0.1)  # two draws
    for _ in range(4):
        z = torch.randn(2, 3, 4, 4)
        _, index = quantizer(z)
        vectors, codes = z.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy(), index.flatten().numpy()
        one_hot = np.eye(5)[codes]  # (M, K): the usual way
        count = 0.9 * count + 0.1 * one_hot.sum(0)
        total = 0.9 * total + 0.1 * one_hot.T @ vectors
        count = (count + 1e-5) / (count.sum() + 5e-5) * count.sum()
        assert close(quantizer.ema_count, count) and close(quantizer.ema_sum, total, 1e-4)
        assert close(quantizer.codebook, total / count[:, None], 1e-4)
    before = quantizer.codebook.clone()
    quantizer.eval()(torch.randn(2, 3, 4, 4))
    assert torch.equal(quantizer.codebook, before)  # nothing is learned from test images
    learned = vqvae.VectorQuantizer(5, 3, ema=False, revive=False)
    before = learned.codebook.detach().clone()
    learned(torch.randn(2, 3, 4, 4))
    assert torch.equal(learned.codebook, before) and learned.codebook.requires_grad  # that is left to the loss


def test_dead_codes_become_encoder_outputs():
    torch.manual_seed(0)
    for ema in (True, False):
        quantizer = vqvae.VectorQuantizer(8, 3, ema=ema)
        quantizer.codebook.data[1:] += 1000  # nothing will ever be near these
        quantizer.ema_sum.copy_(quantizer.codebook)
        z = torch.randn(4, 3, 4, 4)
        with torch.no_grad():
            quantizer(z)
        vectors = z.permute(0, 2, 3, 1).reshape(-1, 3)
        nearest = (quantizer.codebook.detach().unsqueeze(1) - vectors).norm(dim=2).min(1).values
        assert nearest[1:].max() < 1e-6 and len(quantizer.codebook.detach()[1:].unique(dim=0)) > 1
        # The average goes on from there: count and sum say the same as the code.
        assert close(quantizer.ema_sum[1:], (quantizer.ema_count.unsqueeze(1) * quantizer.codebook.detach())[1:])
        kept = quantizer.codebook.detach()[1:].clone()
        with torch.no_grad():
            _, index = quantizer(z)
        used = [code for code in index.unique().tolist() if code > 0]
        assert used and torch.isfinite(quantizer.codebook).all()
        if not ema:
            assert all(torch.equal(quantizer.codebook[code], kept[code - 1]) for code in used)  # the living are let be


def test_vqvae_loss_terms_and_stop_gradients():
    torch.manual_seed(0)
    for ema in (True, False):
        model = vqvae.VQVAE(commitment_cost=0.4, ema=ema).eval()
        x = cifar10()[0][:4]
        x_hat, z, e, _ = model(x)
        terms = vqvae.loss_function(model, x_hat, x, z, e, variance=0.07)
        difference = (z - e).detach().double().numpy()
        assert close(terms["reconstruction"].detach(), ((x_hat - x).detach().double().numpy() ** 2).mean() / 0.07)
        assert close(terms["commitment"].detach(), (difference**2).mean())
        assert close(terms["codebook"].detach(), (difference**2).mean())
        total = terms["reconstruction"] + 0.4 * terms["commitment"] + (0 if ema else terms["codebook"])
        assert close(terms["loss"].detach(), total.detach())
        weights = {"encoder": model.encoder[0].weight, "decoder": model.decoder[0].weight}
        if not ema:
            weights["codebook"] = model.quantizer.codebook
        reached = {"reconstruction": {"encoder", "decoder"}, "commitment": {"encoder"}, "codebook": {"codebook"}}
        for term, expected in reached.items():
            if term == "codebook" and ema:
                assert not terms[term].requires_grad
                continue
            grads = torch.autograd.grad(terms[term], weights.values(), retain_graph=True, allow_unused=True)
            assert {name for name, grad in zip(weights, grads) if grad is not None and grad.abs().max() > 0} == expected


def test_residual_stack_adds():
    torch.manual_seed(0)
    for in_place in (False, True):
        stack, x = vqvae.ResidualStack(6, 4, 2, relu_skip=in_place), torch.randn(2, 6, 5, 5)
        expected = x
        for conv3, _, conv1 in stack.layers:
            # If the first ReLU works in place, as is usual, it changes the skip connection as well.
            inside = torch.nn.Sequential(torch.nn.ReLU(in_place), conv3, torch.nn.ReLU(in_place), conv1)
            expected = expected.clone()
            expected = expected + inside(expected)
        assert close(stack(x).detach(), expected.relu().detach())


def test_perplexity_and_codebook_statistics():
    assert close(2 ** vqvae.entropy_bits(torch.full((512,), 3)), 512) and vqvae.entropy_bits(torch.tensor([0, 9])) == 0
    assert close(vqvae.entropy_bits(torch.tensor([1, 1, 2])), 1.5)
    torch.manual_seed(0)
    model, x = vqvae.VQVAE(num_hiddens=16, num_embeddings=6, embedding_dim=4).eval(), cifar10()[1][:600]
    with torch.no_grad():  # codes where z is, so that several are used, unequally
        model.quantizer.codebook.copy_(model.encode(x[:6])[:, :, 3, 3])
        x_hat, z, e, index = model(x)
    tested = vqvae.evaluate(model, x, variance=0.06)
    share = np.bincount(index.flatten(), minlength=6) / index.numel()
    assert tested["codes_used"] == (share > 0).sum() > 2
    assert close(tested["perplexity"], math.exp(-sum(p * math.log(p) for p in share if p > 0)))
    assert close(tested["reconstruction"], ((x_hat - x) ** 2).mean() / 0.06, 1e-4)
    assert close(tested["psnr_db"], denoise_ae.psnr_db(x_hat, x), 1e-4)
    assert close(tested["z_norm"], np.percentile(z.norm(dim=1).flatten(), [1, 50, 99]), 1e-3)
    assert close(tested["code_norm"], np.percentile(model.quantizer.codebook.norm(dim=1), [1, 50, 99]), 1e-4)
    parts = [slice(i, i + 256) for i in (0, 256, 512)]
    weights = [256 / 600, 256 / 600, 88 / 600]
    errors = [((z[part] - e[part]) ** 2).sum() / (z[part] ** 2).sum() for part in parts]
    assert close(tested["quantization_error"], np.dot(weights, errors), 1e-4)
    perplexities = [2 ** vqvae.entropy_bits(torch.bincount(index[part].flatten())) for part in parts]
    assert close(tested["perplexity_of_256"], np.dot(weights, perplexities), 1e-4)
    assert close(tested["z_range"], [z.min(), z.max()])
    assert torch.equal(vqvae.encode_all(model, x), index.flatten(1))


def test_doubling_time_of_a_runaway():
    history = {"update": list(range(100, 900, 100)), "test_z_norm": [[0, 7 * 2 ** (i / 2.5), 0] for i in range(8)]}
    assert close(vqvae.doubling_updates(history), 250)
    assert vqvae.doubling_updates({key: values[:1] for key, values in history.items()}) is None


def test_multiply_adds_by_hand():
    model = vqvae.VQVAE(num_hiddens=8, num_residual_hiddens=4, num_residual_layers=1, num_embeddings=6, embedding_dim=5)
    stack = 64 * (8 * 4 * 9 + 4 * 8)
    encoder = 256 * 3 * 4 * 16 + 64 * 4 * 8 * 16 + 64 * 8 * 8 * 9 + stack + 64 * 8 * 5
    decoder = 64 * 5 * 8 * 9 + stack + 64 * 8 * 4 * 16 + 256 * 4 * 3 * 16
    assert vqvae.multiply_adds(model) == encoder + 64 * 6 * 5 + decoder


def test_prior_is_causal():
    torch.manual_seed(0)
    prior = vqvae.Prior(num_embeddings=20).eval()
    index = torch.randint(20, (2, 64))
    logits = prior(index)
    assert logits.shape == (2, 64, 20)
    for t in (0, 1, 30, 63):
        changed = index.clone()
        changed[:, t] = (changed[:, t] + 1) % 20
        difference = (prior(changed) - logits).abs().amax(dim=(0, 2))
        assert difference[:t + 1].max() < 1e-5  # code t changes no distribution up to its own
        assert t == 63 or difference[t + 1:].min() > 1e-5  # and all later ones
    bits = -torch.log2(logits.softmax(-1).gather(2, index.unsqueeze(2))).mean()
    assert close(vqvae.prior_loss(prior, index).detach(), bits.detach())
    # Samples follow these distributions: a prior that is sure of "the code before, plus one" counts.
    prior.forward = lambda index: 1e4 * F.one_hot(F.pad(index[:, :-1] + 1, (1, 0)) % 20, 20).float()
    assert torch.equal(prior.sample(3), (torch.arange(64) % 20).reshape(8, 8).expand(3, 8, 8))
    prior.forward = lambda index: torch.tensor([0.6, 0.3, 0.1]).log().expand(*index.shape, 3)
    assert close(torch.bincount(prior.sample(500).flatten()) / 32000, [0.6, 0.3, 0.1], 0.02)


def test_a_resumed_run_gives_the_numbers_of_an_uninterrupted_one():
    config = {"num_hiddens": 8, "num_residual_hiddens": 4, "num_embeddings": 16, "embedding_dim": 4}
    images, original, calls = cifar10()[0][:40], vqvae.loss_function, []
    every, vqvae.LOG_EVERY = vqvae.LOG_EVERY, 2

    def train(out_dir, *flags):
        args = vqvae.parser.parse_args(["--batch-size", "8", "--lr", "2e-3", "--out-dir", str(out_dir), *flags])
        model, history = quiet(vqvae.train, "main", config, images, images[:10], 6, args)[0]
        return {**model.state_dict(), **{key: torch.tensor(values) for key, values in history.items()}}

    def note(*args, **kwargs):
        calls.append(original(*args, **kwargs))
        return calls[-1]

    def stop_half_way(*args):
        calls.append(1)
        if len(calls) == 6:  # two updates, a test, two updates, a test: the second test has no checkpoint yet
            raise KeyboardInterrupt
        return original(*args)

    try:
        vqvae.loss_function, stopped = note, tempfile.mkdtemp()
        whole = train(tempfile.mkdtemp())
        assert len(calls) == 9  # two updates, a test, and so on: the entries are the means of two updates each
        losses = [(a["loss"] + b["loss"]).item() / 2 for a, b, _ in zip(calls[::3], calls[1::3], calls[2::3])]
        assert close(whole["train_loss"], losses)
        vqvae.loss_function = stop_half_way
        calls.clear()
        try:
            train(stopped)
            raise AssertionError("not stopped")
        except KeyboardInterrupt:
            vqvae.loss_function = original
        resumed = train(stopped, "--resume")
        assert resumed["update"].tolist() == [2, 4, 6]
        assert all(torch.equal(resumed[key], whole[key]) for key in whole if key != "seconds")
        again = train(stopped, "--resume")  # nothing is left to do
        assert all(torch.equal(again[key], whole[key]) for key in whole if key != "seconds")
    finally:
        vqvae.loss_function, vqvae.LOG_EVERY = original, every


def test_resuming_needs_a_good_checkpoint():
    folder = Path(tempfile.mkdtemp()) / "vqvae"
    flags = ["--smoke", "--n-updates", "1", "--batch-size", "8", "--hidden-dim", "8", "--data-dir", str(sample_dir()),
             "--out-dir", str(folder.parent)]
    original, vqvae.train_prior = vqvae.train_prior, lambda *_: sys.exit("stopped before the prior")
    try:
        assert quiet(vqvae.main, flags)[1] == 1
    finally:
        vqvae.train_prior = original
    saved = folder / "checkpoint-main.pt"
    good = saved.read_bytes()
    for content, extra, word in ((good[:1000], [], "damaged"), (b"", [], "damaged"), (good, ["--lr", "1e-5"], "lr"),
                                 (None, [], "nothing to --resume")):
        saved.unlink() if content is None else saved.write_bytes(content)
        status, _, err = command("vqvae", *flags, "--resume", *extra)
        assert status == 2 and is_an_error(err, "vqvae", word, str(folder)), err
        assert [p.read_bytes() for p in folder.iterdir()] == [content] * bool(content is not None)
    saved.write_bytes(good)
    status, out, err = command("vqvae", *flags, "--resume")
    assert status == 0 and "main: update" not in out and "prior: update" in out, err
    assert (folder / "metrics.json").exists() and not list(folder.glob("checkpoint*"))


def test_the_usual_recipe():
    folder, _ = smoke("vqvae")  # beside it, so that the two are held against each other
    optimizers, adam = [], torch.optim.Adam
    try:
        torch.optim.Adam = lambda *args, **kwargs: optimizers.append(adam(*args, **kwargs)) or optimizers[-1]
        (model, prior, metrics), status, _, err = quiet(vqvae.main, [
            "--smoke", "--reference", "--hidden-dim", "8", "--data-dir", str(sample_dir()),
            "--out-dir", str(folder.parent)])
    finally:
        torch.optim.Adam = adam
    assert status == 0 and prior is None, err
    assert all(optimizer.defaults["betas"] == (0.9, 0.999) for optimizer in optimizers) and len(optimizers) == 4
    assert metrics["settings"]["batch_size"] == 256 and metrics["history"]["lr"] == [1e-3]
    assert metrics["no_commitment"]["n_updates"] == metrics["n_updates"] == 3 and not model.quantizer.revive
    assert all(part.relu_skip for part in model.modules() if isinstance(part, vqvae.ResidualStack))
    names = {"metrics.json", "summary.txt", "model.pt", "loss.png", "codebook.png", "commitment.png",
             "reconstructions.png", "recipes.png"}
    assert {path.name for path in (folder.parent / "vqvae_reference").iterdir()} == names


# %% What the figures claim

class Glass(torch.nn.Module):
    """Stands for a VAE, and shows what it is given: the "image" that it decodes from z and c has z in its pixels and c
    in those behind. mu is the middle of the image, logvar is -1."""
    latent_dim = 20
    reparameterize = vae.myVAE.reparameterize

    def encode(self, x, c=None):
        mu = x.flatten(1)[:, 380:400] if c is None else x.flatten(1)[:, 380:400] + c[:, :1]
        return mu, torch.full_like(mu, -1.0)

    def decode(self, z, c=None):
        shown = z if c is None else torch.cat([z, c], dim=1)
        return F.pad(shown, (0, 784 - shown.shape[1])).reshape(-1, 1, 28, 28)


def drawn(make_figures, *args):
    """Calls make_figures; returns {name: (images, row labels, column labels)} of what it gave to plot_images, and
    {name: figure} of the rest."""
    calls, original = [], common.plot_images

    def note(images, row_labels=(), column_labels=(), width=8):
        calls.append((images, list(row_labels), list(column_labels)))
        return calls[-1]

    common.plot_images = note
    try:
        torch.manual_seed(0)
        figures = make_figures(*args)
    finally:
        common.plot_images = original
        common.plt.close("all")
    return {name: figure for name, figure in figures.items() if isinstance(figure, tuple)}, figures


HISTORY = {f"{which}_{part}": [2.0, 1.0] for which in ("train", "test") for part in ("loss", "bce", "kl")}


def test_figures_of_the_autoencoders():
    torch.manual_seed(0)
    x, y, model = mnist()[2][:300], mnist()[3][:300], ae.Autoencoder().eval()
    grids, figures = drawn(ae.make_figures, model, HISTORY, x, y,
                           {"test_loss": [6, 5, 4, 3, 2, 1], "pca_test_loss": [9, 8, 7, 6, 5, 4]})
    images, rows, _ = grids["reconstructions"]
    assert torch.equal(images[0], x[:12]) and close(images[1], model(x[:12]).detach()) and rows[0] == "original"
    points, grid = figures["latent_space"].axes[0], figures["latent_space_images"].axes[0]
    assert list(grid.images[0].get_extent()) == [*points.get_xlim(), *points.get_ylim()]  # the same part of the plane
    z = model.encoder(x).detach()
    for digit, dots in enumerate(points.collections):
        assert close(dots.get_offsets().data, z[y == digit])
    corner = torch.tensor([[points.get_xlim()[0] + 0.5 * np.ptp(points.get_xlim()) / 25,
                            points.get_ylim()[1] - 0.5 * np.ptp(points.get_ylim()) / 20]], dtype=torch.float32)
    assert close(grid.images[0].get_array()[:28, :28], model.decoder(corner)[0, 0].detach(), 1e-3)
    curves = {line.get_label(): line.get_ydata().tolist() for line in figures["sweep"].axes[0].lines}
    assert curves["autoencoder"] == [6, 5, 4, 3, 2, 1] and [9, 8, 7, 6, 5, 4] in curves.values()

    model, y = denoise_ae.DenoiseAE().eval(), denoise_ae.add_noise(x)
    grids, figures = drawn(denoise_ae.make_figures, model, HISTORY, x, y, 0.5 * x,
                           {"bottleneck_size": [32, 64], "test_loss": [2, 1]})
    images, rows, _ = grids["denoised"]
    assert rows == ["noisy", "Gaussian\nfilter", "denoised", "clean"]
    for shown, expected in zip(images, (y, 0.5 * x, model(y).detach(), x)):
        assert close(shown, expected[:10])
    line = figures["sweep"].axes[0].lines[0]
    assert line.get_xdata().tolist() == [32, 64] and line.get_ydata().tolist() == [2, 1]


def test_figures_of_the_vae():
    x, y, kl = mnist()[2][:300], mnist()[3][:300], list(range(20))
    swept = {0.0: Glass(), 1.0: Glass()}, {"beta": [0, 1], "test_bce": [60, 80], "test_kl": [90, 20]}
    grids, figures = drawn(vae.make_figures, Glass(), HISTORY, x, y, kl, swept)
    z = {name: images.flatten(2)[:, :, :20] for name, (images, _, _) in grids.items()}
    assert abs(z["samples"].mean()) < 0.1 and abs(z["samples"].std() - 1) < 0.1  # from the prior
    mu = x[0].flatten()[380:400]
    images, rows, _ = grids["variance"]
    assert torch.equal(images[:, 0], x[:1].expand(4, 1, 28, 28)) and rows[0] == "variance x 1"
    for two_rows, factor in ((slice(0, 2), 1), (slice(2, 4), 20)):
        variance = (z["variance"][two_rows, 1:] - mu).square().mean()
        assert rows[two_rows.start] == f"variance x {factor}"
        assert 0.8 < variance / (factor * math.exp(-1)) < 1.25, (factor, variance)
    images = grids["walk"][0]
    for row, (a, b) in zip(images, [(1, 7), (3, 8), (4, 9), (0, 6)]):
        first, last = (x[(y == digit).nonzero()[0, 0]] for digit in (a, b))
        assert torch.equal(row[0], first) and torch.equal(row[-1], last)
        for i, image in enumerate(row[1:-1]):
            expected = (1 - i / 10) * first.flatten()[380:400] + i / 10 * last.flatten()[380:400]
            assert close(image.flatten()[:20], expected)
    _, rows, values = grids["traversals"]
    for row, label in enumerate(rows):
        dimension = 19 - row  # sorted by kl, the largest first
        assert label.startswith(f"$z_{{{dimension + 1}}}$") and label.endswith(f"{kl[dimension]:.2f}")
        assert close(z["traversals"][row, :, dimension], values) and values[0] == -3 and values[-1] == 3
        rest = [i for i in range(20) if i != dimension]
        assert close(z["traversals"][row][:, rest], mu[rest].expand(11, -1))
    assert figures["rate_distortion"].axes[0].lines[0].get_xydata().tolist() == [[90, 60], [20, 80]]
    assert len(grids["beta"][1]) == 3 and torch.equal(z["beta"][1], z["beta"][2])  # both from the same prior samples
    mu = x.flatten(1)[:, 380:400]
    spread = torch.linalg.cholesky(torch.cov(mu.T) + 1e-6 * torch.eye(20))
    assert close(z["beta"][0], mu.mean(0) + z["beta"][1] @ spread.T, 1e-4)  # and these from the codes' own Gaussian


def test_figures_of_the_conditional_vaes():
    x, y = mnist()[2][:300], mnist()[3][:300]
    grids, _ = drawn(cvae.make_figures, Glass(), HISTORY, x, y)
    for name, first_column in (("digits", 0), ("style", 2)):
        images, _, columns = grids[name]
        assert columns[first_column:] == list(range(10))
        shown = images[:, first_column:].flatten(2)
        assert torch.equal(shown[:, :, 20:30], torch.eye(10).expand(len(shown), 10, 10))  # the column's label
        assert torch.equal(shown[:, :, :20], shown[:, :1, :20].expand(-1, 10, -1))  # one z a row
    z = grids["digits"][0].flatten(2)[:, 0, :20]
    assert len(z.unique(dim=0)) == 8 and abs(z.std() - 1) < 0.2
    images = grids["style"][0]
    for digit, row in enumerate(images):
        original = x[(y == digit).nonzero()[0, 0]]
        assert torch.equal(row[0], original)
        mu = original.flatten()[380:400] + (digit == 0)  # Glass.encode saw this image, and its own label
        assert close(row[2].flatten()[:20], mu)

    torch.manual_seed(0)
    x, y = mnist()[2][:1000], mnist()[3][:1000]
    places, baseline = cvae_structured.split_pixels(1), cvae_structured.BaselineNN().eval()
    result = {"best_of_k_mse": [3.0, 2.0, 1.0], "baseline_mse": 1.5}
    history = {**HISTORY, "train_baseline_loss": [2.0, 1.0], "test_baseline_loss": [2.0, 1.0]}
    model = cvae_structured.myVAE(conditional_vec_dim=196).eval()
    grids, figures = drawn(cvae_structured.make_figures, model, baseline, history, x, y, places, {1: result})
    images = grids["samples"][0].flatten(2)
    torch.manual_seed(0)
    originals = x[cvae_structured.pick_images(model, x, y, places)].flatten(1)
    assert close(images[:, 1], originals) and close(images[:, 0][:, places[1]], 0.5)
    for column in range(2, images.shape[1]):
        assert close(images[:, column][:, places[0]], originals[:, places[0]])  # what is visible is shown as it is
    answer = baseline(originals[:, places[0]]).flatten(1)[:, places[1]].detach()
    assert close(images[:, 2][:, places[1]], answer)
    samples = images[:, 3:][:, :, places[1]]
    assert samples.shape[1] == 10 and samples.std(1).min() >= 0 and samples.std(1).mean() > 1e-3
    lines = figures["best_of_k"].axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[3, 2, 1], [1.5, 1.5]]


def test_figures_of_the_vqvae():
    torch.manual_seed(0)
    x, codes_train = cifar10()[1][:40], torch.tensor([[0] * 48 + [1] * 16])
    model = vqvae.VQVAE(num_hiddens=8, num_embeddings=6, embedding_dim=4).eval()
    with torch.no_grad():  # codes near the z of some images, so that images differ in their codes
        z = model.encode(x)[:6, :, 3, 3]
        model.quantizer.codebook.copy_(z + 1e-3 * torch.randn_like(z))
    model.decode = lambda e: F.pad(e, (12, 12, 12, 12))[:, :3]  # shows the codes in the middle of a picture
    prior = vqvae.Prior(num_embeddings=6)
    prior.sample = lambda n: torch.full((n, 8, 8), 5)
    history = {"update": [1, 2], "train_reconstruction": [2.0, 1.0], "train_commitment": [1.0, 1.0]}
    tested = vqvae.evaluate(model, x, 0.06)
    history |= {"lr": [0.1, 0.2], **{f"test_{key}": [value, value] for key, value in tested.items()}}
    other = {**history, "train_reconstruction": [7.0, 8.0]}
    grids, figures = drawn(vqvae.make_figures, model, prior, history, {"no_commitment": (model, other)}, codes_train, x)
    images = grids["reconstructions"][0]
    assert torch.equal(images[0], x[:10]) and torch.equal(images[3], x[10:20])
    x_hat, _, _, index = model(x[:20])
    assert close(images[2], x_hat[:10].detach()) and close(images[5], x_hat[10:].detach())
    cells = torch.cat([images[1], images[4]])[:, :, 1::4, 2::4].permute(0, 2, 3, 1).reshape(-1, 3)
    assert len(cells.unique(dim=0)) == len(index.unique())  # a colour for each code, and it stays the same
    assert all(len(cells[index.flatten() == code].unique(dim=0)) == 1 for code in index.unique())
    images = grids["samples"][0][:, :, :, 12:20, 12:20]  # (5, 10, 3, 8, 8)
    book = model.quantizer.codebook[:, :3].detach()
    index = (images.permute(0, 1, 3, 4, 2).unsqueeze(-2) - book).norm(dim=-1).argmin(-1)
    blocks = [index[:, columns] for columns in (slice(0, 7), slice(8, 10))]
    assert (blocks[0] == 5).all()  # what the prior wrote
    assert close(torch.bincount(blocks[1].flatten()) / blocks[1].numel(), [0.75, 0.25], 0.05)  # by frequency
    left, right = figures["commitment"].axes[0].lines
    assert left.get_ydata().tolist() == [2, 1] and right.get_ydata().tolist() == [7, 8]
    recipes = vqvae.plot_recipes(({"update": [1, 2], "seconds": [60, 120], "test_reconstruction": [3, 2]}, 10),
                                 ({"update": [1, 3], "seconds": [30, 90], "test_reconstruction": [5, 4]}, 100))
    lines = [[line.get_xydata().tolist() for line in axis.lines] for axis in recipes.axes]
    assert lines == [[[[10, 3], [20, 2]], [[100, 5], [300, 4]]], [[[1, 3], [2, 2]], [[0.5, 5], [1.5, 4]]]]
    axis = figures["codebook"].axes[0]
    counts = torch.bincount(vqvae.encode_all(model, x).flatten(), minlength=6)
    assert close(axis.collections[0].get_sizes(), 4 + 30 * counts / counts.float().mean(), 1e-4)


# %% Whole runs

def test_smoke_runs_write_every_file():
    for script, module in SCRIPTS.items():
        folder, metrics = smoke(script)
        pictures = {f"{name}.png" for name in FIGURES[script].split()}
        names = {"metrics.json", "summary.txt", *WEIGHTS.get(script, {"model.pt"}), *pictures}
        assert {p.name for p in folder.iterdir()} == names, script
        for name in names:
            if name.endswith(".png"):
                image = matplotlib.image.imread(folder / name)
                assert 900 <= image.shape[1] <= 1500 and image[..., :3].std() > 0.01, (script, name, image.shape)
        assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == metrics
        for key in ("dataset", "n_train", "n_test", "n_parameters", "seed", "device", "processor", "threads", "seconds",
                    "versions", "settings", "train_loss", "test_loss", "history"):
            assert key in metrics, (script, key)
        passes, n, entries = ("n_updates", 3, 1) if script == "vqvae" else ("n_epochs", 2, 2)
        assert set(metrics["settings"]) >= {passes, "batch_size", "lr", "hidden_dim", "latent_dim", "seed"}
        assert metrics["script"] == script and metrics[passes] == n
        assert len(metrics["history"]["test_loss"]) == entries
        summary = (folder / "summary.txt").read_text(encoding="utf-8")
        counts = re.findall(r"^Trainable params: ([\d,]+)", summary, re.MULTILINE)
        assert sum(int(count.replace(",", "")) for count in counts) == metrics["n_parameters"], script
        for name in module.__doc__.split("Writes:")[1].split("Paper")[0].replace(",", " ").split():
            assert not name.endswith(".png") or name in names, f"{script} promises {name}"


def test_same_seed_same_numbers():
    # vae and cvae are held against each other above, to the last bit, and vqvae against a run that was resumed.
    for script in ("ae", "denoise_ae", "cvae_structured"):
        again, _, _, _ = quiet(SCRIPTS[script].main, ["--smoke", "--out-dir", tempfile.mkdtemp()])
        again = json.loads(json.dumps(again[-1], default=str))
        assert numbers(again) == numbers(smoke(script)[1]), script
    (_, other), _, _, _ = quiet(ae.main, ["--smoke", "--seed", "1", "--out-dir", tempfile.mkdtemp()])
    assert other["test_loss"] != smoke("ae")[1]["test_loss"]


def test_extreme_settings():
    asked, load = [], common.load_mnist
    common.load_mnist = lambda *args: asked.append(args[2]) or load(*args)
    try:
        for script, module in SCRIPTS.items():
            flags = ["--smoke", "--validation", "--latent-dim", "1", "--batch-size", "100000",
                     "--n-updates" if script == "vqvae" else "--n-epochs", "1", "--out-dir", tempfile.mkdtemp()]
            if script == "vqvae":
                flags += ["--data-dir", str(sample_dir()), "--hidden-dim", "4"]
            result, status, _, err = quiet(module.main, flags)
            assert status == 0 and math.isfinite(result[-1]["test_loss"]), (script, err)
    finally:
        common.load_mnist = load
    assert asked == 5 * [True]  # --validation reaches the loader
    # The last was vqvae, without the whole of CIFAR-10: it takes the sample, and says so in one line.
    assert result[-1]["dataset"] == "CIFAR-10 sample" and "sample" in err and err.count("\n") == 1, err


def test_interrupt_is_one_line():
    if sys.platform == "win32":
        return  # no SIGINT can be sent to a child there
    # A child of a background job inherits that SIGINT is ignored: set it back.
    start = ("import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
             f"sys.path.insert(0, {str(ROOT)!r}); sys.argv = sys.argv[1:]; "
             "runpy.run_path(sys.argv[0], run_name='__main__')")
    with tempfile.TemporaryDirectory() as tmp:
        process = subprocess.Popen([sys.executable, "-u", "-c", start, str(ROOT / "ae.py"), "--out-dir", tmp], cwd=tmp,
                                   text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert "parameters" in process.stdout.readline()  # training begins
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130 and err.strip().count("\n") == 0 and "stopped" in err, err
        assert not any((Path(tmp) / "ae").iterdir())


def test_saved_models_rebuild():
    x = mnist()[2][:256]
    for script, model_class in MODELS.items():
        folder, metrics = smoke(script)
        saved = torch.load(folder / "model.pt", weights_only=True)
        model = model_class(**saved["config"])
        model.load_state_dict(saved["state_dict"])
        model.eval()
        if script == "ae":
            assert close(ae.evaluate(model, x), metrics["test_loss"])
        elif script == "denoise_ae":
            fixed = torch.Generator().manual_seed(0)
            losses = [denoise_ae.evaluate(model, x, denoise_ae.add_noise(x, fixed)) for _ in range(5)]
            assert close(losses, metrics["test_loss_by_noise"]) and close(np.mean(losses), metrics["test_loss"])
        elif script == "vae":
            assert close(model.kl_divergence(*model.encode(x)).mean(0), metrics["test_kl_per_dimension"])
        elif script == "cvae":
            mu, logvar = model.encode(x, cvae.one_hot(mnist()[3][:256]))
            assert close(model.kl_divergence(mu, logvar).sum(1).mean(), metrics["test_kl"])
        elif script == "cvae_structured":
            saved = torch.load(folder / "baseline.pt", weights_only=True)
            baseline = cvae_structured.BaselineNN(**saved["config"])
            baseline.load_state_dict(saved["state_dict"])
            loss = cvae_structured.evaluate(baseline, x, cvae_structured.split_pixels(1))["loss"]
            assert close(loss, metrics["baseline_nll_nats"])
            assert model.decode(torch.zeros(2, 16), x[:2, 0, 14:, :14].flatten(1)).shape == (2, 1, 28, 28)
        elif script == "vqvae":
            variance = float(cifar10()[0][:512].var())
            model.bfloat16 = metrics["bfloat16"]
            tested = vqvae.evaluate(model, cifar10()[1][:256], variance)
            assert close(tested["reconstruction"], metrics["test_reconstruction"])
            saved = torch.load(folder / "prior.pt", weights_only=True)
            prior = vqvae.Prior(**saved["config"])
            prior.load_state_dict(saved["state_dict"])
            codes = vqvae.encode_all(model, cifar10()[1][:256])
            assert close(vqvae.evaluate_prior(prior, codes)["loss"], metrics["prior"]["test_bits_per_code"])


def test_bad_input_is_named_and_harmless():
    for script in SCRIPTS:
        folder, _ = smoke(script)
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        out = ["--smoke", "--out-dir", str(folder.parent)]
        blocked = folder / "metrics.json"  # a file where a folder should be
        for flags in (["--batch-size", "0"], ["--lr", "-1"], ["--lr", "nan"], ["--latent-dim", "0"], ["--seed", "-1"],
                      ["--hidden-dim", "x"], ["--device", "no-such-device"], ["--no-such-flag"],
                      *([flag, "-1"] for flag in NOT_NEGATIVE.get(script, []))):
            status, _, err = command(script, *out, *flags)
            assert status == 2 and is_an_error(err, script, flags[0]), (script, flags, err)
        status, _, err = command(script, *out, "--out-dir", str(blocked))
        assert status == 2 and is_an_error(err, script, str(blocked)), (script, err)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before, script


def test_a_diverging_loss_stops_the_run():
    for script in SCRIPTS:
        with tempfile.TemporaryDirectory() as tmp:
            small = ["--hidden-dim", "4"] if script == "vqvae" else []
            status, _, err = command(script, "--smoke", "--lr", "1e30", "--out-dir", tmp, *small)
            assert status == 1 and is_an_error(err, script, "--lr"), (script, status, err)
            assert not any((Path(tmp) / script).iterdir())


# %% Other devices

def test_everything_runs_on_a_device_without_float64():
    for script in SCRIPTS:
        smoke(script)  # under PretendGPU


def test_no_update_waits_for_the_device():
    waits = {}
    for n in (2, 6):  # updates
        for script, module in SCRIPTS.items():
            flags = ["--batch-size", "5", "--hidden-dim", "8", "--out-dir", tempfile.mkdtemp()]
            flags += ["--n-updates", str(n), "--lr", "1e-3"] if script == "vqvae" else ["--n-epochs", "1"]
            args = module.parser.parse_args(flags)
            with PretendGPU() as gpu:
                x, y = torch.rand(5 * n, 1, 28, 28).to("cpu"), torch.arange(5 * n).to("cpu") % 10
                if script == "vqvae":
                    config = {"num_hiddens": 8, "num_embeddings": 8, "embedding_dim": 4}
                    run = functools.partial(vqvae.train, "main", config, torch.rand(50, 3, 32, 32).to("cpu"),
                                            torch.rand(5, 3, 32, 32).to("cpu"), n, args)
                else:
                    model = MODELS[script]().to("cpu")
                    run = functools.partial(module.train, model, *{
                        "ae": (x, x[:5]), "denoise_ae": (x, x[:5], x[:5]), "vae": (x, x[:5]),
                        "cvae": (x, y, x[:5], y[:5]),
                        "cvae_structured": (x, x[:5], [p.to("cpu") for p in cvae_structured.split_pixels(1)]),
                    }[script], args)
                _, status, _, err = quiet(run)
            assert status == 0, (script, err)
            waits[script, n] = gpu.waits
    for script in SCRIPTS:
        assert 0 < waits[script, 2] == waits[script, 6], (script, waits)


# %% The report

def test_every_measured_number_is_what_a_run_measured():
    """A number with a marker equals, as printed, that key of report/<script>/metrics.json, 99.7<!--vae:test_loss-->, or
    mean and standard deviation over the runs of seeds.json, 99.7 ± 0.1<!--vae:seeds:test_loss-->. a|b is a minus b."""
    def look_up(metrics, key):
        for part in key.split("."):
            metrics = metrics[int(part)] if isinstance(metrics, list) else metrics[part]
        return metrics

    def read(script, name):
        return json.loads((ROOT / "report" / script / name).read_text(encoding="utf-8"))

    count = 0
    for page in (ROOT / "report.md", ROOT / "README.md"):
        text = page.read_text(encoding="utf-8")
        markers = re.findall(r"([-\d.,]*\d)(?: ± ([\d.,]*\d))?( ?%)?<!--(\w+):(seeds:)?([\w.|-]+)-->", text)
        n_numbers = text.count("<!--") - text.count("<!--code:")
        assert len(markers) == n_numbers, f"a marker in {page.name} has no number right before it"
        for printed, spread, percent, script, seeds, key in markers:
            runs = read(script, "seeds.json")["runs"].values() if seeds else [read(script, "metrics.json")]
            first, _, second = key.partition("|")
            runs = [run for run in runs if run[key.split(".")[0]] is not None]  # not every seed has a sweep
            values = np.array([look_up(run, first) - (look_up(run, second) if second else 0) for run in runs])
            assert len(values) >= 3 or not seeds, (script, key)
            for shown, value in ((printed, values.mean()), (spread, values.std(ddof=1) if spread else None)):
                decimals = len(shown.partition(".")[2])
                expected = shown and f"{value * (100 if percent else 1):,.{decimals}f}"
                assert shown == expected, f"{script}:{seeds}{key} is {expected}, not {shown}"
            count += 1
    assert count > 50


def test_the_pages_name_the_processor_of_their_times():
    for script in SCRIPTS:
        metrics = json.loads((ROOT / "report" / script / "metrics.json").read_text(encoding="utf-8"))
        for page in ("README.md", "report.md"):
            words = (ROOT / page).read_text(encoding="utf-8").split()
            assert metrics["processor"] in " ".join(words), (page, script)
        assert "/" not in str(metrics["settings"]["data_dir"] or ""), script  # nobody's own folders


def test_links_and_formulas_of_the_pages_resolve():
    for page in (ROOT / "report.md", ROOT / "README.md", ROOT / "data" / "README.md"):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for alt, target in re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", text):
            if not target.startswith(("http", "#")):
                assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"
        assert re.sub(r"`[^`]*`", "", text).count("$") % 2 == 0, page.name
        for name, script, line in re.findall(r"\[`([\w.]+)`\]\((\w+\.py)#L(\d+)\)", text):
            lines = (ROOT / script).read_text(encoding="utf-8").splitlines()
            found = re.match(r"\s*(?:def|class) (\w+)", lines[int(line) - 1])
            assert found and found[1] == name.split(".")[-1], f"{page.name}: {name} is not in line {line} of {script}"


def test_code_in_the_report_is_the_scripts_own():
    text, count = (ROOT / "report.md").read_text(encoding="utf-8"), 0
    blocks = re.findall(r"<!--code:(\w+)\.py:([\w.]+)[\d:-]*-->\n```python\n(.*?)\n```", text, re.DOTALL)
    for script, name, block in blocks:
        part = SCRIPTS[script]
        for attribute in name.split("."):
            part = getattr(part, attribute)
        whole = [line.strip() for line in inspect.getsource(part).splitlines()]
        quoted = [line.strip() for line in block.splitlines()]
        assert any(whole[i:i + len(quoted)] == quoted for i in range(len(whole))), f"{script}.py:{name} has changed"
        count += 1
    assert count == text.count("<!--code:")


def test_summaries_in_the_report_are_torchsummarys():
    text = (ROOT / "report.md").read_text(encoding="utf-8")
    for script in SCRIPTS:
        summary = (ROOT / "report" / script / "summary.txt").read_text(encoding="utf-8")
        tables = re.findall(r"(?:^ +\w+-\d+ .*\n)+", summary, re.MULTILINE)
        assert len(tables) == (2 if script == "vqvae" else 1) and all(table in text for table in tables), script


def test_line_1_of_each_script_links_its_section():
    anchors = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
               for line in (ROOT / "report.md").read_text(encoding="utf-8").splitlines() if line.startswith("## ")}
    for script, module in SCRIPTS.items():
        link = re.search(r"report\.md#(\S+)", module.__doc__.splitlines()[0])
        assert link and link[1] in anchors, (script, anchors)


def test_the_lines_that_load_a_model_work():
    """The README's lines that load model.pt run as they stand, beside the runs/ of a run."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    block, = [block for block in blocks if "model.pt" in block]
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as tmp:
        shutil.copytree(smoke("vae")[0], Path(tmp) / "runs" / "vae")
        os.chdir(tmp)
        try:
            exec(block, names := {})
            assert names["images"].shape == (10, 1, 28, 28) and Path("digits.png").stat().st_size > 1000
        finally:
            os.chdir(before)


def test_the_lines_for_own_images_work():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "report.md").read_text(encoding="utf-8"), re.DOTALL)
    block, = [block for block in blocks if "your images" in block]
    names = {}
    quiet(lambda: exec(block, names))
    assert names["images"].shape == (10, 1, 64, 64)
    with tempfile.TemporaryDirectory() as tmp:  # and what the page says of vqvae.py
        args = vqvae.parser.parse_args(["--batch-size", "32", "--lr", "2e-3", "--out-dir", tmp])
        vqvae.folder(args).mkdir()
        x = torch.rand(8, 3, 24, 40, device=args.device)
        model, history = quiet(vqvae.train, "main", {}, x, x, 1, args)[0]
        assert model(x)[0].shape == x.shape


if __name__ == "__main__":
    passed = failed = 0
    for test_name, test in [item for item in globals().items() if item[0].startswith("test_")]:
        started = time.perf_counter()
        try:
            test()
            passed += 1
            verdict = "ok    "
        except Exception:
            failed += 1
            verdict = "FAILED"
            traceback.print_exc()
        print(f"{verdict} {time.perf_counter() - started:5.1f} s  {test_name}", flush=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)
