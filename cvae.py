# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "matplotlib>=3.8", "torchsummary>=1.5.1"]
# ///
"""Conditional VAE: say which digit, and get it, in many handwritings.

The model of vae.py, but encoder and decoder also see the label y, as a one-hot vector c. The decoder no longer needs z
to know which digit to draw, and as every nat in z costs, z lets most of the label go, and keeps the rest: slant, width,
stroke. So the same z under another label is another digit in the same handwriting.

    L    = 1/N sum over images of [ BCE(x_hat, x) + KL(q(z|x,c) || p(z)) ]
    E[L] >= -1/N sum over images of log p(x|c)                                   E: on average over z
    x_hat = decoder([z, c]),   z ~ q(z|x,c) = N(mu, diag(exp(logvar))),   mu, logvar from encoder([x, c])

Do the samples show what was asked for? A small convolutional classifier, trained on the real digits, is the judge.
And what does the label buy? --no-label trains the same class without it.

Run it:    python cvae.py               train on all of MNIST; minutes on a laptop
           python cvae.py --no-label    without the label: conditional_vec_dim=0, as in vae.py
           python cvae.py --smoke       every step in seconds, on a few hundred images
Writes:    runs/cvae/: metrics.json, model.pt, loss.png, and with the label digits.png and style.png
Report:    report.md#4-conditional-vae-cvaepy-deliverable-4
Papers:    Sohn, Lee and Yan, Learning Structured Output Representation using Deep Conditional Generative Models,
           NeurIPS 2015. Kingma, Rezende, Mohamed and Welling, Semi-supervised Learning with Deep Generative Models,
           NeurIPS 2014, arXiv:1406.5298.
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

N_CLASSES = 10


# %% 1. Model

# The class of vae.py to the letter. The only change is a nonzero conditional_vec_dim: go on at `one_hot`.

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


def one_hot(y, n_classes=N_CLASSES):
    """Labels y (...), whole numbers below n_classes -> (..., n_classes) float, a 1 at the label's place, 0 elsewhere"""
    return F.one_hot(y, n_classes).float()


def condition(model, y):
    """The condition c (N, C) for labels y (N,); None for a model without one."""
    return one_hot(y) if model.conditional_vec_dim else None


# %% 2. Training

def train(model, x_train, y_train, x_test, y_test, args):
    """Minimises the loss with Adam; returns the history: lists of `train_loss`, `test_loss` and their parts `..._bce`
    and `..._kl`, one entry an epoch, in nats per image.

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
        for x, y in common.minibatches(args.batch_size, x_train, y_train):  # x (N, 1, H, W), y (N,)
            x_hat, mu, logvar = model(x, condition(model, y))
            terms = model.loss_function(x_hat, x, mu, logvar)  # the condition changes nothing in the loss
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            scheduler.step()
            for part, term in terms.items():
                sums[part] += term.detach() * len(x)  # not .item(): an accelerator would wait at every update
        test_terms = evaluate(model, x_test, y_test)
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
def evaluate(model, x, y):
    """The loss over all of x (n, 1, H, W) with labels y (n,), and its parts, in nats per image: {loss, bce, kl}."""
    model.eval()
    sums = {"loss": 0.0, "bce": 0.0, "kl": 0.0}
    for batch, labels in zip(x.split(1000), y.split(1000)):
        x_hat, mu, logvar = model(batch, condition(model, labels))
        for part, term in model.loss_function(x_hat, batch, mu, logvar).items():
            sums[part] += float(term) * len(batch)
    return {part: total / len(x) for part, total in sums.items()}


def train_judge(x_train, y_train):
    """A small convolutional classifier of real digits, (N, 1, H, W) -> (N, 10) logits, to judge generated ones."""
    judge = nn.Sequential(nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(),  # (N, 16, 14, 14)
                          nn.Conv2d(16, 32, 5, stride=2, padding=2), nn.ReLU(), nn.Flatten(),  # (N, 32 * 7 * 7)
                          nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, N_CLASSES)).to(x_train.device)
    optimizer = torch.optim.Adam(judge.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=4 * math.ceil(len(x_train) / 128))
    for _ in range(4):  # epochs
        for x, y in common.minibatches(128, x_train, y_train):
            loss = F.cross_entropy(judge(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return judge.eval()


@torch.no_grad()
def judge_samples(model, judge, x_test, y_test):
    """Draws a sample for each label of y_test (n,), and asks the judge which digit it shows: {sample_accuracy,
    judge_test_accuracy (of real digits), sample_std, test_std}. The last two measure variety: a pixel's standard
    deviation within a digit, as the root mean square over pixels and digits."""
    def accuracy(images):
        return float(torch.cat([judge(batch).argmax(1) for batch in images.split(1000)]).eq(y_test).float().mean())

    def variety(images):
        return float(torch.stack([images[y_test == d].var(0).mean() for d in y_test.unique()]).mean().sqrt())

    samples = model.decode(torch.randn(len(y_test), model.latent_dim, device=x_test.device), one_hot(y_test))
    return {"sample_accuracy": accuracy(samples), "judge_test_accuracy": accuracy(x_test),
            "sample_std": variety(samples), "test_std": variety(x_test)}


@torch.no_grad()
def probe_latents(model, x_train, y_train, x_test, y_test):
    """Does z still carry the label? The test accuracy of two classifiers that get what the decoder gets, one z (n, Z)
    for each image: linear, least squares; and nearest, the vote of the 10 nearest training images, which also finds
    classes that no plane separates. mu_nearest gets mu, without the noise that covers its details."""
    model.eval()
    mu_train, logvar_train = model.encode(x_train, condition(model, y_train))
    mu_test, logvar_test = model.encode(x_test, condition(model, y_test))
    z_train = model.reparameterize(mu_train, logvar_train)
    z_test = model.reparameterize(mu_test, logvar_test)

    def linear(z_known, z_query):  # W minimises |[z, 1] W - one_hot(y)|^2
        weights = torch.linalg.lstsq(F.pad(z_known, (0, 1), value=1.0), one_hot(y_train)).solution  # (Z + 1, 10)
        return F.pad(z_query, (0, 1), value=1.0) @ weights  # (n, 10), scores

    def nearest(z_known, z_query):
        index = [torch.cdist(batch, z_known).topk(10, largest=False).indices for batch in z_query.split(500)]
        return one_hot(y_train[torch.cat(index)]).sum(1)  # (n, 10), votes

    def accuracy(scores):
        return float((scores.argmax(1) == y_test).float().mean())

    return {"latent_label_linear": accuracy(linear(z_train, z_test)),
            "latent_label_nearest": accuracy(nearest(z_train, z_test)),
            "latent_label_mu_nearest": accuracy(nearest(mu_train, mu_test))}


# %% 4. Figures

@torch.no_grad()
def make_figures(model, history, x_test, y_test):
    """All figures, as {file name without ending: figure}."""
    model.eval()
    device = x_test.device
    figures = {"loss": common.plot_losses(history, {"loss": "loss, nats per image", "bce": "BCE", "kl": "KL"})}
    if not model.conditional_vec_dim:
        return figures
    labels = torch.arange(N_CLASSES, device=device)

    z = torch.randn(8, model.latent_dim, device=device).repeat_interleave(N_CLASSES, dim=0)  # (80, Z)
    figures["digits"] = common.plot_images(model.decode(z, one_hot(labels.repeat(8))).reshape(8, 10, 1, 28, 28),
                                           [f"$z^{{({i + 1})}}$" for i in range(8)], labels.tolist(), width=7)

    # Style transfer: the z of a test digit, decoded under all ten labels. The first test image of each digit.
    x = torch.cat([x_test[y_test == digit][:1] for digit in range(N_CLASSES)])  # (10, 1, H, W)
    mu, _ = model.encode(x, one_hot(labels))
    rows = model.decode(mu.repeat_interleave(N_CLASSES, dim=0), one_hot(labels.repeat(10))).reshape(10, 10, 1, 28, 28)
    x = x.unsqueeze(1)
    figures["style"] = common.plot_images(torch.cat([x, torch.ones_like(x), rows], dim=1),
                                          column_labels=["test digit", "", *labels.tolist()], width=7)
    return figures


# %% 5. Run

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
# Epochs, batch, rate and Z were chosen together, on held-out images: with vae.py's settings 95 % of the samples show
# the digit that was asked for, with these 98 % do.
parser.add_argument("--n-epochs", type=int, default=30, help="passes over the training set")
parser.add_argument("--batch-size", type=int, default=256, help="images per update, N")
parser.add_argument("--lr", type=float, default=5e-3, help="peak learning rate of Adam")
# As in vae.py.
parser.add_argument("--hidden-dim", type=int, default=512, help="width of the hidden layers, H_d")
# Fewer than vae.py's 16, as z need not say which digit it is.
parser.add_argument("--latent-dim", type=int, default=10, help="size of the latent vector, Z")
parser.add_argument("--no-label", action="store_true", help="train without the label, to see what it is worth")
parser.add_argument("--seed", type=int, default=0, help="same seed, CPU and threads: same numbers")
parser.add_argument("--device", default=common.DEVICE, choices=sorted({"cpu", common.DEVICE}), help="where to compute")
parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw; None is data/ beside the script")
parser.add_argument("--out-dir", type=Path, default=Path("runs"), help="results go to OUT_DIR/cvae/")
parser.add_argument("--show", action="store_true", help="open the figures in windows as well")
parser.add_argument("--smoke", action="store_true", help="every step in seconds, on a few hundred images")
parser.add_argument("--validation", action="store_true",
                    help="measure on 10,000 held-out training images, for choosing settings")


def main(argv=None):
    """Trains, evaluates, draws and writes; returns the model and the metrics. argv: flags, by default the user's."""
    args = parser.parse_args(common.flags(argv))
    if not all(value > 0 for value in (args.n_epochs, args.batch_size, args.lr, args.hidden_dim, args.latent_dim)):
        parser.error("--n-epochs, --batch-size, --lr, --hidden-dim and --latent-dim must be positive")
    x_train, y_train, x_test, y_test = common.load_mnist(args.data_dir, args.device, args.validation)
    out_dir = args.out_dir / "cvae"
    if args.smoke:
        out_dir = args.out_dir / "smoke" / "cvae"  # never touches a real run
        x_train, y_train, x_test, y_test = x_train[:512], y_train[:512], x_test[:256], y_test[:256]
        args.n_epochs = min(args.n_epochs, 2)
    out_dir.mkdir(parents=True, exist_ok=True)  # fails now, not after the training

    config = {"hidden_dim": args.hidden_dim, "latent_dim": args.latent_dim,
              "conditional_vec_dim": 0 if args.no_label else N_CLASSES}
    # Prints the layers and their sizes. Its "Input size" multiplies the two inputs' sizes where it should add them.
    torchsummary.summary(myVAE(**config), [(28 * 28,)] if args.no_label else [(28 * 28,), (N_CLASSES,)], device="cpu")
    torch.manual_seed(args.seed)
    model = myVAE(**config).to(args.device)

    try:
        history = train(model, x_train, y_train, x_test, y_test, args)
    except RuntimeError as error:
        if "between 0 and 1" in str(error):  # BCE refuses an x_hat that is nan
            sys.exit("error: the loss is no longer finite: try a smaller --lr")
        raise
    for name in ("metrics.json", "digits.png", "style.png"):  # a folder holds one run
        (out_dir / name).unlink(missing_ok=True)
    torch.save({"config": config, "state_dict": model.cpu().state_dict()}, out_dir / "model.pt")  # the rest may fail
    model.to(args.device)
    test_terms = evaluate(model, x_test, y_test)
    metrics = {
        "settings": vars(args),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "train_loss": evaluate(model, x_train, y_train)["loss"],
        "test_loss": test_terms["loss"],
        "test_bce": test_terms["bce"],
        "test_kl": test_terms["kl"],
        "history": history,
    }
    print("asking two classifiers whether z carries the label")
    metrics.update(probe_latents(model, x_train, y_train, x_test, y_test))
    if not args.no_label:
        print("training the judge of the samples")
        metrics.update(judge_samples(model, train_judge(x_train, y_train), x_test, y_test))
    torch.manual_seed(args.seed)  # the figures do not depend on how much the evaluation has drawn
    figures = make_figures(model, history, x_test, y_test)

    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=1, default=str))
    common.save_figures(figures, out_dir, args.show)
    print(f"wrote {out_dir}/: model.pt, metrics.json, {', '.join(f'{name}.png' for name in figures)}")
    print(f"train loss {metrics['train_loss']:.2f} nats, test loss {metrics['test_loss']:.2f}; "
          f"{metrics['n_parameters']:,} parameters, allowed 1,500,000")
    if not args.no_label:
        print(f"{metrics['sample_accuracy']:.1%} of the samples show the digit that was asked for")
    return model, metrics


if __name__ == "__main__":
    model, metrics = main()
