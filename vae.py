# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "matplotlib>=3.8", "torchsummary>=1.5.1"]
# ///
"""Variational autoencoder: a latent space that can be sampled.

Decode a draw from N(0, I): a new digit. The encoder gives not a point but a Gaussian q(z|x) = N(mu,
diag(exp(logvar))); the decoder is a distribution p(x|z) over images; new images start from the prior, p(z) = N(0, I).
Training maximises a lower bound on the log-probability of the data: the ELBO, evidence lower bound. Its unit is the
nat, that of natural logarithms:

    L    = 1/N sum over images of [ BCE(x_hat, x) + KL(q(z|x) || p(z)) ]
    E[L] >= -1/N sum over images of log p(x)                                     E: on average over z
    BCE = -sum over pixels  of  x log x_hat + (1 - x) log(1 - x_hat)          = -log p(x|z), one sample z ~ q(z|x)
    KL  = -1/2 sum over latents of (1 + logvar - mu^2 - exp(logvar))           Kingma and Welling, appendix B

BCE makes the code tell images apart. KL makes it forget what is not worth its price, and keeps the codes of all images
together around 0, where the prior samples.

Run it:    python vae.py                   train on all of MNIST; minutes on a laptop
           python vae.py --latent-dim 2    a latent space that can be drawn
           python vae.py --beta 10         a dearer code: beta times the KL
           python vae.py --binarize        black and white pixels, as in most papers
           python vae.py --smoke           every step in seconds, on a few hundred images
Writes:    runs/vae/: metrics.json, model.pt, loss.png, reconstructions.png, samples.png, variance.png, walk.png,
           traversals.png, and with --latent-dim 2 latent_space.png and latent_space_images.png
Report:    report.md#3-variational-autoencoder-vaepy-deliverable-3
Papers:    Kingma and Welling, Auto-Encoding Variational Bayes, ICLR 2014, arXiv:1312.6114.
           Rezende, Mohamed and Wierstra, Stochastic Backpropagation, ICML 2014, arXiv:1401.4082.
           Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016, arXiv:1509.00519.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import torchsummary
from torch import nn

import common

UNUSED_KL = 0.05  # a latent dimension with a KL of less, in nats per image, says nothing
IMPORTANCE_SAMPLES = 100  # per test image, for the estimate of log p(x)


# %% 1. Model

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


def bce_floor(x):
    """The BCE in nats per image of a perfect reconstruction x_hat = x, the mean over x (n, 1, H, W).

    BCE is minus the log-likelihood of a coin per pixel with probability x_hat. It is smallest at x_hat = x for grey x
    too, but there it is not 0: x = 0.5 costs log 2 nats even if x_hat is perfect. No model gets below this sum.
    """
    return float(F.binary_cross_entropy(x, x, reduction="sum")) / len(x)


# %% 2. Training

def train(model, x_train, x_test, args):
    """Minimises BCE + beta KL with Adam; returns the history: lists of `train_loss`, `test_loss` (both with beta = 1)
    and their parts `..._bce` and `..._kl`, one entry an epoch, in nats per image.

    `train_...` is the mean over an epoch's images, each as its batch came; `test_...` is measured after the epoch.
    """
    n_updates = args.n_epochs * math.ceil(len(x_train) / args.batch_size)
    # OneCycleLR sets the first beta. The second, 0.99, averages squared gradients over 100 updates. PyTorch's default
    # of 0.999, over 1,000, gave 1 to 2 nats more with batches of 128. fused: one pass over the weights, not a dozen.
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.95, 0.99), fused=True)
    # One cycle: the learning rate climbs to its peak in the first 30 % of the updates and then falls to nearly 0. The
    # schedule also moves Adam's first beta, against the rate: from 0.95 to 0.85 and back.
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=n_updates)
    history = {"train_loss": [], "train_bce": [], "train_kl": [], "test_loss": [], "test_bce": [], "test_kl": []}
    start = time.perf_counter()
    for epoch in range(1, args.n_epochs + 1):
        model.train()
        sums = {"loss": 0, "bce": 0, "kl": 0}
        for (x,) in common.minibatches(args.batch_size, x_train):  # x (N, 1, H, W)
            if args.binarize:
                x = torch.bernoulli(x)  # grey 0.7 is white in 70 % of the epochs
            x_hat, mu, logvar = model(x)
            terms = model.loss_function(x_hat, x, mu, logvar)
            loss = terms["bce"] + args.beta * terms["kl"]  # beta = 1: the negative ELBO
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            for part, term in terms.items():
                sums[part] += term.detach() * len(x)  # not .item(): an accelerator would wait at every update
        test_terms = evaluate(model, x_test)
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
def evaluate(model, x):
    """The loss over all of x (n, 1, H, W) and its parts, in nats per image: {loss, bce, kl}."""
    model.eval()
    sums = {"loss": 0.0, "bce": 0.0, "kl": 0.0}
    for batch in x.split(1000):
        x_hat, mu, logvar = model(batch)
        for part, term in model.loss_function(x_hat, batch, mu, logvar).items():
            sums[part] += float(term) * len(batch)
    return {part: total / len(x) for part, total in sums.items()}


@torch.no_grad()
def importance_weighted_nll(model, x, n_samples):
    """Estimates -log p(x) in nats per image, the mean over x (n, 1, H, W) (Burda et al., arXiv:1509.00519, eq. 8).

        log p(x)  ~  log 1/M sum over m of  p(x|z_m) p(z_m) / q(z_m|x),     z_1 ... z_M ~ q(z|x)

    With M = 1 that is an estimate of the ELBO; more samples bring it closer to log p(x), on average always from below.
    The weights are as small as e^-100, at the edge of float32, so everything stays in logs until `logsumexp`.
    """
    model.eval()
    total = 0.0
    for batch in x.split(max(1, 5000 // n_samples)):
        mu, logvar = model.encode(batch)  # (n, Z)
        epsilon = torch.randn(n_samples, *mu.shape, device=x.device)  # (M, n, Z)
        z = mu + torch.exp(0.5 * logvar) * epsilon
        x_hat = model.decode(z.flatten(0, 1)).reshape(n_samples, len(batch), -1)  # (M, n, H*W)
        log_p_x = log_bernoulli(x_hat, batch.flatten(1))  # (M, n)
        # log p(z) - log q(z|x), both Gaussian, as (z - mu) / sigma is epsilon.
        log_ratio = 0.5 * (epsilon**2 + logvar - z**2).sum(-1)  # (M, n)
        total += float((math.log(n_samples) - torch.logsumexp(log_p_x + log_ratio, dim=0)).sum())
    return total / len(x)


def log_bernoulli(x_hat, x):
    """log p(x|z) = -BCE(x_hat, x) of M samples for each of n images: x_hat (M, n, H*W), x (n, H*W) -> (M, n).

    The sums over nearly a billion pixels are products with x, which is several times as fast as
    F.binary_cross_entropy. Logs are clamped at -100, as there."""
    log_white, log_black = x_hat.log().clamp(min=-100), (1 - x_hat).log().clamp(min=-100)
    return torch.einsum("mnp,np->mn", log_white, x) + torch.einsum("mnp,np->mn", log_black, 1 - x)


# %% 4. Figures

@torch.no_grad()
def make_figures(model, history, x_test, y_test, kl_per_dimension):
    """All figures, as {file name without ending: figure}."""
    model.eval()
    device = x_test.device
    figures = {"loss": common.plot_losses(history, {"loss": "loss, nats per image", "bce": "BCE", "kl": "KL"},
                                          required=120)}

    z = torch.randn(60, model.latent_dim, device=device)  # from the prior
    figures["samples"] = common.plot_images(model.decode(z).reshape(4, 15, 1, 28, 28))

    x = x_test[:12]
    figures["reconstructions"] = common.plot_images(torch.stack([x, model.decode(model.encode(x)[0])]),
                                                    ["original", "rebuilt\nfrom mu"])

    # One digit, encoded once and sampled many times. The decoder was trained on samples of the original variance; 20
    # times that is too far from mu, and the digit loses first its style and then its identity.
    mu, logvar = (t.expand(24, -1) for t in model.encode(x_test[:1]))
    once = model.decode(model.reparameterize(mu, logvar)).reshape(2, 12, 1, 28, 28)
    wide = model.decode(model.reparameterize(mu, logvar + math.log(20))).reshape(2, 12, 1, 28, 28)
    original = torch.cat([x_test[:1], torch.ones(3, 1, 28, 28, device=device)]).unsqueeze(1)
    figures["variance"] = common.plot_images(
        torch.cat([original, torch.cat([once, wide])], dim=1), ["variance x 1", "", "variance x 20", ""],
        ["original"] + [""] * 12)

    # From a test digit to another in a straight line between their means.
    rows = []
    for pair in [(1, 7), (3, 8), (4, 9), (0, 6)]:
        a, b = (x_test[y_test == digit][:1] for digit in pair)  # each digit's first example
        mu, _ = model.encode(torch.cat([a, b]))  # (2, Z)
        steps = torch.linspace(0, 1, 11, device=device).unsqueeze(1)
        rows.append(torch.cat([a, model.decode((1 - steps) * mu[0] + steps * mu[1]), b]))
    figures["walk"] = common.plot_images(torch.stack(rows), column_labels=["original"] + [""] * 11 + ["original"])

    # Each latent dimension from -3 to 3 standard deviations of the prior, the others kept at one digit's mean: those
    # that are used, the most informative first, and two that are not.
    mu, _ = model.encode(x_test[:1])
    order = sorted(range(model.latent_dim), key=lambda i: -kl_per_dimension[i])
    order = order[:sum(kl > UNUSED_KL for kl in kl_per_dimension) + 2]
    values = [-3, -2.4, -1.8, -1.2, -0.6, 0, 0.6, 1.2, 1.8, 2.4, 3]
    z = mu.repeat(len(order), 11, 1)  # (rows, 11, Z)
    for row, i in enumerate(order):
        z[row, :, i] = torch.tensor(values, device=device)
    figures["traversals"] = common.plot_images(
        model.decode(z.flatten(0, 1)).reshape(len(order), 11, 1, 28, 28),
        [f"$z_{{{i + 1}}}$: {kl_per_dimension[i]:.2f}" for i in order], values)

    if model.latent_dim == 2:
        # Half of what N(0, I) draws lies within 1.2 of the origin, and 99 % within 3.
        extent, circles = (-4, 4, -4, 4), (1, 2, 3)
        figures["latent_space"] = common.plot_latent_space(model.encode(x_test)[0], y_test, extent, circles)
        figures["latent_space_images"] = common.plot_latent_space_images(
            lambda points: model.decode(points.to(device)), extent, circles=circles)
    return figures


# %% 5. Run

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
# What the assignment allows.
parser.add_argument("--n-epochs", type=int, default=10, help="passes over the training set")
# Half of what is usual: on held-out images half a nat better than 128, for 1.2 times the time.
parser.add_argument("--batch-size", type=int, default=64, help="images per update, N")
# Three times Adam's usual rate: the one-cycle schedule starts low and ends near 0, and only its peak is this high.
parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of Adam")
# 1.35 million parameters, of 1.5 million allowed.
parser.add_argument("--hidden-dim", type=int, default=512, help="width of the hidden layers, H_d")
# More than it needs: training leaves about five of them unused.
parser.add_argument("--latent-dim", type=int, default=16, help="size of the latent vector, Z")
# 1 is the ELBO; 0 leaves a plain autoencoder (Higgins et al., beta-VAE, ICLR 2017).
parser.add_argument("--beta", type=float, default=1.0, help="weight of the KL in training")
# The data set of Burda et al. and of most papers since: only for black and white pixels is -BCE a log-likelihood.
parser.add_argument("--binarize", action="store_true", help="draw each pixel black or white, grey is its probability")
parser.add_argument("--seed", type=int, default=0, help="same seed, CPU and threads: same numbers")
parser.add_argument("--device", default=common.DEVICE, choices=sorted({"cpu", common.DEVICE}), help="where to compute")
parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw; None is data/ beside the script")
parser.add_argument("--out-dir", type=Path, default=Path("runs"), help="results go to OUT_DIR/vae/")
parser.add_argument("--show", action="store_true", help="open the figures in windows as well")
parser.add_argument("--smoke", action="store_true", help="every step in seconds, on a few hundred images")
parser.add_argument("--validation", action="store_true",
                    help="measure on 10,000 held-out training images, for choosing settings")


def main(argv=None):
    """Trains, evaluates, draws and writes; returns the model and the metrics. argv: flags, by default the user's."""
    args = parser.parse_args(common.flags(argv))
    if not (all(value > 0 for value in (args.n_epochs, args.batch_size, args.lr, args.hidden_dim, args.latent_dim))
            and 0 <= args.beta < math.inf):
        parser.error("--n-epochs, --batch-size, --lr and both sizes must be positive, --beta not negative")
    x_train, _, x_test, y_test = common.load_mnist(args.data_dir, args.device, args.validation)
    out_dir = args.out_dir / "vae"
    if args.smoke:
        out_dir = args.out_dir / "smoke" / "vae"  # never touches a real run
        x_train, x_test, y_test = x_train[:512], x_test[:256], y_test[:256]
        args.n_epochs = min(args.n_epochs, 2)
    out_dir.mkdir(parents=True, exist_ok=True)  # fails now, not after the training
    if args.binarize:  # the test images are drawn once, the same for every seed
        x_test = torch.bernoulli(x_test.cpu(), generator=torch.Generator().manual_seed(0)).to(args.device)

    config = {"hidden_dim": args.hidden_dim, "latent_dim": args.latent_dim}
    torchsummary.summary(myVAE(**config), (1, 28, 28), device="cpu")  # prints the layers and their sizes
    torch.manual_seed(args.seed)
    model = myVAE(**config).to(args.device)

    try:
        history = train(model, x_train, x_test, args)
    except RuntimeError as error:
        if "between 0 and 1" in str(error):  # BCE refuses an x_hat that is nan
            sys.exit("error: the loss is no longer finite: try a smaller --lr")
        raise
    for name in ("metrics.json", "latent_space.png", "latent_space_images.png"):  # a folder holds one run
        (out_dir / name).unlink(missing_ok=True)
    torch.save({"config": config, "state_dict": model.cpu().state_dict()}, out_dir / "model.pt")  # the rest may fail
    model.to(args.device)
    print(f"estimating log p(x) with {IMPORTANCE_SAMPLES} samples for each test image")
    test_terms = evaluate(model, x_test)
    train_terms = evaluate(model, torch.bernoulli(x_train) if args.binarize else x_train)
    with torch.no_grad():
        kl_per_dimension = model.kl_divergence(*model.encode(x_test)).mean(0).tolist()  # Z numbers
    metrics = {
        "settings": vars(args),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "train_loss": train_terms["loss"],
        "test_loss": test_terms["loss"],
        "test_bce": test_terms["bce"],
        "test_kl": test_terms["kl"],
        "test_kl_per_dimension": kl_per_dimension,
        "n_used_dimensions": sum(kl > UNUSED_KL for kl in kl_per_dimension),
        "test_bce_floor": bce_floor(x_test),
        "test_nll_nats": importance_weighted_nll(model, x_test, IMPORTANCE_SAMPLES),
        "importance_samples": IMPORTANCE_SAMPLES,
        "history": history,
    }
    torch.manual_seed(args.seed)  # the figures do not depend on how much the evaluation has drawn
    figures = make_figures(model, history, x_test, y_test, kl_per_dimension)

    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=1, default=str))
    common.save_figures(figures, out_dir, args.show)
    print(f"wrote {out_dir}/: model.pt, metrics.json, {', '.join(f'{name}.png' for name in figures)}")
    print(f"train loss {metrics['train_loss']:.2f} nats, required < 120; {metrics['n_parameters']:,} parameters, "
          f"allowed 1,500,000; test loss {metrics['test_loss']:.2f}, -log p(x) at most {metrics['test_nll_nats']:.2f}")
    return model, metrics


if __name__ == "__main__":
    model, metrics = main()
