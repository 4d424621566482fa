"""Smoke tests: `python test_all.py` runs them all in a minute, `python test_all.py kl` those with kl in their name.

They hold the scripts to what they promise: each equation against an independent computation, and each script from end
to end with --smoke. Nothing is trained for real, no network is needed, nothing is left behind. `pytest test_all.py`
works, too. (report/test_report.py tests what the report says about the scripts' results.)
"""

import atexit
import contextlib
import functools
import gzip
import inspect
import io
import json
import math
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import unittest
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
import torchvision

if not __debug__:
    sys.exit("error: python -O leaves out every assert, and so every test")

import common

matplotlib.use("Agg")
common.DEVICE = "cpu"  # the scripts' default, whatever this machine has

import ae
import cvae
import cvae_structured
import denoise_ae
import vae
import vqvae

ROOT = Path(__file__).resolve().parent
SCRIPTS = {"ae": ae, "denoise_ae": denoise_ae, "vae": vae, "cvae": cvae, "cvae_structured": cvae_structured,
           "vqvae": vqvae}
TEMPORARY = Path(tempfile.mkdtemp(prefix="test_all-"))
atexit.register(shutil.rmtree, TEMPORARY, ignore_errors=True)


# %% Helpers

def expect(what, got, expected, tolerance=1e-5):
    """Fails, and says what was expected, unless each number got is within tolerance * (1 + |expected|) of it."""
    assert got is not None, f"{what}: expected {expected}, got None"
    got, expected = (torch.as_tensor(np.array(value) if isinstance(value, list) else value).detach().double()
                     for value in (got, expected))
    assert got.shape == expected.shape or expected.dim() == 0, \
        f"{what}: expected the shape {tuple(expected.shape)}, got {tuple(got.shape)}"
    wrong = ~((got - expected).abs() <= tolerance * (1 + expected.abs()))  # so that nan is wrong
    assert not wrong.any(), (f"{what}: expected {expected.expand(got.shape)[wrong][:4].tolist()}, got "
                             f"{got[wrong][:4].tolist()}")


def given(what, result):
    """The result of a function that a reader may have emptied, to write it anew."""
    assert result is not None, f"{what}: expected a result, got None"
    return result


def folder():
    """A new, empty folder."""
    return Path(tempfile.mkdtemp(dir=TEMPORARY))


def quiet(function, *args):
    """Calls the function; returns (its result or None, exit status or message or 0, stdout, stderr)."""
    out, err, result, status = io.StringIO(), io.StringIO(), None, 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            result = function(*args)
        except SystemExit as stop:
            status = stop.code
    return result, status, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def replaced(owner, name, value):
    """owner.name is `value` for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


mnist = functools.cache(common.load_mnist)  # one copy for all tests


@functools.cache
def cifar10():
    """The embedded sample: x_train (5000, 3, 32, 32), x_test (1000, 3, 32, 32)"""
    return quiet(common.load_cifar10, sample_dir(), "cpu", False, False)[0][:2]


@functools.cache
def sample_dir():
    """A folder with the embedded sample of CIFAR-10, and surely no cache of the whole."""
    return shutil.copy(common.DATA_DIR / "cifar10-sample.png", folder()).removesuffix("cifar10-sample.png")


@functools.cache
def smoke_sets(script):
    """What a smoke run is given: 512 dark images for training, 256 bright ones for the test. So nothing that was
    measured on one set can pass for something measured on the other. Returns x_train, y_train, x_test, y_test."""
    x_train, y_train, x_test, y_test = mnist()
    if script == "vqvae":
        x_train, x_test = cifar10()
        x_train, x_test = 0.5 * x_train, 0.5 * x_test
    return x_train[:512], y_train[:512], 1 - x_test[:256], y_test[:256]


def start(script, *flags):
    """A smoke run of the script on `smoke_sets`; returns what `quiet` returns."""
    x_train, y_train, x_test, y_test = smoke_sets(script)
    with (replaced(common, "load_mnist", lambda *_: (x_train, y_train, x_test, y_test)),
          replaced(common, "load_cifar10", lambda *_, **__: (x_train, x_test, "CIFAR-10 sample"))):
        return quiet(SCRIPTS[script].main, ["--smoke", *flags])


@functools.cache
def smoke(script, *flags):
    """A smoke run that has to succeed: its models, metrics, folder and output."""
    out_dir = folder()
    small = ["--batch-size", "8", "--hidden-dim", "32"] if script == "vqvae" else []
    result, status, out, err = start(script, *small, "--out-dir", str(out_dir), *flags)
    assert status == 0, (script, status, err)
    metrics = json.loads(json.dumps(result[-1], default=str))
    return SimpleNamespace(models=result[:-1], metrics=metrics, folder=out_dir / "smoke" / script, out=out)


def quick(script):
    """Flags that make a smoke run of the script as short as can be."""
    if script == "vqvae":
        return ["--batch-size", "8", "--hidden-dim", "8", "--latent-dim", "4", "--codebook-size", "16"]
    return ["--n-epochs", "1"]


def interrupt(*_):
    """What happens when the user presses Ctrl-C."""
    raise KeyboardInterrupt


# %% Data (common.py)

@contextlib.contextmanager
def no_network(silent=False):
    """Sends torchvision's downloads to a port of this machine where nobody listens; with silent=True, to one that
    takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        if silent:
            server.listen()
        with (replaced(torchvision.datasets.MNIST, "mirrors", [url]), replaced(common, "NETWORK_TIMEOUT", 0.5),
              replaced(torchvision.datasets.CIFAR10, "url", url + "cifar.tar.gz")):
            yield


def test_load_mnist():
    x_train, y_train, x_test, y_test = mnist()
    assert x_train.shape == (60000, 1, 28, 28) and x_test.shape == (10000, 1, 28, 28)
    assert x_train.dtype == torch.float32 and y_train.dtype == torch.int64
    held_out = common.load_mnist(None, "cpu", True)  # validation
    assert all(map(torch.equal, held_out, (x_train[:50000], y_train[:50000], x_train[50000:], y_train[50000:])))
    tmp = folder()
    shutil.copytree(common.DATA_DIR / "MNIST" / "raw", tmp / "MNIST" / "raw")
    for images, labels, train in ((x_train, y_train, True), (x_test, y_test, False)):  # as torchvision reads it
        usual = torchvision.datasets.MNIST(tmp, train, torchvision.transforms.ToTensor(), download=True)
        assert torch.equal(labels, usual.targets)
        assert all(torch.equal(images[i], usual[i][0]) for i in (0, 1, 777, 9999))
    for file in tmp.glob("MNIST/raw/*.gz"):
        file.unlink()
    assert all(map(torch.equal, common.load_mnist(tmp), mnist()))  # the unpacked files alone, too


def idx(numbers, missing=0):
    """A packed IDX file of bytes; the last ones may be missing."""
    head = struct.pack(f">{1 + numbers.ndim}i", 2048 + numbers.ndim, *numbers.shape)
    content = head + numbers.astype(np.uint8).tobytes()
    return gzip.compress(content[:len(content) - missing])


def test_wrong_mnist_files_are_refused():
    images, labels = "t10k-images-idx3", "t10k-labels-idx1"
    sound = {"train-images-idx3": idx(np.zeros((5, 28, 28))), "train-labels-idx1": idx(np.arange(5)),
             images: idx(np.zeros((3, 28, 28))), labels: idx(np.arange(3))}

    def load(files):
        raw = folder() / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, content in files.items():
            if content is not None:
                (raw / f"{name}-ubyte.gz").write_bytes(content)
        with no_network():
            return quiet(common.load_mnist, raw.parents[1])

    assert [len(part) for part in load(sound)[0]] == [5, 5, 3, 3]
    for name, content, word in (
            (labels, None, labels), (labels, b"no gzip", labels), (labels, sound[labels][:-9], labels),
            (images, idx(np.zeros((3, 28, 28)), missing=1), images),
            (images, idx(np.zeros((3, 56, 56))), "28 x 28"),  # as many bytes as twelve images
            (images, idx(np.zeros((4, 28, 28))), "4 images and 3 labels"),
            (labels, idx(np.array([1, 2, 26])), "up to 26")):
        message = str(load({**sound, name: content})[1])
        assert message.startswith("error: ") and word in message, message


def test_load_cifar10():
    for silent, cause in ((False, "refused"), (True, "timed out")):  # a network that refuses, one that never answers
        with no_network(silent):
            (x_train, x_test, source), _, _, err = quiet(common.load_cifar10, sample_dir())
        assert cause in err and "embedded sample" in err and source == "CIFAR-10 sample", err
        assert socket.getdefaulttimeout() is None  # as it was before
    assert x_train.shape == (5000, 3, 32, 32) and x_test.shape == (1000, 3, 32, 32)
    # The first training image is the well-known frog, the first test image the cat.
    expect("the frog's first two pixels", x_train[0, :, 0, :2] * 255, [[59, 43], [62, 46], [63, 45]])
    expect("the cat's first pixel", x_test[0, :, 0, 0] * 255, [158, 112, 49])
    kept, held_out, _ = quiet(common.load_cifar10, sample_dir(), "cpu", True, False)[0]  # validation
    assert torch.equal(kept, x_train[:4500]) and torch.equal(held_out, x_train[4500:])


def test_load_cifar10_from_each_source():
    images = np.zeros((500, 32, 32, 3), np.uint8)
    images[1, 2, 3] = [10, 20, 30]
    data_dir = folder()
    with replaced(common, "_download", lambda *_: [images, images[:100]]):
        downloaded = common.load_cifar10(data_dir)
    cached = common.load_cifar10(data_dir, download=False)  # what was downloaded is kept
    unpacked = folder()
    (unpacked / "cifar-10-batches-py").mkdir()
    message = str(quiet(common.load_cifar10, unpacked, "cpu", False, False)[1])  # nothing is in it yet
    assert "cifar-10-batches-py cannot be read" in message, message
    with replaced(torchvision.datasets, "CIFAR10",
                  lambda root, train: SimpleNamespace(data=images if train and root == unpacked else images[:100])):
        read_by_torchvision = common.load_cifar10(unpacked)
    for x_train, x_test, source in (downloaded, cached, read_by_torchvision):
        assert x_train.shape == (500, 3, 32, 32) and x_test.shape == (100, 3, 32, 32) and source == "CIFAR-10"
        expect("a pixel", x_train[1, :, 2, 3] * 255, [10, 20, 30])

    cache = data_dir / "cifar10.npz"
    for wrong in ({"x_train": images, "x_test": images}, {"train_images": images, "test_images": images / 255},
                  {"train_images": images.transpose(0, 3, 1, 2), "test_images": images}, None):
        if wrong:
            np.savez(cache, **wrong)
        else:
            cache.write_bytes(b"PK\x03\x04 half a file")
        message = str(quiet(common.load_cifar10, data_dir)[1])
        assert message.startswith(f"error: {cache} cannot be read ("), (wrong, message)


def test_a_mistyped_data_dir_creates_and_downloads_nothing():
    missing = folder() / "dtaa"
    for loader in (common.load_mnist, common.load_cifar10):
        with no_network(silent=True):
            _, message, _, err = quiet(loader, missing)
        assert message.startswith("error: ") and str(missing) in message and not err and not missing.exists()


def test_minibatches():
    a = torch.arange(10)
    torch.manual_seed(0)
    epochs = [list(common.minibatches(4, a, 2 * a)) for _ in range(2)]
    for epoch in epochs:  # everything once
        assert [len(x) for x, _ in epoch] == [4, 4, 2] and all(torch.equal(2 * x, y) for x, y in epoch)
        assert sorted(torch.cat([x for x, _ in epoch]).tolist()) == list(range(10))
    assert epochs[0][0][0].tolist() != epochs[1][0][0].tolist() != [0, 1, 2, 3]  # a new order at every call


# %% ae.py and denoise_ae.py

def test_criterion():
    x_hat, x = torch.rand(3, 1, 2, 2), torch.rand(3, 1, 2, 2)
    by_hand = sum((a - b) ** 2 for a, b in zip(x_hat.flatten().tolist(), x.flatten().tolist())) / (3 * 4)
    expect("ae.criterion, the mean over images and pixels", ae.criterion(x_hat, x), by_hand)
    expect("denoise_ae.criterion", denoise_ae.criterion(x_hat, x), by_hand)


def test_pca_mse():
    x_train, x_test = mnist()[0][:300], mnist()[2][:100]
    train, test = x_train.flatten(1).double(), x_test.flatten(1).double()
    _, _, v = torch.linalg.svd(train - train.mean(0), full_matrices=False)
    for k in (1, 5):
        x_hat = train.mean(0) + (test - train.mean(0)) @ v[:k].T @ v[:k]
        expect(f"pca_mse with {k} components", ae.pca_mse(x_train, x_test, k), F.mse_loss(x_hat, test))
    expect("pca_mse with more components than pixels", ae.pca_mse(x_train, x_test, 1000), 0)


def test_add_noise():
    torch.manual_seed(0)
    grey = torch.full((200, 1, 28, 28), 0.5)
    noisy = given("add_noise", denoise_ae.add_noise(grey))
    expect("add_noise: the least and the greatest pixel", [noisy.min(), noisy.max()], [0, 1])
    inside = ((noisy > 0) & (noisy < 1)).float().mean()  # within one standard deviation
    expect("add_noise: the share of grey pixels that the clipping leaves alone", inside, math.erf(0.5**0.5), 0.01)
    assert not torch.equal(noisy, denoise_ae.add_noise(grey)), "add_noise: expected new noise at every call"
    assert torch.equal(*(denoise_ae.add_noise(grey, torch.Generator().manual_seed(3)) for _ in range(2)))


def test_training_adds_noise_to_the_input_only_and_anew_in_every_batch():
    x, seen, criterion = mnist()[0][:6], [], denoise_ae.criterion
    model = torch.nn.Conv2d(1, 1, 1, bias=False)  # returns what it is given
    torch.nn.init.ones_(model.weight)

    def noted(x_hat, x):
        if model.training:
            seen.append((x_hat.detach(), x))
        return criterion(x_hat, x)

    args = denoise_ae.parser.parse_args(["--n-epochs", "2", "--batch-size", "10", "--lr", "1e-9"])
    with replaced(denoise_ae, "criterion", noted):
        quiet(denoise_ae.train, model, x, x, x, args)
    for noisy, clean in seen:
        assert sorted(clean.flatten(1).sum(1).tolist()) == sorted(x.flatten(1).sum(1).tolist())
        assert 0.08 < F.mse_loss(noisy, clean) < 0.14  # what the noise costs, after clipping
    (one, _), (other, _) = seen  # the two epochs have other noise
    assert ((one == other) & (one > 0) & (one < 1)).float().mean() < 0.01


def test_gaussian_filter():
    x, other, fits = mnist()[2][:200], mnist()[2][200:300], []
    noisy, noisy_other = (denoise_ae.add_noise(images, torch.Generator().manual_seed(0)) for images in (x, other))
    for sigma in (0.6, 0.8, 1.0, 1.2, 1.4, 1.6):
        y, y_other = (torchvision.transforms.functional.gaussian_blur(t, 11, sigma) for t in (noisy, noisy_other))
        a, b = np.polyfit(y.flatten().double(), x.flatten().double(), 1)
        fits.append((F.mse_loss((a * y + b).clamp(0, 1), x), sigma, (a * y_other + b).clamp(0, 1)))
    _, sigma, expected = min(fits, key=lambda fit: fit[0])
    x_hat, best = given("gaussian_filter", denoise_ae.gaussian_filter(x, noisy, noisy_other))
    expect("gaussian_filter: sigma", best, sigma)
    expect("gaussian_filter: x_hat", x_hat, expected, 1e-4)


# %% vae.py and cvae.py

def test_kl_divergence():
    mu, logvar, normal = torch.randn(5, 3), torch.randn(5, 3), torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mu, (0.5 * logvar).exp()), normal(0.0, 1.0))
    expect("kl_divergence", vae.myVAE(latent_dim=3).kl_divergence(mu, logvar), expected)


def test_loss_function_of_the_vae():
    torch.manual_seed(0)
    x_hat, x, mu, logvar = torch.rand(5, 1, 28, 28), torch.rand(5, 1, 28, 28), torch.randn(5, 3), torch.randn(5, 3)
    bce = -(x * x_hat.log() + (1 - x) * (1 - x_hat).log()).double().sum(dim=(1, 2, 3)).mean()
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1).mean()
    terms = given("loss_function", vae.myVAE(latent_dim=3).loss_function(x_hat, x, mu, logvar))
    for key, expected in (("bce", bce), ("kl", kl), ("loss", bce + kl)):
        expect(f"loss_function: {key}", terms[key], expected)
    # It stays finite where a pixel is surely black and should be white, and where a variance is huge.
    model = vae.myVAE(latent_dim=3)
    torch.nn.init.constant_(model.logvar_layer.bias, 1e6)
    x = torch.ones(2, 1, 28, 28)
    _, mu, logvar = model(x)
    terms = model.loss_function(torch.zeros_like(x), x, mu, logvar)
    expect("loss_function: bce of black pixels that should be white", terms["bce"], 78400)
    assert torch.isfinite(terms["kl"])


def test_bce_floor():
    x = torch.rand(5, 1, 28, 28)
    expect("bce_floor", vae.bce_floor(x), -(x * x.log() + (1 - x) * (1 - x).log()).sum() / 5, 1e-4)
    expect("bce_floor of black and white", vae.bce_floor(x.round()), 0)


def test_reparameterize():
    torch.manual_seed(0)
    mu = torch.tensor([[1.0, -2.0]]).repeat(100000, 1).requires_grad_()
    logvar = torch.tensor([[0.0, math.log(4)]]).repeat(100000, 1).requires_grad_()
    z = given("reparameterize", vae.myVAE(latent_dim=2).reparameterize(mu, logvar))
    expect("reparameterize: the mean of z for mu = 1 and -2", z.mean(0), [1, -2], 0.02)
    expect("reparameterize: the standard deviation of z for logvar = 0 and log 4", z.std(0), [1, 2], 0.02)
    assert z.requires_grad, "reparameterize: expected gradients to reach mu and logvar"
    z.sum().backward()
    expect("reparameterize: dz/dmu", mu.grad, torch.ones_like(mu))
    expect("reparameterize: dz/dlogvar, (z - mu) / 2", logvar.grad, (z - mu) / 2)


def test_log_bernoulli():
    x_hat, x = torch.rand(3, 2, 784), torch.rand(2, 784)
    expected = -F.binary_cross_entropy(x_hat, x.expand(3, 2, 784), reduction="none").sum(2)
    for module in (vae, cvae_structured):
        expect("log_bernoulli", module.log_bernoulli(x_hat, x), expected, 1e-4)
        expect("log_bernoulli of a black pixel that should be white",
               module.log_bernoulli(torch.zeros(1, 1, 1), torch.ones(1, 1)), [[-100]])


def test_importance_weighted_nll():
    torch.manual_seed(0)
    model, x = vae.myVAE(latent_dim=1, hidden_dim=8), mnist()[2][:4]
    with torch.no_grad():
        model.decoder[0].weight.mul_(3)  # so that z matters
        z = torch.linspace(-8, 8, 4001).unsqueeze(1)  # the integral over z, by quadrature
        log_p_x = vae.log_bernoulli(model.decode(z).reshape(4001, 1, 784), x.flatten(1)).T.double()  # (4, 4001)
        log_joint = log_p_x + torch.distributions.Normal(0, 1).log_prob(z).squeeze(1)
        exact = -(torch.logsumexp(log_joint, dim=1) + math.log(16 / 4000)).mean()
    assert log_p_x.std() > 1
    expect("importance_weighted_nll", vae.importance_weighted_nll(model, x, 20000), exact, 3e-5)
    test = vae.evaluate(model, x.repeat(251, 1, 1, 1))  # no multiple of the batches
    assert test["loss"] > exact, "evaluate: expected a bound above -log p(x)"
    expect("evaluate: bce + kl", test["bce"] + test["kl"], test["loss"])
    expect("evaluate: kl", test["kl"], model.kl_divergence(*model.encode(x)).sum(1).mean())


def test_one_hot():
    expect("one_hot", cvae.one_hot(torch.tensor([2, 0]), 3), [[0, 0, 1], [1, 0, 0]])
    model, x, z = cvae.myVAE(conditional_vec_dim=10), mnist()[0][:1].repeat(10, 1, 1, 1), torch.zeros(10, 16)
    c = cvae.condition(model, torch.arange(10))
    for answers in (model.encode(x, c)[0], model.decode(z, c).flatten(1)):  # encoder and decoder both see the label
        assert len(answers.unique(dim=0)) == 10
    assert cvae.condition(vae.myVAE(), torch.arange(3)) is None


def test_myVAE_is_the_same_in_three_scripts():
    assert len({inspect.getsource(module.myVAE) for module in (vae, cvae, cvae_structured)}) == 1
    # Without a label, cvae.py's training and evaluation are those of vae.py: same seed, same numbers.
    without = smoke("cvae", "--no-label", "--latent-dim", "16", "--batch-size", "64", "--lr", "3e-3").metrics
    for key in ("train_loss", "test_loss", "test_bce", "test_kl"):
        expect(f"cvae.py --no-label: {key}", without[key], smoke("vae").metrics[key], 0)


# %% cvae_structured.py

def test_visible_pixels():
    corners = {"lower left": 27 * 28, "upper left": 0, "upper right": 27, "lower right": 783}
    for quadrants, expected in ((1, {"lower left"}), (2, {"lower left", "upper left"}),
                                (3, {"lower left", "upper left", "upper right"})):
        visible = given("visible_pixels", cvae_structured.visible_pixels(quadrants))
        assert {name for name, place in corners.items() if visible[place]} == expected, quadrants
        assert visible.shape == (784,) and int(visible.sum()) == 196 * quadrants


def test_loss_terms():
    torch.manual_seed(0)
    x, visible, normal = mnist()[0][:5], cvae_structured.visible_pixels(2), torch.distributions.Normal
    c = x[:, 0, :, :14].flatten(1)
    for kind in (cvae_structured.BaselineNN, cvae_structured.myVAE, cvae_structured.LearnedPriorVAE):
        model, kl = kind(conditional_vec_dim=392), 0
        with torch.random.fork_rng():
            terms = given("loss_terms", cvae_structured.loss_terms(model, x, visible))
        if kind is cvae_structured.BaselineNN:
            x_hat = model(c)
        else:
            x_hat, mu, logvar = model(x, c)
            prior = normal(0.0, 1.0)
            if kind is cvae_structured.LearnedPriorVAE:
                m, log_s2 = model.prior(c).chunk(2, dim=1)
                prior = normal(m, (0.5 * log_s2).exp())
            kl = torch.distributions.kl_divergence(normal(mu, (0.5 * logvar).exp()), prior).sum() / 5
        bce = F.binary_cross_entropy(x_hat[:, 0, :, 14:], x[:, 0, :, 14:], reduction="sum") / 5  # only unseen pixels
        for key, expected in (("kl", kl), ("bce", bce), ("loss", bce + kl)):
            expect(f"loss_terms of {kind.__name__}: {key}", terms[key], expected)


@torch.no_grad()
def test_likelihood_and_best_of_k():
    torch.manual_seed(0)
    x, visible = mnist()[2][:4], cvae_structured.visible_pixels(1)
    model = cvae_structured.LearnedPriorVAE(latent_dim=1, hidden_dim=8, conditional_vec_dim=196)
    baseline = cvae_structured.BaselineNN(hidden_dim=8)
    c, unseen = x.flatten(1)[:, visible], x.flatten(1)[:, ~visible]
    model.decoder[0].weight.mul_(3)  # so that z matters
    model.decoder[4].weight.mul_(6)
    model.mu_layer.bias.fill_(0.5)  # and q(z|x,c) is not the prior
    model.prior[2].bias.copy_(torch.tensor([-0.3, 0.2]))  # nor is this one N(0, 1)
    m, log_s2 = model.prior(c).chunk(2, dim=1)  # (4, 1)
    z, joint = torch.linspace(-8, 8, 2001).unsqueeze(1), []
    for i in range(4):  # the integral over z, by quadrature
        u_hat = model.decode(z, c[i].expand(2001, -1)).flatten(1)[:, ~visible].double()  # (2001, 588)
        log_p_u = (unseen[i] * u_hat.log() + (1 - unseen[i]) * (1 - u_hat).log()).sum(1)
        joint.append(log_p_u + torch.distributions.Normal(m[i], (0.5 * log_s2[i]).exp()).log_prob(z).squeeze(1))
    exact = -(torch.logsumexp(torch.stack(joint), dim=1) + math.log(16 / 2000)).mean()
    estimates = [given("likelihood", cvae_structured.likelihood(model, x, visible, 1000)) for _ in range(10)]
    for key in ("importance_nll_nats", "monte_carlo_nll_nats"):
        expect(f"likelihood: {key}", np.mean([estimate[key] for estimate in estimates]), exact, 1e-4)

    results = [given("best_of_k", cvae_structured.best_of_k(model, baseline, x, visible, 1000)) for _ in range(10)]
    samples = torch.stack([model.decode(m + (0.5 * log_s2).exp() * torch.randn(4, 1), c).flatten(1)[:, ~visible]
                           for _ in range(2000)])
    answer = baseline(c).flatten(1)[:, ~visible]
    for key, expected, tolerance in (
            ("sample_std", samples.std(0).mean(), 5e-3),
            ("mean_of_k_mse", ((samples.mean(0) - unseen) ** 2).mean(), 1e-4),
            ("baseline_mse", ((answer - unseen) ** 2).mean(), 1e-5)):
        expect(f"best_of_k: {key}", np.mean([result[key] for result in results]), expected, tolerance)
    best = results[0]["best_of_k_mse"]
    expect("best_of_k: best_of_k_mse of one sample", best[0], ((samples - unseen) ** 2).mean(), 0.02)
    of_all = ((samples[:1000] - unseen) ** 2).mean(-1).min(0).values.mean()
    best_of_all = np.mean([result["best_of_k_mse"][-1] for result in results])
    expect("best_of_k: best_of_k_mse of all samples", best_of_all, of_all, 0.002)
    assert best == sorted(best, reverse=True) and best[0] > best[-1]
    between = torch.nn.Identity()  # a baseline that is worse than the best sample, and better than the first
    between.forward = lambda c: x + (0.05 * best[0] + 0.95 * best[-1]) ** 0.5
    result = cvae_structured.best_of_k(model, between, x, visible, 1000)
    k = result["beats_baseline_at_k"]
    assert result["best_of_k_mse"][k - 1] < result["baseline_mse"] <= result["best_of_k_mse"][k - 2], k


# %% vqvae.py

def test_nearest():
    torch.manual_seed(0)
    for k, d in ((512, 64), (7, 3), (1, 1)):
        quantizer = vqvae.VectorQuantizer(k, d).eval()
        z = torch.randn(2, d, 4, 5)
        vectors = z.permute(0, 2, 3, 1).reshape(-1, d)
        expected = torch.tensor([int(((v - quantizer.codebook) ** 2).sum(1).argmin()) for v in vectors])
        expect("nearest", quantizer.nearest(vectors), expected)
        e, index = quantizer(z)
        assert torch.equal(index.flatten(), expected)
        assert torch.equal(e.permute(0, 2, 3, 1).reshape(-1, d), quantizer.codebook[expected])


def test_straight_through():
    torch.manual_seed(0)
    model = vqvae.VQVAE(num_hiddens=16).eval()
    model.decode = lambda e: (e**3).sum()  # takes the decoder's place: its gradient is known
    x_hat, z, e, _ = model(cifar10()[0][:2])
    z.retain_grad()
    x_hat.backward()
    expect("straight-through: what the decoder makes of e", x_hat, (e**3).sum(), 1e-4)
    expect("straight-through: z's gradient, that of its code", z.grad, 3 * e**2, 1e-4)
    assert not torch.allclose(z, e)


def test_update():
    torch.manual_seed(0)
    quantizer = vqvae.VectorQuantizer(5, 3, decay=0.9)
    count, total = np.zeros(5), quantizer.ema_sum.double().numpy().copy()
    assert not np.allclose(total, quantizer.codebook.detach(), atol=0.1)  # two draws
    for _ in range(4):
        z = torch.randn(2, 3, 4, 4)
        before = quantizer.codebook.detach().clone()
        e, index = quantizer(z)
        assert torch.equal(e.permute(0, 2, 3, 1), before[index])  # the code before the update
        vectors = z.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
        one_hot = np.eye(5)[index.flatten().numpy()]  # (M, K): the usual way
        count = 0.9 * count + 0.1 * one_hot.sum(0)
        total = 0.9 * total + 0.1 * one_hot.T @ vectors
        count = (count + 1e-5) / (count.sum() + 5e-5) * count.sum()
        expect("update: ema_count", quantizer.ema_count, count)
        expect("update: ema_sum", quantizer.ema_sum, total, 1e-4)
        expect("update: codebook", quantizer.codebook, total / count[:, None], 1e-4)
    for fixed in (quantizer.eval(), vqvae.VectorQuantizer(5, 3, ema=False)):
        before = fixed.codebook.detach().clone()
        fixed(torch.randn(2, 3, 4, 4))  # nothing is learned from test images, or where the loss teaches the codes
        assert torch.equal(fixed.codebook, before) and fixed.codebook.requires_grad == (not fixed.ema)


@torch.no_grad()
def test_revive():
    torch.manual_seed(0)
    for ema in (True, False):
        quantizer, z = vqvae.VectorQuantizer(8, 3, ema=ema, revive_until=2), torch.randn(4, 3, 4, 4)
        quantizer.codebook[1:] += 1000  # nothing will ever be near these
        quantizer.ema_sum.copy_(quantizer.codebook)
        quantizer(z)
        codes, vectors = quantizer.codebook, z.permute(0, 2, 3, 1).reshape(-1, 3)
        assert all((code == vectors).all(1).any() for code in codes[1:]), "revive: expected codes out of z"
        assert len(codes.unique(dim=0)) == 8, "revive: expected eight different codes"  # no z is drawn twice
        # The average goes on from there: count and sum say the same as the code.
        expect("revive: ema_sum / ema_count", quantizer.ema_sum[1:] / quantizer.ema_count[1:, None], codes[1:])
        kept = codes.clone()
        used = quantizer(z)[1].unique()
        assert len(used) > 1 and (ema or torch.equal(quantizer.codebook[used], kept[used]))  # the living are let be
        quantizer.ema_count.fill_(0)
        before = quantizer.codebook.clone()
        quantizer.revive(vectors)
        assert torch.equal(quantizer.codebook, before), "revive: expected no revival after revive_until"
        share = len(vectors) / 8
        quantizer.revive_until = 9
        quantizer.ema_count.copy_(share * torch.tensor([0.39, 0.41] * 4))
        quantizer.revive(vectors)
        same = (quantizer.codebook == before).all(1).tolist()
        assert same == [False, True] * 4, "revive: expected new codes below 0.4 times the fair share, and only there"


def test_loss_function_of_the_vqvae_and_its_stop_gradients():
    torch.manual_seed(0)
    for ema in (True, False):
        model, x = vqvae.VQVAE(16, commitment_cost=0.4, ema=ema, data_variance=0.07).eval(), cifar10()[0][:4]
        x_hat, z, e, _ = output = model(x)
        terms = given("loss_function", model.loss_function(output, x))
        between = ((z - e).detach().double() ** 2).mean()
        expected = {"reconstruction": ((x_hat - x).detach().double() ** 2).mean() / 0.07, "commitment": between,
                    "codebook": between}
        expected["loss"] = expected["reconstruction"] + 0.4 * between + (0 if ema else between)
        for key, value in expected.items():
            expect(f"loss_function: {key}", terms[key], value)
        weights = {"encoder": model.encoder[0].weight, "decoder": model.decoder[0].weight}
        teaches = {"reconstruction": {"encoder", "decoder"}, "commitment": {"encoder"}}
        if not ema:
            weights["codebook"] = model.quantizer.codebook
            teaches["codebook"] = {"codebook"}
        for term, learns in teaches.items():
            grads = torch.autograd.grad(terms[term], weights.values(), retain_graph=True, allow_unused=True)
            reached = {name for name, grad in zip(weights, grads) if grad is not None and grad.abs().max() > 0}
            assert reached == learns, f"{term}: expected gradients in {learns}, got them in {reached}"


def test_ResidualStack():
    torch.manual_seed(0)
    for in_place in (False, True):
        stack, x = vqvae.ResidualStack(6, 4, 2, relu_skip=in_place), torch.randn(2, 6, 5, 5)
        expected = x
        for conv3, _, conv1 in stack.layers:
            # If the first ReLU works in place, as is usual, it changes the skip connection as well.
            inside = torch.nn.Sequential(torch.nn.ReLU(in_place), conv3, torch.nn.ReLU(in_place), conv1)
            expected = expected.clone()
            expected = expected + inside(expected)
        expect("ResidualStack", stack(x), expected.relu())


@torch.no_grad()
def test_Prior():
    torch.manual_seed(0)
    prior, index = vqvae.Prior(num_embeddings=20).eval(), torch.randint(20, (503, 64))
    logits = prior(index)
    for t in (0, 1, 30, 63):
        changed = index[:2].clone()
        changed[:, t] = (changed[:, t] + 1) % 20
        difference = (prior(changed) - logits[:2]).abs().amax(dim=(0, 2))
        assert difference[:t + 1].max() < 1e-5, f"Prior: code {t} changes a distribution up to its own"
        assert t == 63 or difference[t + 1:].min() > 1e-5, f"Prior: code {t} does not reach all later ones"
    bits = -torch.log2(logits.softmax(-1).gather(2, index.unsqueeze(2))).mean()
    expect("Prior.loss_function", prior.loss_function(logits, index), bits)
    expect("evaluate_prior", vqvae.evaluate_prior(prior, index), bits)
    prior.token.weight[:20] += torch.randn(128)  # what stands for codes does not stand for the start
    expect("Prior: the first code's distribution", prior(index[:1])[0, 0], logits[0, 0])
    codebook = torch.randn(20, 8)
    codebook[7] = codebook[3] + 1e-3
    token = vqvae.Prior(num_embeddings=20, codebook=codebook).token.weight  # near codes start out alike
    assert torch.cdist(token, token).fill_diagonal_(math.inf).argmin() == 3 * 21 + 7 and 0.5 < token.std() < 2
    # A prior that is sure of "the code before, plus one" counts; one that is not draws by its probabilities.
    prior.forward = lambda index: 1e4 * F.one_hot(F.pad(index[:, :-1] + 1, (1, 0)) % 20, 20).float()
    assert torch.equal(given("Prior.sample", prior.sample(3)), (torch.arange(64) % 20).reshape(8, 8).expand(3, 8, 8))
    prior.forward = lambda index: torch.tensor([0.6, 0.3, 0.1]).log().expand(*index.shape, 3)
    expect("Prior.sample", torch.bincount(prior.sample(500).flatten()) / 32000, [0.6, 0.3, 0.1], 0.02)


def start_vqvae(out_dir, *flags):
    """A smoke run of vqvae.py without figures; returns what `quiet` returns."""
    with replaced(vqvae, "make_figures", lambda *_: {}):
        return start("vqvae", "--out-dir", str(out_dir), *flags)


def interrupted(kind, at, *flags):
    """vqvae.py, stopped from the keyboard in the update `at` of the VQVAE or the Prior; returns its --out-dir."""
    loss_function, updates, out_dir = kind.loss_function, [], folder()

    def stopping(self, *args):
        if torch.is_grad_enabled():  # an update, and no evaluation
            updates.append(1)
            if len(updates) == at:
                interrupt()
        return loss_function(self, *args)

    with (replaced(kind, "loss_function", stopping), replaced(vqvae, "LOG_EVERY", 1),
          contextlib.suppress(KeyboardInterrupt)):
        start_vqvae(out_dir, *quick("vqvae"), *flags)
    assert len(updates) == at
    return out_dir


def test_resume_gives_the_numbers_of_an_uninterrupted_run():
    whole = folder()
    (_, _, expected), *_ = start_vqvae(whole, *quick("vqvae"))
    for kind, at in ((vqvae.VQVAE, 3), (vqvae.Prior, 2)):
        stopped = interrupted(kind, at)
        (_, _, resumed), *_ = start_vqvae(stopped, "--resume")  # no other flag
        for key in ("train_loss", "test_loss", "test_perplexity"):
            assert resumed[key] == expected[key], key
        assert resumed["prior"]["test_bits_per_code"] == expected["prior"]["test_bits_per_code"]
        for name in ("model.pt", "prior.pt"):
            states = [torch.load(out_dir / "smoke" / "vqvae" / name, weights_only=True)["state_dict"]
                      for out_dir in (whole, stopped)]
            assert all(map(torch.equal, *(state.values() for state in states))), name
        assert start_vqvae(stopped, "--resume")[1] == 2, "nothing to resume: expected an error"


def test_resume_with_other_flags():
    stopped = interrupted(vqvae.VQVAE, 3, "--no-prior")
    checkpoint = stopped / "smoke" / "vqvae" / "checkpoint-model.pt"
    good = checkpoint.read_bytes()
    for flags, word in (([], "--resume continues it"), (["--resume", "--latent-dim", "5"], "latent_dim = 4"),
                        (["--resume", "--validation"], "validation = False"), (["--resume", "--seed", "1"], "seed = 0"),
                        (["--resume", "--n-updates", "2"], "n_updates = 3")):
        _, status, _, err = start_vqvae(stopped, *flags)
        assert status == 2 and word in err and checkpoint.read_bytes() == good, (flags, status, err)  # harmless
    assert "smaller --lr" in str(start_vqvae(stopped, "--resume", "--lr", "1e30")[1])
    (_, prior, metrics), *_ = start_vqvae(stopped, "--resume", "--lr", "1e-4")  # the advice works
    assert prior is None and metrics["settings"]["lr"] == 1e-4 and metrics["history"]["update"] == [1, 2, 3]
    # A prior that has learned the codes of another model does not survive that model.
    leftover = stopped / "smoke" / "vqvae" / "checkpoint-prior.pt"
    leftover.write_bytes(b"an old one")
    with replaced(vqvae, "train_prior", interrupt), contextlib.suppress(KeyboardInterrupt):
        start_vqvae(stopped, *quick("vqvae"))
    assert not leftover.exists()


def test_reference_is_a_preset():
    with replaced(torch.optim.lr_scheduler, "OneCycleLR", None):  # the rate stays as it is
        reference = smoke("vqvae", "--reference", "--no-prior", "--num-residual-layers", "1")
    settings = reference.metrics["settings"]
    assert reference.models[1] is None and settings["lr"] == 1e-3 and settings["batch_size"] == 8  # flags still win
    config = torch.load(reference.folder / "model.pt", weights_only=True)["config"]
    assert config["relu_skip"] and config["revive_until"] == 0 and not vqvae.parser.parse_args([]).reference


# %% Every script from end to end

def test_smoke_runs():
    budgets = {"ae": 1_500_000, "denoise_ae": 15_000, "vae": 1_500_000, "cvae": 1_500_000}  # parameters
    for script, module in SCRIPTS.items():
        run = smoke(script)
        files = {path.name for path in run.folder.iterdir()}
        promised = set(re.findall(r"\w+\.(?:png|pt|json)", module.__doc__.split("Writes:")[1].split("while it runs")[0]
                                  .split("Report:")[0]))
        later = {"latent_space.png", "latent_space_images.png"} if script == "vae" else set()  # with --latent-dim 2
        assert files == promised - later, (script, files ^ promised)
        for file in run.folder.glob("*.png"):
            image = matplotlib.image.imread(file)
            assert 800 <= image.shape[1] <= 1500 and image[..., :3].std() > 0.01, (file, image.shape)
        assert json.loads((run.folder / "metrics.json").read_text(encoding="utf-8")) == run.metrics
        losses = run.metrics["history"]["train_loss"]
        assert losses[-1] < losses[0] or script == "vqvae", script
        for name, p in (named for model in run.models for named in model.named_parameters()):
            assert not p.requires_grad or p.grad is not None and p.grad.abs().max() > 0, (script, name)
        n = sum(p.numel() for p in run.models[0].parameters() if p.requires_grad)
        assert run.metrics["n_parameters"] == n and not common.plt.get_fignums()  # no figure stays open
        printed = re.findall(r"^Trainable params: ([\d,]+)", run.out, re.MULTILINE)
        assert sum(int(count.replace(",", "")) for count in printed) == n
        assert script not in budgets or budgets[script] / 2 < n <= budgets[script], (script, n)


def test_same_seed_same_numbers():
    # vae.py is held against cvae.py above, and vqvae.py against a resumed run.
    for script in ("ae", "denoise_ae", "cvae_structured"):
        again = smoke(script, "--seed", "0").metrics
        assert {**again, "settings": None} == {**smoke(script).metrics, "settings": None}, script
    assert smoke("ae", "--seed", "1").metrics["test_loss"] != smoke("ae").metrics["test_loss"]


def test_flags():
    asked, load_cifar10 = [], common.load_cifar10
    with (replaced(common, "load_mnist", lambda *args: asked.append(args[2]) or mnist()),
          replaced(common, "load_cifar10", lambda *args, **more: asked.append(args[2]) or load_cifar10(*args, **more))):
        for script, module in SCRIPTS.items():
            extreme = [*quick(script), "--validation", "--latent-dim", "1", "--batch-size", "100000"]
            if script == "vqvae":
                extreme += ["--batch-size", "8", "--data-dir", sample_dir(), "--codebook-loss", "--no-prior"]
            result, status, *_ = quiet(module.main, ["--smoke", "--out-dir", str(folder()), *extreme])
            assert status == 0 and len(result[-1]["history"]["test_loss"]) == 1, script
    assert result[-1]["dataset"] == "CIFAR-10 sample" and asked == 6 * [True]  # --validation reaches the loader
    for script in SCRIPTS:
        wrong = [["--batch-size", "0"], ["--lr", "nan"], ["--hidden-dim", "x"], ["--device", "none-such"]]
        if script == "vqvae":
            wrong += [["--decay", "1"], ["--decay", "-1"], ["--commitment-cost", "-1"], ["--stop-at", "0"]]
        for flags in wrong:
            _, status, _, err = start(script, "--out-dir", str(TEMPORARY), *flags)
            assert status == 2 and flags[0] in err.splitlines()[-1], (script, flags, err)


def test_a_loss_that_diverges_ends_with_advice():
    for script in SCRIPTS:
        _, status, *_ = start(script, *quick(script), "--lr", "1e30", "--out-dir", str(folder()))
        assert "try a smaller --lr" in str(status), (script, status)


def test_what_was_trained_is_saved_before_anything_else():
    for script, function, file in (
            ("ae", "pca_mse", "model.pt"), ("denoise_ae", "gaussian_filter", "model.pt"),
            ("vae", "importance_weighted_nll", "model.pt"), ("cvae", "probe_latents", "model.pt"),
            ("cvae_structured", "likelihood", "model.pt"), ("vqvae", "encode_all", "model.pt"),
            ("vqvae", "make_figures", "prior.pt")):
        out_dir = folder()
        with replaced(SCRIPTS[script], function, interrupt), contextlib.suppress(KeyboardInterrupt):
            start(script, *quick(script), "--out-dir", str(out_dir))
        assert (out_dir / "smoke" / script / file).exists(), (script, function)


def test_a_folder_holds_one_run():
    for script, flags, others, gone in (
            ("ae", ["--latent-dim", "2"], ["--latent-dim", "3"], {"latent_space.png", "latent_space_images.png"}),
            ("vae", ["--latent-dim", "2"], ["--latent-dim", "3"], {"latent_space.png", "latent_space_images.png"}),
            ("cvae", [], ["--no-label"], {"digits.png", "style.png"}),
            ("vqvae", [], ["--no-prior"], {"prior.pt", "samples.png"})):
        out_dir, files = folder(), []
        for more in (flags, others):
            start(script, *quick(script), "--out-dir", str(out_dir), *more)
            files.append({path.name for path in (out_dir / "smoke" / script).iterdir()})
        assert files[0] - files[1] == gone, script


def test_a_notebook_kernels_own_flags_are_not_the_users():
    for argv, expected in ((["vae.py", "--smoke"], ["--smoke"]), (["-c", "--smoke"], ["--smoke"]),
                           (["/site-packages/ipykernel_launcher.py", "-f", "kernel.json"], []),
                           (["/site-packages/ipykernel/__main__.py", "-f", "kernel.json"], []),
                           (["/site-packages/colab_kernel_launcher.py", "-f", "kernel.json"], [])):
        with replaced(sys, "argv", argv):
            assert common.flags() == expected, argv  # whatever else is loaded: %run sets argv as a shell does
            assert common.flags(["--seed", "1"]) == ["--seed", "1"]


def test_a_renamed_copy_elsewhere_reads_its_flags_and_a_smoke_run_spares_the_real_one():
    tmp = folder()
    for file, copy in (("vae.py", "my_vae.py"), ("common.py", "common.py")):
        shutil.copy(ROOT / file, tmp / copy)
    real = tmp / "runs" / "vae"
    real.mkdir(parents=True)
    (real / "model.pt").write_text("days of training", encoding="utf-8")
    run = subprocess.run([sys.executable, "my_vae.py", "--smoke", "--n-epochs", "1", "--data-dir", common.DATA_DIR],
                         cwd=tmp, encoding="utf-8", capture_output=True, env={**os.environ, "MPLBACKEND": "Agg"})
    assert run.returncode == 0 and "epoch  1/1 " in run.stdout, run.stderr
    assert (real.parent / "smoke" / "vae" / "model.pt").exists()
    assert [path.read_text(encoding="utf-8") for path in real.iterdir()] == ["days of training"]


def run_tests(module):
    """Runs the tests of a module, its globals(), whose names have all words of the command line; ends the program."""
    passed = failed = skipped = 0
    tests = {name: test for name, test in module.items()
             if name.startswith("test_") and all(word in name for word in sys.argv[1:])}
    for name, test in tests.items():
        started = time.perf_counter()
        try:
            test()
            passed += 1
            verdict = "ok     "
        except unittest.SkipTest as reason:
            skipped += 1
            verdict = "SKIPPED"
            name = f"{name}: {reason}"
        except (Exception, SystemExit):  # data that is missing ends in a SystemExit
            failed += 1
            verdict = "FAILED "
            traceback.print_exc()
        print(f"{verdict} {time.perf_counter() - started:5.1f} s  {name}", flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(failed > 0 or not tests)


if __name__ == "__main__":
    run_tests(globals())
