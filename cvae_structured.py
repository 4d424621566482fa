# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "matplotlib>=3.8", "torchsummary>=1.5.1"]
# ///
"""Structured prediction: complete a quarter of a digit. Results: report.md#5-structured-prediction-cvae_structuredpy

What may the rest look like? There is more than one answer: a lower-left quarter may belong to a 4 as well as to a 9. A
network that must give one answer, BaselineNN, gives the average of all of them, which is a blur. The conditional VAE,
the class of vae.py with the visible pixels as its condition c (N, C), C = 196 for one quarter, gives a new answer for
every z ~ N(0, I). Only the unseen pixels y are to be predicted, so only they count, in the losses and in every measure:

    L_CVAE = 1/N  sum over images of [ BCE(y_hat, y) + KL(q(z|x,c) || N(0, I)) ],   y_hat: decoder([z, c]), unseen part
    L_NN   = 1/N  sum over images of   BCE(y_hat, y),                               y_hat: BaselineNN(c), unseen part

Run it:    python cvae_structured.py                      one quarter, three or four minutes on two cores of a laptop
           python cvae_structured.py --quadrants 1 2 3    the table of the paper, three times as long
           python cvae_structured.py --smoke              all of it in seconds, on a few hundred images
Writes:    runs/cvae_structured/: metrics.json, summary.txt, loss.png, samples.png, best_of_k.png, and the weights
           model.pt and baseline.pt. Where a file can show only one model, it is that of the first of --quadrants.
Papers:    Sohn, Lee and Yan, Learning Structured Output Representation using Deep Conditional Generative Models,
           NeurIPS 2015, section 5.1; report.md also quotes the numbers of Pyro's tutorial on it.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import math
import os
import platform
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import torchsummary
from torch import nn

import common

# %% 1. Settings

NAME = "cvae_structured"
N_SAMPLES = 100  # per test image, for the estimates of the likelihood and for best of k


def number(kind, low, high=math.inf):
    """An argparse type: an int or a float, at least low and below high."""
    def number(text):  # its name stands in argparse's message: "invalid number value"
        value = kind(text)
        if not low <= value < high:
            raise argparse.ArgumentTypeError(f"{text} is out of range: at least {low}, below {high}")
        return value
    return number


def device(text):
    """An argparse type: the name of a device that is there; auto is an accelerator if there is one, else the CPU."""
    if text == "auto":
        text = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError):
        raise argparse.ArgumentTypeError(f"{text} is not available here: try --device cpu") from None
    return text


parser = argparse.ArgumentParser(prog=f"{NAME}.py", description=__doc__.split("\n")[0],
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
# 10, 15 and 20 epochs, batches of 128 and 256 were compared on held-out training images.
parser.add_argument("--n-epochs", type=number(int, 1), default=15, help="passes over the training set")
parser.add_argument("--batch-size", type=number(int, 1), default=128, help="images per update, N")
# Rate, width and Z as in vae.py.
parser.add_argument("--lr", type=number(float, 1e-9), default=3e-3, help="peak learning rate of Adam")
parser.add_argument("--hidden-dim", type=number(int, 1), default=512, help="width of the hidden layers, H_d")
parser.add_argument("--latent-dim", type=number(int, 1), default=16, help="size of the latent vector, Z")
parser.add_argument("--seed", type=number(int, 0, 2**63), default=0, help="same seed, same CPU: same numbers")
parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, mps, ...")
parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw; None is data/ beside the script")
parser.add_argument("--out-dir", type=Path, default=Path("runs"), help=f"results go to OUT_DIR/{NAME}/")
parser.add_argument("--show", action="store_true", help="open the figures in windows as well")
parser.add_argument("--smoke", action="store_true", help="all of it in seconds, on a few hundred images")
parser.add_argument("--validation", action="store_true", help="test on 10,000 held-out training images, to choose by")
parser.add_argument("--quadrants", type=int, nargs="+", choices=(1, 2, 3), default=[1], metavar="Q",
                    help="how many quarters are visible: 1 lower left, 2 and upper left, 3 and upper right")


# %% 2. Model

# The class of vae.py, unchanged; new is what its condition c is. Go on at BaselineNN.

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
        (Kingma and Welling, section 2.4). torch.normal(mu, sigma) would not let them through."""
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
        """The negative ELBO in nats per image and its two parts, scalars: {loss, bce, kl}. BCE is summed over pixels,
        KL over latents, and both are averaged over the batch. A mean over the pixels instead would silently weight the
        KL by their number, 784."""
        bce = F.binary_cross_entropy(x_hat.flatten(1), x.flatten(1), reduction="sum") / len(x)
        kl = self.kl_divergence(mu, logvar).sum(dim=1).mean()
        return {"loss": bce + kl, "bce": bce, "kl": kl}


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

    def loss_function(self, x_hat, x):
        """The BCE in nats per image, in the form that myVAE.loss_function has: {loss, bce, kl}; there is no KL."""
        bce = F.binary_cross_entropy(x_hat.flatten(1), x.flatten(1), reduction="sum") / len(x)
        return {"loss": bce, "bce": bce, "kl": torch.zeros_like(bce)}


# %% 3. Loss

def split_pixels(quadrants, height=28, width=28):
    """Which pixels are visible: lower left, then upper left too, then upper right too. Returns the places of the
    visible ones (C,) and of the unseen ones (H*W - C,) in a flattened image."""
    visible = torch.zeros(height, width, dtype=torch.bool)
    visible[height // 2:, :width // 2] = True
    if quadrants >= 2:
        visible[:, :width // 2] = True
    if quadrants >= 3:
        visible[:height // 2] = True
    return visible.flatten().nonzero().squeeze(1), (~visible).flatten().nonzero().squeeze(1)


def take(x, places):
    """The pixels of x (N, 1, H, W) at these places (P,): (N, P)"""
    return x.flatten(1)[:, places]


def loss_terms(model, x, visible, unseen):
    """The training loss of either model on x (N, 1, H, W), {loss, bce, kl} in nats per image. Only unseen pixels count:
    the model's own loss_function sees no others."""
    c = take(x, visible)  # (N, C)
    if isinstance(model, BaselineNN):
        return model.loss_function(take(model(c), unseen), take(x, unseen))
    x_hat, mu, logvar = model(x, c)
    return model.loss_function(take(x_hat, unseen), take(x, unseen), mu, logvar)


# %% 4. Training

def train(model, x_train, x_test, places, args):
    """Minimises the loss of a CVAE or a BaselineNN with Adam; returns the history: lists of `train_loss`,
    `test_loss` and their parts `..._bce` and `..._kl`, one entry an epoch, in nats per image.

    `train_...` is the mean over an epoch's batches, as they came; `test_...` is measured after the epoch.
    """
    updates = args.n_epochs * math.ceil(len(x_train) / args.batch_size)
    # Adam and its schedule as in vae.py.
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.95, 0.99), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=updates)
    history = {f"{which}_{part}": [] for which in ("train", "test") for part in ("loss", "bce", "kl")}
    start = time.perf_counter()
    for epoch in range(1, args.n_epochs + 1):
        model.train()
        sums = dict.fromkeys(("loss", "bce", "kl"), 0.0)
        for (x,) in common.minibatches(args.batch_size, x_train):  # x (N, 1, H, W)
            terms = loss_terms(model, x, *places)
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            scheduler.step()
            for part, term in terms.items():
                sums[part] += term.detach() * len(x)  # not .item(): an accelerator would wait at every update
        for part, test in evaluate(model, x_test, places).items():
            history[f"train_{part}"].append(float(sums[part]) / len(x_train))
            history[f"test_{part}"].append(test)
        loss, bce, kl, test = (history[key][-1] for key in ("train_loss", "train_bce", "train_kl", "test_loss"))
        if not math.isfinite(loss):
            sys.exit(f"{NAME}.py: error: the loss is no longer a number: try a smaller --lr")
        pace = (time.perf_counter() - start) / epoch
        print(f"epoch {epoch:2d}/{args.n_epochs}   loss {loss:.2f} (bce {bce:.2f} + kl {kl:.2f})   test {test:.2f}   "
              f"{pace:.1f} s   eta {pace * (args.n_epochs - epoch):.0f} s", flush=True)
    return history


# %% 5. Evaluation

@torch.no_grad()
def evaluate(model, x, places):
    """The loss over all of x (n, 1, H, W) and its parts, in nats per image: {loss, bce, kl}. places: what
    `split_pixels` returns."""
    model.eval()
    sums = dict.fromkeys(("loss", "bce", "kl"), 0.0)
    for batch in x.split(1000):
        for part, term in loss_terms(model, batch, *places).items():
            sums[part] += float(term) * len(batch)
    return {part: total / len(x) for part, total in sums.items()}


@torch.no_grad()
def measure(model, baseline, x, places, n_samples):
    """The negative conditional log-likelihood -log p(y|c) of the unseen pixels y, in nats per image, and the variety
    and the error of the samples; all means over x (n, 1, H, W).

    monte_carlo_nll_nats:  log p(y|c)  ~  log 1/K sum over k of  p(y|z_k,c),  z_k from the prior N(0, I). What the
        paper reports. It needs samples near y, and with few of them it is far too pessimistic.
    importance_nll_nats:   log p(y|c)  ~  log 1/K sum over k of  p(y|z_k,c) p(z_k) / q(z_k|x,c),  z_k ~ q(z|x,c). The
        same integral, with z drawn from the encoder, which sees y, and each draw reweighted. Both are, on average,
        bounds from above.
    baseline_nll_nats:     the baseline has no z: its BCE is its -log p(y|c).
    sample_std:            a pixel's standard deviation over the samples from the prior, averaged over unseen pixels.
    best_of_k_mse:         list over k: the lowest squared error per unseen pixel among the first k samples.
    mean_of_k_mse:         the same error of the mean of all samples, which is no sample.
    baseline_mse:          the same error of the baseline's one answer.
    beats_baseline_at_k:   how many samples it takes until the best of them has a lower error than the baseline.
    """
    model.eval()
    baseline.eval()
    visible, unseen = places
    totals = dict.fromkeys(("monte_carlo_nll_nats", "importance_nll_nats", "sample_std", "mean_of_k_mse",
                            "baseline_mse"), 0.0)
    best = torch.zeros(n_samples, dtype=torch.float64)
    for batch in x.split(max(1, 5000 // n_samples)):
        c, y = take(batch, visible), take(batch, unseen)  # (n, C), (n, H*W - C)
        mu, logvar = model.encode(batch, c)  # (n, Z)

        def answers(z):  # z (K, n, Z) -> y_hat (K, n, H*W - C)
            x_hat = model.decode(z.flatten(0, 1), c.repeat(n_samples, 1))
            return take(x_hat, unseen).reshape(n_samples, *y.shape)

        epsilon = torch.randn(n_samples, *mu.shape, device=x.device)
        z = mu + torch.exp(0.5 * logvar) * epsilon
        log_ratio = 0.5 * (epsilon**2 + logvar - z**2).sum(-1)  # log p(z) - log q(z|x,c): the 2 pi cancel, (K, n)
        log_importance = torch.logsumexp(log_bernoulli(answers(z), y) + log_ratio, dim=0)  # (n,)
        y_hat = answers(epsilon)  # the prior is N(0, I), as epsilon is
        log_monte_carlo = torch.logsumexp(log_bernoulli(y_hat, y), dim=0)  # (n,)
        errors = ((y_hat - y) ** 2).mean(-1)  # (K, n)
        totals["monte_carlo_nll_nats"] += float((math.log(n_samples) - log_monte_carlo).sum())
        totals["importance_nll_nats"] += float((math.log(n_samples) - log_importance).sum())
        totals["sample_std"] += float(y_hat.std(0).mean(-1).sum())
        totals["mean_of_k_mse"] += float(((y_hat.mean(0) - y) ** 2).mean(-1).sum())
        totals["baseline_mse"] += float(((take(baseline(c), unseen) - y) ** 2).mean(-1).sum())
        best += errors.cpu().cummin(dim=0).values.double().sum(1)  # on the CPU: not every accelerator has cummin
    means = {key: total / len(x) for key, total in totals.items()}
    best = (best / len(x)).tolist()
    wins = [k for k, error in enumerate(best, start=1) if error < means["baseline_mse"]]
    return {**means, "baseline_nll_nats": evaluate(baseline, x, places)["loss"], "best_of_k_mse": best,
            "beats_baseline_at_k": wins[0] if wins else None}


def log_bernoulli(x_hat, x):
    """log p(x|z) = -BCE(x_hat, x) of K samples for each of n images: x_hat (K, n, P), x (n, P) -> (K, n). As in vae.py:
    products with x, several times as fast as F.binary_cross_entropy, whose bound for its logs, -100, is kept."""
    log_white, log_black = x_hat.log().clamp(min=-100), (1 - x_hat).log().clamp(min=-100)
    return torch.einsum("knp,np->kn", log_white, x) + torch.einsum("knp,np->kn", log_black, 1 - x)


# %% 6. Figures

@torch.no_grad()
def pick_images(model, x, y, places):
    """Indices of seven test images, by a rule: of each digit that is easily taken for another (4, 9, 3, 5) the image
    whose samples differ most; of three others (0, 1, 7) the one whose samples differ least, relative to their ink, as
    those of a thin digit are alike in being mostly black. Among the first 1000."""
    x, y = x[:1000], y[:1000]
    c = take(x, places[0])
    samples = torch.stack([take(model.decode(torch.randn(len(x), model.latent_dim, device=x.device), c), places[1])
                           for _ in range(20)])  # (20, 1000, H*W - C)
    spread, ink = samples.std(0).mean(-1), samples.mean(dim=(0, 2))  # (1000,)
    ambiguous = [int(torch.where(y == digit, spread, -math.inf).argmax()) for digit in (4, 9, 3, 5)]
    easy = [int(torch.where(y == digit, spread / ink, math.inf).argmin()) for digit in (0, 1, 7)]
    return ambiguous + easy


@torch.no_grad()
def make_figures(model, baseline, history, x_test, y_test, places, results):
    """All figures, as {file name without ending: figure}."""
    model.eval()
    figures = {"loss": common.plot_losses(history, {"loss": "CVAE: loss, nats", "bce": "its BCE", "kl": "its KL",
                                                    "baseline_loss": "BaselineNN: loss, nats"})}

    x = x_test[pick_images(model, x_test, y_test, places)]  # (7, 1, H, W)
    n, c = 10, take(x, places[0])
    samples = model.decode(torch.randn(n * len(x), model.latent_dim, device=x.device), c.repeat(n, 1))
    answers = torch.cat([baseline(c), samples]).reshape(n + 1, len(x), 1, 28, 28).transpose(0, 1)
    visible = torch.zeros(784, device=x.device).index_fill_(0, places[0], 1).reshape(28, 28).bool()
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
    places = [pixels.to(args.device) for pixels in split_pixels(quadrants)]
    baseline_config = {"hidden_dim": args.hidden_dim, "conditional_vec_dim": len(places[0])}
    config = {**baseline_config, "latent_dim": args.latent_dim}
    torch.manual_seed(args.seed)
    model, baseline = myVAE(**config).to(args.device), BaselineNN(**baseline_config).to(args.device)
    n_parameters, n_decoder, n_baseline = (sum(p.numel() for p in m.parameters())
                                           for m in (model, model.decoder, baseline))
    print(f"BaselineNN with {n_baseline:,} parameters, {quadrants} of 4 quadrants visible, {len(x_train):,} images, "
          f"on {args.device}")
    baseline_start = time.perf_counter()
    baseline_history = train(baseline, x_train, x_test, places, args)
    print(f"myVAE with {n_parameters:,} parameters, {n_decoder:,} of them in its decoder")
    start = time.perf_counter()
    history = train(model, x_train, x_test, places, args)
    seconds = time.perf_counter() - start
    metrics = {
        "n_parameters": n_parameters, "n_decoder_parameters": n_decoder, "n_baseline_parameters": n_baseline,
        "seconds": seconds, "baseline_seconds": start - baseline_start,
        "train_loss": evaluate(model, x_train, places)["loss"], "test_loss": evaluate(model, x_test, places)["loss"],
        "baseline_train_loss": evaluate(baseline, x_train, places)["loss"],
        **measure(model, baseline, x_test, places, N_SAMPLES),
        "history": {**history, **{f"{which}_baseline_loss": baseline_history[f"{which}_loss"]
                                  for which in ("train", "test")}},
    }
    print(f"-log p(unseen pixels), nats: BaselineNN {metrics['baseline_nll_nats']:.1f}, CVAE "
          f"{metrics['importance_nll_nats']:.1f} importance-sampled, {metrics['monte_carlo_nll_nats']:.1f} Monte Carlo")
    return (model, baseline), (config, baseline_config), metrics


def main(argv=None):
    """Trains, evaluates, draws and writes; returns both models and the metrics. argv: a list of flags, None for those
    of the command line."""
    args = parser.parse_args(argv)
    out_dir = args.out_dir / NAME
    out_dir.mkdir(parents=True, exist_ok=True)
    common.use_windows(args.show)
    x_train, _, x_test, y_test = common.load_mnist(args.data_dir, args.device, args.validation)
    if args.smoke:
        x_train, x_test, y_test, args.n_epochs = x_train[:512], x_test[:256], y_test[:256], min(args.n_epochs, 2)

    runs = {quadrants: run(quadrants, x_train, x_test, args) for quadrants in dict.fromkeys(args.quadrants)}
    (model, baseline), (config, baseline_config), first = runs[args.quadrants[0]]
    results = {quadrants: metrics for quadrants, (_, _, metrics) in runs.items()}
    metrics = {
        "script": NAME, "dataset": "MNIST", "n_train": len(x_train), "n_test": len(x_test), "n_epochs": args.n_epochs,
        "seed": args.seed, "n_samples": N_SAMPLES, **first, "quadrants": results,
        "settings": vars(args), "device": args.device, "threads": torch.get_num_threads(),
        "processor": getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", platform.processor()),
        "accelerator": torch.cuda.get_device_name(args.device) if "cuda" in args.device else None,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy")},
    }
    torch.manual_seed(args.seed)  # the figures do not depend on how much the evaluation has drawn
    places = [pixels.to(args.device) for pixels in split_pixels(args.quadrants[0])]
    figures = make_figures(model, baseline, first["history"], x_test, y_test, places, results)
    with contextlib.redirect_stdout(io.StringIO()) as summary:  # torchsummary prints; it knows only cpu and cuda
        # Its line "Input size" is wrong for two inputs: it multiplies their sizes where it should add them.
        torchsummary.summary(model.cpu(), [(28 * 28,), (config["conditional_vec_dim"],)], device="cpu")

    # Everything is ready: write it all, each file whole or not at all.
    for name, net, arguments in (("model", model, config), ("baseline", baseline.cpu(), baseline_config)):
        with common.replacing(out_dir / f"{name}.pt") as path:
            torch.save({"config": arguments, "state_dict": net.state_dict()}, path)
    texts = {"summary.txt": summary.getvalue(), "metrics.json": json.dumps(metrics, indent=1, default=str) + "\n"}
    for name, text in texts.items():
        with common.replacing(out_dir / name) as path:
            Path(path).write_text(text)
    common.save_figures(figures, out_dir, args.show)
    print(f"wrote {out_dir}{os.sep}")
    ok = {True: "ok", False: "missed"}
    print(f"CVAE {metrics['importance_nll_nats']:.1f} < BaselineNN {metrics['baseline_nll_nats']:.1f} nats: "
          f"{ok[metrics['importance_nll_nats'] < metrics['baseline_nll_nats']]}")
    return model, baseline, metrics


if __name__ == "__main__":
    try:
        # In a notebook sys.argv holds the notebook's flags, not ours.
        model, baseline, metrics = main(None if Path(sys.argv[0]).name == f"{NAME}.py" else [])
    except KeyboardInterrupt:
        parser.exit(130, f"\n{NAME}.py: stopped; every file that is there is whole\n")
    except RuntimeError as error:  # BCE refuses NaN, on most devices
        if "between 0 and 1" not in str(error) and "device-side assert" not in str(error):
            raise
        sys.exit(f"{NAME}.py: error: the loss is no longer a number: try a smaller --lr")
    except OSError as error:  # data or a folder that is not as it should be
        parser.error(str(error))
