# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "matplotlib>=3.8", "torchsummary>=1.5.1"]
# ///
"""Autoencoder: squeeze each MNIST digit through two numbers and rebuild it from them.

An encoder maps an image x to a short code z, a decoder maps z back to an image x_hat, and both are trained together
to make x_hat equal x. Nothing tells the network what a digit is; but two numbers cannot hold 784 pixels, so it must
find out how digits vary, and images that look alike come to lie close together in the latent plane.

    L = 1 / (N H W)  sum over images and pixels of (x_hat - x)^2,     x_hat = decoder(encoder(x))

Run it:    python ae.py              train, about two minutes on two CPU cores
           python ae.py --sweep      then train other latent sizes too, and compare each with PCA
           python ae.py --smoke      every line of it in seconds, on a few hundred images
Writes:    runs/ae/: metrics.json, summary.txt, model.pt, loss.png, latent_space.png, latent_space_images.png,
           reconstructions.png, and sweep.png with --sweep.
Papers:    Hinton and Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, Science 313, 2006.
           Baldi and Hornik, Neural Networks and Principal Component Analysis, Neural Networks 2, 1989 (a linear
           autoencoder is PCA: that is why PCA is the yardstick here).
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
import torchsummary
import torchvision
from torch import nn

import common

# %% 1. Settings

NAME = "ae"
SWEEP = (1, 2, 4, 8, 16, 32)  # latent sizes of --sweep

# Without a usage line, an error is one line.
parser = argparse.ArgumentParser(prog=f"{NAME}.py", usage=argparse.SUPPRESS, description=__doc__.split("\n")[0],
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--n-epochs", type=int, default=15, help="passes over the training set")
# Small batches: 938 updates an epoch. With 15 epochs to spend, many noisy steps beat few exact ones.
parser.add_argument("--batch-size", type=int, default=64, help="images per update, N")
# Adam's usual rate, here the peak of a one-cycle schedule. Twice as much gave a higher error in the end.
parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of Adam")
parser.add_argument("--hidden-dim", type=int, default=512, help="width of the outermost hidden layers, H_d")
parser.add_argument("--latent-dim", type=int, default=2, help="numbers that an image is squeezed into, Z")
parser.add_argument("--seed", type=int, default=0, help="same seed, same machine: same numbers")
parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...; auto takes an accelerator if any")
parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw (default: data/ beside the script)")
parser.add_argument("--out-dir", type=Path, default=Path("runs"), help=f"results go to OUT_DIR/{NAME}/")
parser.add_argument("--show", action="store_true", help="open the figures in windows as well")
parser.add_argument("--smoke", action="store_true", help="a run of seconds that goes through every line")
parser.add_argument("--sweep", action="store_true", help=f"also train latent sizes {SWEEP} and compare with PCA")


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

class Autoencoder(nn.Module):
    """Fully connected autoencoder: encoder (N, 1, H, W) -> (N, Z), decoder (N, Z) -> (N, 1, H, W).

    The hidden layers halve in width towards the code: H_d, H_d/2, H_d/4, H_d/8. The decoder, which has to make 784
    numbers out of Z, has one layer of width H_d more.
    """

    def __init__(self, input_shape=(1, 28, 28), hidden_dim=512, latent_dim=2):
        super().__init__()
        n_pixels = math.prod(input_shape)
        widths = [max(1, hidden_dim // 2**i) for i in range(4)]
        layers = [nn.Flatten()]  # (N, 1, H, W) -> (N, H*W)
        for n_in, n_out in zip([n_pixels, *widths], widths):
            layers += [nn.Linear(n_in, n_out), nn.LeakyReLU()]
        # No activation on the code: any point of the latent plane may be used.
        self.encoder = nn.Sequential(*layers, nn.Linear(widths[-1], latent_dim))

        widths = [*widths[::-1], hidden_dim]
        layers = []
        for n_in, n_out in zip([latent_dim, *widths], widths):
            layers += [nn.Linear(n_in, n_out), nn.LeakyReLU()]
        # The sigmoid keeps pixels between 0 and 1, as they are in the data.
        self.decoder = nn.Sequential(*layers, nn.Linear(hidden_dim, n_pixels), nn.Unflatten(1, input_shape),
                                     nn.Sigmoid())

        # PyTorch's default weights shrink a signal to less than half in each layer, and after eleven layers all images
        # would look alike. He's keep its size (He, Zhang, Ren and Sun, ICCV 2015, arXiv:1502.01852).
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="leaky_relu")
                nn.init.zeros_(module.bias)

    def forward(self, x):
        """x (N, 1, H, W) -> x_hat (N, 1, H, W)"""
        return self.decoder(self.encoder(x))


# %% 3. Loss

# Mean squared error: averaged over images AND pixels, so 0.04 means that a pixel is off by about 0.2 (its square root).
criterion = nn.MSELoss()


# %% 4. Training

def train(model, x_train, x_test, args):
    """Minimises the loss with Adam; returns the history: lists of `train_loss` and `test_loss`, one entry an epoch.

    `train_loss` is the mean over an epoch's batches, as they came; `test_loss` is measured after the epoch.
    """
    updates = args.n_epochs * math.ceil(len(x_train) / args.batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.99))
    # One cycle: the learning rate climbs to its peak in the first 30 % of the updates and then falls to nearly 0.
    # High in the middle it explores, at the end it settles: worth some epochs of a constant rate.
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=updates)
    history = {"train_loss": [], "test_loss": []}
    start = time.perf_counter()
    for epoch in range(1, args.n_epochs + 1):
        model.train()
        total = 0.0
        for (x,) in common.minibatches(args.batch_size, x_train):  # x (N, 1, H, W)
            loss = criterion(model(x), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.detach() * len(x)  # not .item(): that would make an accelerator wait at every update
        train_loss = float(total) / len(x_train)
        if not math.isfinite(train_loss):
            parser.exit(1, f"{NAME}.py: error: the loss is no longer a number: try a smaller --lr\n")
        history["train_loss"].append(train_loss)
        history["test_loss"].append(evaluate(model, x_test))
        pace = (time.perf_counter() - start) / epoch
        print(f"epoch {epoch:2d}/{args.n_epochs}   loss {train_loss:.4f}   test {history['test_loss'][-1]:.4f}   "
              f"{pace:.1f} s   eta {pace * (args.n_epochs - epoch):.0f} s", flush=True)
    return history


# %% 5. Evaluation

@torch.no_grad()
def evaluate(model, x):
    """Mean squared error per pixel over all of x (n, 1, H, W), with the model as it is now."""
    model.eval()
    total = sum(criterion(model(batch), batch) * len(batch) for batch in x.split(1000))
    return float(total) / len(x)


def pca_mse(x_train, x_test, n_components):
    """The test MSE of PCA with the same number of components: the best that any linear autoencoder can do.

    The components are the leading eigenvectors of the training images' covariance: in closed form what gradient
    descent would find for a linear encoder and decoder (Baldi and Hornik 1989).
    """
    x_train, x_test = x_train.flatten(1).double().cpu(), x_test.flatten(1).double().cpu()
    mean = x_train.mean(0)
    _, eigenvectors = torch.linalg.eigh((x_train - mean).T @ (x_train - mean))  # in ascending order
    components = eigenvectors[:, -n_components:]  # (H*W, Z)
    x_hat = mean + (x_test - mean) @ components @ components.T
    return float(((x_hat - x_test) ** 2).mean())


def sweep(model, x_train, x_test, args):
    """Test MSE against the latent size, for the autoencoder and for PCA: {latent_dim, test_loss, pca_test_loss}."""
    results = {"latent_dim": [], "test_loss": [], "pca_test_loss": []}
    for latent_dim in SWEEP:
        if latent_dim != args.latent_dim:  # that one is trained already
            print(f"sweep: latent_dim {latent_dim}")
            torch.manual_seed(args.seed)
            candidate = Autoencoder(hidden_dim=args.hidden_dim, latent_dim=latent_dim).to(args.device)
            train(candidate, x_train, x_test, args)
        else:
            candidate = model
        results["latent_dim"].append(latent_dim)
        results["test_loss"].append(evaluate(candidate, x_test))
        results["pca_test_loss"].append(pca_mse(x_train, x_test, latent_dim))
    return results


# %% 6. Figures

@torch.no_grad()
def make_figures(model, history, x_test, y_test, sweep_results):
    """All figures, as {file name without ending: figure}."""
    model.eval()
    figures = {"loss": common.plot_losses(history, {"loss": "MSE per pixel"})}

    # Ten of each digit would hide the failures: these are simply the first twelve test images.
    x = x_test[:12]
    figures["reconstructions"] = common.plot_images(torch.stack([x, model(x)]), ["original", "rebuilt"])

    z = model.encoder(x_test)  # (n, Z)
    if z.shape[1] == 2:
        # The middle 94 % along each axis: a few far points would otherwise squeeze the crowd into a corner.
        extent = torch.quantile(z.cpu(), torch.tensor([0.03, 0.97]), dim=0).T.flatten().tolist()
        figures["latent_space"] = common.plot_latent_space(z, y_test, extent)
        figures["latent_space_images"] = common.plot_latent_space_images(
            lambda points: model.decoder(points.to(z.device)), extent)
    else:
        print("note: no latent_space figures, as the latent space is not a plane (--latent-dim 2)", file=sys.stderr)

    if sweep_results:
        figure, axis = plt.subplots(figsize=(8, 3.6))
        axis.plot(sweep_results["latent_dim"], sweep_results["pca_test_loss"], "s--", color=common.ORANGE,
                  label="PCA, the best linear autoencoder")
        axis.plot(sweep_results["latent_dim"], sweep_results["test_loss"], "o-", color=common.BLUE, label="autoencoder")
        axis.set_xscale("log", base=2)
        axis.set_xticks(SWEEP, SWEEP)
        axis.set(xlabel="latent size Z", ylabel="test MSE per pixel", ylim=(0, None))
        axis.legend()
        figures["sweep"] = figure
    return figures


# %% 7. Run

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
        x_train, x_test, y_test, args.n_epochs = x_train[:512], x_test[:256], y_test[:256], min(args.n_epochs, 2)

    torch.manual_seed(args.seed)
    config = {"hidden_dim": args.hidden_dim, "latent_dim": args.latent_dim}
    model = Autoencoder(**config).to(args.device)
    n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"Autoencoder with {n_parameters:,} parameters, {len(x_train):,} images, on {args.device}")

    start = time.perf_counter()
    history = train(model, x_train, x_test, args)
    seconds = time.perf_counter() - start

    metrics = {
        "script": NAME, "dataset": "MNIST", "n_train": len(x_train), "n_test": len(x_test),
        "n_parameters": n_parameters, "n_epochs": args.n_epochs, "seed": args.seed, "device": args.device,
        "seconds": seconds, "train_loss": evaluate(model, x_train), "test_loss": evaluate(model, x_test),
        "pca_test_loss": pca_mse(x_train, x_test, min(args.latent_dim, x_train[0].numel())),
        "sweep": sweep(model, x_train, x_test, args) if args.sweep else None, "history": history,
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "torchvision": torchvision.__version__, "numpy": np.__version__},
        "settings": settings,
    }
    figures = make_figures(model, history, x_test, y_test, metrics["sweep"])
    summary = io.StringIO()
    with contextlib.redirect_stdout(summary):  # torchsummary prints; it knows no devices but cpu and cuda
        torchsummary.summary(model.cpu(), (1, 28, 28), device="cpu")

    # Everything is ready: write it all, each file whole or not at all.
    for name, figure in figures.items():
        common.save_figure(figure, out_dir / f"{name}.png")
    with common.replacing(out_dir / "summary.txt") as path:
        Path(path).write_text(summary.getvalue())
    with common.replacing(out_dir / "model.pt") as path:
        torch.save({"config": config, "state_dict": model.state_dict()}, path)
    with common.replacing(out_dir / "metrics.json") as path:
        Path(path).write_text(json.dumps(metrics, indent=1) + "\n")

    print(f"wrote {os.path.join(out_dir, '')}")
    ok = {True: "ok", False: "missed"}
    print(f"train loss {metrics['train_loss']:.4f} < 0.04: {ok[metrics['train_loss'] < 0.04]},   "
          f"{n_parameters:,} parameters <= 1,500,000: {ok[n_parameters <= 1_500_000]}")
    if args.show:
        plt.show()
    plt.close("all")
    return metrics


if __name__ == "__main__":
    try:
        main([] if "ipykernel" in sys.modules else None)  # in a notebook, sys.argv is the notebook's own
    except KeyboardInterrupt:
        parser.exit(130, f"\n{NAME}.py: stopped; results of earlier runs are untouched\n")
