# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "matplotlib>=3.8", "torchsummary>=1.5.1"]
# ///
"""Structured prediction: given a quarter of a digit, what may the rest look like?

There is more than one answer: a lower-left quarter may belong to a 4 as well as to a 9. A network that must give one
answer, BaselineNN, gives the average of all of them, which is a blur. The conditional VAE, the class of vae.py with the
visible pixels as its condition c (N, C), C = 196 for one quarter, gives a new answer for every z ~ N(0, I). Only the
unseen pixels y are to be predicted, so only they count, in the losses and in every measure:

    L_CVAE = 1/N  sum over images of [ BCE(y_hat, y) + KL(q(z|x,c) || N(0, I)) ],   y_hat: decoder([z, c]), unseen part
    L_NN   = 1/N  sum over images of   BCE(y_hat, y),                               y_hat: BaselineNN(c), unseen part

Run it:    python cvae_structured.py                      one quarter, under three minutes on two CPU cores
           python cvae_structured.py --quadrants 1 2 3    the table of the paper, under ten minutes
           python cvae_structured.py --smoke              every line of it in seconds, on a few hundred images
Writes:    runs/cvae_structured/: metrics.json, summary.txt, loss.png, samples.png, best_of_k.png, and the weights
           model.pt and baseline.pt. Where a file can show only one model, it is that of the first of --quadrants.
Papers:    Sohn, Lee and Yan, Learning Structured Output Representation using Deep Conditional Generative Models,
           NeurIPS 2015, section 5.1; report.md also quotes the numbers of Pyro's tutorial on it.
"""

import argparse
import contextlib
import io
import json
import math
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import torchsummary
import torchvision
from torch import nn

import common

# %% 1. Settings

NAME = "cvae_structured"
N_SAMPLES = 100  # per test image, for the estimates of the likelihood and for best of k

# Without a usage line, an error is one line.
parser = argparse.ArgumentParser(prog=f"{NAME}.py", usage=argparse.SUPPRESS, description=__doc__.split("\n")[0],
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--n-epochs", type=int, default=15, help="passes over the training set")
parser.add_argument("--batch-size", type=int, default=128, help="images per update, N")
# Three times Adam's usual rate: the one-cycle schedule starts low and ends near 0, and only its peak is this high.
parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of Adam")
parser.add_argument("--hidden-dim", type=int, default=512, help="width of the hidden layers, H_d")
parser.add_argument("--latent-dim", type=int, default=16, help="size of the latent vector, Z")
parser.add_argument("--seed", type=int, default=0, help="same seed, same machine: same numbers")
parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...; auto takes an accelerator if any")
parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw (default: data/ beside the script)")
parser.add_argument("--out-dir", type=Path, default=Path("runs"), help=f"results go to OUT_DIR/{NAME}/")
parser.add_argument("--show", action="store_true", help="open the figures in windows as well")
parser.add_argument("--smoke", action="store_true", help="a run of seconds that goes through every line")
parser.add_argument("--quadrants", type=int, nargs="+", choices=(1, 2, 3), default=[1], metavar="Q",
                    help="how many quarters are visible: 1 lower left, 2 and upper left, 3 and upper right")


def parse_args(argv=None):
    """The command line, checked. Every error is one line on stderr and exit status 2."""
    args = parser.parse_args(argv)
    for name in ("n_epochs", "batch_size", "hidden_dim", "latent_dim"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 < args.lr < math.inf:
        parser.error("--lr must be a positive number")
    if not 0 <= args.seed < 2**63:
        parser.error("--seed must be a whole number from 0 to 2^63 - 1")
    if args.device == "auto":
        args.device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    try:
        torch.zeros(1, device=args.device).item()
    except (RuntimeError, AssertionError):
        parser.error(f"--device {args.device} is not available here: try --device auto or --device cpu")
    try:
        (args.out_dir / NAME).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out_dir / NAME).close()
    except OSError as error:
        parser.error(f"cannot write to --out-dir {args.out_dir}: {error.strerror}")
    return args


# %% 2. Model

class myVAE(nn.Module):
    """Fully connected VAE (Kingma and Welling, arXiv:1312.6114); with conditional_vec_dim > 0 a conditional one (Sohn,
    Lee and Yan, NeurIPS 2015): encoder and decoder then both see a condition c (N, C) beside x or z.

    encoder: (N, H*W + C) -> (N, H_d), mu_layer and logvar_layer: (N, H_d) -> (N, Z),
    decoder: (N, Z + C) -> (N, 1, H, W), the mean of each pixel, between 0 and 1.
    """

    def __init__(self, input_shape=(1, 28, 28), hidden_dim=512, latent_dim=16, conditional_vec_dim=0):
        super().__init__()
        n_pixels = math.prod(input_shape)
        self.latent_dim, self.conditional_vec_dim = latent_dim, conditional_vec_dim
        self.encoder = nn.Sequential(
            nn.Linear(n_pixels + conditional_vec_dim, hidden_dim), nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim), nn.SiLU())
        self.mu_layer = nn.Linear(hidden_dim, latent_dim)
        self.logvar_layer = nn.Linear(hidden_dim, latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim + conditional_vec_dim, hidden_dim), nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim), nn.SiLU(),
            nn.Linear(hidden_dim, n_pixels), nn.Unflatten(1, input_shape), nn.Sigmoid())

    def encode(self, x, c=None):
        """x (N, 1, H, W) or (N, H*W), c (N, C) or None -> mu (N, Z), logvar (N, Z) of q(z|x, c)"""
        x = x.flatten(1)
        h = self.encoder(x if c is None else torch.cat([x, c], dim=1))  # (N, H_d)
        # Why log-variance? A layer's output is any real number; its exp is always a valid variance, and the KL needs
        # the log anyway. The clamp is far from what training uses; it keeps exp() finite if a step goes astray.
        return self.mu_layer(h), self.logvar_layer(h).clamp(-20, 10)

    def reparameterize(self, mu, logvar):
        """z = mu + sigma * epsilon, epsilon ~ N(0, I): a sample of q(z|x) through which gradients reach mu and logvar
        (Kingma and Welling, section 2.4). A sampler called with mu and sigma would not let them through."""
        return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)

    def decode(self, z, c=None):
        """z (N, Z), c (N, C) or None -> x_hat (N, 1, H, W)"""
        return self.decoder(z if c is None else torch.cat([z, c], dim=1))

    def forward(self, x, c=None):
        """x (N, 1, H, W) or (N, H*W), c (N, C) or None -> x_hat (N, 1, H, W), mu (N, Z), logvar (N, Z)"""
        mu, logvar = self.encode(x, c)
        return self.decode(self.reparameterize(mu, logvar), c), mu, logvar

    def kl_divergence(self, mu, logvar):
        """KL(q(z|x) || N(0, I)) of each image and latent dimension, (N, Z), in nats (arXiv:1312.6114, appendix B).

        The paper writes -KL, a term of the bound to be maximised; here it is a cost, hence the minus sign in front.
        """
        return -0.5 * (1 + logvar - mu**2 - logvar.exp())

    def loss_function(self, x_hat, x, mu, logvar):
        """The negative ELBO in nats per image, a scalar: BCE summed over pixels plus KL summed over latents, both
        averaged over the batch. A mean over the pixels instead would silently weight the KL by their number, 784.
        """
        # A sigmoid can round to exactly 0 or 1, where log would be -inf and its gradient NaN.
        x, x_hat = x.flatten(1), x_hat.flatten(1).clamp(1e-7, 1 - 1e-7)
        bce = -(x * x_hat.log() + (1 - x) * (1 - x_hat).log()).sum(dim=1)  # (N,)
        kl = self.kl_divergence(mu, logvar).sum(dim=1)  # (N,)
        return (bce + kl).mean()


class BaselineNN(nn.Module):
    """One deterministic answer: the visible pixels c (N, C) -> x_hat (N, 1, H, W). The CVAE's decoder without z."""

    def __init__(self, input_shape=(1, 28, 28), hidden_dim=512, conditional_vec_dim=196):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(conditional_vec_dim, hidden_dim), nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim), nn.SiLU(),
            nn.Linear(hidden_dim, math.prod(input_shape)), nn.Unflatten(1, input_shape), nn.Sigmoid())

    def forward(self, c):
        return self.net(c)


# %% 3. Loss

def quadrant_mask(quadrants, height=28, width=28):
    """(H, W), True where a pixel is visible: lower left, then upper left too, then upper right too."""
    visible = torch.zeros(height, width, dtype=torch.bool)
    visible[height // 2:, :width // 2] = True
    if quadrants >= 2:
        visible[:, :width // 2] = True
    if quadrants >= 3:
        visible[:height // 2] = True
    return visible


def condition(x, visible):
    """The visible pixels of x (N, 1, H, W), flattened: c (N, C)"""
    return x[:, 0, visible]


def unseen(x, visible):
    """x (N, 1, H, W) with 0 at the visible pixels. With both x_hat and x treated so, a visible pixel costs
    -log(1 - 0) = 0 nats, so that `loss_function`, unchanged, is the loss of the unseen pixels alone."""
    return x * ~visible


def loss_parts(model, x, visible):
    """The training loss of either model on x (N, 1, H, W), and the KL in it (0 for BaselineNN): scalars, in nats per
    image, summed over the unseen pixels and the latents."""
    c = condition(x, visible)
    if isinstance(model, BaselineNN):
        y, y_hat = x[:, 0, ~visible], model(c)[:, 0, ~visible].clamp(1e-7, 1 - 1e-7)  # (N, H*W - C)
        loss = -(y * y_hat.log() + (1 - y) * (1 - y_hat).log()).sum(dim=1).mean()
        return loss, torch.zeros_like(loss)
    x_hat, mu, logvar = model(x, c)
    loss = model.loss_function(unseen(x_hat, visible), unseen(x, visible), mu, logvar)
    return loss, model.kl_divergence(mu, logvar).sum(dim=1).mean()


# %% 4. Training

def train(model, x_train, x_test, visible, args):
    """Minimises the loss of a CVAE or a BaselineNN with Adam; returns the history: lists of `train_loss`, `test_loss`
    and their parts `..._bce` and `..._kl`, one entry an epoch, in nats per image.

    `train_...` is the mean over an epoch's batches, as they came; `test_...` is measured after the epoch.
    """
    updates = args.n_epochs * math.ceil(len(x_train) / args.batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.99))
    # One cycle: the learning rate climbs to its peak in the first 30 % of the updates and then falls to nearly 0.
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=updates)
    history = {f"{which}_{part}": [] for which in ("train", "test") for part in ("loss", "bce", "kl")}
    start = time.perf_counter()
    for epoch in range(1, args.n_epochs + 1):
        model.train()
        total = total_kl = 0.0
        for (x,) in common.minibatches(args.batch_size, x_train):  # x (N, 1, H, W)
            loss, kl = loss_parts(model, x, visible)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.detach() * len(x)  # not .item(): that would make an accelerator wait at every update
            total_kl += kl.detach() * len(x)
        loss, kl = float(total) / len(x_train), float(total_kl) / len(x_train)
        if not math.isfinite(loss):
            parser.exit(1, f"{NAME}.py: error: the loss is no longer a number: try a smaller --lr\n")
        test = evaluate(model, x_test, visible)
        for key, value in {"train_loss": loss, "train_bce": loss - kl, "train_kl": kl}.items():
            history[key].append(value)
        for part in ("loss", "bce", "kl"):
            history[f"test_{part}"].append(test[part])
        pace = (time.perf_counter() - start) / epoch
        print(f"epoch {epoch:2d}/{args.n_epochs}   loss {loss:.2f} (bce {loss - kl:.2f} + kl {kl:.2f})   "
              f"test {test['loss']:.2f}   {pace:.1f} s   eta {pace * (args.n_epochs - epoch):.0f} s", flush=True)
    return history


# %% 5. Evaluation

@torch.no_grad()
def evaluate(model, x, visible):
    """The loss over all of x (n, 1, H, W), in nats per image: {loss, bce, kl}."""
    model.eval()
    loss, kl = sum(torch.stack(loss_parts(model, batch, visible)) * len(batch) for batch in x.split(1000)) / len(x)
    return {"loss": float(loss), "bce": float(loss - kl), "kl": float(kl)}


@torch.no_grad()
def measure(model, baseline, x, visible, n_samples):
    """The negative conditional log-likelihood -log p(y|c) of the unseen pixels y, in nats per image, and the variety
    and the error of the samples; all means over x (n, 1, H, W).

    monte_carlo_nll_nats:  log p(y|c)  ~  log 1/K sum over k of  p(y|z_k,c),  z_k from the prior N(0, I). What the
        paper reports. It needs samples near y, and with few of them it is far too pessimistic.
    importance_nll_nats:   log p(y|c)  ~  log 1/K sum over k of  p(y|z_k,c) p(z_k) / q(z_k|x,c),  z_k ~ q(z|x,c). The
        same integral, but the encoder, which sees y, says where to look. Both are, on average, bounds from above.
    baseline_nll_nats:     the baseline has no z: its BCE is its -log p(y|c).
    sample_std:            a pixel's standard deviation over the samples from the prior, averaged over unseen pixels.
    best_of_k_mse:         list over k: the lowest squared error per unseen pixel among the first k samples.
    baseline_mse:          the same error of the baseline's one answer.
    beats_baseline_at_k:   how many samples it takes until the best of them has a lower error than the baseline.
    """
    model.eval()
    baseline.eval()
    totals = torch.zeros(3, dtype=torch.float64)
    best, baseline_mse = torch.zeros(n_samples, dtype=torch.float64), 0.0
    for batch in x.split(max(1, 10000 // n_samples)):
        c = condition(batch, visible)  # (n, C)
        y = batch[:, 0, ~visible]  # (n, H*W - C)
        mu, logvar = model.encode(batch, c)  # (n, Z)
        c_all = c.expand(n_samples, -1, -1)  # (K, n, C)

        def log_p_y(z):  # z (K, n, Z) -> log p(y|z,c) (K, n), and the logits of the unseen pixels
            # The decoder without its sigmoid: from logits the BCE is exact however sure the decoder is.
            logits = model.decoder[:-1](torch.cat([z, c_all], dim=-1).flatten(0, 1))[:, 0, ~visible]
            logits = logits.reshape(n_samples, *y.shape)
            return -F.binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none").sum(-1), logits

        epsilon = torch.randn(n_samples, *mu.shape, device=x.device)
        z = mu + torch.exp(0.5 * logvar) * epsilon
        # log p(z) - log q(z|x,c), both Gaussian: their constants (2 pi) cancel.
        log_ratio = 0.5 * (epsilon**2 + logvar - z**2).sum(-1)  # (K, n)
        importance = math.log(n_samples) - torch.logsumexp(log_p_y(z)[0] + log_ratio, dim=0)  # (n,)

        log_p, logits = log_p_y(epsilon)  # the prior is N(0, I), as epsilon is
        monte_carlo = math.log(n_samples) - torch.logsumexp(log_p, dim=0)  # (n,)
        y_hat = torch.sigmoid(logits)  # (K, n, H*W - C)
        errors = ((y_hat - y) ** 2).mean(-1)  # (K, n)
        totals += torch.stack([monte_carlo.sum(), importance.sum(), y_hat.std(0).mean(-1).sum()]).cpu()
        best += errors.cummin(dim=0).values.sum(1).cpu()
        baseline_mse += float(((baseline(c)[:, 0, ~visible] - y) ** 2).mean(-1).sum())
    monte_carlo, importance, std = (totals / len(x)).tolist()
    best, baseline_mse = best / len(x), baseline_mse / len(x)
    wins = (best < baseline_mse).nonzero()
    return {"baseline_nll_nats": evaluate(baseline, x, visible)["loss"], "monte_carlo_nll_nats": monte_carlo,
            "importance_nll_nats": importance, "sample_std": std, "best_of_k_mse": best.tolist(),
            "baseline_mse": baseline_mse, "beats_baseline_at_k": int(wins[0]) + 1 if len(wins) else None}


# %% 6. Figures

@torch.no_grad()
def pick_images(model, x, y, visible):
    """Indices of seven test images, by a rule: of each digit that is easily taken for another (4, 9, 3, 5) the image
    whose samples differ most; of three others (0, 1, 7) the one whose samples differ least, relative to their ink, as
    those of a thin digit are alike in being mostly black. Among the first 1000."""
    x, y = x[:1000], y[:1000]
    c = condition(x, visible)
    samples = torch.stack([model.decode(torch.randn(len(x), model.latent_dim, device=x.device), c)[:, 0, ~visible]
                           for _ in range(20)])  # (20, 1000, H*W - C)
    spread, ink = samples.std(0).mean(-1), samples.mean(dim=(0, 2))  # (1000,)
    ambiguous = [int(torch.where(y == digit, spread, -math.inf).argmax()) for digit in (4, 9, 3, 5)]
    easy = [int(torch.where(y == digit, spread / ink, math.inf).argmin()) for digit in (0, 1, 7)]
    return ambiguous + easy


@torch.no_grad()
def make_figures(model, baseline, history, x_test, y_test, visible, results):
    """All figures, as {file name without ending: figure}."""
    model.eval()
    figures = {"loss": common.plot_losses(history, {"loss": "CVAE: loss, nats", "bce": "its BCE", "kl": "its KL",
                                                    "baseline_loss": "BaselineNN: loss, nats"})}

    x = x_test[pick_images(model, x_test, y_test, visible)]  # (7, 1, H, W)
    n, c = 10, condition(x, visible)
    samples = model.decode(torch.randn(n * len(x), model.latent_dim, device=x.device), c.repeat(n, 1))
    answers = torch.cat([baseline(c), samples]).reshape(n + 1, len(x), 1, 28, 28).transpose(0, 1)
    answers = torch.where(visible, x.unsqueeze(1), answers)  # the visible pixels are known: show them as they are
    given = torch.where(visible, x, 0.5)
    figures["samples"] = common.plot_images(
        torch.cat([torch.stack([given, x], dim=1), answers], dim=1),
        column_labels=["given", "original", "Baseline\nNN", *[""] * 4, "samples of the CVAE"])

    figure, axis = plt.subplots(figsize=(8, 3.6))
    for (quadrants, result), color in zip(results.items(), (common.BLUE, common.RED, common.GREEN)):
        k = range(1, len(result["best_of_k_mse"]) + 1)
        axis.plot(k, result["best_of_k_mse"], color=color, label=f"{quadrants} visible: best of k samples")
        axis.axhline(result["baseline_mse"], color=color, linestyle="--", linewidth=1,
                     label=f"{quadrants} visible: BaselineNN")
    axis.set_xscale("log")
    axis.set_xticks((1, 2, 5, 10, 20, 50, 100), (1, 2, 5, 10, 20, 50, 100))
    axis.set_xticks((), minor=True)
    axis.set(xlabel="k, samples", ylabel="MSE per unseen pixel")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    figures["best_of_k"] = figure
    return figures


# %% 7. Run

def run(quadrants, x_train, x_test, args):
    """Trains and measures both models with so many quadrants visible; returns (CVAE, BaselineNN), (their constructor
    arguments), metrics."""
    visible = quadrant_mask(quadrants).to(args.device)
    baseline_config = {"hidden_dim": args.hidden_dim, "conditional_vec_dim": int(visible.sum())}
    config = {**baseline_config, "latent_dim": args.latent_dim}
    torch.manual_seed(args.seed)
    model, baseline = myVAE(**config).to(args.device), BaselineNN(**baseline_config).to(args.device)
    n_parameters, n_decoder, n_baseline = (sum(p.numel() for p in m.parameters() if p.requires_grad)
                                           for m in (model, model.decoder, baseline))
    print(f"BaselineNN with {n_baseline:,} parameters, {quadrants} of 4 quadrants visible, {len(x_train):,} images, "
          f"on {args.device}")
    baseline_start = time.perf_counter()
    baseline_history = train(baseline, x_train, x_test, visible, args)
    print(f"myVAE with {n_parameters:,} parameters, {n_decoder:,} of them in its decoder")
    start = time.perf_counter()
    history = train(model, x_train, x_test, visible, args)
    seconds = time.perf_counter() - start
    metrics = {
        "n_parameters": n_parameters, "n_decoder_parameters": n_decoder, "n_baseline_parameters": n_baseline,
        "seconds": seconds, "baseline_seconds": start - baseline_start,
        "train_loss": evaluate(model, x_train, visible)["loss"], "test_loss": evaluate(model, x_test, visible)["loss"],
        "baseline_train_loss": evaluate(baseline, x_train, visible)["loss"],
        **measure(model, baseline, x_test, visible, N_SAMPLES),
        "history": {**history, **{f"{which}_baseline_loss": baseline_history[f"{which}_loss"]
                                  for which in ("train", "test")}},
    }
    print(f"-log p(unseen pixels), nats: BaselineNN {metrics['baseline_nll_nats']:.1f}, CVAE "
          f"{metrics['importance_nll_nats']:.1f} importance-sampled, {metrics['monte_carlo_nll_nats']:.1f} Monte Carlo")
    return (model, baseline), (config, baseline_config), metrics


def main(argv=None):
    """Trains, evaluates, draws and writes; returns the metrics. argv: a list of flags, None for sys.argv[1:]."""
    args = parse_args(argv)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    out_dir = args.out_dir / NAME
    if not args.show:
        matplotlib.use("Agg")  # draw to files only; needs no display
    try:
        x_train, _, x_test, y_test = common.load_mnist(args.data_dir, args.device)
    except common.DataError as error:
        parser.error(str(error))
    if args.smoke:
        x_train, x_test, y_test = x_train[:512], x_test[:256], y_test[:256]
        args.n_epochs = min(args.n_epochs, 2)

    runs = {quadrants: run(quadrants, x_train, x_test, args) for quadrants in args.quadrants}
    (model, baseline), (config, baseline_config), first = runs[args.quadrants[0]]
    results = {quadrants: metrics for quadrants, (_, _, metrics) in runs.items()}
    metrics = {
        "script": NAME, "dataset": "MNIST", "n_train": len(x_train), "n_test": len(x_test), "n_epochs": args.n_epochs,
        "seed": args.seed, "device": args.device, "n_samples": N_SAMPLES,
        **first, "quadrants": results,
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "torchvision": torchvision.__version__, "numpy": np.__version__},
        "settings": settings,
    }
    visible = quadrant_mask(args.quadrants[0]).to(args.device)
    torch.manual_seed(args.seed)  # the figures do not depend on how much the evaluation has drawn
    figures = make_figures(model, baseline, first["history"], x_test, y_test, visible, results)
    summary = io.StringIO()
    with contextlib.redirect_stdout(summary):  # torchsummary prints; it knows no devices but cpu and cuda
        # Its line "Input size" is wrong for two inputs: it multiplies their sizes where it should add them.
        torchsummary.summary(model.cpu(), [(28 * 28,), (config["conditional_vec_dim"],)], device="cpu")

    # Everything is ready: write it all, each file whole or not at all.
    for name, figure in figures.items():
        common.save_figure(figure, out_dir / f"{name}.png")
    with common.replacing(out_dir / "summary.txt") as path:
        Path(path).write_text(summary.getvalue())
    with common.replacing(out_dir / "model.pt") as path:
        torch.save({"config": config, "state_dict": model.state_dict()}, path)
    with common.replacing(out_dir / "baseline.pt") as path:
        torch.save({"config": baseline_config, "state_dict": baseline.cpu().state_dict()}, path)
    with common.replacing(out_dir / "metrics.json") as path:
        Path(path).write_text(json.dumps(metrics, indent=1) + "\n")

    print(f"wrote {os.path.join(out_dir, '')}")
    ok = {True: "ok", False: "missed"}
    print(f"CVAE {metrics['importance_nll_nats']:.1f} < BaselineNN {metrics['baseline_nll_nats']:.1f} nats: "
          f"{ok[metrics['importance_nll_nats'] < metrics['baseline_nll_nats']]}")
    if args.show:
        plt.show()
    plt.close("all")
    return metrics


if __name__ == "__main__":
    try:
        main([] if "ipykernel" in sys.modules else None)  # in a notebook, sys.argv is the notebook's own
    except KeyboardInterrupt:
        parser.exit(130, f"\n{NAME}.py: stopped; results of earlier runs are untouched\n")
