# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "matplotlib>=3.8", "torchsummary>=1.5.1"]
# ///
"""Autoencoder: squeeze each MNIST digit through two numbers and rebuild it. Results: report.md#1-autoencoder-aepy

An encoder maps an image x to a short code z, a decoder maps z back to an image x_hat, and both are trained together
to make x_hat equal x. Nothing tells the network what a digit is; but two numbers cannot hold 784 pixels, so it must
find out how digits vary, and images that look alike come to lie close together in the latent plane.

    L = 1 / (N H W)  sum over images and pixels of (x_hat - x)^2,     x_hat = decoder(encoder(x))

Run it:    python ae.py              train, two or three minutes on two cores of a laptop
           python ae.py --sweep      then train other latent sizes too, and compare each with PCA
           python ae.py --smoke      all of it in seconds, on a few hundred images
Writes:    runs/ae/: metrics.json, summary.txt, model.pt, loss.png, latent_space.png, latent_space_images.png,
           reconstructions.png, and sweep.png with --sweep.
Papers:    Hinton and Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, Science 313, 2006.
           Baldi and Hornik, Neural Networks and Principal Component Analysis, Neural Networks 2, 1989 (a linear
           autoencoder is PCA: that is why PCA is the yardstick here).
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
import torchsummary
from torch import nn

import common

# %% 1. Settings

NAME = "ae"
SWEEP = (1, 2, 4, 8, 16, 32)  # latent sizes of --sweep


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
parser.add_argument("--n-epochs", type=number(int, 1), default=15, help="passes over the training set")
# Small batches: 938 updates an epoch. On held-out images 0.0331, where batches of 128 gave 0.0339.
parser.add_argument("--batch-size", type=number(int, 1), default=64, help="images per update, N")
# Adam's usual rate, here the peak of a one-cycle schedule. Twice as much gave 0.0339, too.
parser.add_argument("--lr", type=number(float, 1e-9), default=1e-3, help="peak learning rate of Adam")
# 1.41 million parameters, of 1.5 million allowed.
parser.add_argument("--hidden-dim", type=number(int, 1), default=512, help="width of the outermost hidden layers, H_d")
# Two can be drawn as a plane.
parser.add_argument("--latent-dim", type=number(int, 1), default=2, help="numbers that an image is squeezed into, Z")
parser.add_argument("--seed", type=number(int, 0, 2**63), default=0, help="same seed, same CPU: same numbers")
parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, mps, ...")
parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw; None is data/ beside the script")
parser.add_argument("--out-dir", type=Path, default=Path("runs"), help=f"results go to OUT_DIR/{NAME}/")
parser.add_argument("--show", action="store_true", help="open the figures in windows as well")
parser.add_argument("--smoke", action="store_true", help="all of it in seconds, on a few hundred images")
parser.add_argument("--validation", action="store_true", help="test on 10,000 held-out training images, to choose by")
parser.add_argument("--sweep", action="store_true", help=f"also train latent sizes {SWEEP} and compare with PCA")


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

# Mean squared error: averaged over images AND pixels. Its square root is the root mean square of a pixel's error.
criterion = nn.MSELoss()


# %% 4. Training

def train(model, x_train, x_test, args):
    """Minimises the loss with Adam; returns the history: lists of `train_loss` and `test_loss`, one entry an epoch.

    `train_loss` is the mean over an epoch's batches, as they came; `test_loss` is measured after the epoch.
    """
    updates = args.n_epochs * math.ceil(len(x_train) / args.batch_size)
    # The second beta as in vae.py; fused: one pass over the weights instead of a dozen.
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.95, 0.99), fused=True)
    # One cycle: the learning rate climbs to its peak in the first 30 % of the updates and then falls to nearly 0.
    # High in the middle it explores, at the end it settles: worth some epochs of a constant rate. The schedule also
    # moves Adam's first beta, against the rate: from 0.95 to 0.85 and back.
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
        train_loss, test_loss = float(total) / len(x_train), evaluate(model, x_test)
        if not math.isfinite(train_loss):
            sys.exit(f"{NAME}.py: error: the loss is no longer a number: try a smaller --lr")
        history["train_loss"].append(train_loss)
        history["test_loss"].append(test_loss)
        pace = (time.perf_counter() - start) / epoch
        print(f"epoch {epoch:2d}/{args.n_epochs}   loss {train_loss:.4f}   test {test_loss:.4f}   "
              f"{pace:.1f} s   eta {pace * (args.n_epochs - epoch):.0f} s", flush=True)
    return history


# %% 5. Evaluation

@torch.no_grad()
def evaluate(model, x):
    """Mean squared error per pixel over all of x (n, 1, H, W), with the model as it is now."""
    model.eval()
    total = sum(criterion(model(batch), batch) * len(batch) for batch in x.split(1000))
    return float(total) / len(x)


def pca_mse(x_train, x_test, sizes):
    """The test MSE of PCA for each number of components in sizes, a list: the best that any linear autoencoder can do.

    The components are the leading eigenvectors of the training images' covariance: in closed form what gradient
    descent would find for a linear encoder and decoder (Baldi and Hornik 1989).
    """
    # float64 on the CPU: sums over 60,000 images want the precision, and Apple's GPUs do not have it.
    x_train, x_test = x_train.flatten(1).cpu().double(), x_test.flatten(1).cpu().double()
    mean = x_train.mean(0)
    _, eigenvectors = torch.linalg.eigh((x_train - mean).T @ (x_train - mean))  # (H*W, H*W), the leading ones last
    # In this basis an image is H*W coordinates. PCA keeps the last Z; its squared error is what the others hold.
    lost = (((x_test - mean) @ eigenvectors) ** 2).mean(0)  # (H*W,)
    return [float(lost[:len(lost) - size].sum()) / len(lost) if size < len(lost) else 0.0 for size in sizes]


def sweep(model, x_train, x_test, args):
    """The test MSE for each latent size of SWEEP, a list."""
    losses = []
    for latent_dim in SWEEP:
        candidate = model
        if latent_dim != args.latent_dim:  # that one is trained already
            print(f"sweep: latent_dim {latent_dim}")
            torch.manual_seed(args.seed)
            candidate = Autoencoder(hidden_dim=args.hidden_dim, latent_dim=latent_dim).to(args.device)
            train(candidate, x_train, x_test, args)
        losses.append(evaluate(candidate, x_test))
    return losses


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
        axis.plot(SWEEP, sweep_results["pca_test_loss"], "s--", color=common.ORANGE,
                  label="PCA, the best linear autoencoder")
        axis.plot(SWEEP, sweep_results["test_loss"], "o-", color=common.BLUE, label="autoencoder")
        axis.set_xscale("log", base=2)
        axis.set_xticks(SWEEP, SWEEP)
        axis.set(xlabel="latent size Z", ylabel="test MSE per pixel", ylim=(0, None))
        axis.legend()
        figures["sweep"] = figure
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
    config = {"hidden_dim": args.hidden_dim, "latent_dim": args.latent_dim}
    model = Autoencoder(**config).to(args.device)
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"Autoencoder with {n_parameters:,} parameters, {len(x_train):,} images, on {args.device}")

    start = time.perf_counter()
    history = train(model, x_train, x_test, args)
    seconds = time.perf_counter() - start
    pca_test_loss, *pca_sweep = pca_mse(x_train, x_test, (args.latent_dim, *SWEEP))
    metrics = {
        "script": NAME, "dataset": "MNIST", "n_train": len(x_train), "n_test": len(x_test),
        "n_parameters": n_parameters, "n_epochs": args.n_epochs, "seed": args.seed, "seconds": seconds,
        "train_loss": evaluate(model, x_train), "test_loss": evaluate(model, x_test), "pca_test_loss": pca_test_loss,
        "sweep": {"latent_dim": SWEEP, "test_loss": sweep(model, x_train, x_test, args), "pca_test_loss": pca_sweep}
        if args.sweep else None,
        "history": history, "settings": vars(args), "device": args.device, "threads": torch.get_num_threads(),
        "processor": getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", platform.processor()),
        "accelerator": torch.cuda.get_device_name(args.device) if "cuda" in args.device else None,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy")},
    }
    figures = make_figures(model, history, x_test, y_test, metrics["sweep"])
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
    print(f"train loss {metrics['train_loss']:.4f} < 0.04: {ok[metrics['train_loss'] < 0.04]},   "
          f"{n_parameters:,} parameters <= 1,500,000: {ok[n_parameters <= 1_500_000]}")
    return model, metrics


if __name__ == "__main__":
    try:
        # In a notebook sys.argv holds the notebook's flags, not ours.
        model, metrics = main(None if Path(sys.argv[0]).name == f"{NAME}.py" else [])
    except KeyboardInterrupt:
        parser.exit(130, f"\n{NAME}.py: stopped; every file that is there is whole\n")
    except OSError as error:  # data or a folder that is not as it should be
        parser.error(str(error))
