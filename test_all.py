"""Smoke tests: `python test_all.py` runs them all in a minute, `python test_all.py kl` those with kl in their name.

Nothing is trained for real and no network is needed. Each function that implements an equation is held against an
independent computation, every script runs from end to end with --smoke, and the numbers, code and links of the pages
are checked. `pytest test_all.py` works, too.
"""

import ast
import contextlib
import functools
import inspect
import io
import json
import math
import os
import re
import shutil
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

matplotlib.use("Agg")

import ae
import common
import cvae
import cvae_structured
import denoise_ae
import vae
import vqvae

ROOT = Path(__file__).resolve().parent
sys.path += [str(ROOT / "report"), str(ROOT / "report" / "explore")]
import export
import pages

SCRIPTS = {"ae": ae, "denoise_ae": denoise_ae, "vae": vae, "cvae": cvae, "cvae_structured": cvae_structured,
           "vqvae": vqvae}
BUDGETS = {"ae": 1_500_000, "denoise_ae": 15_000, "vae": 1_500_000, "cvae": 1_500_000}  # parameters


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
    assert result is not None, f"{what}: expected a result, got None"
    return result


common.load_mnist = functools.cache(common.load_mnist)  # one copy for all smoke runs


def mnist():
    return common.load_mnist(None, "cpu", False)


@functools.cache
def sample_dir():
    """A folder with the embedded sample of CIFAR-10, and surely no cache of the whole."""
    return shutil.copy(common.DATA_DIR / "cifar10-sample.png", tempfile.mkdtemp()).removesuffix("cifar10-sample.png")


@functools.cache
def cifar10():
    """The embedded sample: x_train (5000, 3, 32, 32), x_test (1000, 3, 32, 32)"""
    return quiet(common.load_cifar10, sample_dir(), "cpu", False, False)[0][:2]


def quiet(function, *args):
    """(result or None, exit status or message or 0, stdout, stderr) of a call."""
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


def noted(function, results):
    """The function, whose results are also appended to a list."""
    return lambda *args, **kwargs: results.append(function(*args, **kwargs)) or results[-1]


@functools.cache
def smoke(script, *flags):
    """(models, metrics, folder, stdout, one-cycle schedules) of a smoke run of the script. Its test images are
    negatives: nothing that is measured on them can be taken for something measured on training images."""
    def with_negatives(*args):
        x_train, y_train, x_test, y_test = load_mnist(*args)
        return x_train, y_train, 1 - x_test, y_test

    out_dir, schedules, scheduler = Path(tempfile.mkdtemp()), [], torch.optim.lr_scheduler
    load_mnist = common.load_mnist
    if script == "vqvae":
        flags = ["--data-dir", sample_dir(), "--batch-size", "8", "--hidden-dim", "32", *flags]
    with (replaced(scheduler, "OneCycleLR", noted(scheduler.OneCycleLR, schedules)),
          replaced(common, "load_mnist", with_negatives)):
        result, status, out, err = quiet(SCRIPTS[script].main, ["--smoke", "--out-dir", str(out_dir), *flags])
    assert status == 0, (script, status, err)
    metrics = json.loads(json.dumps(result[-1], default=str))
    return result[:-1], metrics, out_dir / "smoke" / script, out, schedules


def numbers(metrics):
    """The metrics without what may differ between two runs with the same seed."""
    if not isinstance(metrics, dict):
        return metrics
    return {key: numbers(value) for key, value in metrics.items() if "seconds" not in key and key != "settings"}


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
    with tempfile.TemporaryDirectory() as tmp:
        raw = Path(tmp) / "MNIST" / "raw"
        shutil.copytree(common.DATA_DIR / "MNIST" / "raw", raw, ignore=shutil.ignore_patterns("*ubyte"))
        for images, labels, train in ((x_train, y_train, True), (x_test, y_test, False)):  # as torchvision reads it
            usual = torchvision.datasets.MNIST(tmp, train, torchvision.transforms.ToTensor(), download=True)
            assert torch.equal(labels, usual.targets)
            assert all(torch.equal(images[i], usual[i][0]) for i in (0, 1, 777, 9999))
        for name, damage, what in (
                ("train-labels-idx1", lambda file: file.unlink(), "missing"),
                ("t10k-images-idx3", lambda file: file.write_bytes(file.read_bytes()[:1000]), "damaged"),
                ("t10k-images-idx3", lambda file: file.write_bytes(b"no gzip"), "damaged"),
                ("", lambda _: shutil.rmtree(raw), "missing")):
            damage(raw / f"{name}-ubyte.gz")
            with no_network():
                message = str(quiet(common.load_mnist, tmp)[1])
            assert message.startswith("error: ") and what in message and str(raw) in message, message


def test_load_cifar10():
    for silent in (False, True):  # a network that refuses, and one that never answers: the embedded sample
        with no_network(silent):
            start = time.perf_counter()
            (x_train, x_test, source), _, _, err = quiet(common.load_cifar10, sample_dir())
        assert time.perf_counter() - start < 10 and "sample" in err and err.count("\n") == 1
    assert x_train.shape == (5000, 3, 32, 32) and x_test.shape == (1000, 3, 32, 32) and source == "CIFAR-10 sample"
    # The first training image is the well-known frog, the first test image the cat.
    expect("the frog's first two pixels", x_train[0, :, 0, :2] * 255, [[59, 43], [62, 46], [63, 45]])
    expect("the cat's first pixel", x_test[0, :, 0, 0] * 255, [158, 112, 49])
    kept, held_out, _ = quiet(common.load_cifar10, sample_dir(), "cpu", True, False)[0]  # validation
    assert torch.equal(kept, x_train[:4500]) and torch.equal(held_out, x_train[4500:])
    with tempfile.TemporaryDirectory() as tmp:  # the decoded cache
        cache = Path(tmp) / "cifar10.npz"
        cache.write_bytes(b"PK\x03\x04 half a file")
        message = str(quiet(common.load_cifar10, tmp, "cpu", False, False)[1])
        assert message.startswith("error: ") and str(cache) in message
        train, test = np.zeros((500, 32, 32, 3), np.uint8), np.full((100, 32, 32, 3), 51, np.uint8)
        train[1, 2, 3] = [10, 20, 30]
        np.savez(cache, train_images=train, test_images=test)
        x_train, x_test, source = common.load_cifar10(tmp, download=False)
        assert source == "CIFAR-10" and x_test.shape == (100, 3, 32, 32)
        expect("a pixel", x_train[1, :, 2, 3] * 255, [10, 20, 30])


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
    x, inputs, targets, criterion = mnist()[0][:6], [], [], denoise_ae.criterion
    model = denoise_ae.DenoiseAE()
    model.register_forward_pre_hook(lambda _, given: inputs.append(given[0]) if model.training else None)
    args = denoise_ae.parser.parse_args(["--n-epochs", "2", "--batch-size", "10"])
    with replaced(denoise_ae, "criterion", lambda x_hat, x: targets.append(x) or criterion(x_hat, x)):
        quiet(denoise_ae.train, model, x, x, x, args)
    for noisy, clean in zip(inputs, targets[::2], strict=True):  # the targets between are the evaluation's
        assert sorted(clean.flatten(1).sum(1).tolist()) == sorted(x.flatten(1).sum(1).tolist())
        assert 0.08 < F.mse_loss(noisy, clean) < 0.14  # what the noise costs, after clipping
    assert not torch.equal(inputs[0].sort(0).values, inputs[1].sort(0).values)


def test_psnr_db():
    x_hat = torch.stack([torch.full((1, 2, 2), 0.1), torch.full((1, 2, 2), 0.01)])
    expect("psnr_db of errors of 0.1 and of 0.01", denoise_ae.psnr_db(x_hat, torch.zeros(2, 1, 2, 2)), (20 + 40) / 2)


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
    for terms, kl in ((vae.myVAE(latent_dim=3).loss_function(x_hat, x, mu, logvar), kl),
                      (cvae_structured.BaselineNN().loss_function(x_hat, x), 0 * kl)):
        given("loss_function", terms)
        for key, expected in (("bce", bce), ("kl", kl), ("loss", bce + kl)):
            expect(f"loss_function: {key}", terms[key], expected)


def test_loss_function_of_the_vae_stays_finite():
    model, x = vae.myVAE(latent_dim=3), torch.ones(2, 1, 28, 28)
    torch.nn.init.constant_(model.logvar_layer.bias, 1e6)
    _, mu, logvar = model(x)
    terms = given("loss_function", model.loss_function(torch.zeros_like(x), x, mu, logvar))
    expect("loss_function: bce of black pixels that should be white", terms["bce"], 78400)
    assert torch.isfinite(model.kl_divergence(mu, logvar)).all()


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
    for module in (vae, cvae, cvae_structured):
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
    c = cvae.myVAE(latent_dim=1, hidden_dim=8, conditional_vec_dim=10)
    c.decoder[0].weight.data[:, 0] = 0  # a decoder that ignores z: -log p(x|c) is its BCE, whatever q is
    c.decoder[0].weight.data[:, 1:] *= 9  # the label matters
    bce = F.binary_cross_entropy(c.decode(torch.zeros(4, 1), torch.eye(10)[:4]), x, reduction="sum") / 4
    got = cvae.importance_weighted_nll(c, x, torch.arange(4), 1000)
    expect("importance_weighted_nll with a condition", got, bce, 5e-5)


def test_one_hot():
    expect("one_hot", cvae.one_hot(torch.tensor([2, 0]), 3), [[0, 0, 1], [1, 0, 0]])
    model, x, z = cvae.myVAE(conditional_vec_dim=10), mnist()[0][:1].repeat(10, 1, 1, 1), torch.zeros(10, 16)
    c = cvae.condition(model, torch.arange(10))
    for answers in (model.encode(x, c)[0], model.decode(z, c).flatten(1)):  # encoder and decoder both see the label
        assert len(answers.unique(dim=0)) == 10
    assert cvae.condition(vae.myVAE(), torch.arange(3)) is None


def test_probe_latents():
    class Fake:  # an "encoder" whose mu is what `encode` makes of the condition
        conditional_vec_dim, reparameterize = 10, cvae.myVAE.reparameterize

        def __init__(self, encode, std):
            self.encode = lambda x, c: (encode(c), torch.full_like(encode(c), 2 * math.log(std)))
            self.eval, self.latent_dim = lambda: self, encode(torch.eye(10)).shape[1]

    torch.manual_seed(0)
    sets = mnist()[0][:2000], mnist()[1][:2000], mnist()[2][:1000], mnist()[3][:1000]
    for encode, std, linear, nearest, mu_nearest in (
            (lambda c: c, 0.01, 1, 1, 1),  # plain to see
            (lambda c: 0.01 * c + 0.0001 * torch.randn(len(c), 10), 1.0, 0.1, 0.1, 1),  # in mu, but drowned in noise
            # Digit d lies on a circle of radius d, anywhere: curled up, but all there.
            (lambda c: c.argmax(1, keepdim=True) * F.normalize(torch.randn(len(c), 2)), 0.01, 0.12, 1, 1)):
        probed = given("probe_latents", cvae.probe_latents(Fake(encode, std), *sets))
        for name, expected in (("linear", linear), ("nearest", nearest), ("mu_nearest", mu_nearest)):
            expect(f"probe_latents: {name}", probed[f"latent_label_{name}"], expected, 0.05)


def test_judge_samples():
    class Fake:  # a "decoder" that marks the label as a white pixel in the first row, and draws a 0 for every third
        latent_dim = 2

        def decode(self, z, c):
            c = torch.where(torch.arange(len(c)).unsqueeze(1) % 3 == 0, torch.eye(10)[:1], c)
            return F.pad(c, (0, 774)).reshape(-1, 1, 28, 28)

    y = torch.arange(1, 10).repeat(30)
    real = torch.zeros(len(y), 1, 28, 28)
    real[::2] = 1  # within every digit half of the images are white, half black,
    real[y == 5] = 1  # but all of the fives are white: their variance is 0, that of the others 1/4 (times 30/29)
    judged = given("judge_samples", cvae.judge_samples(Fake(), lambda images: images[:, 0, 0, :10], real, y))
    for key, expected in (("sample_accuracy", 2 / 3), ("judge_test_accuracy", 0),
                          ("test_std", math.sqrt(8 / 9 * 0.25 * 30 / 29))):
        expect(f"judge_samples: {key}", judged[key], expected)
    assert judged["sample_std"] < 0.1


def test_myVAE_is_the_same_in_three_scripts():
    assert len({inspect.getsource(module.myVAE) for module in (vae, cvae, cvae_structured)}) == 1
    # Without a label, cvae.py's training and evaluation are those of vae.py: same seed, same numbers.
    without = smoke("cvae", "--no-label", "--latent-dim", "16", "--batch-size", "64", "--lr", "3e-3")[1]
    for key in ("train_loss", "test_loss", "test_bce", "test_kl"):
        assert smoke("vae")[1][key] == without[key], key


# %% cvae_structured.py

def test_split_pixels_and_take():
    corners = {"lower left": 27 * 28, "upper left": 0, "upper right": 27, "lower right": 783}
    for quadrants, expected in ((1, {"lower left"}), (2, {"lower left", "upper left"}),
                                (3, {"lower left", "upper left", "upper right"})):
        visible_at, unseen_at = given("split_pixels", cvae_structured.split_pixels(quadrants))
        assert {name for name, place in corners.items() if place in visible_at} == expected, quadrants
        assert len(visible_at) == 196 * quadrants
        assert sorted([*visible_at.tolist(), *unseen_at.tolist()]) == list(range(784))
    x = mnist()[0][:3]
    expect("take", cvae_structured.take(x, cvae_structured.split_pixels(1)[0]), x[:, 0, 14:, :14].flatten(1))


def test_loss_terms():
    torch.manual_seed(0)
    x, places = mnist()[0][:5], cvae_structured.split_pixels(2)
    baseline, c, cases = cvae_structured.BaselineNN(conditional_vec_dim=392), x[:, 0, :, :14].flatten(1), []
    cases.append((baseline(c), torch.tensor(0.0), cvae_structured.loss_terms(baseline, x, *places)))
    for kind in (cvae_structured.myVAE, cvae_structured.LearnedPriorVAE):
        model, normal = kind(conditional_vec_dim=392), torch.distributions.Normal
        with torch.random.fork_rng():
            terms = cvae_structured.loss_terms(model, x, *places)
        x_hat, mu, logvar = model(x, c)
        prior = (normal(*((v if i == 0 else (0.5 * v).exp()) for i, v in enumerate(model.prior(c).chunk(2, dim=1))))
                 if kind is cvae_structured.LearnedPriorVAE else normal(0.0, 1.0))
        kl = torch.distributions.kl_divergence(normal(mu, (0.5 * logvar).exp()), prior).sum() / 5
        cases.append((x_hat, kl, terms))
    for x_hat, kl, terms in cases:
        given("loss_terms", terms)
        bce = F.binary_cross_entropy(x_hat[:, 0, :, 14:], x[:, 0, :, 14:], reduction="sum") / 5  # only unseen pixels
        for key, expected in (("kl", kl), ("bce", bce), ("loss", bce + kl)):
            expect(f"loss_terms: {key}", terms[key], expected)


@torch.no_grad()
def test_measure():
    torch.manual_seed(0)
    x, places = mnist()[2][:4], cvae_structured.split_pixels(1)
    model = cvae_structured.LearnedPriorVAE(latent_dim=1, hidden_dim=8, conditional_vec_dim=196)
    baseline = cvae_structured.BaselineNN(hidden_dim=8)
    c, unseen = (x.flatten(1)[:, pixels] for pixels in places)
    model.decoder[0].weight.mul_(3)  # so that z matters
    model.decoder[4].weight.mul_(6)
    model.mu_layer.bias.fill_(0.5)  # and q(z|x,c) is not the prior
    model.prior[2].bias.copy_(torch.tensor([-0.3, 0.2]))  # nor is this one N(0, 1)
    m, log_s2 = model.prior(c).chunk(2, dim=1)  # (4, 1)
    z, joint = torch.linspace(-8, 8, 2001).unsqueeze(1), []
    for i in range(4):  # the integral over z, by quadrature
        u_hat = model.decode(z, c[i].expand(2001, -1)).flatten(1)[:, places[1]].double()  # (2001, 588)
        log_p_u = (unseen[i] * u_hat.log() + (1 - unseen[i]) * (1 - u_hat).log()).sum(1)
        joint.append(log_p_u + torch.distributions.Normal(m[i], (0.5 * log_s2[i]).exp()).log_prob(z).squeeze(1))
    exact = -(torch.logsumexp(torch.stack(joint), dim=1) + math.log(16 / 2000)).mean()
    results = [given("measure", cvae_structured.measure(model, baseline, x, places, 1000)) for _ in range(10)]
    result, best = results[0], results[0]["best_of_k_mse"]
    samples = torch.stack([model.decode(m + (0.5 * log_s2).exp() * torch.randn(4, 1), c).flatten(1)[:, places[1]]
                           for _ in range(2000)])
    answer = baseline(c).flatten(1)[:, places[1]]
    for key, expected, tolerance in (
            ("importance_nll_nats", exact, 1e-4), ("monte_carlo_nll_nats", exact, 1e-4),
            ("sample_std", samples.std(0).mean(), 5e-3),
            ("mean_of_k_mse", ((samples.mean(0) - unseen) ** 2).mean(), 1e-4),
            ("baseline_mse", ((answer - unseen) ** 2).mean(), 1e-5)):
        expect(f"measure: {key}", np.mean([result[key] for result in results]), expected, tolerance)
    expect("measure: best_of_k_mse of one sample", best[0], ((samples - unseen) ** 2).mean(), 0.02)
    assert best == sorted(best, reverse=True) and best[0] > best[-1]
    below = [k for k, error in enumerate(best, start=1) if error < result["baseline_mse"]]
    assert result["beats_baseline_at_k"] == (below[0] if below else None)


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
    model, seen = vqvae.VQVAE(num_hiddens=16).eval(), {}

    def decode(e):  # takes the decoder's place and notes what it is given
        seen["e"] = e
        e.retain_grad()
        return (e**3).sum()

    model.decode = decode
    x_hat, z, e, _ = model(cifar10()[0][:2])
    z.retain_grad()
    x_hat.backward()
    expect("straight-through: what the decoder gets", seen["e"], e)
    expect("straight-through: z's gradient, that of its code", z.grad, 3 * e**2, 1e-4)
    assert not torch.allclose(z, e)


def test_update():
    torch.manual_seed(0)
    quantizer = vqvae.VectorQuantizer(5, 3, decay=0.9)
    count, total = np.zeros(5), quantizer.ema_sum.double().numpy().copy()
    assert not np.allclose(total, quantizer.codebook.detach(), atol=0.1)  # two draws
    for _ in range(4):
        z = torch.randn(2, 3, 4, 4)
        _, index = quantizer(z)
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
        if not ema:
            weights["codebook"] = model.quantizer.codebook
        assert terms["codebook"].requires_grad == (not ema)
        for term, learns in (("reconstruction", {"encoder", "decoder"}), ("commitment", {"encoder"}),
                             ("codebook", {"codebook"}))[:2 if ema else 3]:
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


def test_entropy_bits():
    for counts, expected in (([3] * 512, 9), ([0, 9], 0), ([1, 1, 2], 1.5)):
        expect("entropy_bits", vqvae.entropy_bits(torch.tensor(counts)), expected)


@torch.no_grad()
def test_evaluate_of_the_vqvae():
    torch.manual_seed(0)
    model = vqvae.VQVAE(num_hiddens=16, num_embeddings=6, embedding_dim=4, data_variance=0.06).eval()
    x = cifar10()[1][:600]
    model.quantizer.codebook.copy_(model.encode(x[:6])[:, :, 3, 3])  # so that several codes are used, unequally
    x_hat, z, e, index = model(x)
    share = np.bincount(index.flatten(), minlength=6) / index.numel()
    parts, weights = [slice(0, 256), slice(256, 512), slice(512, 600)], [256 / 600, 256 / 600, 88 / 600]
    norms = [np.percentile(vectors.norm(dim=1).flatten(), [1, 50, 99]) for vectors in (z, model.quantizer.codebook)]
    expected = {
        "reconstruction": ((x_hat - x) ** 2).mean() / 0.06, "psnr_db": denoise_ae.psnr_db(x_hat, x),
        "codes_used": (share > 0).sum(), "perplexity": math.exp(-sum(p * math.log(p) for p in share if p > 0)),
        "perplexity_of_256": np.dot(weights, [2 ** vqvae.entropy_bits(torch.bincount(index[part].flatten()))
                                              for part in parts]),
        "quantization_error": np.dot(weights, [((z[part] - e[part]) ** 2).sum() / (z[part] ** 2).sum()
                                               for part in parts]),
        "z_range": [z.min(), z.max()], "z_norm": norms[0], "code_norm": norms[1]}
    tested = vqvae.evaluate(model, x)
    for key, value in expected.items():
        expect(f"evaluate: {key}", tested[key], value, 1e-3)
    assert tested["codes_used"] > 2 and torch.equal(vqvae.encode_all(model, x), index.flatten(1))


def test_multiply_adds():
    model = vqvae.VQVAE(num_hiddens=8, num_residual_hiddens=4, num_residual_layers=1, num_embeddings=6, embedding_dim=5)
    stack = 64 * (8 * 4 * 9 + 4 * 8)
    encoder = 256 * 3 * 4 * 16 + 64 * 4 * 8 * 16 + 64 * 8 * 8 * 9 + stack + 64 * 8 * 5
    decoder = 64 * 5 * 8 * 9 + stack + 64 * 8 * 4 * 16 + 256 * 4 * 3 * 16
    expect("multiply_adds", vqvae.multiply_adds(model), encoder + 64 * 6 * 5 + decoder)


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
    expect("Prior.loss_function", prior.loss_function(logits, index)["loss"], bits)
    expect("evaluate_prior", vqvae.evaluate_prior(prior, index)["loss"], bits)
    codebook = torch.randn(20, 8)
    codebook[7] = codebook[3] + 1e-3
    token = vqvae.Prior(num_embeddings=20, codebook=codebook).token.weight  # near codes start out alike
    assert torch.cdist(token, token).fill_diagonal_(math.inf).argmin() == 3 * 21 + 7 and 0.5 < token.std() < 2
    # A prior that is sure of "the code before, plus one" counts; one that is not draws by its probabilities.
    prior.forward = lambda index: 1e4 * F.one_hot(F.pad(index[:, :-1] + 1, (1, 0)) % 20, 20).float()
    assert torch.equal(given("Prior.sample", prior.sample(3)), (torch.arange(64) % 20).reshape(8, 8).expand(3, 8, 8))
    prior.forward = lambda index: torch.tensor([0.6, 0.3, 0.1]).log().expand(*index.shape, 3)
    expect("Prior.sample", torch.bincount(prior.sample(500).flatten()) / 32000, [0.6, 0.3, 0.1], 0.02)


def vqvae_command(folder, *flags):
    return quiet(vqvae.main, ["--smoke", "--alone", "--n-updates", "3", "--batch-size", "8", "--hidden-dim", "8",
                              "--data-dir", sample_dir(), "--out-dir", str(folder), *flags])


def test_resume_gives_the_numbers_of_an_uninterrupted_run():
    def stop_half_way(self, output, x):
        calls.append(1)
        if len(calls) == 4:  # two updates and a test: the third update has no checkpoint yet
            raise KeyboardInterrupt
        return loss_function(self, output, x)

    calls, loss_function = [], vqvae.VQVAE.loss_function
    with tempfile.TemporaryDirectory() as tmp, replaced(vqvae, "LOG_EVERY", 2):
        whole, stopped = Path(tmp) / "whole", Path(tmp) / "stopped"
        (_, _, expected), *_ = vqvae_command(whole)
        with replaced(vqvae.VQVAE, "loss_function", stop_half_way), contextlib.suppress(KeyboardInterrupt):
            vqvae_command(stopped)
        checkpoint = stopped / "smoke" / "vqvae" / "checkpoint-model.pt"
        good = checkpoint.read_bytes()
        for flags, word in (([], "--resume continues it"), (["--resume", "--lr", "1e-5"], "'lr': 0.002")):
            _, status, _, err = vqvae_command(stopped, *flags)  # refused, and harmless
            assert status and word in f"{status}{err}" and checkpoint.read_bytes() == good, (status, err)
        (_, _, resumed), *_ = vqvae_command(stopped, "--resume")
        assert numbers(resumed) == numbers(expected) and resumed["history"]["update"] == [2, 3]
        two_updates, one_update = resumed["history"]["train_reconstruction"]  # both are means
        assert 0.7 < one_update / two_updates < 1.4
        states = [torch.load(folder / "smoke" / "vqvae" / "model.pt", weights_only=True)["state_dict"]
                  for folder in (whole, stopped)]
        assert all(map(torch.equal, *(state.values() for state in states)))
        assert not list(checkpoint.parent.glob("checkpoint*"))  # nothing is left to resume
        assert vqvae_command(stopped, "--resume")[1], "nothing to resume: expected an error"


def test_reference_is_a_preset():
    adams = []
    with replaced(torch.optim, "Adam", noted(torch.optim.Adam, adams)), tempfile.TemporaryDirectory() as tmp:
        (model, prior, metrics), *_ = vqvae_command(tmp, "--reference")
    settings = metrics["settings"]
    assert prior is None and settings["lr"] == 1e-3 and settings["batch_size"] == 8  # flags beside it win
    assert adams[0].defaults["betas"] == (0.9, 0.999) and adams[0].param_groups[0]["lr"] == 1e-3
    assert model.quantizer.revive_until == 0 and model.encoder[5].relu_skip and model.decoder[1].relu_skip


# %% Training, in all scripts

def test_smoke_runs():
    for script, module in SCRIPTS.items():
        models, metrics, folder, out, schedules = smoke(script)
        assert inspect.getsource(module).rstrip().endswith("main([] if common.IN_NOTEBOOK else None)"), script
        files = {p.name for p in folder.iterdir()}
        promised = set(re.findall(r"\w+\.(?:png|pt|json)", module.__doc__.split("Writes:")[1].split("Paper")[0]))
        later = {"latent_space.png", "latent_space_images.png"} if script == "vae" else set()  # with --latent-dim 2
        assert files == promised - later, (script, files ^ promised)
        for file in folder.glob("*.png"):
            image = matplotlib.image.imread(file)
            assert 900 <= image.shape[1] <= 1500 and image[..., :3].std() > 0.01, (file, image.shape)
        assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == metrics
        assert {"batch_size", "lr", "hidden_dim", "latent_dim", "seed"} <= set(metrics["settings"])
        # The schedule ends with the training; the training makes the loss smaller, and reaches every parameter.
        assert schedules and all(schedule.last_epoch == schedule.total_steps for schedule in schedules), script
        losses = metrics["history"]["train_loss"]
        assert script == "vqvae" or losses[1] < losses[0], script
        for name, p in (named for model in models for named in model.named_parameters()):
            assert not p.requires_grad or p.grad is not None and p.grad.abs().max() > 0, (script, name)
        n = sum(p.numel() for p in models[0].parameters() if p.requires_grad)
        assert metrics["n_parameters"] == n
        assert sum(int(count.replace(",", "")) for count in re.findall(r"^Trainable params: ([\d,]+)", out, re.M)) == n
        assert script not in BUDGETS or BUDGETS[script] / 2 < n <= BUDGETS[script], (script, n)
        lines = [line.split()[0] for line in out.splitlines() if line]
        between = lines[::-1].index("wrote"), next(i for i, line in enumerate(out.splitlines()[::-1]) if "eta" in line)
        assert script == "ae" or between[1] - between[0] > 1, script  # what takes time says what it does
    (model, _), metrics, *_ = smoke("vqvae")
    alone = metrics["no_commitment"]
    assert alone["test_loss"] == alone["test_reconstruction"]  # nothing else is in it
    assert model.quantizer.revive_until == 2  # of three updates


def test_saved_models_rebuild_and_train_loss_is_measured_on_training_images():
    fixed, places = torch.Generator().manual_seed(0), cvae_structured.split_pixels(1)
    x, y, x_test, y_test = mnist()[0][:512], mnist()[1][:512], 1 - mnist()[2][:256], mnist()[3][:256]
    noisy_tests = [denoise_ae.add_noise(x_test, fixed) for _ in range(denoise_ae.N_NOISES)]
    for script, kind, train, test, tolerance in (
            ("ae", ae.Autoencoder, (x,), (x_test,), 1e-5),
            ("denoise_ae", denoise_ae.DenoiseAE, (x, denoise_ae.add_noise(x, fixed)), (x_test, noisy_tests[0]), 1e-5),
            ("vae", vae.myVAE, (x,), (x_test,), 0.01), ("cvae", cvae.myVAE, (x, y), (x_test, y_test), 0.01),
            ("cvae_structured", cvae_structured.myVAE, (x, places), (x_test, places), 0.01),
            ("vqvae", vqvae.VQVAE, (cifar10()[0][:512],), (cifar10()[1][:256],), 1e-4)):
        _, metrics, folder, _, _ = smoke(script)
        saved = torch.load(folder / "model.pt", weights_only=True)
        model = kind(**saved["config"])
        model.load_state_dict(saved["state_dict"])
        model.eval()
        losses = [[SCRIPTS[script].evaluate(model, *images) for _ in range(5 if tolerance > 1e-3 else 1)]
                  for images in (train, test)]
        train_loss, test_loss = (np.mean([loss["loss"] if isinstance(loss, dict) else loss for loss in group])
                                 for group in losses)
        expect(f"{script}: train_loss", metrics["train_loss"], train_loss, tolerance)
        measured = metrics["test_loss_by_noise"][0] if script == "denoise_ae" else metrics["test_loss"]
        expect(f"{script}: test_loss", measured, test_loss, 5 * tolerance)
        assert abs(train_loss / test_loss - 1) > 10 * tolerance, script  # so the wrong images would be noticed
    saved = torch.load(smoke("cvae_structured")[2] / "baseline.pt", weights_only=True)
    baseline = cvae_structured.BaselineNN(**saved["config"])
    baseline.load_state_dict(saved["state_dict"])
    for key, images in (("baseline_train_loss", x), ("baseline_nll_nats", x_test)):
        expect(key, smoke("cvae_structured")[1][key], cvae_structured.evaluate(baseline, images, places)["loss"])
    expect("test_loss", smoke("denoise_ae")[1]["test_loss"], np.mean(smoke("denoise_ae")[1]["test_loss_by_noise"]))


def test_an_epoch_counts_every_image_alike():
    """The last batch is smaller: its images must not count more. The brighter, the larger the loss."""
    x = torch.linspace(0, 1, 10).reshape(-1, 1, 1, 1) ** 4 * torch.ones(10, 1, 28, 28)
    y, places, pixel = torch.arange(10), cvae_structured.split_pixels(1), torch.nn.Conv2d(1, 1, 1)
    flags = ["--n-epochs", "1", "--batch-size", "8", "--lr", "1e-12"]  # so small that nothing is learned
    for script, model, data, key in (
            ("ae", ae.Autoencoder(), (x, x), "loss"), ("denoise_ae", pixel, (x, x, x), "loss"),
            ("vae", vae.myVAE(), (x, x), "kl"), ("cvae", cvae.myVAE(conditional_vec_dim=10), (x, y, x, y), "kl"),
            ("cvae_structured", cvae_structured.myVAE(conditional_vec_dim=196), (x, x, places), "kl")):
        with replaced(denoise_ae, "add_noise", lambda x: x):
            history, *_ = quiet(SCRIPTS[script].train, model, *data, SCRIPTS[script].parser.parse_args(flags))
        expect(f"{script}: train_{key}", history[f"train_{key}"], history[f"test_{key}"])


def test_same_seed_same_numbers():
    # vae.py is held against cvae.py above, and vqvae.py against a resumed run.
    for script in ("ae", "denoise_ae", "cvae_structured"):
        again = smoke(script, "--seed", "0")[1]
        assert numbers(again) == numbers(smoke(script)[1]), script
    assert smoke("ae", "--seed", "1")[1]["test_loss"] != smoke("ae")[1]["test_loss"]


def test_no_update_waits_for_the_device_and_float64_stays_on_the_cpu():
    for script, module in SCRIPTS.items():
        for function in (node for node in ast.walk(ast.parse(inspect.getsource(module)))
                         if isinstance(node, ast.FunctionDef)):
            text = ast.unparse(function)
            for word in (".double()", ".numpy()"):
                assert word not in text or ".cpu()" in text[:text.index(word)], f"{script}: {function.name}: {word}"
            loops = [node for node in ast.walk(function) if isinstance(node, ast.For)]
            inner = [node for node in loops if "backward" in ast.unparse(node)]
            if inner:  # the training's innermost loop, without what vqvae.py does now and then
                loop = "\n".join(ast.unparse(node) for node in inner[-1].body if "LOG_EVERY" not in ast.unparse(node))
                waits = re.search(r"\.item\(|\bfloat\(|\bint\(|\.cpu\(|\w\[[^]]*[<>=]=? ", loop)
                assert not waits, f"{script}: {waits} in\n{loop}"
                assert "zero_grad" in loop.split("backward")[0], f"{script}: gradients add up"


def test_flags():
    asked, load = [], common.load_mnist
    with (replaced(common, "load_mnist", lambda *args: asked.append(args[2]) or load(*args)),
          tempfile.TemporaryDirectory() as tmp):
        for script in ("ae", "denoise_ae", "vae", "cvae", "cvae_structured"):  # extreme, but sound
            flags = ["--validation", "--latent-dim", "1", "--batch-size", "100000", "--n-epochs", "1"]
            assert len(smoke(script, *flags)[1]["history"]["test_loss"]) == 1
        assert asked == 5 * [True]  # --validation reaches the loader
        (_, _, metrics), _, _, err = vqvae_command(tmp, "--validation", "--latent-dim", "1", "--codebook-loss")
        assert metrics["dataset"] == "CIFAR-10 sample" and "sample" in err and err.count("\n") == 1, err
        for script, module in SCRIPTS.items():
            for flags in (["--batch-size", "0"], ["--lr", "nan"], ["--hidden-dim", "x"], ["--device", "none-such"]):
                _, status, _, err = quiet(module.main, ["--smoke", "--out-dir", tmp, *flags])
                assert status == 2 and flags[0] in err.splitlines()[-1], (script, flags, err)
        assert "no longer finite" in quiet(ae.main, ["--smoke", "--lr", "1e30", "--out-dir", tmp])[1]
    plain, binarized, heavy = smoke("vae")[1], smoke("vae", "--binarize")[1], smoke("vae", "--beta", "4")[1]
    expect("bce_floor of binarized images", binarized["test_bce_floor"], 0)
    assert binarized["history"]["train_bce"] != plain["history"]["train_bce"] and heavy["test_kl"] < plain["test_kl"]
    assert plain["n_used_dimensions"] == sum(kl > 0.05 for kl in plain["test_kl_per_dimension"])


def test_a_renamed_copy_elsewhere_reads_its_flags_and_a_smoke_run_spares_the_real_one():
    with tempfile.TemporaryDirectory() as tmp:
        for file, copy in (("vae.py", "my_vae.py"), ("common.py", "common.py")):
            shutil.copy(ROOT / file, Path(tmp) / copy)
        real = Path(tmp) / "runs" / "vae"
        real.mkdir(parents=True)
        (real / "model.pt").write_text("days of training")
        run = subprocess.run([sys.executable, "my_vae.py", "--smoke", "--n-epochs", "1", "--data-dir", common.DATA_DIR],
                             cwd=tmp, text=True, capture_output=True, env={**os.environ, "MPLBACKEND": "Agg"})
        assert run.returncode == 0 and "epoch  1/1 " in run.stdout, run.stderr
        assert (real.parent / "smoke" / "vae" / "model.pt").exists()
        assert [p.read_text() for p in real.iterdir()] == ["days of training"]


# %% What the figures claim

class Glass(torch.nn.Module):
    """Stands for a VAE, and shows what it is given: the "image" that it decodes from z and c has z in its pixels and c
    in those behind. mu is the middle of the image, logvar is -1."""
    latent_dim, conditional_vec_dim, reparameterize = 20, 10, vae.myVAE.reparameterize

    def encode(self, x, c=None):
        mu = x.flatten(1)[:, 380:400] if c is None else x.flatten(1)[:, 380:400] + c[:, :1]
        return mu, torch.full_like(mu, -1.0)

    def decode(self, z, c=None):
        shown = z if c is None else torch.cat([z, c], dim=1)
        return F.pad(shown, (0, 784 - shown.shape[1])).reshape(-1, 1, 28, 28)


def drawn(make_figures, *args):
    """The figures, {name: figure}; those of images are (images, row labels, column labels) instead."""
    torch.manual_seed(0)
    with replaced(common, "plot_images", lambda images, row_labels=(), column_labels=(), width=8:
                  (images, list(row_labels), list(column_labels))), torch.no_grad():
        figures = make_figures(*args)
    common.plt.close("all")
    return figures


HISTORY = {f"{which}_{part}": [2.0, 1.0] for which in ("train", "test") for part in ("loss", "bce", "kl")}


def test_plot_images():
    images = torch.arange(6).reshape(2, 3, 1, 1, 1) / 10 * torch.ones(2, 3, 1, 4, 5)
    expected = np.kron(np.arange(6).reshape(2, 3) / 10, np.ones((5, 6)))  # in reading order,
    expected[4::5], expected[:, 5::6] = 1, 1  # white between them
    expect("tile", common.tile(images, pad=1)[..., 0], expected[:-1, :-1])
    axis = common.plot_images(images, ["a", "b"], ["x", "y", "z"]).axes[0]
    assert [t.get_text() for t in (*axis.get_yticklabels(), *axis.get_xticklabels())] == list("abxyz")


def test_plot_losses():
    history = {"train_loss": [3.0, 2.5], "test_loss": [4.0, 3.0], "train_kl": [1.0, 1.0], "test_kl": [1.0, 2.0]}
    loss, kl = common.plot_losses(history, {"loss": "loss, nats", "kl": "KL"}).axes
    assert [loss.get_ylabel(), kl.get_ylabel()] == ["loss, nats", "KL"]
    assert loss.lines[1].get_ydata().tolist() == [4, 3] and kl.lines[0].get_xdata().tolist() == [1, 2]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train: 2.5", "test: 3"]


def test_plot_latent_space_and_its_images_correspond():
    extent, asked = (-1.0, 3.0, 10.0, 20.0), []
    axis = common.plot_latent_space(torch.tensor([[0.0, 12.0], [1.0, 15.0]]), torch.tensor([3, 8]), extent, [1]).axes[0]
    assert axis.get_xlim() == (-1, 3) and axis.get_ylim() == (10, 20)
    colors = {tuple(c.get_offsets()[0]): c.get_facecolor()[0] for c in axis.collections if len(c.get_offsets())}
    expect("the colour of a 3", colors[0.0, 12.0][:3], list(matplotlib.colors.to_rgb(common.DIGIT_COLORS[3])))
    for text, digit, point in zip(axis.texts, "38", ((0, 12), (1, 15))):  # each number stands on its digit
        assert text.get_text() == digit and np.abs(np.subtract(text.get_position(), point)).max() < 0.5
    image = common.plot_latent_space_images(  # one pixel an image, the brighter the larger z2
        lambda z: asked.append(z) or z[:, 1].reshape(-1, 1, 1, 1) / 20, extent, rows=4, columns=4).axes[0].images[0]
    expect("the corners", asked[0][[0, -1]], [[-0.5, 18.75], [2.5, 11.25]])
    expect("the upper row", image.get_array()[0], 18.75 / 20)
    assert image.get_extent() == list(extent)


def test_save_figures_leaves_them_open_in_a_notebook_only():
    for in_notebook in (True, False):
        common.plt.close("all")
        with tempfile.TemporaryDirectory() as tmp, replaced(common, "IN_NOTEBOOK", in_notebook):
            common.save_figures({"empty": common.plt.figure()}, tmp)
            assert bool(common.plt.get_fignums()) == in_notebook  # what is open is shown under the cell
            assert [p.name for p in Path(tmp).iterdir()] == ["empty.png"]


def check_plane(figures, decoder, z, y):
    """Both figures show the same part of the plane: the points z, and what the decoder makes of each place."""
    points, grid = figures["latent_space"].axes[0], figures["latent_space_images"].axes[0]
    left, right, bottom, top = grid.images[0].get_extent()
    assert (left, right, bottom, top) == (*points.get_xlim(), *points.get_ylim())
    for digit, dots in enumerate(points.collections):
        expect("the dots", np.array(dots.get_offsets()), z[y == digit])
    corner = decoder(torch.tensor([[left + (right - left) / 50, top - (top - bottom) / 40]]))
    expect("the upper left image", grid.images[0].get_array()[:28, :28], corner[0, 0], 1e-3)
    return [patch.get_radius() for axis in (points, grid) for patch in axis.patches
            if isinstance(patch, common.plt.Circle)]


def test_figures_of_the_autoencoders():
    torch.manual_seed(0)
    x, y, model = mnist()[2][:300], mnist()[3][:300], ae.Autoencoder().eval()
    figures = drawn(ae.make_figures, model, HISTORY, x, y)
    images, rows, _ = figures["reconstructions"]
    expect("reconstructions", images, torch.stack([x[:12], model(x[:12])]))
    edges = [figures["latent_space"].axes[0].get_xlim(), figures["latent_space"].axes[0].get_ylim()]
    expect("the middle 94 %", edges, np.quantile(model.encoder(x).detach(), [0.03, 0.97], axis=0).T, 1e-4)
    assert rows == ["original", "rebuilt"] and check_plane(figures, model.decoder, model.encoder(x), y) == []
    model, noisy = denoise_ae.DenoiseAE().eval(), denoise_ae.add_noise(x)
    images, rows, _ = drawn(denoise_ae.make_figures, model, HISTORY, x, noisy, 0.5 * x)["denoised"]
    assert rows == ["noisy", "Gaussian\nfilter", "denoised", "clean"]
    expect("denoised", images, torch.stack([noisy[:10], 0.5 * x[:10], model(noisy[:10]), x[:10]]))


def test_figures_of_the_vae():
    x, y, kl = mnist()[2][:300], mnist()[3][:300], list(range(20))
    figures = drawn(vae.make_figures, Glass(), HISTORY, x, y, kl)
    z = {name: figure[0].flatten(2)[:, :, :20] for name, figure in figures.items() if isinstance(figure, tuple)}
    expect("samples, from the prior", [z["samples"].mean(), z["samples"].std()], [0, 1], 0.1)
    images, rows, _ = figures["reconstructions"]
    assert torch.equal(images[0], x[:12]) and rows == ["original", "rebuilt\nfrom mu"]
    expect("rebuilt from mu", z["reconstructions"][1], x[:12].flatten(1)[:, 380:400])
    mu, (images, rows, _) = x[0].flatten()[380:400], figures["variance"]
    assert torch.equal(images[0, 0], x[0]) and rows[::2] == ["variance x 1", "variance x 20"]
    for two_rows, factor in ((slice(0, 2), 1), (slice(2, 4), 20)):
        variance = (z["variance"][two_rows, 1:] - mu).square().mean()
        expect(f"variance x {factor}", variance / (factor * math.exp(-1)), 1, 0.12)
    for row, (a, b) in zip(figures["walk"][0], [(1, 7), (3, 8), (4, 9), (0, 6)]):
        first, last = (x[(y == digit).nonzero()[0, 0]] for digit in (a, b))
        assert torch.equal(row[0], first) and torch.equal(row[-1], last)
        steps = torch.linspace(0, 1, 11).unsqueeze(1)
        between = (1 - steps) * first.flatten()[380:400] + steps * last.flatten()[380:400]
        expect("walk", row[1:-1].flatten(1)[:, :20], between)
    _, rows, values = figures["traversals"]
    assert values[0] == -3 and values[-1] == 3
    for row, label in enumerate(rows):
        i, expected = 19 - row, mu.repeat(11, 1)  # sorted by kl, the largest first
        expected[:, i] = torch.tensor(values)
        expect("traversals", z["traversals"][row], expected)
        assert label == f"$z_{{{i + 1}}}$: {kl[i]:.2f}"
    model = vae.myVAE(latent_dim=2).eval()
    figures = drawn(vae.make_figures, model, HISTORY, x, y, [1, 1])
    assert check_plane(figures, model.decode, model.encode(x)[0], y) == 2 * [1, 2, 3]


def test_figures_of_the_cvae():
    x, y = mnist()[2][:300], mnist()[3][:300]
    figures = drawn(cvae.make_figures, Glass(), HISTORY, x, y)
    for name, first_column in (("digits", 0), ("style", 2)):
        images, _, columns = figures[name]
        assert columns[first_column:] == list(range(10))
        shown = images[:, first_column:].flatten(2)
        assert torch.equal(shown[:, :, 20:30], torch.eye(10).expand(len(shown), 10, 10))  # the column's label
        assert torch.equal(shown[:, :, :20], shown[:, :1, :20].expand(-1, 10, -1))  # one z a row
    z = figures["digits"][0].flatten(2)[:, 0, :20]
    assert len(z.unique(dim=0)) == 8 and abs(z.std() - 1) < 0.2
    for digit, row in enumerate(figures["style"][0]):
        original = x[(y == digit).nonzero()[0, 0]]
        assert torch.equal(row[0], original)
        # Glass.encode saw this image, and its own label.
        expect("style", row[2].flatten()[:20], original.flatten()[380:400] + (digit == 0))


def test_figures_of_cvae_structured():
    torch.manual_seed(0)
    x, y, places = mnist()[2][:1000], mnist()[3][:1000], cvae_structured.split_pixels(1)
    model, baseline = cvae_structured.myVAE(conditional_vec_dim=196).eval(), cvae_structured.BaselineNN().eval()
    metrics = {"best_of_k_mse": [3.0, 2.0, 1.0], "baseline_mse": 1.5, "mean_of_k_mse": 1.7,
               "history": {**HISTORY, "train_baseline_loss": [2.0, 1.0], "test_baseline_loss": [2.0, 1.0]}}
    figures = drawn(cvae_structured.make_figures, model, baseline, metrics, x, y, places)
    torch.manual_seed(0)
    picked = cvae_structured.pick_images(model, x, y, places)
    assert y[picked].tolist() == [4, 9, 3, 5, 0, 1, 7]
    images, originals = figures["samples"][0].flatten(2), x[picked + [0, 1, 2]].flatten(1)
    expect("the originals", images[:, 1], originals)
    expect("what is not given is grey", images[:, 0][:, places[1]], 0.5)
    for column in range(2, 13):  # what is visible is shown as it is
        expect("visible pixels", images[:, column][:, places[0]], originals[:, places[0]])
    answer = baseline(originals[:, places[0]]).flatten(1)[:, places[1]]
    expect("the baseline's answer", images[:, 2][:, places[1]], answer)
    assert images[:, 3:][:, :, places[1]].std(1).mean() > 1e-3  # ten samples differ
    lines = figures["best_of_k"].axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[3, 2, 1], [1.5, 1.5], [1.7, 1.7]]


@torch.no_grad()
def test_figures_of_the_vqvae():
    torch.manual_seed(0)
    x, codes_train = cifar10()[1][:40], torch.tensor([[0] * 48 + [1] * 16])
    model = vqvae.VQVAE(num_hiddens=8, num_embeddings=6, embedding_dim=4, commitment_cost=0.4).eval()
    z = model.encode(x)[:6, :, 3, 3]  # codes near the z of some images, so that images differ in their codes
    model.quantizer.codebook.copy_(z + 1e-3 * torch.randn_like(z))
    model.decode = lambda e: F.pad(e, (12, 12, 12, 12))[:, :3]  # shows the codes in the middle of a picture
    prior = vqvae.Prior(num_embeddings=6)
    prior.sample = lambda n: torch.full((n, 8, 8), 5)
    history = {"update": [1, 2], "train_reconstruction": [2.0, 1.0], "train_commitment": [1.0, 1.0]}
    history |= {f"test_{key}": [value, value] for key, value in vqvae.evaluate(model, x).items()}
    other = {**history, "train_reconstruction": [7.0, 8.0], "test_z_norm": [[0, 5, 9], [0, 6, 9]]}
    figures = drawn(vqvae.make_figures, model, history, model, other, prior, codes_train, x)
    images, (x_hat, _, _, index) = figures["reconstructions"][0], model(x[:20])
    assert torch.equal(images[0], x[:10]) and torch.equal(images[3], x[10:20])
    expect("the decoded rows", torch.cat([images[2], images[5]]), x_hat)
    cells = torch.cat([images[1], images[4]])[:, :, 1::4, 2::4].permute(0, 2, 3, 1).reshape(-1, 3)
    assert len(cells.unique(dim=0)) == len(index.unique())  # a colour for each code, and it stays the same
    assert all(len(cells[index.flatten() == code].unique(dim=0)) == 1 for code in index.unique())
    expect("the last row", figures["samples"][0][5], x_hat[:10])
    images = figures["samples"][0][:5, :, :, 12:20, 12:20]  # (5, 10, 3, 8, 8)
    codes = model.quantizer.codebook.detach()
    shown = (images.permute(0, 1, 3, 4, 2).unsqueeze(-2) - codes[:, :3]).norm(dim=-1).argmin(-1)
    assert (shown[:, :7] == 5).all()  # what the prior wrote
    drawn_codes = torch.bincount(shown[:, 8:].flatten()) / shown[:, 8:].numel()
    expect("drawn one by one, by frequency", drawn_codes, [0.75, 0.25], 0.05)
    errors, norms = figures["commitment"].axes
    assert [line.get_ydata().tolist() for line in errors.lines] == [[2, 1], [7, 8]]
    assert norms.lines[1].get_ydata().tolist() == [5, 6]
    labels = [text.get_text() for text in figures["commitment"].legends[0].get_texts()]
    assert labels == [r"$\lambda$ = 0.4", r"$\lambda$ = 0"]
    axis, counts = figures["codebook"].axes[0], torch.bincount(vqvae.encode_all(model, x).flatten(), minlength=6)
    assert axis.get_title() == r"$\lambda$ = 0.4, 2 updates"
    expect("the discs", axis.collections[0].get_sizes(), 4 + 30 * counts / counts.float().mean(), 1e-4)
    centered = (codes - codes.mean(0)).double().numpy()
    _, s, v = np.linalg.svd(centered)  # components 1 and 2, whatever their signs
    expect("the codes' places", np.abs(axis.collections[0].get_offsets()), np.abs(centered @ v[:2].T), 1e-3)
    assert axis.get_xlabel().startswith(f"component 1, {100 * s[0]**2 / (s**2).sum():.0f} %")


# %% The pages

def test_pages_show_what_runs_measured_and_what_the_scripts_say():
    for page in pages.PAGES:
        text = page.read_text(encoding="utf-8")
        rendered = pages.render(text)
        for line, expected in zip(text.splitlines(), rendered.splitlines()):
            assert line == expected, f"{page.name}: python report/pages.py changes\n{line}\nto\n{expected}"
        assert text == rendered, page.name
    for file in (ROOT / "report").glob("*/*.json"):
        assert not re.search(r'"(/|[A-Z]:\\)', file.read_text(encoding="utf-8")), f"{file}: somebody's own folder"


def without_code(page):
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page):
    """GitHub's names of a page's headings."""
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)", without_code(page), re.MULTILINE)}


def test_links_of_the_pages_resolve():
    for page in (*pages.PAGES, ROOT / "data" / "README.md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
            file, _, anchor = target.partition("#")
            if not file.startswith("http"):
                file = page.parent / file if file else page
                assert file.exists(), f"{page.name}: {target}"
                assert not anchor or file.suffix != ".md" or anchor in anchors(file), f"{page.name}: {target}"
    explore = (ROOT / "report" / "explore" / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'report\.md#([^"]+)"', explore)) <= anchors(ROOT / "report.md")
    for script, module in SCRIPTS.items():  # line 1 of each script links its section
        assert re.search(r"report\.md#(\S+)", module.__doc__.splitlines()[0])[1] in anchors(ROOT / "report.md"), script


def test_github_shows_formulas_lists_and_tables_right():
    for page in pages.PAGES:
        cells, lines = 0, without_code(page).splitlines()
        for line, after in zip(lines, [*lines[1:], ""]):
            # Markdown comes before maths: it takes the backslash from \\, or \\| and so on.
            assert not re.search(r"\$[^$`]*\\[!-/:-@\[-`{-~][^$`]*\$", line), f"{page.name}: {line}"
            assert re.sub(r"`[^`]*`", "", line).count("$") % 2 == 0, f"{page.name}: a formula over two lines: {line}"
            assert not re.fullmatch(r"\s*(\d+\.|[-*])\s*", line), f"{page.name}: an empty item"
            if line.startswith("|"):  # a bar splits a cell wherever it stands, also in a comment or in a formula
                assert cells in (0, line.count("|")), f"{page.name}: {line}"
                assert cells or re.fullmatch(r"[|-]+", after), f"{page.name}: a table without a head: {line}"
            cells = line.count("|") if line.startswith("|") else 0


def test_the_pages_lines_of_python_work():
    """The README's lines that load model.pt run as they stand, beside the runs/ of a run; the report's lines for one's
    own images fit its models."""
    readme, report = (re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
                      for page in ("README.md", "report.md"))
    block, = [block for block in readme if "model.pt" in block]
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as tmp:
        shutil.copytree(smoke("cvae")[2], Path(tmp) / "runs" / "cvae")
        os.chdir(tmp)
        try:
            exec(block, names := {})
            assert names["images"].shape == (10, 1, 28, 28) and Path("sevens.png").stat().st_size > 1000
        finally:
            os.chdir(before)
    block, = [block for block in report if "your images" in block]
    quiet(exec, block, names := {})
    assert names["images"].shape == (10, 1, 64, 64)
    x = torch.rand(2, 3, 24, 40)  # and what the page says of vqvae.py
    assert vqvae.VQVAE()(x)[0].shape == x.shape

# %% The browser page

def test_explore():
    """The page asks nobody for anything, its weights fit today's models, and what its networks compute is what PyTorch
    computes: seen in a headless Chromium or Chrome, if there is one."""
    folder = ROOT / "report" / "explore"
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in ("index.html", "explore.js", "weights.js")}
    for name, text in texts.items():
        elsewhere = r"https?:" if name == "weights.js" else r"https?:|fetch|import|XMLHttp|[\"'(]//\w"
        assert not re.search(elsewhere, text), f"{name} names an address elsewhere"

    def bare(packed):  # without the numbers
        if isinstance(packed, dict):
            return {key: bare(value) for key, value in packed.items() if key != "data"}
        return [bare(item) for item in packed] if isinstance(packed, list) else packed

    networks = json.loads(texts["weights.js"].removeprefix("const PAGE = ").rstrip(";\n"))["networks"]
    models = {script: smoke(script)[0][0] for script in SCRIPTS} | {
        "plane": vae.myVAE(latent_dim=2), "vqvae": vqvae.VQVAE(), "baseline": smoke("cvae_structured")[0][1]}
    assert networks.keys() == models.keys()
    for name, model in models.items():
        today = json.loads(json.dumps(bare(export.layers(export.network(name, model)))))
        assert today == bare(networks[name]["layers"]), f"{name} has changed: python report/explore/export.py"

    names = ("chromium", "chromium-browser", "google-chrome", "chrome",
             "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    with tempfile.TemporaryDirectory() as profile:
        page = browser and subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom",
             (folder / "index.html").as_uri()], capture_output=True, text=True, timeout=120).stdout
    if not page or "Six autoencoders" not in page:  # a browser in a sandbox of its own may not read the file
        print("skipped: no Chromium or Chrome here that opens report/explore/index.html")
        return
    difference = re.search(r'data-difference="([^"]*)"', page)
    assert 'data-check="ok"' in page, f"the page's networks are wrong by {difference and difference[1]}"
    assert page.count("<canvas") > 80, "a panel of the page is missing"


if __name__ == "__main__":
    failed = 0
    tests = {name: test for name, test in globals().items()
             if name.startswith("test_") and all(word in name for word in sys.argv[1:])}
    for name, test in tests.items():
        started = time.perf_counter()
        try:
            test()
            verdict = "ok    "
        except Exception:
            failed += 1
            verdict = "FAILED"
            traceback.print_exc()
        print(f"{verdict} {time.perf_counter() - started:5.1f} s  {name}", flush=True)
    print(f"{len(tests) - failed} passed, {failed} failed")
    sys.exit(failed > 0 or not tests)
