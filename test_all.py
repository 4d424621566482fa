"""Smoke tests: `python test_all.py` runs them all in a minute, `python test_all.py kl` those with kl in their name.

They hold the scripts to what they promise: each equation against an independent computation, and each script from end
to end with --smoke. No network is needed, nothing is left behind. `pytest test_all.py` works, too. What the report says
about the scripts' results is tested by report/test_report.py.
"""

import atexit
import contextlib
import functools
import gzip
import inspect
import io
import json
import math
import re
import runpy
import shutil
import socket
import struct
import sys
import tempfile
import time
import traceback
import unittest
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import DEFAULT, patch

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

SCRIPTS = {"ae": ae, "denoise_ae": denoise_ae, "vae": vae, "cvae": cvae, "cvae_structured": cvae_structured,
           "vqvae": vqvae}
# Flags that make a smoke run as short as can be.
QUICK = {**dict.fromkeys(SCRIPTS, ["--n-epochs", "1"]),
         "vqvae": ["--batch-size", "8", "--hidden-dim", "8", "--latent-dim", "4", "--codebook-size", "16"]}
TEMPORARY = Path(tempfile.mkdtemp(prefix="test_all-"))
atexit.register(shutil.rmtree, TEMPORARY, ignore_errors=True)


# %% Helpers

replaced = patch.object  # with replaced(owner, name, value): owner.name is `value` for a while


def given(what, result):
    """The result of a function that a reader may have emptied, to write it anew."""
    assert result is not None, f"{what}: expected a result, got None"
    return result


def expect(what, got, expected, tolerance=1e-5):
    """Fails, and shows both, unless every number got is within tolerance * (1 + |expected|) of the expected one."""
    got, expected = (value.detach() if isinstance(value, torch.Tensor) else value for value in (got, expected))
    np.testing.assert_allclose(given(what, got), expected, tolerance, tolerance, equal_nan=False, err_msg=what)


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


mnist = functools.cache(common.load_mnist)  # one copy for all tests
# The embedded sample: x_train (5000, 3, 32, 32), x_test (1000, 3, 32, 32)
cifar10 = functools.cache(lambda: quiet(common.load_cifar10, sample_dir(), "cpu", False, False)[0][:2])


@functools.cache
def sample_dir():
    """A folder with the embedded sample of CIFAR-10, and surely no cache of the whole."""
    return Path(shutil.copy(common.DATA_DIR / "cifar10-sample.png", folder())).parent


@functools.cache
def smoke_sets(script):
    """What a smoke run is given: 512 dark images for training, 256 bright ones for the test. So nothing that was
    measured on one set can pass for something measured on the other. Returns x_train, y_train, x_test, y_test."""
    x_train, y_train, x_test, y_test = mnist()
    if script == "vqvae":
        x_train, x_test = cifar10()
        x_train, x_test = 0.5 * x_train, 0.5 * x_test
    return x_train[:512], y_train[:512], 1 - x_test[:256], y_test[:256]


def start(script, *flags, out_dir=None, figures=False):
    """A smoke run on `smoke_sets`, with --validation on half of its test images; returns what `quiet` returns."""
    x_train, y_train, x_test, y_test = smoke_sets(script)

    def load(data_dir, device, validation, download=False):
        assert not download, "a smoke run downloads nothing"
        n = 128 if validation else 256
        if script == "vqvae":
            return x_train, x_test[:n], "CIFAR-10 sample"
        return x_train, y_train, x_test[:n], y_test[:n]

    module = SCRIPTS[script]
    make_figures = module.make_figures if figures else lambda *_: {}
    with (replaced(common, "load_mnist", load), replaced(common, "load_cifar10", load),
          replaced(module, "make_figures", make_figures)):
        return quiet(module.main, ["--smoke", "--out-dir", str(out_dir or folder()), *flags])


@functools.cache
def smoke(script, *flags):
    """A smoke run that has to succeed: its models, metrics and folder."""
    out_dir = folder()
    small = ["--batch-size", "8", "--hidden-dim", "32"] if script == "vqvae" else []
    result, status, _, err = start(script, *small, *flags, out_dir=out_dir, figures=True)
    assert status == 0, (script, status, err)
    metrics = json.loads(json.dumps(result[-1], default=str))
    return SimpleNamespace(models=result[:-1], metrics=metrics, folder=out_dir / "smoke" / script)


def stopped(script, function, *flags, out_dir=None, call=1):
    """Starts a smoke run and stops it, as with Ctrl-C, when it calls one of its functions, the first time or a later
    one. Returns the function's first argument, and those that are images, labels or codes of `smoke_sets`."""
    effects = [DEFAULT] * (call - 1) + [KeyboardInterrupt]
    with (replaced(SCRIPTS[script], function, wraps=getattr(SCRIPTS[script], function), side_effect=effects) as stop,
          contextlib.suppress(KeyboardInterrupt)):
        start(script, *QUICK[script], *flags, out_dir=out_dir, figures=True)
    assert stop.call_count == call, f"{script} has called {function} {stop.call_count} times"
    args = stop.call_args.args
    return args[0], [arg for arg in args if isinstance(arg, torch.Tensor) and len(arg) in (512, 256, 128)]


# %% Data (common.py)

def refuse(*_, **__):
    """Takes the place of urllib.request.urlopen, and behaves like a server that never answers."""
    raise TimeoutError(f"no answer for {socket.getdefaulttimeout()} s")


no_network = replaced(urllib.request, "urlopen", refuse)


def test_load_mnist():
    x_train, y_train, x_test, y_test = mnist()
    held_out = common.load_mnist(None, "cpu", True)  # validation
    assert all(map(torch.equal, held_out, (x_train[:50000], y_train[:50000], x_train[50000:], y_train[50000:])))
    tmp = folder()
    shutil.copytree(common.DATA_DIR / "MNIST" / "raw", tmp / "MNIST" / "raw")
    for images, labels, train in ((x_train, y_train, True), (x_test, y_test, False)):  # as torchvision reads it
        usual = torchvision.datasets.MNIST(tmp, train, download=True)
        assert torch.equal(images, usual.data.unsqueeze(1) / 255) and torch.equal(labels, usual.targets)
    for file in tmp.glob("MNIST/raw/*.gz"):
        file.unlink()
    assert all(map(torch.equal, common.load_mnist(tmp), mnist()))  # the unpacked files alone, too


def test_wrong_mnist_files_are_refused():
    def idx(numbers):
        head = struct.pack(f">{1 + numbers.ndim}i", 2048 + numbers.ndim, *numbers.shape)
        return gzip.compress(head + numbers.astype(np.uint8).tobytes())

    raw = folder() / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = raw / "t10k-images-idx3-ubyte.gz", raw / "t10k-labels-idx1-ubyte.gz"
    sound = {raw / "train-images-idx3-ubyte.gz": idx(np.zeros((5, 28, 28))), images: idx(np.zeros((3, 28, 28))),
             raw / "train-labels-idx1-ubyte.gz": idx(np.arange(5)), labels: idx(np.arange(3))}
    for file, content in sound.items():
        file.write_bytes(content)
    assert [len(part) for part in common.load_mnist(raw.parents[1])] == [5, 5, 3, 3]
    for file, content, word in (
            (labels, b"no gzip", labels.name), (labels, sound[labels][:-9], labels.name),
            (labels, sound[labels][:10] + b"\xff" * 20, labels.name),
            (images, idx(np.zeros((3, 56, 56))), "28 x 28"),  # as many bytes as twelve images
            (images, idx(np.zeros((4, 28, 28))), "4 images and 3 labels"),
            (labels, idx(np.array([1, 2, 26])), "up to 26"), (labels, None, labels.name)):
        file.unlink()
        if content:
            file.write_bytes(content)
        with no_network:
            message = str(quiet(common.load_mnist, raw.parents[1])[1])
        assert message.startswith("error: ") and word in message, message
        file.write_bytes(sound[file])


def test_load_cifar10():
    with no_network:
        (x_train, x_test, source), _, _, err = quiet(common.load_cifar10, sample_dir())
    assert "no answer for 20.0 s" in err and "embedded sample" in err and source == "CIFAR-10 sample", err
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
    data_dir, unpacked = folder(), folder()
    (unpacked / "cifar-10-batches-py").mkdir()
    message = str(quiet(common.load_cifar10, unpacked)[1])  # nothing is in it yet
    assert "cifar-10-batches-py cannot be read" in message, message
    with replaced(torchvision.datasets, "CIFAR10",
                  lambda root, train, download=False: SimpleNamespace(data=images if train else images[:100])):
        downloaded, read_by_torchvision = common.load_cifar10(data_dir), common.load_cifar10(unpacked, download=False)
    cached = common.load_cifar10(data_dir, download=False)  # what was downloaded is kept
    for x_train, x_test, source in (downloaded, read_by_torchvision, cached):
        assert x_train.shape == (500, 3, 32, 32) and x_test.shape == (100, 3, 32, 32) and source == "CIFAR-10"
        expect("a pixel", x_train[1, :, 2, 3] * 255, [10, 20, 30])

    cache = data_dir / "cifar10.npz"
    for wrong in ({}, {"x_train": images}, {"train_images": images / 255, "test_images": images}):
        np.savez(cache, **wrong)
        if not wrong:
            cache.write_bytes(b"PK\x03\x04 half a file")
        message = str(quiet(common.load_cifar10, data_dir)[1])
        assert message.startswith(f"error: {cache} cannot be read ("), (wrong.keys(), message)


def test_a_mistyped_data_dir_creates_and_downloads_nothing():
    missing = folder() / "dtaa"
    for loader in (common.load_mnist, common.load_cifar10):
        with no_network:
            _, message, _, err = quiet(loader, missing)
        assert message.startswith("error: ") and str(missing) in message and not err and not missing.exists()


def test_minibatches():
    a = torch.arange(10)
    torch.manual_seed(0)
    one, other = (list(common.minibatches(4, a, 2 * a)) for _ in range(2))
    assert [len(x) for x, _ in one] == [4, 4, 2] and all(torch.equal(2 * x, y) for x, y in one)
    assert sorted(torch.cat([x for x, _ in one]).tolist()) == list(range(10))  # everything once
    assert one[0][0].tolist() != other[0][0].tolist() != [0, 1, 2, 3]  # a new order at every call


# %% ae.py and denoise_ae.py

@torch.no_grad()
def test_evaluate():
    x, autoencoder, model = mnist()[2][:1010], ae.Autoencoder(), vae.myVAE()  # a batch of 1,000 images, and a small one
    mse = ((autoencoder(x) - x) ** 2).mean()
    expect("ae.evaluate, the mean over images and pixels", ae.evaluate(autoencoder, x), mse)
    expect("denoise_ae.evaluate", denoise_ae.evaluate(autoencoder, x, x), mse)
    terms = vae.evaluate(model, x)
    expect("vae.evaluate: kl", terms["kl"], model.kl_divergence(*model.encode(x)).sum(1).mean())
    expect("vae.evaluate: loss", terms["loss"], terms["bce"] + terms["kl"])


def test_pca_mse():
    x_train, x_test = mnist()[0][:300], mnist()[2][:100]
    train, test = x_train.flatten(1).double(), x_test.flatten(1).double()
    v = torch.linalg.svd(train - train.mean(0), full_matrices=False).Vh[:5]
    x_hat = train.mean(0) + (test - train.mean(0)) @ v.T @ v
    expect("pca_mse with 5 components", ae.pca_mse(x_train, x_test, 5), F.mse_loss(x_hat, test))
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
    x, model = torch.full((6, 1, 28, 28), 0.5), torch.nn.Conv2d(1, 1, 1, bias=False)
    torch.nn.init.ones_(model.weight)  # it returns what it is given
    args = denoise_ae.parser.parse_args(["--n-epochs", "2", "--batch-size", "10", "--lr", "1e-9"])
    with replaced(denoise_ae, "criterion", wraps=denoise_ae.criterion) as criterion:
        quiet(denoise_ae.train, model, x, x, x, args)
    epochs = [call.args for call in criterion.call_args_list if call.args[0].requires_grad]  # not those of evaluate
    assert all(torch.equal(clean, x) for _, clean in epochs), "expected no noise in the target"
    one, other = (noisy.detach().flatten().sort().values for noisy, _ in epochs)  # in whatever order the images came
    assert not torch.equal(one, other), "expected new noise in the second epoch"
    expect("the noisy images' standard deviation", [one.std(), other.std()], denoise_ae.add_noise(x).std(), 0.02)


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
    model = vae.myVAE(latent_dim=3)
    terms = given("loss_function", model.loss_function(x_hat, x, mu, logvar))
    for key, expected in (("bce", bce), ("kl", kl), ("loss", bce + kl)):
        expect(f"loss_function: {key}", terms[key], expected)
    expect("bce_floor", vae.bce_floor(x), model.loss_function(x, x, mu, logvar)["bce"])
    # It stays finite where a pixel is surely black and should be white, and where a variance is huge.
    torch.nn.init.constant_(model.logvar_layer.bias, 1e6)
    x = torch.ones(2, 1, 28, 28)
    terms = model.loss_function(torch.zeros_like(x), x, *model.encode(x))
    expect("loss_function: bce of black pixels that should be white", terms["bce"], 78400)
    assert torch.isfinite(terms["kl"])


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
    x_hat[0, 0, 0], x[0, 0] = 0, 1  # a black pixel that should be white costs 100 nats, not infinitely many
    expected = -F.binary_cross_entropy(x_hat, x.expand(3, 2, 784), reduction="none").sum(2)
    for script in (vae, cvae_structured):
        expect("log_bernoulli", script.log_bernoulli(x_hat, x), expected)


def test_importance_weighted_nll():
    torch.manual_seed(0)
    model, x = vae.myVAE(latent_dim=3), torch.ones(200, 3)
    model.decode = torch.sigmoid  # each pixel is white with probability sigmoid(z): on average over N(0, 1) 1/2,
    model.encode = lambda x: (torch.full_like(x, -0.5), torch.full_like(x, 0.2))  # whatever q(z|x) is
    expect("importance_weighted_nll", vae.importance_weighted_nll(model, x, 1000), 3 * math.log(2), 0.005)


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
    flags = ["--latent-dim", "2", "--batch-size", "64", "--lr", "3e-3"]
    (_, with_vae), *_ = start("vae", *flags)
    (_, without_label), *_ = start("cvae", *flags, "--no-label")
    assert with_vae["history"] == without_label["history"] and with_vae["train_loss"] == without_label["train_loss"]


# %% cvae_structured.py

def test_visible_pixels():
    for quadrants, expected in ((1, [[0, 0], [1, 0]]), (2, [[1, 0], [1, 0]]), (3, [[1, 1], [1, 0]])):
        visible = given("visible_pixels", cvae_structured.visible_pixels(quadrants))
        expect(f"visible_pixels({quadrants})", visible, np.kron(expected, np.ones((14, 14))).flatten())


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
            learned = kind is cvae_structured.LearnedPriorVAE
            mu_p, logvar_p = model.prior(c).chunk(2, dim=1) if learned else torch.zeros(2, 1)
            q, p = normal(mu, (0.5 * logvar).exp()), normal(mu_p, (0.5 * logvar_p).exp())
            kl = torch.distributions.kl_divergence(q, p).sum() / 5
        bce = F.binary_cross_entropy(x_hat[:, 0, :, 14:], x[:, 0, :, 14:], reduction="sum") / 5  # only unseen pixels
        for key, expected in (("kl", kl), ("bce", bce), ("loss", bce + kl)):
            expect(f"loss_terms of {kind.__name__}: {key}", terms[key], expected)
        terms["loss"].backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters()), f"{kind.__name__}: no gradient"


@torch.no_grad()
def test_likelihood_and_best_of_k():
    torch.manual_seed(0)
    visible = torch.arange(784) > 0  # the first pixel is unseen, and white
    x = torch.zeros(2000, 1, 28, 28)
    x[:, 0, 0, 0] = 1
    x[::2, 0, 27, 27] = 1  # the last one makes the first brighter:
    model, baseline = cvae_structured.LearnedPriorVAE(latent_dim=1, conditional_vec_dim=783), torch.nn.Identity()
    model.decode = lambda z, c: torch.sigmoid(z + c[:, -1:]).reshape(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    model.encode = lambda x, c: (torch.full((len(x), 1), -0.7), torch.full((len(x), 1), 0.5))  # another q than
    model.prior.forward = lambda c: torch.tensor([[-0.3, 0.3]]).expand(len(c), 2)  # the prior N(-0.3, e^0.3)
    u = torch.sigmoid(torch.normal(-0.3, math.exp(0.15), (2, 200000, 10)) + torch.tensor([1, 0]).reshape(2, 1, 1))
    estimates = given("likelihood", cvae_structured.likelihood(model, x, visible, 500))
    for key in ("importance_nll_nats", "monte_carlo_nll_nats"):
        expect(f"likelihood: {key}", estimates[key], -u.mean((1, 2)).log().mean(), 0.002)

    best = ((u - 1) ** 2).cummin(2).values.mean((0, 1))
    baseline_mse = (best[1] + best[2]) / 2  # so that the best of three beats it
    baseline.forward = lambda c: (1 - baseline_mse.sqrt()).expand(len(c), 1, 28, 28)
    results = given("best_of_k", cvae_structured.best_of_k(model, baseline, x, visible, 10))
    for key, expected in (("sample_std", u.std(2).mean()), ("best_of_k_mse", best), ("baseline_mse", baseline_mse),
                          ("mean_of_k_mse", ((u.mean(2) - 1) ** 2).mean()), ("beats_baseline_at_k", 3)):
        expect(f"best_of_k: {key}", results[key], expected, 0.01)


# %% vqvae.py

def test_nearest():
    torch.manual_seed(0)
    for k, d in ((512, 64), (7, 3), (1, 1)):
        quantizer, z = vqvae.VectorQuantizer(k, d).eval(), torch.randn(2, d, 4, 5)
        vectors = z.permute(0, 2, 3, 1)
        expected = (vectors.unsqueeze(3) - quantizer.codebook).norm(dim=4).argmin(3)  # of distances (2, 4, 5, K)
        expect("nearest", quantizer.nearest(vectors.flatten(0, 2)), expected.flatten())
        e, index = quantizer(z)
        assert torch.equal(index, expected) and torch.equal(e.permute(0, 2, 3, 1), quantizer.codebook[expected])


def test_straight_through():
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
        expect("update: codebook", quantizer.codebook, total / count[:, None], 1e-4)
    for fixed in (quantizer.eval(), vqvae.VectorQuantizer(5, 3, ema=False)):
        before = fixed.codebook.detach().clone()
        fixed(torch.randn(2, 3, 4, 4))  # nothing is learned from test images, or where the loss teaches the codes
        assert torch.equal(fixed.codebook, before) and fixed.codebook.requires_grad == (not fixed.ema)


@torch.no_grad()
def test_revive():
    torch.manual_seed(0)
    # Of 800 vectors in 8 clusters a fair share is 100. Below 40 a code is dead.
    counts, centers = torch.tensor([521, 39, 41, 39, 41, 39, 41, 39]), 100 * torch.randn(8, 3)
    vectors = centers.repeat_interleave(counts, dim=0) + 0.01 * torch.randn(800, 3)
    z, one_place = vectors.T.reshape(1, 3, 1, 800), centers[0].reshape(1, 3, 1, 1).expand(1, 3, 1, 800)
    for ema in (True, False):
        quantizer = vqvae.VectorQuantizer(8, 3, decay=0, ema=ema, revive_until=1)  # decay 0: only this batch counts
        quantizer.codebook.copy_(centers)
        quantizer(z)
        drawn = [bool((vectors == code).all(1).any()) for code in quantizer.codebook]
        assert drawn == [n < 40 for n in counts], "revive: expected a z in place of each dead code, and only there"
        assert len(quantizer.codebook.unique(dim=0)) == 8, "revive: expected no z twice"
        quantizer(one_place)
        assert not (quantizer.codebook[1:] == centers[0]).all(1).any(), "revive: expected nothing after revive_until"
        # At the start all codes are dead. Once revived, they stay where they are for a while, even if no z is near.
        quantizer = vqvae.VectorQuantizer(8, 3, decay=0.9, ema=ema, revive_until=2)
        quantizer(z)
        before = quantizer.codebook.clone()
        _, index = quantizer(one_place)
        unused = torch.arange(8) != index[0, 0, 0]
        expect("revive: unused codes an update later", quantizer.codebook[unused], before[unused], 1e-4)


def test_loss_function_of_the_vqvae_and_its_stop_gradients():
    torch.manual_seed(0)
    for ema in (True, False):
        model, x = vqvae.VQVAE(16, commitment_cost=0.4, ema=ema, data_variance=0.07).eval(), cifar10()[0][:4]
        x_hat, z, e, _ = output = model(x)
        terms = given("loss_function", model.loss_function(output, x))
        error, between = ((x_hat - x) ** 2).mean() / 0.07, ((z - e) ** 2).mean()
        loss = error + 0.4 * between + (0 if ema else between)
        for key, value in (("reconstruction", error), ("commitment", between), ("codebook", between), ("loss", loss)):
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


@torch.no_grad()
def test_ResidualStack():
    for in_place in (False, True):
        stack, x = vqvae.ResidualStack(6, 4, 2, relu_skip=in_place), torch.randn(2, 6, 5, 5)
        expected = x.clone()
        for conv3, _, conv1 in stack.layers:
            # If the first ReLU works in place, as is usual, it changes the skip connection as well.
            expected = expected + torch.nn.Sequential(torch.nn.ReLU(in_place), conv3, torch.nn.ReLU(), conv1)(expected)
        expect("ResidualStack", stack(x), expected.relu())


@torch.no_grad()
def test_Prior():
    torch.manual_seed(0)
    prior, index = vqvae.Prior(num_embeddings=20, width=32).eval(), torch.randint(20, (503, 64))
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
    prior.token.weight[:20] += torch.randn(32)  # what stands for codes does not stand for the start
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


@patch.object(vqvae, "LOG_EVERY", 1)
@patch.object(vqvae, "Prior", functools.partial(vqvae.Prior, width=16))  # it takes most of the time
def test_resume_gives_the_numbers_of_an_uninterrupted_run():
    (_, _, expected), *_ = start("vqvae", *QUICK["vqvae"])
    # The model has three updates, the prior two. Each is stopped in its last.
    for function, call, n_left in (("evaluate", 3, 1 + 2), ("evaluate_prior", 2, 1)):
        out_dir = folder()
        stopped("vqvae", function, out_dir=out_dir, call=call)
        (_, _, resumed), _, out, _ = start("vqvae", "--resume", out_dir=out_dir)  # no other flag
        assert {**resumed, "settings": None} == {**expected, "settings": None}, function
        assert out.count("eta") == n_left, out  # nothing is done twice


@patch.object(vqvae, "LOG_EVERY", 1)
def test_resume_with_other_flags():
    out_dir = folder()
    stopped("vqvae", "evaluate", "--no-prior", out_dir=out_dir, call=3)
    checkpoint = out_dir / "smoke" / "vqvae" / "checkpoint-model.pt"
    good = checkpoint.read_bytes()
    _, status, _, err = start("vqvae", out_dir=out_dir)
    assert status == 2 and "--resume continues it" in err, err
    with unittest.TestCase().assertRaisesRegex(RuntimeError, "size mismatch"):  # another model
        start("vqvae", "--resume", "--latent-dim", "5", out_dir=out_dir)
    assert checkpoint.read_bytes() == good  # neither was harmful
    assert "smaller --lr" in str(start("vqvae", "--resume", "--lr", "1e30", out_dir=out_dir)[1])
    (_, prior, metrics), *_ = start("vqvae", "--resume", "--lr", "1e-4", out_dir=out_dir)  # the advice works
    assert prior is None and metrics["settings"]["lr"] == 1e-4 and metrics["history"]["update"] == [1, 2, 3]


def test_reference_is_a_preset():
    with replaced(torch.optim.lr_scheduler, "OneCycleLR", None):  # the rate stays as it is
        reference = smoke("vqvae", "--reference", "--no-prior", "--num-residual-layers", "1")
    settings = reference.metrics["settings"]
    assert settings["lr"] == 1e-3 and settings["batch_size"] == 8 and not reference.models[1]  # flags still win
    config = torch.load(reference.folder / "model.pt", weights_only=True)["config"]
    assert config["relu_skip"] and config["revive_until"] == 0 and not vqvae.parser.parse_args([]).reference


# %% Every script from end to end

def test_smoke_runs():
    budgets = {"ae": 1_500_000, "denoise_ae": 15_000, "vae": 1_500_000, "cvae": 1_500_000}  # parameters
    for script, module in SCRIPTS.items():
        run = smoke(script, *(["--latent-dim", "2"] if script == "vae" else []))  # with two, vae.py draws all figures
        files = {path.name for path in run.folder.iterdir()}
        writes = module.__doc__.split("Writes:")[1].split("while it runs")[0].split("Report:")[0]
        assert files == set(re.findall(r"\w+\.(?:png|pt|json)", writes)), (script, files)
        for file in run.folder.glob("*.png"):
            image = matplotlib.image.imread(file)
            assert 800 <= image.shape[1] <= 1500 and image[..., :3].std() > 0.01, (file, image.shape)
        assert json.loads((run.folder / "metrics.json").read_text(encoding="utf-8")) == run.metrics
        history = run.metrics["history"]
        assert history["train_loss"][-1] < history["train_loss"][0] or script == "vqvae", script
        expect(f"{script}: test_loss", run.metrics["test_loss"], history["test_loss"][-1], 0.05)
        for name, p in (named for model in run.models for named in model.named_parameters()):
            assert not p.requires_grad or p.grad is not None and p.grad.abs().max() > 0, (script, name)
        n = sum(p.numel() for p in run.models[0].parameters() if p.requires_grad)
        assert run.metrics["n_parameters"] == n and not common.plt.get_fignums()  # no figure stays open
        assert script not in budgets or budgets[script] / 2 < n <= budgets[script], (script, n)
    prior = run.metrics["prior"]
    expect("the prior's test_bits_per_code", prior["test_bits_per_code"], prior["history"]["test_loss"][-1])


def test_seed_and_validation():
    for script in SCRIPTS:
        flags = ["--binarize", "--validation"] if script == "vae" else ["--validation"]
        models, images = zip(*(stopped(script, "train", *flags, "--seed", seed) for seed in ("0", "0", "1")))
        weights, same, other = (next(model.parameters()) for model in models)
        assert torch.equal(weights, same) and not torch.equal(weights, other), f"{script}: --seed"
        n_images = [len(part) for part in images[0]]
        assert n_images[0] == 512 and n_images[-1] == 128 and 256 not in n_images, (script, n_images)
        assert all(map(torch.equal, images[0], images[2])), f"{script}: other images with another seed"


def test_flags():
    for script in SCRIPTS:
        extreme = [*QUICK[script], "--latent-dim", "1", "--batch-size", "100000"]
        wrong = [["--batch-size", "0"], ["--lr", "nan"], ["--hidden-dim", "x"], ["--device", "none-such"]]
        if script == "vqvae":
            extreme += ["--batch-size", "8", "--codebook-loss", "--no-prior"]
            wrong += [["--decay", "1"], ["--decay", "-1"], ["--commitment-cost", "-1"], ["--stop-at", "0"]]
        result, status, *_ = start(script, *extreme)
        assert status == 0 and len(result[-1]["history"]["test_loss"]) == 1, script
        assert "try a smaller --lr" in str(start(script, *QUICK[script], "--lr", "1e30")[1]), script
        for flags in wrong:
            _, status, _, err = start(script, *flags)
            assert status == 2 and flags[0] in err.splitlines()[-1], (script, flags, err)


def test_a_run_that_is_stopped_after_the_training():
    """What was trained is already saved, nothing of an earlier run is left, and nothing is tuned on test images."""
    plane = ["latent_space.png", "latent_space_images.png"]
    for script, function, flags, n_images, model, others in (
            ("ae", "pca_mse", ["--latent-dim", "3"], [512, 256], "model.pt", plane),
            ("denoise_ae", "gaussian_filter", [], [512, 512, 256], "model.pt", []),
            ("vae", "importance_weighted_nll", ["--latent-dim", "3"], [256], "model.pt", plane),
            ("cvae", "probe_latents", ["--no-label"], [512, 512, 256, 256], "model.pt", ["digits.png", "style.png"]),
            ("cvae", "train_judge", [], [512, 512], "model.pt", []),
            ("cvae_structured", "likelihood", [], [256], "baseline.pt", ["model.pt"]),
            ("vqvae", "train_prior", [], [512, 256], "model.pt", ["prior.pt", "samples.png", "checkpoint-prior.pt"]),
            ("vqvae", "make_figures", [], [512, 256], "prior.pt", [])):
        out_dir = folder()
        run = out_dir / "smoke" / script
        run.mkdir(parents=True)
        for file in (model, "metrics.json", *others):
            (run / file).touch()
        _, images = stopped(script, function, *flags, out_dir=out_dir)
        assert [len(part) for part in images] == n_images, (script, function)
        stale = [path.name for path in run.iterdir() if path.stat().st_size == 0]
        assert (run / model).exists() and not stale, (script, function, stale)


def test_flags_are_the_users_and_not_a_notebook_kernels():
    for program, expected in (
            ("vae.py", ["-f", "x"]), ("-c", ["-f", "x"]), ("/site-packages/ipykernel_launcher.py", []),
            ("/site-packages/ipykernel/__main__.py", []), ("/site-packages/colab_kernel_launcher.py", [])):
        with replaced(sys, "argv", [program, "-f", "x"]):
            assert common.flags() == expected, program  # whatever else is loaded: %run sets argv as a shell does
            assert common.flags(["--seed", "1"]) == ["--seed", "1"]
    for module in SCRIPTS.values():  # a renamed copy elsewhere reads them, too
        copy = shutil.copy(module.__file__, folder() / "my_script.py")
        with replaced(sys, "argv", [copy, "--help"]):
            _, status, out, _ = quiet(runpy.run_path, copy, None, "__main__")
        assert status == 0 and "--smoke" in out, (module, status)


def run_tests(module):
    """Runs the tests of a module, its globals(), whose names have all words of the command line; ends the program."""
    tests = {name: test for name, test in module.items()
             if name.startswith("test_") and all(word in name for word in sys.argv[1:])}
    verdicts = []
    for name, test in tests.items():
        started = time.perf_counter()
        try:
            test()
            verdicts.append("passed")
        except unittest.SkipTest as reason:
            verdicts.append("skipped")
            name = f"{name}: {reason}"
        except (Exception, SystemExit):  # data that is missing ends in a SystemExit
            verdicts.append("FAILED")
            traceback.print_exc()
        print(f"{verdicts[-1]:7} {time.perf_counter() - started:5.1f} s  {name}", flush=True)
    print(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("passed", "FAILED", "skipped")))
    sys.exit("FAILED" in verdicts or not tests)


if __name__ == "__main__":
    run_tests(globals())
