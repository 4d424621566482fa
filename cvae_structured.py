# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "matplotlib>=3.8", "torchsummary>=1.5.1"]
# ///
"""Structured prediction: complete a quarter of a digit.

What may the rest look like? There is more than one answer: a lower-left quarter may belong to a 4 as well as to a 9. A
network that must give one answer, BaselineNN, gives the average of all of them, which is a blur. The conditional VAE,
the class of vae.py with the visible pixels as its condition c (N, C), C = 196 for one quarter, gives a new answer for
every z ~ N(0, I). Only the unseen pixels u are to be predicted, so only they count, in the losses and in every measure:

    L_CVAE = 1/N  sum over images of [ BCE(u_hat, u) + KL(q(z|x,c) || N(0, I)) ],   u_hat: decoder([z, c]), unseen part
    L_NN   = 1/N  sum over images of   BCE(u_hat, u),                               u_hat: BaselineNN(c), unseen part

Run it:    python cvae_structured.py                  one quarter is visible; minutes on a laptop
           python cvae_structured.py --quadrants 2    half of the image is
           python cvae_structured.py --learned-prior  z, too, is drawn for what is visible
           python cvae_structured.py --smoke          every step in seconds, on a few hundred images
Writes:    runs/cvae_structured/: metrics.json, loss.png, samples.png, best_of_k.png, and the weights model.pt and
           baseline.pt
Report:    report.md#5-structured-prediction-cvae_structuredpy-deliverable-5
Papers:    Sohn, Lee and Yan, Learning Structured Output Representation using Deep Conditional Generative Models,
           NeurIPS 2015, section 5.1; report.md also quotes the numbers of Pyro's tutorial on it.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import torchsummary
from torch import nn

import common

N_SAMPLES = 100  # per test image, for the estimates of the likelihood and for best of k


# %% 1. Model

# The class of vae.py to the letter. What is new is its condition c: go on at BaselineNN.

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
        # the log anyway. The clamp keeps that exp finite if a step goes astray.
        return self.mu_layer(h), self.logvar_layer(h).clamp(max=10)

    def reparameterize(self, mu, logvar):
        """z = mu + sigma * epsilon, epsilon ~ N(0, I): a sample of q(z|x) through which gradients reach mu and logvar
        (Kingma and Welling, section 2.4). With torch.normal(mu, sigma) they would silently be 0."""
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


class LearnedPriorVAE(myVAE):
    """With --learned-prior the prior, too, sees the visible pixels: p(z|c) = N(mu_p(c), sigma_p(c)^2), one hidden layer
    (Sohn, Lee and Yan 2015)."""

    def __init__(self, hidden_dim=512, latent_dim=16, conditional_vec_dim=196):
        super().__init__(hidden_dim=hidden_dim, latent_dim=latent_dim, conditional_vec_dim=conditional_vec_dim)
        self.prior = nn.Sequential(nn.Linear(conditional_vec_dim, hidden_dim), nn.SiLU(),
                                   nn.Linear(hidden_dim, 2 * latent_dim))


def prior(model, c):
    """mu_p and logvar_p (N, Z) of the prior N(mu_p, sigma_p^2) for visible pixels c (N, C): zeros, unless learned."""
    learned = isinstance(model, LearnedPriorVAE)
    return (model.prior(c) if learned else c.new_zeros(len(c), 2 * model.latent_dim)).chunk(2, dim=1)


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


def visible_pixels(quadrants, height=28, width=28):
    """Which pixels of a flattened image are visible: the lower left quarter, then the upper left one too, then the
    upper right one too. Returns (H*W,) bool; its negation marks the unseen ones."""
    visible = torch.zeros(height, width, dtype=torch.bool)
    visible[height // 2:, :width // 2] = True
    if quadrants >= 2:
        visible[:, :width // 2] = True
    if quadrants >= 3:
        visible[:height // 2] = True
    return visible.flatten()


def loss_terms(model, x, visible):
    """The loss of a CVAE or a BaselineNN on x (N, 1, H, W) and its parts, {loss, bce, kl} in nats per image. Only the
    unseen pixels count."""
    x = x.flatten(1)  # (N, H*W)
    c = x[:, visible]  # (N, C)
    if isinstance(model, BaselineNN):
        x_hat = model(c)
        kl = torch.zeros((), device=x.device)  # there is no z
    else:
        x_hat, mu, logvar = model(x, c)
        mu_p, logvar_p = prior(model, c)
        # KL(N(mu, sigma^2) || N(mu_p, sigma_p^2)). With mu_p = 0 and sigma_p = 1 it is that of vae.py.
        kl = 0.5 * (logvar_p - logvar + (logvar.exp() + (mu - mu_p) ** 2) / logvar_p.exp() - 1).sum(dim=1).mean()
    bce = F.binary_cross_entropy(x_hat.flatten(1)[:, ~visible], x[:, ~visible], reduction="sum") / len(x)
    return {"loss": bce + kl, "bce": bce, "kl": kl}


# %% 2. Training

def train(model, x_train, x_test, visible, args):
    """Minimises the loss of a CVAE or a BaselineNN with Adam; returns the history: lists of `train_loss`,
    `test_loss` and their parts `..._bce` and `..._kl`, one entry an epoch, in nats per image. visible: what
    `visible_pixels` returns.

    `train_...` is the mean over an epoch's images, each as its batch came; `test_...` is measured after the epoch.
    """
    n_updates = args.n_epochs * math.ceil(len(x_train) / args.batch_size)
    # Adam and its schedule as in vae.py.
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.95, 0.99), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=n_updates)
    history = {"train_loss": [], "train_bce": [], "train_kl": [], "test_loss": [], "test_bce": [], "test_kl": []}
    start = time.perf_counter()
    for epoch in range(1, args.n_epochs + 1):
        model.train()
        sums = {"loss": 0, "bce": 0, "kl": 0}
        for (x,) in common.minibatches(args.batch_size, x_train):  # x (N, 1, H, W)
            terms = loss_terms(model, x, visible)
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            scheduler.step()
            for part, term in terms.items():
                sums[part] += term.detach() * len(x)  # not .item(): an accelerator would wait at every update
        test_terms = evaluate(model, x_test, visible)
        for part in ("loss", "bce", "kl"):
            history[f"train_{part}"].append(float(sums[part]) / len(x_train))
            history[f"test_{part}"].append(test_terms[part])
        if not math.isfinite(history["train_loss"][-1]):
            sys.exit("error: the loss is no longer finite: try a smaller --lr")
        pace = (time.perf_counter() - start) / epoch
        print(f"epoch {epoch:2d}/{args.n_epochs}   loss {history['train_loss'][-1]:.2f} "
              f"(bce {history['train_bce'][-1]:.2f} + kl {history['train_kl'][-1]:.2f})   "
              f"test {test_terms['loss']:.2f}   {pace:.1f} s   eta {pace * (args.n_epochs - epoch):.0f} s", flush=True)
    return history


# %% 3. Evaluation

@torch.no_grad()
def evaluate(model, x, visible):
    """The loss over all of x (n, 1, H, W) and its parts, in nats per image: {loss, bce, kl}."""
    model.eval()
    sums = {"loss": 0.0, "bce": 0.0, "kl": 0.0}
    for batch in x.split(1000):
        for part, term in loss_terms(model, batch, visible).items():
            sums[part] += float(term) * len(batch)
    return {part: total / len(x) for part, total in sums.items()}


@torch.no_grad()
def likelihood(model, x, visible, n_samples):
    """Two estimates of -log p(u|c), where u are the unseen pixels, in nats per image, the mean over x (n, 1, H, W):

    monte_carlo_nll_nats:  log p(u|c)  ~  log 1/M sum over m of  p(u|z_m,c),  z_m from the prior. It needs
        samples near u, and with few of them it is far too pessimistic.
    importance_nll_nats:   log p(u|c)  ~  log 1/M sum over m of  p(u|z_m,c) p(z_m) / q(z_m|x,c),  z_m ~ q(z|x,c). The
        same integral, with z drawn from the encoder, which sees u, and each draw reweighted.
    On average both are upper bounds.
    """
    model.eval()
    monte_carlo = importance = 0.0
    for batch in x.flatten(1).split(max(1, 5000 // n_samples)):  # (n, H*W)
        c = batch[:, visible]
        mu, logvar = model.encode(batch, c)  # (n, Z)
        mu_p, logvar_p = prior(model, c)
        epsilon = torch.randn(n_samples, *mu.shape, device=x.device)  # (M, n, Z)
        z = mu + torch.exp(0.5 * logvar) * epsilon
        # log p(z) - log q(z|x,c): the 2 pi cancel, (M, n)
        log_ratio = 0.5 * (epsilon**2 + logvar - (z - mu_p) ** 2 / logvar_p.exp() - logvar_p).sum(-1)
        log_p_u = log_bernoulli(answers(model, z, c, visible), batch[:, ~visible])  # (M, n)
        importance += float((math.log(n_samples) - torch.logsumexp(log_p_u + log_ratio, dim=0)).sum())
        z = mu_p + torch.exp(0.5 * logvar_p) * epsilon
        log_p_u = log_bernoulli(answers(model, z, c, visible), batch[:, ~visible])
        monte_carlo += float((math.log(n_samples) - torch.logsumexp(log_p_u, dim=0)).sum())
    return {"monte_carlo_nll_nats": monte_carlo / len(x), "importance_nll_nats": importance / len(x)}


@torch.no_grad()
def best_of_k(model, baseline, x, visible, n_samples):
    """How good and how different are samples from the prior? Means over x (n, 1, H, W) and its unseen pixels:

    sample_std:           a pixel's standard deviation over the samples.
    best_of_k_mse:        list over k: the lowest squared error among the first k samples.
    mean_of_k_mse:        the same error of the mean of all samples, which is no sample.
    baseline_mse:         the same error of the baseline's one answer.
    beats_baseline_at_k:  how many samples it takes until the best of them has a lower error than the baseline.
    """
    model.eval()
    baseline.eval()
    sums = {"sample_std": 0.0, "mean_of_k_mse": 0.0, "baseline_mse": 0.0}
    best = torch.zeros(n_samples, dtype=torch.float64)
    for batch in x.flatten(1).split(max(1, 5000 // n_samples)):  # (n, H*W)
        c = batch[:, visible]
        unseen = batch[:, ~visible]
        mu_p, logvar_p = prior(model, c)
        z = mu_p + torch.exp(0.5 * logvar_p) * torch.randn(n_samples, *mu_p.shape, device=x.device)  # (M, n, Z)
        u_hat = answers(model, z, c, visible)  # (M, n, H*W - C)
        errors = ((u_hat - unseen) ** 2).mean(-1)  # (M, n)
        best += errors.cpu().cummin(dim=0).values.double().sum(1)  # on the CPU: not every accelerator has cummin
        sums["sample_std"] += float(u_hat.std(0).mean(-1).sum())
        sums["mean_of_k_mse"] += float(((u_hat.mean(0) - unseen) ** 2).mean(-1).sum())
        sums["baseline_mse"] += float(((baseline(c).flatten(1)[:, ~visible] - unseen) ** 2).mean(-1).sum())
    results = {key: total / len(x) for key, total in sums.items()}
    results["best_of_k_mse"] = (best / len(x)).tolist()
    wins = [k for k, error in enumerate(results["best_of_k_mse"], start=1) if error < results["baseline_mse"]]
    results["beats_baseline_at_k"] = wins[0] if wins else None
    return results


def answers(model, z, c, visible):
    """z (M, n, Z), M for each of n images with visible pixels c (n, C) -> their unseen pixels (M, n, H*W - C)"""
    x_hat = model.decode(z.flatten(0, 1), c.repeat(len(z), 1))
    return x_hat.flatten(1)[:, ~visible].reshape(*z.shape[:2], -1)


def log_bernoulli(x_hat, x):
    """log p(x|z) = -BCE(x_hat, x) of M samples for each of n images: x_hat (M, n, P), x (n, P) -> (M, n). As in
    vae.py: products with x, several times as fast as F.binary_cross_entropy, with logs clamped at -100 as there."""
    log_white, log_black = x_hat.log().clamp(min=-100), (1 - x_hat).log().clamp(min=-100)
    return torch.einsum("mnp,np->mn", log_white, x) + torch.einsum("mnp,np->mn", log_black, 1 - x)


# %% 4. Figures

@torch.no_grad()
def pick_images(model, x, y, visible):
    """Indices of seven test images, by a rule: of each digit that is easily taken for another (4, 9, 3, 5) the image
    whose samples differ most; of three others (0, 1, 7) the one whose samples differ least, relative to their ink, as
    those of a thin digit are alike in being mostly black. Among the first 1000."""
    x, y = x[:1000], y[:1000]
    c = x.flatten(1)[:, visible]
    mu_p, logvar_p = prior(model, c)
    z = mu_p + torch.exp(0.5 * logvar_p) * torch.randn(20, *mu_p.shape, device=x.device)  # (20, 1000, Z)
    samples = answers(model, z, c, visible)  # (20, 1000, H*W - C)
    spread = samples.std(0).mean(-1)  # (1000,)
    ink = samples.mean(dim=(0, 2))
    ambiguous = [int(torch.where(y == digit, spread, -math.inf).argmax()) for digit in (4, 9, 3, 5)]
    easy = [int(torch.where(y == digit, spread / ink, math.inf).argmin()) for digit in (0, 1, 7)]
    return ambiguous + easy


@torch.no_grad()
def make_figures(model, baseline, metrics, x_test, y_test, visible):
    """All figures, as {file name without ending: figure}."""
    model.eval()
    figures = {"loss": common.plot_losses(metrics["history"], {
        "loss": "CVAE: loss, nats", "bce": "its BCE", "kl": "its KL", "baseline_loss": "BaselineNN: loss"})}

    x = x_test[pick_images(model, x_test, y_test, visible) + [0, 1, 2]]  # (10, 1, H, W)
    c = x.flatten(1)[:, visible].repeat(100, 1)  # a hundred samples each
    samples = model.decode(model.reparameterize(*prior(model, c)), c).reshape(100, 10, 1, 28, 28)
    errors = ((samples - x) ** 2).flatten(2)[:, :, ~visible].mean(-1)  # (100, 10)
    nearest = samples[errors.argmin(0), torch.arange(10, device=x.device)]
    shown = torch.stack([baseline(c[:10]), *samples[:9], nearest], dim=1)  # (10, 11, 1, 28, 28)
    visible = visible.reshape(28, 28)
    shown = torch.where(visible, x.unsqueeze(1), shown)  # the visible pixels are known: show them as they are
    given = torch.where(visible, x, 0.5)
    figures["samples"] = common.plot_images(
        torch.cat([torch.stack([given, x], dim=1), shown], dim=1),
        ["", "open", "", "", "", "settled", "", "", "simply\nthe first\nthree", ""],
        ["given", "original", "Baseline\nNN", *[""] * 4, "samples of the CVAE", *[""] * 4, "nearest\nof 100"])

    figure, axis = plt.subplots(figsize=(8, 3.6))
    best = metrics["best_of_k_mse"]
    axis.plot(range(1, len(best) + 1), best, color=common.BLUE, label="CVAE: the best of k samples")
    axis.axhline(metrics["baseline_mse"], color=common.ORANGE, linestyle="--", label="BaselineNN: its one answer")
    axis.axhline(metrics["mean_of_k_mse"], color=common.GREEN, linestyle=":",
                 label=f"CVAE: the mean of {len(best)} samples")
    axis.set_xscale("log")
    axis.set_xticks((1, 2, 5, 10, 20, 50, 100), (1, 2, 5, 10, 20, 50, 100))
    axis.set_xticks((), minor=True)
    axis.set(xlabel="k, samples", ylabel="MSE per unseen pixel", ylim=(0, None))
    axis.legend()
    figures["best_of_k"] = figure
    return figures


# %% 5. Run

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--n-epochs", type=int, default=15, help="passes over the training set")
parser.add_argument("--batch-size", type=int, default=128, help="images per update, N")
# Rate, width and Z as in vae.py. Twice as many latents make the bound better and the samples from the prior worse.
parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of Adam")
parser.add_argument("--hidden-dim", type=int, default=512, help="width of the hidden layers, H_d")
parser.add_argument("--latent-dim", type=int, default=16, help="size of the latent vector, Z")
parser.add_argument("--quadrants", type=int, default=1, choices=(1, 2, 3),
                    help="how many quarters are visible: 1 lower left, 2 and upper left, 3 and upper right")
parser.add_argument("--learned-prior", action="store_true", help="p(z|c) from a network of its own, not N(0, I)")
parser.add_argument("--seed", type=int, default=0, help="same seed, CPU and threads: same numbers")
parser.add_argument("--device", default=common.DEVICE, choices=sorted({"cpu", common.DEVICE}), help="where to compute")
parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw; None is data/ beside the script")
parser.add_argument("--out-dir", type=Path, default=Path("runs"), help="results go to OUT_DIR/cvae_structured/")
parser.add_argument("--show", action="store_true", help="open the figures in windows as well")
parser.add_argument("--smoke", action="store_true", help="every step in seconds, on a few hundred images")
parser.add_argument("--validation", action="store_true",
                    help="measure on 10,000 held-out training images, for choosing settings")


def main(argv=None):
    """Trains, evaluates, draws and writes; returns both models and the metrics. argv: flags, by default the user's."""
    args = parser.parse_args(common.flags(argv))
    if not all(value > 0 for value in (args.n_epochs, args.batch_size, args.lr, args.hidden_dim, args.latent_dim)):
        parser.error("--n-epochs, --batch-size, --lr, --hidden-dim and --latent-dim must be positive")
    x_train, _, x_test, y_test = common.load_mnist(args.data_dir, args.device, args.validation)
    out_dir = args.out_dir / "cvae_structured"
    if args.smoke:
        out_dir = args.out_dir / "smoke" / "cvae_structured"  # never touches a real run
        x_train, x_test, y_test = x_train[:512], x_test[:256], y_test[:256]
        args.n_epochs = min(args.n_epochs, 2)
    out_dir.mkdir(parents=True, exist_ok=True)  # fails now, not after the training

    visible = visible_pixels(args.quadrants).to(args.device)
    n_visible = int(visible.sum())
    baseline_config = {"hidden_dim": args.hidden_dim, "conditional_vec_dim": n_visible}
    config = {**baseline_config, "latent_dim": args.latent_dim}
    # Prints the layers and their sizes, without a learned prior's. "Input size" multiplies the inputs' sizes where it
    # should add them.
    torchsummary.summary(myVAE(**config), [(28 * 28,), (n_visible,)], device="cpu")
    torch.manual_seed(args.seed)
    model_class = LearnedPriorVAE if args.learned_prior else myVAE
    model = model_class(**config).to(args.device)
    baseline = BaselineNN(**baseline_config).to(args.device)

    try:
        print("training BaselineNN")
        baseline_history = train(baseline, x_train, x_test, visible, args)
        print("training the CVAE")
        history = train(model, x_train, x_test, visible, args)
    except RuntimeError as error:
        if "between 0 and 1" in str(error):  # BCE refuses an x_hat that is nan
            sys.exit("error: the loss is no longer finite: try a smaller --lr")
        raise
    (out_dir / "metrics.json").unlink(missing_ok=True)  # the last run's
    torch.save({"config": config, "state_dict": model.cpu().state_dict()}, out_dir / "model.pt")  # the rest may fail
    torch.save({"config": baseline_config, "state_dict": baseline.cpu().state_dict()}, out_dir / "baseline.pt")
    model.to(args.device)
    baseline.to(args.device)
    print(f"measuring {N_SAMPLES} samples for each test image")
    test_terms = evaluate(model, x_test, visible)
    metrics = {
        "settings": vars(args),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "n_decoder_parameters": sum(p.numel() for p in model.decoder.parameters()),
        "n_baseline_parameters": sum(p.numel() for p in baseline.parameters()),
        "train_loss": evaluate(model, x_train, visible)["loss"],
        "test_loss": test_terms["loss"],
        "test_bce": test_terms["bce"],
        "test_kl": test_terms["kl"],
        "baseline_train_loss": evaluate(baseline, x_train, visible)["loss"],
        # The baseline has no z: its BCE is its -log p(u|c).
        "baseline_nll_nats": evaluate(baseline, x_test, visible)["loss"],
        **likelihood(model, x_test, visible, N_SAMPLES),
        **best_of_k(model, baseline, x_test, visible, N_SAMPLES),
        "n_samples": N_SAMPLES,
        "history": {**history, "train_baseline_loss": baseline_history["train_loss"],
                    "test_baseline_loss": baseline_history["test_loss"]},
    }
    torch.manual_seed(args.seed)  # the figures do not depend on how much the evaluation has drawn
    figures = make_figures(model, baseline, metrics, x_test, y_test, visible)

    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=1, default=str))
    common.save_figures(figures, out_dir, args.show)
    print(f"wrote {out_dir}/: model.pt, baseline.pt, metrics.json, {', '.join(f'{name}.png' for name in figures)}")
    print(f"-log p(unseen pixels), nats: BaselineNN {metrics['baseline_nll_nats']:.1f}; CVAE, required to be lower, "
          f"{metrics['importance_nll_nats']:.1f} importance-sampled, {metrics['monte_carlo_nll_nats']:.1f} Monte Carlo")
    return model, baseline, metrics


if __name__ == "__main__":
    model, baseline, metrics = main()
