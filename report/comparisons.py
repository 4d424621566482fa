"""The figures that several runs make together, and the numbers derived from runs: python report/comparisons.py

After report/reproduce.py. Curves are drawn from runs.json; other figures need the weights in runs/report/.

    python report/comparisons.py                                   all figures, and the numbers that are missing
    python report/comparisons.py ae/sweep cvae/test_nll_nats       only these, the numbers anew

A number goes to report/<script>/derived.json, {run: {seed: {key: value}}}, where pages.py finds it.
"""

import functools
import itertools
import json
import math
import shutil
import sys
from pathlib import Path
from unittest import mock

import matplotlib.patches
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import LinearSegmentedColormap
from torch.distributions import Normal
from torch.utils.flop_counter import FlopCounterMode

REPORT = Path(__file__).resolve().parent
sys.path[:0] = [str(REPORT.parent), str(REPORT)]

import ae
import common
import cvae
import cvae_structured
import denoise_ae
import vae
import vqvae
from reproduce import folder, read_runs, rounded, seed_lines

IMPORTANCE_SAMPLES = 100
PURPLE = "#7B4FA3"  # beside the red, which is nearly orange


class MissingRun(Exception):
    """What a run writes is not there."""

    def __init__(self, script, run, seed=""):
        name = f"{script}:{run}:{seed}"
        super().__init__(f"what {name} wrote is not there: python report/reproduce.py {name}")


def seeds_of(script, run):
    """{seed: metrics} of one run, the seeds in order."""
    runs = read_runs(script)
    if run not in runs:
        raise MissingRun(script, run)
    return dict(sorted(runs[run]["seeds"].items(), key=lambda item: int(item[0])))


def column(script, run, key):
    """One number of each seed: np.array."""
    return np.array([metrics[key] for metrics in seeds_of(script, run).values()])


def saved(script, run, seed, name):
    """A file that a run wrote beside its metrics."""
    path = folder(script, run, seed) / name
    if not path.exists():
        raise MissingRun(script, run, seed)
    return path


def load(script, run, seed, model_class, name="model"):
    weights = torch.load(saved(script, run, seed, f"{name}.pt"), weights_only=True)
    model = model_class(**weights["config"])
    model.load_state_dict(weights["state_dict"])
    return model.eval()


def cifar10():
    """x_train, x_test of the whole CIFAR-10: nothing here is measured on the embedded sample."""
    x_train, x_test, source = common.load_cifar10()
    assert source == "CIFAR-10", f"this needs all of CIFAR-10, not the {source}"
    return x_train, x_test


# %% Figures of sections 1 to 5

def ae_sweep():
    figure, axis = plt.subplots(figsize=(8, 3.6))
    sizes = (1, 2, 4, 8, 16, 32)
    for key, style, color, label in (("pca_test_loss", "s--", common.ORANGE, "PCA"),
                                     ("test_loss", "o-", common.BLUE, "autoencoder, mean of three seeds")):
        values = [column("ae", "main" if z == 2 else f"latent-{z}", key)[:3].mean() for z in sizes]
        axis.plot(sizes, values, style, color=color, label=label)
    axis.set_xscale("log")
    axis.set_xticks(sizes, sizes)
    axis.set_xticks((), minor=True)
    axis.set(xlabel="latent size, Z", ylabel="test MSE per pixel", ylim=(0, None))
    axis.legend()
    return figure


@torch.no_grad()
def ae_digits():
    """The first twelve test digits, rebuilt from codes of each size."""
    x = common.load_mnist()[2][:12]
    rows = {"original": x}
    for z in (1, 2, 4, 8, 16, 32):
        rows[f"Z = {z}"] = load("ae", "main" if z == 2 else f"latent-{z}", 0, ae.Autoencoder)(x)
    return common.plot_images(torch.stack(list(rows.values())), list(rows))


def other_seed():
    """Not drawn here: the latent plane of another seed."""
    shutil.copy(saved("ae", "main", 1, "latent_space.png"), REPORT / "ae" / "latent_space_seed_1.png")


def projection():
    """Step 4 of the derivation of PCA in two dimensions: eigenvectors projected onto a line (Z = 1), and how much
    variance each line keeps."""
    variances, angle = np.array([3.0, 1.0]), -30  # nu_j; the angle between the line and v_1 on the left
    u = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.3), width_ratios=(1.3, 1))
    left.add_patch(matplotlib.patches.Ellipse((0, 0), *2 * np.sqrt(variances), color="0.92", label="the data"))
    left.plot(*np.outer(u, (-2, 2)), color="black", linewidth=1, label="the subspace, a line")
    for j, v, color, shift in ((1, np.array([1, 0]), common.BLUE, (-8, -6)),
                               (2, np.array([0, 1]), common.RED, (-4, -6))):
        foot = (v @ u) * u
        left.plot(*np.stack([v, foot]).T, ":", color=color)
        left.plot(*np.stack([0 * foot, foot]).T, color=color, linewidth=5, solid_capstyle="butt")
        left.annotate("", v, (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2, "shrinkA": 0,
                                                 "shrinkB": 0})
        left.annotate(f"$v_{j}$", v, (5, 4), textcoords="offset points", color=color, fontsize=12)
        left.annotate(f"$a_{j}$ = {abs(v @ u):.2f}² = {(v @ u)**2:.2f}", foot / 2, shift, textcoords="offset points",
                      color=color, ha="right", va="top")
    left.set(xlim=(-2, 2), ylim=(-1.25, 1.25), aspect="equal", xticks=(), yticks=())
    left.spines[:].set_visible(False)
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    angles = np.linspace(-90, 90, 181)
    kept = np.stack([np.cos(np.radians(angles))**2, np.sin(np.radians(angles))**2]) * variances[:, None]
    right.stackplot(angles, kept, colors=(common.BLUE, common.RED), alpha=0.7,
                    labels=(r"$a_1 \nu_1$", r"$a_2 \nu_2$"))
    right.axvline(angle, color="black", linewidth=1)
    right.set(xlabel="angle between the line and $v_1$, degrees", ylabel="variance that the line keeps",
              xticks=(-90, -30, 0, 30, 90), yticks=(0, 1, 2, 3), xlim=(-90, 90))
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure


def denoise_sweep():
    """The size of the bottleneck: with more parameters the larger it is, and with as many for each."""
    curves = {"the other layers as they are": (["latent-2", "latent-6", "latent-12", "main"], "s--", common.ORANGE),
              "13,600 to 15,000 parameters":
                  (["budget-2", "budget-6", "budget-12", "main", "budget-36", "budget-48", "budget-96"], "o-",
                   common.BLUE)}
    figure, axis = plt.subplots(figsize=(8, 3.6))
    for label, (runs, style, color) in curves.items():
        sizes = [int(column("denoise_ae", run, "bottleneck_size")[0]) for run in runs]
        losses = [column("denoise_ae", run, "test_loss")[:3] for run in runs]  # up to three seeds
        means = np.array([values.mean() for values in losses])
        spreads = [values.std(ddof=1) if len(values) > 1 else 0 for values in losses]
        axis.errorbar(sizes, means, spreads, fmt=style, color=color, label=label, capsize=3)
    best = int(means.argmin())
    axis.plot(sizes[best], means[best], "o", color="black", markersize=13, fillstyle="none", markeredgewidth=1.5,
              label=f"the best: {sizes[best]} numbers, {means[best]:.4f}")
    axis.set(xlabel="numbers in the bottleneck", ylabel="test MSE per pixel", xscale="log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.set_xticks((), minor=True)
    axis.legend()
    return figure


@torch.no_grad()
def as_assigned():
    """The denoiser with the decoder as assigned beside ours: training errors over the epochs, and the first eight test
    digits."""
    x = common.load_mnist()[2][:8]
    noisy = denoise_ae.add_noise(x, torch.Generator().manual_seed(0))
    rows = {"noisy": noisy}
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), width_ratios=(1, 1.6))
    for run, name, color in (("main", "ours", common.BLUE), ("as-assigned", "as assigned", common.ORANGE)):
        history = json.loads(saved("denoise_ae", run, 0, "metrics.json").read_text())["history"]
        left.plot(range(1, 1 + len(history["train_loss"])), history["train_loss"], color=color, label=name)
        rows[name.replace(" ", "\n")] = load("denoise_ae", run, 0, denoise_ae.DenoiseAE)(noisy)
    left.axhline(0.025, color="0.3", linestyle="--", linewidth=1, label="required")
    left.set(xlabel="epoch", ylabel="MSE, training, seed 0", yscale="log")
    left.legend(fontsize="small")
    rows["clean"] = x
    right.imshow(common.tile(torch.stack(list(rows.values())))[..., 0], cmap="gray", vmin=0, vmax=1)
    right.set_yticks(15 + 30 * np.arange(len(rows)), list(rows))
    right.set_xticks(())
    right.tick_params(length=0)
    right.grid(False)
    right.spines[:].set_visible(False)
    return figure


def best_denoised(noisy, clean, std):
    """The mean of E[x | noisy] if x is one of the clean images, each as likely as the others, and the noise is Gaussian
    and not clipped: noisy (P,), clean (n, P) -> the mean (P,), and how many images share the weight: e to the power of
    its entropy, in nats."""
    weights = (-((noisy - clean) ** 2).sum(1) / (2 * std**2)).softmax(0)  # p(clean image | noisy), (n,)
    return weights @ clean, float(torch.special.entr(weights).sum().exp())


def pairs_in_noise(columns):
    """A figure of columns [(title, pairs)], each pair above the next: (a noisy digit (784,), the std of its noise, the
    best answer (784,), its label)."""
    figure, axes = plt.subplots(2 * len(columns[0][1]), len(columns), figsize=(8, 6 if len(columns) < 6 else 4.6))
    for column, (title, pairs) in enumerate(columns):
        axes[0, column].set_title(title, fontsize=10)
        for upper, lower, (noisy, std, best, label) in zip(axes[::2, column], axes[1::2, column], pairs):
            upper.imshow(noisy.reshape(28, 28), cmap="gray", vmin=-2 * std, vmax=1 + 2 * std)
            lower.imshow(best.reshape(28, 28), cmap="gray", vmin=0, vmax=1)
            lower.set_xlabel(label)
    for axis, label in zip(axes[:, 0], itertools.cycle(("noisy", "best answer"))):
        axis.set_ylabel(label)
    for axis in axes.flat:
        axis.set(xticks=(), yticks=())
        axis.grid(False)
        axis.spines[:].set_visible(False)
    return figure


def best_denoisers():
    """The best denoiser of a world that has only the training digits, for two of them and ever more noise."""
    digits = common.load_mnist()[0].flatten(1)
    epsilon = torch.randn(digits.shape[1], generator=torch.Generator().manual_seed(0))

    def pair(digit, std):
        noisy = digit + std * epsilon
        best, n = best_denoised(noisy, digits, std)
        return noisy, std, best, f"{n:,.0f} {'digit' if n < 1.5 else 'digits'}"

    return pairs_in_noise([(f"σ = {std}", [pair(digit, std) for digit in digits[:2]]) for std in (0.5, 1, 1.5, 2, 4)])


def denoise_stepwise(noise, clean, stds):
    """Draws an image of a world that has only the clean images (n, P), with nothing but its best denoiser: from noise
    (P,), whose standard deviation is stds[0], each step goes so far towards the best answer that stds[i + 1] is left.
    Returns [(image, best answer)] at each of stds: the last answer is the image that is drawn. (Euler's method for the
    probability flow of Song et al. 2021.)"""
    images, noisy = [], noise
    for std, left in zip(stds, (*stds[1:], 0)):  # the last step, to 0, would go all the way to the answer
        best, _ = best_denoised(noisy, clean, std)
        images.append((noisy, best))
        noisy = best + left / std * (noisy - best)
    return images


def diffusion():
    """Two digits drawn by denoise_stepwise, and the best answers on the way."""
    digits = common.load_mnist()[0].flatten(1)
    stds = 10 * 0.93 ** np.arange(51)  # down to 0.27
    paths = [denoise_stepwise(stds[0] * torch.randn(digits.shape[1], generator=torch.Generator().manual_seed(seed)),
                              digits, stds) for seed in range(2)]
    shown = np.linspace(0, len(stds) - 1, 8).round().astype(int)
    return pairs_in_noise([(f"σ = {stds[i]:.2g}", [(path[i][0], stds[i], path[i][1], "") for path in paths])
                           for i in shown])


FORMULAS = vae.myVAE(hidden_dim=1, latent_dim=1)  # untrained: only its formulas are used


def elbo():
    """What q does and what the ELBO loses, in one dimension: x is one white pixel, and the decoder's probability of
    white is sigmoid(10 z). So p(x) = 1/2, and the posterior is nearly the right half of the prior."""
    z, step = torch.linspace(-6, 6, 1201), 0.01
    log_likelihood = F.logsigmoid(10 * z)
    joint = (Normal(0.0, 1.0).log_prob(z) + log_likelihood).exp()
    log_p_x = math.log(joint.sum() * step)
    # q has two numbers only, so all can be tried: first a guess, for comparison, then the others.
    mu, sigma = torch.cat([torch.tensor([[1.5, 0.5]]),
                           torch.cartesian_prod(torch.linspace(0, 2, 201), torch.linspace(0.1, 1, 91))]).T
    q = Normal(mu[:, None], sigma[:, None]).log_prob(z).exp()  # (M, 1201)
    reconstruction = -(q * log_likelihood).sum(1) * step
    bound = -reconstruction - FORMULAS.kl_divergence(mu, 2 * sigma.log())  # the ELBO, (M,)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5), width_ratios=(1.1, 1))
    left.fill_between(z, joint / math.exp(log_p_x), color="#b5ddcf", label="posterior p(z|x)")
    left.plot(z, Normal(0.0, 1.0).log_prob(z).exp(), ":", color="0.3", label="prior p(z)")
    right.bar((0, 1.5), -log_p_x, 0.9, color="0.85")
    best = bound.argmax()
    for place, i, name, color, style in ((0, 0, "a guess", common.ORANGE, "--"),
                                         (1.5, best, "the best", common.BLUE, "-")):
        left.plot(z, q[i], style, color=color, label=f"q, {name}: N({mu[i]:.2f}, {sigma[i]:.2f}$^2$)")
        right.bar(place, log_p_x - bound[i], 0.9, -log_p_x, color=color)
        right.text(place, -log_p_x / 2, f"$-$log p(x)\n{-log_p_x:.3f}", ha="center", va="center", fontsize=9)
        right.text(place, -bound[i] + 0.02, f"KL to the\nposterior\n{log_p_x - bound[i]:.3f}", ha="center",
                   va="bottom", fontsize=9)
    right.bar(2.5, reconstruction[best], 0.9, color="#c6dbef")
    right.bar(2.5, -bound[best] - reconstruction[best], 0.9, reconstruction[best], color="#9ecae1")
    right.text(2.5, reconstruction[best] / 2, f"rebuilding\n{reconstruction[best]:.3f}", ha="center", va="center",
               fontsize=9)
    right.text(2.5, (reconstruction[best] - bound[best]) / 2,
               f"KL to the\nprior\n{-bound[best] - reconstruction[best]:.3f}", ha="center", va="center", fontsize=9)
    left.set(xlabel="z", ylabel="density", xlim=(-3, 3.5), ylim=(0, 1.2))
    left.legend(loc="upper left", fontsize=9)
    right.set(ylabel="nats", xticks=(0, 1.5, 2.5), xticklabels=("a guess", "the best", "the same\nbar again"),
              xlim=(-0.6, 3.1), ylim=(0, 2))
    right.set_title("$-$ELBO of each q", fontsize=10)
    right.grid(False, axis="x")
    return figure


def kl_pairs():
    """What the KL to the prior N(0, 1) charges for a mean and for a width, alone and together."""
    z = torch.linspace(-4, 5, 901)
    figure, axes = plt.subplots(1, 4, figsize=(8, 2.5), sharey=True)
    for axis, (mu, sigma) in zip(axes, ((0.0, 1.0), (1.5, 1.0), (0.0, 0.3), (1.5, 0.3))):
        kl = FORMULAS.kl_divergence(torch.tensor(mu), 2 * torch.tensor(sigma).log())
        q = Normal(mu, sigma).log_prob(z).exp()
        axis.fill_between(z, q, color=common.BLUE, alpha=0.2, linewidth=0)
        axis.plot(z, q, color=common.BLUE, label=r"q = N($\mu$, $\sigma^2$)")
        axis.plot(z, Normal(0.0, 1.0).log_prob(z).exp(), "--", color="black", linewidth=1, label="prior N(0, 1)")
        axis.set(xlabel="z", xlim=(-3.5, 4.5), ylim=(0, 1.45), xticks=(-3, 0, 3))
        axis.set_title(rf"$\mu$ = {mu:g}, $\sigma$ = {sigma:g}" + f"\nKL {kl.abs():.3f} nats", fontsize=10)
    axes[0].set_ylabel("density")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@functools.cache
def gradient_estimates(seed=0, n_images=20, n_samples=5000):
    """Estimates of the gradient of E_q[BCE] with respect to mu of the first test images, each from one z ~ q(z|x):
    {estimator: (n_images, n_samples, Z)}."""
    torch.manual_seed(0)
    model = load("vae", "main", seed, vae.myVAE).requires_grad_(False)
    images = common.load_mnist()[2][:n_images]
    estimates = {"score function": [], "score function, less the mean BCE": [], "reparameterization": []}
    for image, mu, logvar in zip(images, *model.encode(images)):
        z = model.reparameterize(mu.expand(n_samples, -1), logvar).requires_grad_()
        x = image.expand(n_samples, 1, 28, 28)
        bce = F.binary_cross_entropy(model.decode(z), x, reduction="none").sum((1, 2, 3))  # (n_samples,)
        through, = torch.autograd.grad(bce.sum(), z)  # dz / dmu = 1
        bce = bce.detach().unsqueeze(1)
        score = (z.detach() - mu) / logvar.exp()  # the gradient of log q(z|x)
        for gradients, estimate in zip(estimates.values(), (bce * score, (bce - bce.mean()) * score, through)):
            gradients.append(estimate)
    return {name: torch.stack(gradients) for name, gradients in estimates.items()}


def gradient_variance():
    """How far the mean of M estimates of a gradient lies from the gradient, in lengths of the gradient."""
    figure, axis = plt.subplots(figsize=(8, 3.6))
    estimates = gradient_estimates()
    length = estimates["reparameterization"].mean(1).square().sum(1).mean().sqrt()
    sizes = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    for (name, gradients), style, color in zip(estimates.items(), ("s--", "^:", "o-"),
                                               (common.RED, common.ORANGE, common.BLUE)):
        n_images, n_samples, _ = gradients.shape
        means = [gradients.reshape(n_images, n_samples // m, m, -1).mean(2) for m in sizes]
        errors = [mean.var(1).sum(1).mean().sqrt() / length for mean in means]
        axis.plot(sizes, errors, style, color=color, label=name)
    axis.axhline(1, color="black", linewidth=1)
    axis.text(1500, 1, "as large as\nthe gradient", va="center")
    axis.set(xlabel="M, samples of z for each image", ylabel="error / length of the gradient", xscale="log",
             yscale="log", xlim=(0.8, 1300))
    axis.set_xticks((1, 10, 100, 1000), ("1", "10", "100", "1,000"))
    figure.legend(loc="outside upper center", ncols=3)
    return figure


BETAS = {"0": "beta-0", "0.1": "beta-0.1", "0.3": "beta-0.3", "1": "main", "3": "beta-3", "10": "beta-10"}


def rate_distortion():
    """The axes are linear, so that slopes are seen: where BCE + beta KL is least, the curve falls by beta nats of BCE
    for each nat of KL."""
    figure, axis = plt.subplots(figsize=(8, 4.2))
    kl = [column("vae", run, "test_kl")[:3].mean() for run in BETAS.values()]
    bce = [column("vae", run, "test_bce")[:3].mean() for run in BETAS.values()]
    axis.plot(kl, bce, "o-", color=common.BLUE)
    axis.set(xlabel="rate: KL, nats per test image", ylabel="distortion: BCE, nats", xlim=(0, 55), ylim=(50, 165))
    per_x, per_y = 7 / 55, 3.5 / 115  # inches for a nat, nearly
    for beta, x, y in zip(BETAS, kl, bce):
        slope = -float(beta)
        half = 0.55 / math.hypot(per_x, slope * per_y)  # so that all tangents are equally long to the eye
        if x < 55:
            axis.plot((x - half, x + half), (y - slope * half, y + slope * half), color=common.ORANGE, linewidth=2,
                      label="slope $-\\beta$" if beta == "1" else None)
            axis.annotate(rf"$\beta$ = {beta}", (x, y), (8, 8), textcoords="offset points")
        else:
            axis.annotate(rf"to $\beta$ = {beta}: KL {x:.0f}, BCE {y:.1f}", (55, bce[1]), (0, -18), ha="right",
                          textcoords="offset points")
    axis.legend()
    return figure


@torch.no_grad()
def beta_samples():
    x_test = common.load_mnist()[2]
    torch.manual_seed(0)
    models = {beta: load("vae", run, 0, vae.myVAE) for beta, run in BETAS.items()}
    z = torch.randn(12, models["1"].latent_dim)  # the same for all rows
    rows = {rf"$\beta$ = {beta}": model.decode(z) for beta, model in models.items()}
    mu, _ = models["0"].encode(x_test)
    spread = torch.linalg.cholesky(torch.cov(mu.T) + 1e-6 * torch.eye(len(mu.T)))
    fitted = {"$\\beta$ = 0, fitted\nGaussian": models["0"].decode(mu.mean(0) + z @ spread.T)}
    rows = {r"$\beta$ = 0": rows.pop(r"$\beta$ = 0"), **fitted, **rows}
    return common.plot_images(torch.stack(list(rows.values())), list(rows))


def vae_plane():
    """Not drawn here: the figures of a run with --latent-dim 2."""
    for name in ("latent_space.png", "latent_space_images.png"):
        shutil.copy(saved("vae", "plane", 0, name), REPORT / "vae")


@torch.no_grad()
def clouds():
    """In the plane of the VAE with two latents: the clouds q(z|x) of some test images, and one z from each of all."""
    model, (_, _, x, y) = load("vae", "plane", 0, vae.myVAE), common.load_mnist()
    torch.manual_seed(0)
    mu, logvar = model.encode(x)
    z = model.reparameterize(mu, logvar)
    radius = math.sqrt(-2 * math.log(0.05))  # 95 % of a Gaussian in two dimensions, in standard deviations
    figure, axes = plt.subplots(1, 2, figsize=(8, 4), sharey=True)
    for m, s, digit in zip(mu[:200], torch.exp(0.5 * logvar[:200]), y):
        color = common.DIGIT_COLORS[digit]
        axes[0].add_patch(matplotlib.patches.Ellipse(m, *(2 * radius * s), color=color, alpha=0.35, linewidth=0))
        axes[0].text(*m, str(int(digit)), color=color, fontsize=7, ha="center", va="center", clip_on=True)
    axes[1].scatter(*z.T, s=2, color=[common.DIGIT_COLORS[digit] for digit in y], alpha=0.6, linewidths=0)
    for axis, title in zip(axes, ("the clouds of 200 images", "a draw from each of 10,000 clouds")):
        for sigmas in (1, 2, 3):
            axis.add_patch(plt.Circle((0, 0), sigmas, fill=False, linestyle="--"))
        axis.set(title=title, xlabel="$z_1$", xlim=(-4, 4), ylim=(-4, 4), box_aspect=1)
    axes[0].set(ylabel="$z_2$")
    return figure


@torch.no_grad()
def handwritings(run, row_labels=()):
    """Ten digits in four handwritings: with the main run, the first four z that cvae.py's own figure has."""
    torch.manual_seed(0)
    model = load("cvae", run, 0, cvae.myVAE)
    z = torch.randn(8, model.latent_dim)[:4].repeat_interleave(10, dim=0)
    images = model.decode(z, cvae.one_hot(torch.arange(10).repeat(4))).reshape(4, 10, 1, 28, 28)
    return common.plot_images(images, row_labels, range(10))


def best_of_k_all():
    figure, axis = plt.subplots(figsize=(8, 3.4))
    for quadrants, color in ((1, common.BLUE), (2, common.RED), (3, common.GREEN)):
        run = "main" if quadrants == 1 else f"quadrants-{quadrants}"
        best = column("cvae_structured", run, "best_of_k_mse").mean(0)
        baseline = column("cvae_structured", run, "baseline_mse").mean()
        axis.plot(range(1, len(best) + 1), best, color=color)
        axis.axhline(baseline, color=color, linestyle="--", linewidth=1)
        axis.text(105, best[-1], f"{quadrants} visible", color=color, fontsize=9, va="center")
        axis.text(105, baseline, "BaselineNN", color=color, fontsize=9, va="center")
    axis.set_xscale("log")
    axis.set_xticks((1, 2, 5, 10, 20, 50, 100), (1, 2, 5, 10, 20, 50, 100))
    axis.set_xticks((), minor=True)
    axis.set(xlabel="k: the best of so many samples", ylabel="MSE per unseen pixel", xlim=(0.95, 102), ylim=(0, None))
    return figure


# %% The figure of README.md

@torch.no_grad()
def hero():
    """How an image becomes a code and comes back; and how a code drawn from N(0, I) becomes an image."""
    model = load("vae", "main", 0, vae.myVAE)
    x = common.load_mnist()[2][15:16]
    torch.manual_seed(14)  # of the first that give a clear digit; not all do
    figure, axis = plt.subplots(figsize=(8, 3.1))
    axis.set(xlim=(0, 8), ylim=(0, 3.1), aspect="equal")
    axis.set_axis_off()

    def picture(image, left, bottom, label):
        axis.imshow(image.reshape(28, 28), cmap="gray", vmin=0, vmax=1, extent=(left, left + 1.1, bottom, bottom + 1.1))
        axis.text(left + 0.55, bottom - 0.06, label, ha="center", va="top")

    def strip(code, bottom, label):
        """The 16 numbers, in two rows, blue above 0 and orange below."""
        colors = LinearSegmentedColormap.from_list("", (common.ORANGE, "white", common.BLUE))
        axis.imshow(code.reshape(2, 8), cmap=colors, vmin=-4, vmax=4, extent=(2.6, 5.4, bottom + 0.2, bottom + 0.9))
        axis.hlines(bottom + np.array([0.2, 0.55, 0.9]), 2.6, 5.4, color="0.75", linewidth=0.8)
        axis.vlines(2.6 + 0.35 * np.arange(9), bottom + 0.2, bottom + 0.9, color="0.75", linewidth=0.8)
        for i, number in enumerate(code.flatten().tolist()):
            number = f"{round(number, 1) + 0:.1f}".replace("-", "\u2212")  # + 0: no -0.0
            axis.text(2.775 + 0.35 * (i % 8), bottom + 0.725 - 0.35 * (i // 8), number, ha="center", va="center",
                      fontsize=8)
        axis.text(4, bottom - 0.06, label, ha="center", va="top")

    def arrow(left, bottom, label):
        axis.annotate("", (left + 1.1, bottom + 0.55), (left, bottom + 0.55), arrowprops={"arrowstyle": "-|>",
                      "color": "black", "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0})
        axis.text(left + 0.5, bottom + 0.62, label, ha="center", va="bottom")

    code, new = model.encode(x)[0], torch.randn(1, model.latent_dim)
    picture(x, 0.1, 1.9, "a test digit")
    arrow(1.35, 1.9, "encoder")
    strip(code, 1.9, "its latent vector: 16 numbers")
    arrow(5.55, 1.9, "decoder")
    picture(model.decode(code), 6.8, 1.9, "the digit, rebuilt")
    z = torch.linspace(-3, 3, 101)
    axis.fill_between(0.65 + z * 0.55 / 3, 0.3, 0.3 + 2.2 * Normal(0.0, 1.0).log_prob(z).exp(), color="0.8")
    axis.text(0.65, 0.24, "N(0, I)", ha="center", va="top")
    arrow(1.35, 0.3, "draw")
    strip(new, 0.3, "a new latent vector")
    arrow(5.55, 0.3, "decoder")
    picture(model.decode(new), 6.8, 0.3, "a new digit")
    return figure


# %% Figures of section 6 and of report/vqvae.md

PANELS = {"train_reconstruction": "MSE / variance, training", "test_perplexity": "perplexity",
          "test_z_norm": "norm of encoder outputs z", "test_code_norm": "norm of codes e",
          "test_quantization_error": r"$\|z - e\|^2$ / $\|z\|^2$", "test_codes_used": "codes in use"}
LABELS = {**PANELS, "own_cos_outward": "cosine of push and z - e",  # which not every run measures
          "decoder_least": "share on, emptiest layer"}
LINEAR = ("test_perplexity", "test_codes_used", "own_cos_outward")


def histories(runs):
    """(seed, its history) of each seed of several runs, one run after the other."""
    return [(metrics["settings"]["seed"], metrics["history"])
            for run in runs for metrics in seeds_of("vqvae", run).values()]


def plot_runs(lines, panels=tuple(PANELS), numbered=True, xscale="linear"):
    """Groups of runs against each other, {label: names in runs.json}, each group in its colour, seeds 0, 1 and 2 solid,
    dashed and dotted. Norms are medians. numbered: the second group's seeds stand at the ends of its lines. xscale: of
    the updates."""
    rows = math.ceil(len(panels) / 2)
    figure, axes = plt.subplots(rows, 2, figsize=(8, 0.6 + 2.4 * rows), sharex=True)
    ends = {axis: [] for axis in axes.flat}
    for group, (label, runs) in enumerate(lines.items()):
        color = PURPLE if "outward" in label else (common.BLUE, common.RED, common.GREEN, PURPLE, "0.4")[group]
        for i, (seed, history) in enumerate(histories(runs)):
            updates = history["update"]
            for axis, key in zip(axes.flat, panels):
                values = np.array(history[key])
                if key == "decoder_least":
                    values = np.maximum(values, 1e-4)  # 0 is drawn at the bottom
                if values.ndim == 2:
                    values = np.maximum(values[:, 1], 1e-3)  # dead codes shrink to 0
                # Thinner from group to group, so that one which covers another lets it show.
                axis.plot(updates, values, ("-", "--", ":")[i], color=color,
                          linewidth=(2.4, 1.6, 1.6, 1, 1)[group] if i == 0 else 1,
                          label=label if i == 0 else None)
                if numbered and group == 1:
                    ends[axis].append((seed, updates[-1], values[-1]))
    for axis, key in zip(axes.flat, panels):
        axis.set(ylabel=LABELS[key], yscale="linear" if key in LINEAR else "log")
        if key == "train_reconstruction" and axis.get_ylim()[1] > 3:
            axis.set_ylim(top=3)  # a single leap would flatten everything else
        if key == "decoder_least":
            axis.set_ylim(bottom=2e-5)  # room for the numbers at lines that end at 0
    for axis in axes.flat[-2:]:
        axis.set(xlabel="update", xscale=xscale)
        if xscale == "linear":
            axis.locator_params(axis="x", nbins=5)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center",
                  ncols=2 if len(lines) < 5 else 3)
    figure.draw_without_rendering()  # from here on the axes are where they will be
    for axis, places in ends.items():
        number_ends(axis, places, common.RED)
    return figure


def number_ends(axis, places, color):
    """The numbers of lines at their ends, places (number, x, y), one above the other where they would overlap."""
    points = 72 / axis.figure.dpi
    heights = [axis.transData.transform((x, y))[1] * points for _, x, y in places]
    moved = np.array(heights)
    for _ in range(100):  # pairs that are too near part, until none is
        for i, j in itertools.combinations(np.argsort(heights, kind="stable"), 2):
            overlap = max(0, 8 - (moved[j] - moved[i]))
            moved[i] -= overlap / 2
            moved[j] += overlap / 2
    for (number, x, y), height, place in zip(places, heights, moved):
        axis.annotate(str(number), (x, y), (4, place - height), textcoords="offset points", va="center", fontsize=8,
                      color=color)


def two_images(commitment_cost=0.0, at_z=False, n_updates=80, lr=0.1):
    """The smallest VQ-VAE in which z runs away: the images 1 and -1 share one code, the mean of their z, and the
    decoder is the identity. Returns z of both after each update of gradient descent, (n_updates + 1, 2). at_z: the
    image is decoded from z, as if there were no quantizer."""
    x, z, path = torch.tensor([1.0, -1.0]), torch.zeros(2, requires_grad=True), [[0.0, 0.0]]
    for _ in range(n_updates):
        e = z.detach().mean()
        x_hat = z if at_z else z + (e - z).detach()
        loss = ((x_hat - x) ** 2).sum() + commitment_cost * ((z - e) ** 2).sum()
        z = (z - lr * torch.autograd.grad(loss, z)[0]).detach().requires_grad_()
        path.append(z.tolist())
    return np.array(path)


def runaway():
    """z runs away, is held, or stops by itself: in two_images (left), and in the real model (right)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
    for color, name, height, settings, run in (
            (common.RED, "straight-through", 8.7, {}, "notebook-early-lambda-0"),
            (common.BLUE, "with commitment loss", 4.4, {"commitment_cost": 0.25}, "notebook-early"),
            (common.GREEN, "gradient at z", 1.3, {"at_z": True}, "notebook-early-at-z")):
        left.plot(two_images(**settings), color=color, linewidth=2)
        left.text(79, height, name, color=color, fontsize=9, ha="right")
        for i, (_, history) in enumerate(histories([run])):
            right.semilogy(history["update"], np.array(history["test_z_norm"])[:, 1], ("-", "--", ":")[i], color=color,
                           linewidth=1.6)
    left.axhline(0, color="0.45", linewidth=1)
    left.text(79, 0.2, "e", color="0.3", fontsize=9, ha="right")
    left.set(title="the example", xlabel="update", ylabel="z of both images", xlim=(0, 80), ylim=(-10, 10),
             yticks=range(-8, 9, 4))
    right.set(title="the real model, three seeds", xlabel="update", ylabel="median norm of z")
    right.locator_params(axis="x", nbins=4)
    return figure


def cells():
    """A z in its code's cell, and what straight-through does: the gradient at the code is given to z."""
    codes = np.array([[-1.9, 1.2], [-0.2, 1.7], [1.8, 1.3], [-1.6, -0.7], [0.35, -0.2], [2.1, -0.9], [0.1, -1.9]])
    z, push = np.array([2.75, -0.55]), np.array([0.75, -0.15])
    xs, ys = np.linspace(-2.8, 5, 781), np.linspace(-2.4, 2.4, 481)
    points = np.stack(np.meshgrid(xs, ys), axis=-1)  # (481, 781, 2)
    nearest = ((points[:, :, None] - codes) ** 2).sum(-1).argmin(-1)
    e = codes[((codes - z) ** 2).sum(1).argmin()]
    figure, axis = plt.subplots(figsize=(6, 3.4))
    axis.contour(xs, ys, nearest, levels=np.arange(len(codes)) + 0.5, colors="0.75", linewidths=1)
    axis.plot(*codes.T, "o", color="0.6", markersize=6)
    for start, color, label, place in ((e, PURPLE, "what e should do", (2.2, -1.3)),
                                       (z, common.RED, "what z is told to do", (2.8, -0.3))):
        axis.annotate("", start + push, start, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2,
                                                           "shrinkA": 0, "shrinkB": 0})
        axis.text(*place, label, color=color, fontsize=9)
    axis.plot(*e, "o", color=common.BLUE, markersize=8)
    axis.plot(*z, "o", color="black", markersize=7)
    axis.text(e[0] - 0.25, e[1] - 0.05, "e", fontsize=10)
    axis.text(z[0] - 0.2, z[1] + 0.1, "z", fontsize=10)
    axis.text(0.35, 0, "another code", fontsize=9, color="0.4", ha="center")
    axis.set(xticks=(), yticks=(), aspect="equal", xlim=(-1.1, 4.6), ylim=(-2.0, 1.6))
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return figure


def recipes():
    """The test error of four recipes against the images seen, and against the updates."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True)
    for run, batch_size, label, color, style in (
            ("main", 32, "ours", common.BLUE, "-"),
            ("small-notebook-revive", 32, "the notebook's, codes from data and revived, batches of 32", common.GREEN,
             "-."),
            ("small-notebook", 32, "the notebook's, batches of 32", common.ORANGE, ":"),
            ("notebook", 256, "the notebook's, batches of 256", common.RED, "--")):
        for i, (_, history) in enumerate(histories([run])):
            for axis, x in zip(axes, (np.array(history["update"]) * batch_size, history["update"])):
                axis.plot(x, history["test_reconstruction"], style, color=color, linewidth=1.6 if i == 0 else 0.8,
                          label=label if i == 0 else None)
    axes[0].set(xlabel="images seen", ylabel="MSE / variance, test", xscale="log", yscale="log")
    axes[1].set(xlabel="updates", xscale="log")
    for axis in axes:
        axis.set_yticks((0.06, 0.1, 0.2, 0.5, 1), (0.06, 0.1, 0.2, 0.5, 1))
        axis.set_yticks((), minor=True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@torch.no_grad()
def codebooks(run, run_without):
    """Both codebooks after equally many updates; on the right also the left one's codes, to scale."""
    x_test = cifar10()[1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4.2))
    (_, history), (_, history_without) = histories([run])[0], histories([run_without])[0]
    n_updates = history["update"][-1]
    assert history_without["update"][-1] == n_updates, f"{run}, {run_without}: not equally many updates"
    model = load("vqvae", run, 0, vqvae.VQVAE)
    without = load("vqvae", run_without, 0, vqvae.VQVAE)
    vqvae.plot_codebook(left, model, x_test)
    project = vqvae.plot_codebook(right, without, x_test)
    right.plot(*project(model.quantizer.codebook).T, "x", color=common.RED, label="all codes from the left, to scale")
    right.legend(loc="upper left")
    right.margins(y=0.2)
    left.set_title(rf"$\lambda$ = {model.commitment_cost:g}, {n_updates:,} updates")
    right.set_title(rf"$\lambda$ = {without.commitment_cost:g}, {n_updates:,} updates")
    return figure


def mask():
    """What the prior may look at: its own mask for the first 8 of the 64 places, and one place in the picture."""
    seen = vqvae.Prior(num_embeddings=2, width=4).mask == 0  # (64, 64)
    place = 28  # from 0
    picture = F.pad(seen[place, 1:], (0, 1)).reshape(8, 8)  # input t + 1 is the code of place t
    names = [f"$k_{{{t}}}$" for t in range(1, 9)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.9))
    left.imshow(seen[:8, :8], cmap="gray_r", vmin=0, vmax=1)
    left.set_xticks(range(8), ["start", *names[:-1]])
    left.set_yticks(range(8), names)
    left.set(xlabel="the input: shifted by one", ylabel="the word that is predicted")
    right.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
    right.text(place % 8, place // 8, "?", color=common.RED, fontsize=16, fontweight="bold", ha="center", va="center")
    right.set(xlabel=f"the picture's 8 × 8 words, at $k_{{{place + 1}}}$", xticks=(), yticks=())
    for axis in (left, right):
        axis.tick_params(length=0)
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.hlines(np.arange(9) - 0.5, -0.5, 7.5, color="0.6", linewidth=0.8)
        axis.vlines(np.arange(9) - 0.5, -0.5, 7.5, color="0.6", linewidth=0.8)
    return figure


@torch.no_grad()
def nearest_images():
    """Ten images that the prior writes, above the training images that are nearest in their pixels."""
    torch.manual_seed(0)
    x_train, _ = cifar10()
    model = load("vqvae", "main", 0, vqvae.VQVAE)
    prior = load("vqvae", "main", 0, vqvae.Prior, "prior")
    samples = model.decode(model.quantizer.embed(prior.sample(10))).clamp(0, 1)
    index = torch.cdist(samples.flatten(1), x_train.flatten(1)).argmin(1)
    return common.plot_images(torch.stack([samples, x_train[index]]),
                              ["written by\nthe prior", "nearest\ntraining image"])


WITH, WITHOUT = r"$\lambda$ = 0.25", r"$\lambda$ = 0"
# <script>/<file>: what draws it; readme/<file> goes to report/. None has the name of a figure that the script draws.
@torch.no_grad()
def learned_prior():
    """Completions of the first test digits with the prior N(0, I) and with the learned one."""
    x, visible = common.load_mnist()[2][:6], cvae_structured.visible_pixels(1)
    c, grid = x.flatten(1)[:, visible], visible.reshape(28, 28)
    torch.manual_seed(0)
    shown = [torch.where(grid, x, 0.5).unsqueeze(1), x.unsqueeze(1)]
    for run, kind in (("main", cvae_structured.myVAE), ("learned-prior-1", cvae_structured.LearnedPriorVAE)):
        model = load("cvae_structured", run, 0, kind)
        shown.append(torch.ones_like(shown[0]))  # a gap
        for _ in range(5):
            sample = model.decode(model.reparameterize(*cvae_structured.prior(model, c)), c)
            shown.append(torch.where(grid, x, sample).unsqueeze(1))
    return common.plot_images(torch.cat(shown, dim=1), column_labels=[
        "given", "original", *[""] * 3, "prior N(0, I)", *[""] * 5, "learned prior", "", ""])


@torch.no_grad()
def bright_and_dark():
    """Where z lies on the line along which it varies most, after 40 updates of the notebook's recipe: the brighter and
    the darker half of the places, with and without the commitment loss."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.4))
    for axis, title, run in zip(axes, (WITH, WITHOUT), ("notebook-early", "notebook-early-lambda-0")):
        model = load("vqvae", run, 0, vqvae.VQVAE)
        _, place, brightness, way = places(model)
        code = model.quantizer(model.encode(cifar10()[1][:1]))[0][0, :, 0, 0].double() @ way  # all z share it
        bright = brightness > brightness.median()
        bins = np.linspace(place.min(), place.max(), 60)
        for half, color, label in ((bright, common.ORANGE, "bright places"), (~bright, "0.25", "dark places")):
            axis.hist(place[half], bins, color=color, alpha=0.7, label=label)
        axis.axvline(0, color="0.5", linewidth=1, linestyle=":")
        axis.axvline(code, color=common.BLUE, linewidth=1.6, label="the code e")
        axis.set(title=title, xlabel="z along the line")
        axis.set_yticks(())
    axes[0].set(ylabel="how many z")
    axes[0].legend()
    return figure


FIGURES = {
    "readme/hero": hero,
    "ae/sweep": ae_sweep,
    "ae/digits": ae_digits,
    "ae/latent_space_seed_1": other_seed,
    "ae/projection": projection,
    "denoise_ae/sweep": denoise_sweep,
    "denoise_ae/as_assigned": as_assigned,
    "denoise_ae/best": best_denoisers,
    "denoise_ae/diffusion": diffusion,
    "vae/elbo": elbo,
    "vae/kl_pairs": kl_pairs,
    "vae/gradient_variance": gradient_variance,
    "vae/rate_distortion": rate_distortion,
    "vae/beta": beta_samples,
    "vae/latent_space": vae_plane,
    "vae/clouds": clouds,
    "cvae/handwritings": lambda: handwritings("main"),
    "cvae/digits_as_vae": lambda: handwritings("as-vae", [f"$z^{{({i})}}$" for i in range(1, 5)]),
    "cvae_structured/best_of_k_all": best_of_k_all,
    "cvae_structured/learned_prior": learned_prior,
    "vqvae/commitment_all": lambda: plot_runs({WITH: ["main"], WITHOUT: ["lambda-0"]}),
    "vqvae/push": lambda: plot_runs(
        {WITH: ["push"], WITHOUT: ["push-lambda-0"], f"{WITHOUT}, no quantizer": ["push-no-quantizer"],
         f"{WITHOUT}, outward part cut out": ["push-without-outward"]},
        ("train_reconstruction", "test_z_norm")),
    "vqvae/push_early": lambda: plot_runs(
        {WITH: ["notebook-own"], WITHOUT: ["notebook-own-lambda-0"],
         f"{WITHOUT}, no quantizer": ["notebook-own-no-quantizer"]}, ("own_cos_outward", "test_z_norm")),
    "vqvae/switched_off": lambda: plot_runs(
        {WITH: ["notebook-trace-held"], WITHOUT: ["notebook-trace"],
         f"{WITHOUT}, outward part cut out": ["notebook-trace-without-outward"]},
        ("test_z_norm", "decoder_least"), xscale="log"),
    "vqvae/push_notebook": lambda: plot_runs(
        {WITH: ["notebook"], WITHOUT: ["notebook-lambda-0"],
         f"{WITHOUT}, gradient taken at z": ["notebook-at-z"],
         f"{WITHOUT}, outward part cut": ["notebook-without-outward"],
         f"{WITHOUT}, control": ["notebook-without-other"]},
        ("train_reconstruction", "test_z_norm")),
    "vqvae/cells": cells,
    "vqvae/runaway": runaway,
    "vqvae/bright_and_dark": bright_and_dark,
    "vqvae/notebook_loss": lambda: plot_runs(
        {WITH: ["notebook"], WITHOUT: ["notebook-lambda-0"]},
        ("train_reconstruction", "test_z_norm"), numbered=False),
    "vqvae/notebook_codebook": lambda: codebooks("notebook", "notebook-lambda-0"),
    "vqvae/start": lambda: plot_runs({"codes from data, revived": ["short"],
                                      "codes from N(0, I)": ["short-no-revive"]}, numbered=False),
    "vqvae/codebook_loss": lambda: plot_runs({f"codebook loss, {WITH}": ["short-codebook-loss"],
                                              f"codebook loss, {WITHOUT}": ["short-codebook-loss-lambda-0"]}),
    "vqvae/recipes": recipes,
    "vqvae/mask": mask,
    "vqvae/nearest": nearest_images,
}


# %% Numbers: each function gets a run's name, a seed and their metrics

def list_error(run, seed, metrics):
    """The MSE on the first 1,000 test digits, which are not on its list, of the best denoiser of a world that has only
    the training digits; with the noise of denoise_ae.py, not clipped."""
    x_train, _, x_test, _ = common.load_mnist()
    clean, x = x_train.flatten(1), x_test[:1000].flatten(1)
    noisy = x + denoise_ae.NOISE_STD * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    best = torch.stack([best_denoised(y, clean, denoise_ae.NOISE_STD)[0] for y in noisy])
    return float(F.mse_loss(best, x))


@torch.no_grad()
def binarized_nll(run, seed, n_samples):
    """-log p(x) of the first 1,000 binarized test images. With 5,000 samples each it is measured as by Burda et al."""
    x_test = torch.bernoulli(common.load_mnist()[2], generator=torch.Generator().manual_seed(0))[:1000]
    model = load("vae", run, seed, vae.myVAE)
    torch.manual_seed(0)
    return vae.importance_weighted_nll(model, x_test, n_samples)


@torch.no_grad()
def true_test_loss(run, seed, metrics):
    """The test loss of a broken run's weights in the unbroken model."""
    torch.manual_seed(0)
    return vae.evaluate(load("vae", run, seed, vae.myVAE), common.load_mnist()[2])["loss"]


def slopes(run, seed, metrics):
    """How many nats of BCE a nat of KL saves, between each beta of BETAS and the next, on the means of three seeds."""
    kl, bce = ([column("vae", name, key)[:3].mean() for name in BETAS.values()] for key in ("test_kl", "test_bce"))
    return (-np.diff(bce) / np.diff(kl)).tolist()


@functools.cache
@torch.enable_grad()
def judge():
    torch.manual_seed(0)
    x_train, y_train, *_ = common.load_mnist()
    return cvae.train_judge(x_train, y_train)


@torch.no_grad()
def recognised(images):
    """The share of images in which cvae.py's judge sees one digit with a probability above 0.95."""
    sure = torch.cat([judge()(batch).softmax(1).amax(1) for batch in images.split(1000)])
    return float((sure > 0.95).float().mean())


@torch.no_grad()
def recognised_samples(run, seed, metrics):
    """10,000 samples from the prior, and from a Gaussian with the mean and the covariance of the test images' codes."""
    x_test = common.load_mnist()[2]
    model = load("vae", run, seed, vae.myVAE)
    torch.manual_seed(0)
    z = torch.randn(10000, model.latent_dim)
    mu, _ = model.encode(x_test)
    spread = torch.linalg.cholesky(torch.cov(mu.T) + 1e-6 * torch.eye(len(mu.T)))
    return {"prior": recognised(model.decode(z)), "fitted": recognised(model.decode(mu.mean(0) + z @ spread.T))}


def more_samples(run, seed, metrics):
    """cvae_structured.py's two estimates for the first 1,000 test images, with 100 and with 10,000 samples."""
    x_test = common.load_mnist()[2][:1000]
    model = load("cvae_structured", run, seed, cvae_structured.myVAE)
    visible = cvae_structured.visible_pixels(1)
    torch.manual_seed(0)
    return {str(n): cvae_structured.likelihood(model, x_test, visible, n) for n in (100, 10000)}


@torch.no_grad()
def best_sample_wins(run, seed, metrics):
    """The share of the first 1,000 test images in which the best of 100 samples has a lower squared error over the
    unseen pixels than the baseline's answer."""
    x = common.load_mnist()[2][:1000].flatten(1)
    visible = cvae_structured.visible_pixels(1)
    model = load("cvae_structured", run, seed, cvae_structured.myVAE)
    baseline = load("cvae_structured", run, seed, cvae_structured.BaselineNN, "baseline")
    torch.manual_seed(0)
    wins = 0
    for image in x.split(1):
        c, u = image[:, visible], image[:, ~visible]
        samples = cvae_structured.answers(model, torch.randn(100, 1, model.latent_dim), c, visible)  # (100, 1, unseen)
        error = ((baseline(c).flatten(1)[:, ~visible] - u) ** 2).mean()
        wins += bool(((samples - u) ** 2).mean(-1).min() < error)
    return wins / len(x)


def score_variance_ratio(run, seed, metrics):
    """How many times the variance of reparameterization's estimate the score function's has, and with the mean BCE
    subtracted: as many times the samples it needs for the same error."""
    plain, centered, through = (gradients.var(1).sum(1).mean() for gradients in gradient_estimates(seed).values())
    return {"plain": round(float(plain / through)), "centered": round(float(centered / through), 2)}


class OneDigit:
    """A model of cvae.py whose condition is always the same digit: so vae.py's functions, which know of no condition,
    can measure it."""

    def __init__(self, model, digit):
        self.model, self.digit = model, digit

    def condition(self, n):
        return cvae.condition(self.model, torch.full((n,), self.digit))

    def eval(self):
        self.model.eval()

    def encode(self, x):
        return self.model.encode(x, self.condition(len(x)))

    def decode(self, z):
        return self.model.decode(z, self.condition(len(z)))


@torch.no_grad()
def cvae_nll(run, seed, metrics):
    """The upper bound on -log p(x|c) that importance samples give, or on -log p(x) without the label: the mean over all
    test images, one digit after the other."""
    _, _, x_test, y_test = common.load_mnist()
    model = load("cvae", run, seed, cvae.myVAE)
    torch.manual_seed(0)
    total = 0.0
    for digit in range(cvae.N_CLASSES):
        images = x_test[y_test == digit]
        total += vae.importance_weighted_nll(OneDigit(model, digit), images, IMPORTANCE_SAMPLES) * len(images)
    return total / len(x_test)


def doubling_updates(run, seed, metrics):
    """How fast z grows: the slope of log2 of its median norm over all entries up to update 2,000, as updates for a
    doubling."""
    history = metrics["history"]
    shown = [i for i, update in enumerate(history["update"]) if update <= 2000]
    updates = [history["update"][i] for i in shown]
    logs = [math.log2(history["test_z_norm"][i][1]) for i in shown]
    slope, _ = np.polyfit(updates, logs, 1)
    return 1 / slope


def before_leap(run, seed, metrics):
    """Without the commitment loss: the first update after which the median norm of z is above 10, and the mean until
    then of the cosine of the push and z - e."""
    history = metrics["history"]
    n = next(i for i, (_, median, _) in enumerate(history["test_z_norm"], start=1) if median > 10)
    return {"updates": history["update"][n - 1], "push_cos_outward": float(np.mean(history["push_cos_outward"][:n]))}


def growth(run, seed, metrics):
    """By what factor the median norm of z changes in the update after one where the push leads outward, and after one
    where it leads inward, by its mean cosine: geometric means."""
    history = metrics["history"]
    grown = np.diff(np.log([median for _, median, _ in history["test_z_norm"]]))
    outward = np.array(history["push_cos_outward"][:-1]) > 0
    return {"after_outward": float(np.exp(grown[outward].mean())),
            "after_inward": float(np.exp(grown[~outward].mean()))}


def energy_taken(run, seed, metrics):
    """The share of the push's energy that leads outward, and is taken away: the mean over the run."""
    return float(np.mean(metrics["history"]["push_outward_energy"]))


def own(run, seed, metrics):
    """Over updates 2 to 20, of each z's own part: the mean and the least of the cosine of push and z - e, the least of
    that of all as two long vectors, the mean of that of z - e and the sum of earlier pushes. Over updates 6 to 20: the
    mean of that of the push and the one of five updates before."""
    outward, whole, past, five = (metrics["history"][f"own_cos_{key}"][1:20]
                                  for key in ("outward", "whole", "past", "five"))
    return {"outward": float(np.mean(outward)), "least": min(outward), "whole_least": min(whole),
            "past": float(np.mean(past)), "five": float(np.mean(five[4:]))}


def held(run, seed, metrics):
    """With the commitment loss: means over updates 21 to 40, when it has begun to hold z."""
    return {key: float(np.mean(metrics["history"][key][20:40])) for key in ("push_cos_outward", "push_balance")}


def layer_off(run, seed, metrics):
    """Without the commitment loss: the share of units that are on, in that layer of the decoder which has the fewest,
    at the last measurement before the median norm of z passes 10; the first update after which it is 0; and the
    longest median norm of z until then."""
    history = metrics["history"]
    norms = [median for _, median, _ in history["test_z_norm"]]
    leap = next(i for i, norm in enumerate(norms) if norm > 10)
    off = history["decoder_least"].index(0)
    return {"before": history["decoder_least"][leap - 1], "update": history["update"][off],
            "norm": max(norms[:off + 1])}


def off_from(run, seed, metrics):
    """The first update measured from which on a layer of the decoder is off, to the end of the run."""
    history = metrics["history"]
    last_on = max((i for i, share in enumerate(history["decoder_least"]) if share > 0), default=-1)
    return history["update"][last_on + 1]


def relus_off(run, seed, metrics):
    """For 64 test images: the share of active units in the emptiest of the decoder's layers of ReLUs, and in the last
    (but for those inside the residual blocks, which the sum leads around); the share of codes to which the error gives
    a gradient of exactly 0; and how much x_hat differs among the images, at most."""
    model = load("vqvae", run, seed, vqvae.VQVAE)
    x, active, relu = cifar10()[1][:64], [], F.relu
    e = model.quantizer(model.encode(x).detach())[0].detach().requires_grad_()

    def recorded(h, inplace=False):
        h = relu(h)
        if h.shape[1] != metrics["settings"]["num_residual_hiddens"]:
            active.append(float((h > 0).float().mean()))
        return h

    with mock.patch.object(F, "relu", recorded):
        x_hat = model.decode(e)
    F.mse_loss(x_hat, x).backward()
    gradient_0 = (e.grad == 0).all(dim=1)
    return {"least_active": min(active), "last_active": active[-1], "no_gradient": float(gradient_0.float().mean()),
            "x_hat_differs": float((x_hat.amax(0) - x_hat.amin(0)).max().detach())}


@torch.no_grad()
def in_a_cloud(run, seed, metrics):
    """The share of 1,000 draws from the prior that lie in the 95 % region of the cloud q(z|x) of at least one training
    image."""
    model = load("vae", run, seed, vae.myVAE)
    mu, logvar = model.encode(common.load_mnist()[0])
    z = torch.randn(1000, model.latent_dim, generator=torch.Generator().manual_seed(0))
    inside = torch.zeros(1000, dtype=torch.bool)
    for m, s in zip(mu.split(1000), (0.5 * logvar).exp().split(1000)):
        inside |= ((((z[:, None] - m) / s) ** 2).sum(2) < CHI_SQUARED_16).any(1)
    return float(inside.float().mean())


@torch.no_grad()
def places(model):
    """The first principal component of the z of 256 test images: its share of their variance, (); the place of each z
    on it, from the origin, and the brightness of the 4 x 4 pixels from which z mostly comes, (16384,); and the
    component, (D,)."""
    x = cifar10()[1][:256]
    brightness = F.avg_pool2d(x.mean(1), 4).flatten().double()
    z = model.encode(x).permute(0, 2, 3, 1).flatten(0, 2).double()
    _, s, v = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    way = v[0]
    if torch.corrcoef(torch.stack([z @ way, brightness]))[0, 1] < 0:
        way = -way  # the sign of a component is arbitrary: bright is up
    return s[0] ** 2 / (s**2).sum(), z @ way, brightness, way


def line(run, seed, metrics):
    """What `places` has: the share; the correlation of place and brightness; and the mean places of the brighter half
    and of the darker half."""
    share, place, brightness, _ = places(load("vqvae", run, seed, vqvae.VQVAE))
    bright = brightness > brightness.median()
    return {"share": float(share), "correlation": float(torch.corrcoef(torch.stack([place, brightness]))[0, 1]),
            "bright": float(place[bright].mean()), "dark": float(place[~bright].mean())}


def one_colour_error(run, seed, metrics):
    """The test error of answering one colour, the mean of the training images: no other does better on those."""
    x_train, x_test = cifar10()
    return float(((x_test - x_train.mean((0, 2, 3), keepdim=True)) ** 2).mean() / x_train.var())


def norm_sqrt_lambda(run, seed, metrics):
    """How long z is at the end: its median norm times sqrt(lambda)."""
    _, median, _ = metrics["history"]["test_z_norm"][-1]
    return median * metrics["settings"]["commitment_cost"] ** 0.5


def bits_per_dimension(run, seed, metrics):
    """The prior's bits for the codes of an image, and for these per pixel and channel; those of a Gaussian with
    variance MSE for the pixels, whole numbers from 0 to 255; and both together."""
    image = 64 * metrics["prior"]["test_bits_per_code"]
    codes = image / 3072
    mse = 255**2 * metrics["test_reconstruction"] * metrics["data_variance"]
    pixels = 0.5 * math.log2(2 * math.pi * math.e * mse)
    return {"image": round(image, 2), "codes": round(codes, 4), "pixels": round(pixels, 4),
            "all": round(codes + pixels, 4)}


@torch.no_grad()
def multiply_adds(run, seed, metrics):
    """Multiply-adds for one image, forwards. (PyTorch counts a multiply-add as two operations.)"""
    settings = metrics["settings"]
    model = vqvae.VQVAE(num_hiddens=settings["hidden_dim"], num_residual_hiddens=settings["num_residual_hiddens"],
                        num_residual_layers=settings["num_residual_layers"],
                        num_embeddings=settings["codebook_size"], embedding_dim=settings["latent_dim"]).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() // 2


@torch.no_grad()
def prior_by_counting(run, seed, metrics):
    """What p(code | left) and p(code | left, upper) need on test images, in bits per code, by counts of the training
    images. The strength of the smoothing is the best on the last tenth of these."""
    model = load("vqvae", run, seed, vqvae.VQVAE)
    train, test = (vqvae.encode_all(model, x).reshape(-1, 8, 8) for x in cifar10())
    n_codes = metrics["settings"]["codebook_size"]
    split = len(train) * 9 // 10

    def bits(strengths):
        return bits_by_counting(train[:split], train[split:], n_codes, strengths)

    tried = (10, 30, 100, 300, 1000)
    for_left = min(tried, key=lambda strength: bits((strength, 1))[0])
    for_both = min(tried, key=lambda strength: bits((for_left, strength))[1])
    left, both = bits_by_counting(train, test, n_codes, (for_left, for_both))
    return {"left": left, "left_and_upper": both}


def bits_by_counting(known, asked, n_codes, strengths):
    """Bits per code of asked (m, 8, 8), given the left code, and given the left and the upper one, by counts of known
    (n, 8, 8). Each probability is smoothed by a little of what the shorter context says: it counts as so many examples
    as its strength."""
    code, left, both = contexts(known, n_codes)
    asked_code, asked_left, asked_both = contexts(asked, n_codes)
    p = torch.bincount(code, minlength=n_codes)[asked_code].double() / len(code)
    bits = []
    for context, asked_context, strength in ((left, asked_left, strengths[0]), (both, asked_both, strengths[1])):
        # Pairs of context and code, as one number each; few of all that are possible occur.
        pairs, counts = (context * n_codes + code).unique(return_counts=True)
        asked_pairs = asked_context * n_codes + asked_code
        place = torch.searchsorted(pairs, asked_pairs).clamp(max=len(pairs) - 1)
        n_pair = torch.where(pairs[place] == asked_pairs, counts[place], 0)
        n_context = torch.bincount(context, minlength=(n_codes + 1) ** 2)[asked_context]
        p = (n_pair + strength * p) / (n_context + strength)
        bits.append(float(-torch.log2(p).mean()))
    return bits


def contexts(codes, n_codes):
    """codes (n, 8, 8) -> each code, its left neighbour, and its left and upper ones as one number, all (n * 64,). At an
    edge the neighbour is n_codes."""
    padded = F.pad(codes, (1, 0, 1, 0), value=n_codes)
    left = padded[:, 1:, :-1].flatten()
    upper = padded[:, :-1, 1:].flatten()
    return codes.flatten(), left, left * (n_codes + 1) + upper


@torch.no_grad()
def nearest_codes(run, seed, metrics):
    """How many of its 64 codes an image shares with the training image that shares most, at the same places: the median
    and the greatest of 1,000 images that the prior writes, and of 1,000 test images."""
    model = load("vqvae", run, seed, vqvae.VQVAE)
    torch.manual_seed(0)
    written = load("vqvae", run, seed, vqvae.Prior, "prior").sample(1000).flatten(1)
    x_train, x_test = cifar10()
    train = vqvae.encode_all(model, x_train)
    shared = {}
    for name, codes in (("written", written), ("test", vqvae.encode_all(model, x_test[:1000]))):
        same = torch.zeros(len(codes), len(train), dtype=torch.uint8)
        for t in range(64):
            same += codes[:, t, None] == train[:, t]
        most = same.amax(1)
        shared[name] = {"median": int(most.median()), "greatest": int(most.max())}
    return shared


CHI_SQUARED_16 = 26.296  # below it are 95 % of the squared lengths of draws from N(0, I) in 16 dimensions
# The first 40 updates of the notebook's recipe.
FIRST_40 = ("notebook-early", *(f"notebook-early-{name}" for name in (
    "lambda-0", "without-outward", "without-random", "without-z", "no-quantizer", "without-common", "without-own",
    "without-other", "decay", "cut-late", "no-momentum", "at-z", "cut-late-both")))
# Without the commitment loss, with and without another change.
GROWING = ("lambda-0", "lambda-0-decay-0.9", "lambda-0-decay-0.999", "lambda-0-half-lr", "lambda-0-constant-lr")
# The model at other widths.
WIDTHS = ("short", *(f"short-{name}" for name in ("hidden-dim-64", "hidden-dim-256", "residual-hiddens-16",
                                                  "residual-hiddens-64", "residual-layers-1", "residual-layers-4")))
# <script>/<key>: runs, function, and which seeds, if not all
NUMBERS = {
    "denoise_ae/list_error": (("main",), list_error, "0"),
    "denoise_ae/clean_mean_square": (("main",), lambda *_: float((common.load_mnist()[2] ** 2).mean()), "0"),
    "vae/first_1000_nll_100_nats": (("binarized", "binarized-100"), lambda run, seed, _: binarized_nll(run, seed, 100)),
    "vae/first_1000_nll_5000_nats": (("binarized", "binarized-100"),
                                     lambda run, seed, _: binarized_nll(run, seed, 5000)),
    "vae/true_test_loss": (("break-sigma",), true_test_loss),
    "vae/slopes": (("main",), slopes),
    "vae/recognised_samples": (tuple(BETAS.values()), recognised_samples),
    "vae/recognised_test_images": (("main",), lambda *_: recognised(common.load_mnist()[2]), "0"),
    "vae/in_a_cloud": (("main",), in_a_cloud, "0"),
    "vae/score_variance_ratio": (("main",), score_variance_ratio, "0"),
    "cvae/test_nll_nats": (("main", "no-label"), cvae_nll),
    "cvae/importance_samples": (("main", "no-label"), lambda *_: IMPORTANCE_SAMPLES),
    "cvae_structured/more_samples": (("main",), more_samples, "0"),
    "cvae_structured/best_sample_wins": (("main",), best_sample_wins, "0"),
    "vqvae/multiply_adds": (WIDTHS, multiply_adds),
    "vqvae/doubling_updates": (GROWING, doubling_updates),
    "vqvae/before_leap": (("notebook-early-lambda-0",), before_leap),
    "vqvae/growth": (("notebook-early-lambda-0", "notebook-early-no-momentum"), growth),
    "vqvae/longest": ((*FIRST_40, "small-notebook-at-z", "small-notebook-diveq"),
                      lambda run, seed, metrics: max(z for _, z, _ in metrics["history"]["test_z_norm"])),
    "vqvae/energy_taken": (("notebook-early-without-outward", "notebook-without-outward",
                            "small-notebook-without-outward"), energy_taken),
    "vqvae/own": (("notebook-own-lambda-0", "notebook-own", "notebook-own-no-quantizer", "notebook-own-at-z"), own),
    "vqvae/held": (("notebook-early",), held),
    "vqvae/layer_off": (("notebook-trace", "small-notebook-trace"), layer_off),
    "vqvae/least_on": (("notebook-trace-held", "notebook-trace-without-outward"),
                       lambda run, seed, metrics: min(metrics["history"]["decoder_least"])),
    "vqvae/one_colour_error": (("main",), one_colour_error, "0"),
    "vqvae/off_from": (("notebook-lambda-0",), off_from),
    "vqvae/relus_off": (("notebook-lambda-0", "notebook-without-outward", "small-notebook-lambda-0"), relus_off),
    "vqvae/line": (("notebook-early", "notebook-early-lambda-0", "notebook", "notebook-lambda-0"), line),
    "vqvae/norm_sqrt_lambda": (("main", "lambda-0.05", "lambda-1", "lambda-2"), norm_sqrt_lambda),
    "vqvae/bits_per_dimension": (("main",), bits_per_dimension),
    "vqvae/prior_by_counting": (("main",), prior_by_counting),
    "vqvae/nearest_codes": (("main",), nearest_codes, "0"),
}


def derived_numbers(name, anew):
    """Measures what NUMBERS has under this name for all runs and seeds that lack it, or for all, and writes it after
    each seed, as some take minutes."""
    script, key = name.split("/")
    runs, function, *only = NUMBERS[name]
    path = REPORT / script / "derived.json"
    derived = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for run in runs:
        for seed, metrics in seeds_of(script, run).items():
            known = derived.setdefault(run, {}).setdefault(seed, {})
            if (anew or key not in known) and seed in (only[0] if only else seed):
                known[key] = rounded(function(run, seed, metrics))
                entries = [f'"{run}": {seed_lines(seeds)}' for run, seeds in derived.items()]
                path.write_text("{" + ",\n".join(entries) + "}\n", encoding="utf-8", newline="\n")


def main(names):
    """Returns how many of the names could not be done."""
    n_missing = 0
    for name in names or [*NUMBERS, *FIGURES]:
        try:
            if name in NUMBERS:
                derived_numbers(name, anew=bool(names))
            else:
                figure = FIGURES[name]()
                if figure is not None:
                    path = REPORT / name.removeprefix("readme/")
                    common.save_figures({path.name: figure}, path.parent)
            print(f"done: {name}", flush=True)
        except MissingRun as missing:  # any other error is a fault of this program
            n_missing += 1
            print(f"not done: {name}, as {missing}", flush=True)
    return n_missing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
