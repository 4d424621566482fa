# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "matplotlib>=3.8", "torchsummary>=1.5.1"]
# ///
"""Variational autoencoder: a latent space that can be sampled. Results: report.md#3-variational-autoencoder-vaepy

Samples of that space, decoded, are new digits. The encoder gives not a point but a Gaussian q(z|x) = N(mu,
diag(exp(logvar))); the decoder is a distribution p(x|z) over images; new images start from the prior, p(z) = N(0, I).
Training maximises a lower bound on the log-probability of the data: the ELBO, evidence lower bound. Its unit is the
nat, that of natural logarithms:

    L = 1/N  sum over images of [ BCE(x_hat, x) + KL(q(z|x) || p(z)) ]  >=  -1/N  sum of log p(x)   (nats)
    BCE = -sum over pixels  of  x log x_hat + (1 - x) log(1 - x_hat)          = -log p(x|z), one sample z ~ q(z|x)
    KL  = -1/2 sum over latents of (1 + logvar - mu^2 - exp(logvar))           Kingma and Welling, appendix B

BCE makes the code tell images apart, KL makes it forget what is not worth its price and keeps the codes of all images
together around 0, where the prior samples.

Run it:    python vae.py              train, two or three minutes on two cores of a laptop, half of it to evaluate
           python vae.py --sweep      then train with the KL weighted otherwise, too
           python vae.py --smoke      all of it in seconds, on a few hundred images
Writes:    runs/vae/: metrics.json, summary.txt, model.pt, loss.png, samples.png, variance.png, walk.png and
           traversals.png; with --sweep also rate_distortion.png and beta.png.
Papers:    Kingma and Welling, Auto-Encoding Variational Bayes, ICLR 2014, arXiv:1312.6114.
           Rezende, Mohamed and Wierstra, Stochastic Backpropagation, ICML 2014, arXiv:1401.4082.
           Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016, arXiv:1509.00519.
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

NAME = "vae"
UNUSED = 0.05  # a latent dimension with a KL of less, in nats per image, says nothing
IMPORTANCE_SAMPLES = 500  # per test image, for the estimate of log p(x)
SWEEP = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)  # what --sweep multiplies the KL by; with 0 nothing holds the codes together


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
# What the assignment allows.
parser.add_argument("--n-epochs", type=number(int, 1), default=10, help="passes over the training set")
# Half of what is usual: on held-out images half a nat better than 128, for a quarter more time.
parser.add_argument("--batch-size", type=number(int, 1), default=64, help="images per update, N")
# Three times Adam's usual rate: the one-cycle schedule starts low and ends near 0, and only its peak is this high.
parser.add_argument("--lr", type=number(float, 1e-9), default=3e-3, help="peak learning rate of Adam")
# 1.35 million parameters, of 1.5 million allowed.
parser.add_argument("--hidden-dim", type=number(int, 1), default=512, help="width of the hidden layers, H_d")
# More than it needs: training leaves six of them unused.
parser.add_argument("--latent-dim", type=number(int, 1), default=16, help="size of the latent vector, Z")
parser.add_argument("--seed", type=number(int, 0, 2**63), default=0, help="same seed, same CPU: same numbers")
parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, mps, ...")
parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw; None is data/ beside the script")
parser.add_argument("--out-dir", type=Path, default=Path("runs"), help=f"results go to OUT_DIR/{NAME}/")
parser.add_argument("--show", action="store_true", help="open the figures in windows as well")
parser.add_argument("--smoke", action="store_true", help="all of it in seconds, on a few hundred images")
parser.add_argument("--validation", action="store_true", help="test on 10,000 held-out training images, to choose by")
parser.add_argument("--sweep", action="store_true", help=f"also train with {SWEEP} times the KL")


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


# %% 3. Loss

# `myVAE.loss_function` above: a VAE's loss belongs to its model. Why binary cross-entropy, when pixels are grey? It is
# the log-likelihood of a coin per pixel with probability x_hat, and it is smallest at x_hat = x for grey x too. But
# there it is not 0: x = 0.5 costs log 2 nats even if x_hat is perfect. All grey edges together cost what follows, and
# no model can get below it.

def bce_floor(x):
    """The BCE in nats per image of a perfect reconstruction x_hat = x, the mean over x (n, 1, H, W)."""
    return float(F.binary_cross_entropy(x, x, reduction="sum")) / len(x)


# %% 4. Training

def train(model, x_train, x_test, args, beta=1.0):
    """Minimises BCE + beta KL with Adam; returns the history: lists of `train_loss`, `test_loss` (both with beta = 1)
    and their parts `..._bce` and `..._kl`, one entry an epoch, in nats per image.

    `train_...` is the mean over an epoch's batches, as they came; `test_...` is measured after the epoch.
    """
    updates = args.n_epochs * math.ceil(len(x_train) / args.batch_size)
    # The second beta, 0.99, averages squared gradients over 100 updates. PyTorch's default of 0.999, over 1,000,
    # gave 1 to 2 nats more with batches of 128. fused: one pass over the weights instead of a dozen.
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.95, 0.99), fused=True)
    # One cycle: the learning rate climbs to its peak in the first 30 % of the updates and then falls to nearly 0. The
    # schedule also moves Adam's first beta, against the rate: from 0.95 to 0.85 and back.
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=updates)
    history = {f"{which}_{part}": [] for which in ("train", "test") for part in ("loss", "bce", "kl")}
    start = time.perf_counter()
    for epoch in range(1, args.n_epochs + 1):
        model.train()
        sums = dict.fromkeys(("loss", "bce", "kl"), 0.0)
        for (x,) in common.minibatches(args.batch_size, x_train):  # x (N, 1, H, W)
            x_hat, mu, logvar = model(x)
            terms = model.loss_function(x_hat, x, mu, logvar)
            optimizer.zero_grad()
            (terms["bce"] + beta * terms["kl"]).backward()  # for beta = 1 the loss; else see `sweep`
            optimizer.step()
            scheduler.step()
            for part, term in terms.items():
                sums[part] += term.detach() * len(x)  # not .item(): an accelerator would wait at every update
        for part, test in evaluate(model, x_test).items():
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
def evaluate(model, x):
    """The loss over all of x (n, 1, H, W) and its parts, in nats per image: {loss, bce, kl}."""
    model.eval()
    sums = dict.fromkeys(("loss", "bce", "kl"), 0.0)
    for batch in x.split(1000):
        x_hat, mu, logvar = model(batch)
        for part, term in model.loss_function(x_hat, batch, mu, logvar).items():
            sums[part] += float(term) * len(batch)
    return {part: total / len(x) for part, total in sums.items()}


@torch.no_grad()
def importance_weighted_nll(model, x, n_samples):
    """Estimates -log p(x) in nats per image, the mean over x (n, 1, H, W) (Burda et al., arXiv:1509.00519, eq. 8).

        log p(x)  ~  log 1/K sum over k of  p(x|z_k) p(z_k) / q(z_k|x),     z_1 ... z_K ~ q(z|x)

    With K = 1 that is the ELBO; more samples bring it closer to log p(x), on average always from below. The weights
    are of the order of e^-100 and would be 0 in float32, so everything stays in logs until `logsumexp`.
    """
    model.eval()
    total = 0.0
    for batch in x.split(max(1, 5000 // n_samples)):
        mu, logvar = model.encode(batch)  # (n, Z)
        epsilon = torch.randn(n_samples, *mu.shape, device=x.device)  # (K, n, Z)
        z = mu + torch.exp(0.5 * logvar) * epsilon
        x_hat = model.decode(z.flatten(0, 1)).reshape(n_samples, len(batch), -1)  # (K, n, H*W)
        log_p_x = log_bernoulli(x_hat, batch.flatten(1))  # (K, n)
        # log p(z) - log q(z|x), both Gaussian: their constants (2 pi) cancel.
        log_ratio = 0.5 * (epsilon**2 + logvar - z**2).sum(-1)  # (K, n)
        total += float((math.log(n_samples) - torch.logsumexp(log_p_x + log_ratio, dim=0)).sum())
    return total / len(x)


def log_bernoulli(x_hat, x):
    """log p(x|z) = -BCE(x_hat, x) of K samples for each of n images: x_hat (K, n, H*W), x (n, H*W) -> (K, n).

    There are 4 billion pixels to sum over, so the sums are products with x, several times as fast as
    F.binary_cross_entropy, whose bound for its logs, -100, is kept."""
    log_white, log_black = x_hat.log().clamp(min=-100), (1 - x_hat).log().clamp(min=-100)
    return torch.einsum("knp,np->kn", log_white, x) + torch.einsum("knp,np->kn", log_black, 1 - x)


def sweep(model, config, x_train, x_test, args):
    """The same network trained with beta times the KL (Higgins et al., beta-VAE, ICLR 2017), from a plain autoencoder,
    beta = 0, to one that hardly uses z. Returns the models and their results: {beta: model} and lists of beta,
    test_bce and test_kl (distortion and rate: Alemi et al., arXiv:1711.00464)."""
    models, results = {}, {"beta": [], "test_bce": [], "test_kl": []}
    for beta in SWEEP:
        if beta == 1:  # that one is trained already
            models[beta] = model
        else:
            print(f"sweep: beta {beta}")
            torch.manual_seed(args.seed)
            models[beta] = myVAE(**config).to(args.device)
            train(models[beta], x_train, x_test, args, beta)
        test = evaluate(models[beta], x_test)
        for key, value in (("beta", beta), ("test_bce", test["bce"]), ("test_kl", test["kl"])):
            results[key].append(value)
    return models, results


# %% 6. Figures

@torch.no_grad()
def make_figures(model, history, x_test, y_test, kl_per_dimension, swept):
    """All figures, as {file name without ending: figure}."""
    model.eval()
    device = x_test.device
    figures = {"loss": common.plot_losses(history, {"loss": "loss, nats per image", "bce": "BCE", "kl": "KL"})}

    z = torch.randn(60, model.latent_dim, device=device)  # from the prior
    figures["samples"] = common.plot_images(model.decode(z).reshape(4, 15, 1, 28, 28))

    # One digit, encoded once and sampled many times. The decoder was trained on samples of the original variance; 20
    # times that is too far from mu, and the digit loses first its style and then its identity.
    mu, logvar = (t.expand(24, -1) for t in model.encode(x_test[:1]))
    once = model.decode(model.reparameterize(mu, logvar)).reshape(2, 12, 1, 28, 28)
    wide = model.decode(model.reparameterize(mu, logvar + math.log(20))).reshape(2, 12, 1, 28, 28)
    original = x_test[:1].expand(4, 1, 1, 28, 28)
    figures["variance"] = common.plot_images(
        torch.cat([original, torch.cat([once, wide])], dim=1), ["variance x 1", "", "variance x 20", ""],
        ["original"] + [""] * 12)

    # From a test digit to another in a straight line between their means.
    first = {digit: int((y_test == digit).nonzero()[0]) for digit in y_test.unique().tolist()}  # its first example
    pairs = [(first[a], first[b]) for a, b in [(1, 7), (3, 8), (4, 9), (0, 6)] if a in first and b in first]
    rows = []
    for a, b in pairs:
        mu, _ = model.encode(x_test[[a, b]])  # (2, Z)
        steps = torch.linspace(0, 1, 11, device=device).unsqueeze(1)
        rows.append(torch.cat([x_test[[a]], model.decode((1 - steps) * mu[0] + steps * mu[1]), x_test[[b]]]))
    figures["walk"] = common.plot_images(torch.stack(rows), column_labels=["original"] + [""] * 11 + ["original"])

    # Each latent dimension from -3 to 3 standard deviations of the prior, the others kept at one digit's mean: those
    # that are used, the most informative first, and two that are not.
    mu, _ = model.encode(x_test[:1])
    order = sorted(range(model.latent_dim), key=lambda i: -kl_per_dimension[i])
    order = order[:sum(kl > UNUSED for kl in kl_per_dimension) + 2]
    values = [-3, -2.4, -1.8, -1.2, -0.6, 0, 0.6, 1.2, 1.8, 2.4, 3]
    z = mu.repeat(len(order), 11, 1)  # (rows, 11, Z)
    for row, i in enumerate(order):
        z[row, :, i] = torch.tensor(values, device=device)
    figures["traversals"] = common.plot_images(
        model.decode(z.flatten(0, 1)).reshape(len(order), 11, 1, 28, 28),
        [f"$z_{{{i + 1}}}$: {kl_per_dimension[i]:.2f}" for i in order], values)

    if swept:
        models, results = swept
        figure, axis = plt.subplots(figsize=(8, 3.6))
        axis.plot(results["test_kl"], results["test_bce"], "o-", color=common.BLUE)
        for beta, kl, bce in zip(results["beta"], results["test_kl"], results["test_bce"]):
            axis.annotate(f"$\\beta$ = {beta:g}", (kl, bce), (0, 6), textcoords="offset points", rotation=40)
        axis.set(xlabel="rate: KL, nats per test image", ylabel="distortion: BCE, nats", xscale="log")
        figures["rate_distortion"] = figure

        z = torch.randn(12, model.latent_dim, device=device)  # the same for all rows
        rows = {f"$\\beta$ = {beta:g}": other.decode(z) for beta, other in models.items()}
        mu, _ = models[0].encode(x_test)
        spread = torch.linalg.cholesky(torch.cov(mu.T) + 1e-6 * torch.eye(len(mu.T), device=device))
        rows = {"$\\beta$ = 0, fitted\nGaussian": models[0].decode(mu.mean(0) + z @ spread.T), **rows}
        figures["beta"] = common.plot_images(torch.stack(list(rows.values())), list(rows))
    return figures


# %% 7. Run

def main(argv=None):
    """Trains, evaluates, draws and writes; returns the model and the metrics. argv: a list of flags, None for those of
    the command line."""
    args = parser.parse_args(argv)
    out_dir = args.out_dir / NAME
    out_dir.mkdir(parents=True, exist_ok=True)
    common.use_windows(args.show)
    x_train, _, x_test, y_test = common.load_mnist(args.data_dir, args.device, args.validation)
    if args.smoke:
        x_train, x_test, y_test, args.n_epochs = x_train[:512], x_test[:256], y_test[:256], min(args.n_epochs, 2)

    torch.manual_seed(args.seed)
    config = {"hidden_dim": args.hidden_dim, "latent_dim": args.latent_dim, "conditional_vec_dim": 0}
    model = myVAE(**config).to(args.device)
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"myVAE with {n_parameters:,} parameters, {len(x_train):,} images, on {args.device}")

    start = time.perf_counter()
    history = train(model, x_train, x_test, args)
    seconds = time.perf_counter() - start
    test = evaluate(model, x_test)
    with torch.no_grad():
        kl_per_dimension = model.kl_divergence(*model.encode(x_test)).mean(0).tolist()  # Z numbers
    metrics = {
        "script": NAME, "dataset": "MNIST", "n_train": len(x_train), "n_test": len(x_test),
        "n_parameters": n_parameters, "n_epochs": args.n_epochs, "seed": args.seed, "seconds": seconds,
        "train_loss": evaluate(model, x_train)["loss"], "test_loss": test["loss"], "test_bce": test["bce"],
        "test_kl": test["kl"], "test_kl_per_dimension": kl_per_dimension,
        "n_used_dimensions": sum(kl > UNUSED for kl in kl_per_dimension), "test_bce_floor": bce_floor(x_test),
        "test_nll_nats": importance_weighted_nll(model, x_test, IMPORTANCE_SAMPLES),
        "importance_samples": IMPORTANCE_SAMPLES,
        "history": history, "settings": vars(args), "device": args.device, "threads": torch.get_num_threads(),
        "processor": getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", platform.processor()),
        "accelerator": torch.cuda.get_device_name(args.device) if "cuda" in args.device else None,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy")},
    }
    swept = sweep(model, config, x_train, x_test, args) if args.sweep else None
    metrics["sweep"] = swept and swept[1]
    torch.manual_seed(args.seed)  # the figures do not depend on how much the evaluation has drawn
    figures = make_figures(model, history, x_test, y_test, kl_per_dimension, swept)
    with contextlib.redirect_stdout(io.StringIO()) as summary:  # torchsummary prints; it knows only cpu and cuda
        torchsummary.summary(model.cpu(), (1, 28, 28), device="cpu")

    # Everything is ready: write it all, each file whole or not at all.
    with common.replacing(out_dir / "model.pt") as path:
        torch.save({"config": config, "state_dict": model.state_dict()}, path)
    texts = {"summary.txt": summary.getvalue(), "metrics.json": json.dumps(metrics, indent=1, default=str) + "\n"}
    for name, text in texts.items():
        with common.replacing(out_dir / name) as path:
            Path(path).write_text(text)
    common.save_figures(figures, out_dir, args.show)
    print(f"wrote {out_dir}{os.sep}")
    ok = {True: "ok", False: "missed"}
    print(f"train loss {metrics['train_loss']:.2f} < 120: {ok[metrics['train_loss'] < 120]},   "
          f"{n_parameters:,} parameters <= 1,500,000: {ok[n_parameters <= 1_500_000]}")
    return model, metrics


if __name__ == "__main__":
    try:
        # In a notebook sys.argv holds the notebook's flags, not ours.
        model, metrics = main(None if Path(sys.argv[0]).name == f"{NAME}.py" else [])
    except KeyboardInterrupt:
        parser.exit(130, f"\n{NAME}.py: stopped; every file that is there is whole\n")
    except RuntimeError as error:  # BCE refuses NaN, on most devices
        if "between 0 and 1" not in str(error) and "device-side assert" not in str(error):
            raise
        sys.exit(f"{NAME}.py: error: the loss is no longer a number: try a smaller --lr")
    except OSError as error:  # data or a folder that is not as it should be
        parser.error(str(error))
