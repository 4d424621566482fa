# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "matplotlib>=3.8", "torchsummary>=1.5.1"]
# ///
"""Autoencoder: squeeze each MNIST digit through two numbers and rebuild it.

An encoder maps an image x to a short code z, a decoder maps z back to an image x_hat, and both are trained together
to make x_hat equal x. Nothing tells the network what a digit is. But two numbers cannot hold 784 pixels, so the code
can only say how this digit differs from others, and images that look alike come to lie close together in the plane.

    L = 1 / (N H W)  sum over images and pixels of (x_hat - x)^2,     x_hat = decoder(encoder(x))

Run it:    python ae.py                    train on all of MNIST; minutes on a laptop
           python ae.py --latent-dim 32    more room in the code
           python ae.py --smoke            every step in seconds, on a few hundred images
Writes:    runs/ae/: metrics.json, model.pt, loss.png, reconstructions.png, and for a plane (--latent-dim 2, the
           default) latent_space.png and latent_space_images.png
Report:    report.md#1-autoencoder-aepy-deliverable-1
Papers:    Hinton and Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, Science 313, 2006.
           Baldi and Hornik, Neural Networks and Principal Component Analysis, Neural Networks 2, 1989 (a linear
           autoencoder is PCA: that is why PCA is the yardstick here).
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
import torchsummary
from torch import nn

import common


# %% 1. Model

class Autoencoder(nn.Module):
    """Fully connected autoencoder: encoder (N, 1, H, W) -> (N, Z), decoder (N, Z) -> (N, 1, H, W).

    The layers halve in width towards the code. The decoder, which has to make 784 numbers out of Z, has one wide layer
    more.
    """

    def __init__(self, input_shape=(1, 28, 28), hidden_dim=512, latent_dim=2):
        super().__init__()
        n_pixels = math.prod(input_shape)
        self.encoder = nn.Sequential(
            nn.Flatten(),  # (N, 1, H, W) -> (N, H*W)
            nn.Linear(n_pixels, hidden_dim), nn.LeakyReLU(),
            nn.Linear(hidden_dim, hidden_dim // 2), nn.LeakyReLU(),
            nn.Linear(hidden_dim // 2, hidden_dim // 4), nn.LeakyReLU(),
            nn.Linear(hidden_dim // 4, hidden_dim // 8), nn.LeakyReLU(),
            nn.Linear(hidden_dim // 8, latent_dim))  # no activation: any point of the latent plane may be used
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, hidden_dim // 8), nn.LeakyReLU(),
            nn.Linear(hidden_dim // 8, hidden_dim // 4), nn.LeakyReLU(),
            nn.Linear(hidden_dim // 4, hidden_dim // 2), nn.LeakyReLU(),
            nn.Linear(hidden_dim // 2, hidden_dim), nn.LeakyReLU(),
            nn.Linear(hidden_dim, hidden_dim), nn.LeakyReLU(),
            nn.Linear(hidden_dim, n_pixels), nn.Unflatten(1, input_shape),
            nn.Sigmoid())  # keeps pixels between 0 and 1, as they are in the data

        # PyTorch's default weights shrink a signal to less than half in each layer. After eleven layers the untrained
        # network would give nearly the same output for every image. He's weights keep the signal's size (He, Zhang,
        # Ren and Sun, ICCV 2015, arXiv:1502.01852).
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="leaky_relu")
                nn.init.zeros_(module.bias)

    def forward(self, x):
        """x (N, 1, H, W) -> x_hat (N, 1, H, W)"""
        return self.decoder(self.encoder(x))


# Mean squared error: averaged over images AND pixels. Its square root is the root mean square of a pixel's error.
criterion = nn.MSELoss()


# %% 2. Training

def train(model, x_train, x_test, args):
    """Minimises the loss with Adam; returns the history: lists of `train_loss` and `test_loss`, one entry an epoch.

    `train_loss` is the mean over an epoch's images, each as its batch came; `test_loss` is measured after the epoch.
    """
    n_updates = args.n_epochs * math.ceil(len(x_train) / args.batch_size)
    # OneCycleLR sets the first beta. The second, 0.99, averages squared gradients over 100 updates; PyTorch's default,
    # 0.999, over 1,000, does worse in vae.py. fused: one pass over the weights instead of a dozen.
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.95, 0.99), fused=True)
    # One cycle: the learning rate climbs to its peak in the first 30 % of the updates and then falls to nearly 0.
    # A high rate explores, a low final rate settles. Adam's first beta moves against the rate: from 0.95 to 0.85 and
    # back.
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=n_updates)
    history = {"train_loss": [], "test_loss": []}
    start = time.perf_counter()
    for epoch in range(1, args.n_epochs + 1):
        model.train()
        total = 0
        for (x,) in common.minibatches(args.batch_size, x_train):  # a batch is a tuple: x (N, 1, H, W)
            x_hat = model(x)
            loss = criterion(x_hat, x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.detach() * len(x)  # not .item(): that would make an accelerator wait at every update
        train_loss = float(total) / len(x_train)
        test_loss = evaluate(model, x_test)
        if not math.isfinite(train_loss):
            sys.exit("error: the loss is no longer finite: try a smaller --lr")
        history["train_loss"].append(train_loss)
        history["test_loss"].append(test_loss)
        pace = (time.perf_counter() - start) / epoch
        print(f"epoch {epoch:2d}/{args.n_epochs}   loss {train_loss:.4f}   test {test_loss:.4f}   "
              f"{pace:.1f} s   eta {pace * (args.n_epochs - epoch):.0f} s", flush=True)
    return history


# %% 3. Evaluation

@torch.no_grad()
def evaluate(model, x):
    """Mean squared error per pixel over all of x (n, 1, H, W), with the model as it is now."""
    model.eval()
    total = sum(criterion(model(batch), batch) * len(batch) for batch in x.split(1000))
    return float(total) / len(x)


def pca_mse(x_train, x_test, n_components):
    """The test MSE of PCA with so many components. On the training set no linear autoencoder does better.

    The components are the leading eigenvectors of the training images' covariance: in closed form what gradient
    descent would find for a linear encoder and decoder (Baldi and Hornik 1989).
    """
    # float64 on the CPU: sums over 60,000 images want the precision, and Apple's GPUs do not have it.
    x_train, x_test = x_train.flatten(1).cpu().double(), x_test.flatten(1).cpu().double()
    mean = x_train.mean(0)
    _, eigenvectors = torch.linalg.eigh((x_train - mean).T @ (x_train - mean))  # (H*W, H*W), largest last
    # In this basis an image is H*W coordinates. PCA keeps the last Z (largest); the rest is lost.
    lost = (((x_test - mean) @ eigenvectors) ** 2).mean(0)  # (H*W,)
    return float(lost[:max(0, len(lost) - n_components)].sum()) / len(lost)


# %% 4. Figures

@torch.no_grad()
def make_figures(model, history, x_test, y_test):
    """All figures, as {file name without ending: figure}."""
    model.eval()
    figures = {"loss": common.plot_losses(history, {"loss": "MSE per pixel"}, required=0.04)}

    x = x_test[:12]  # simply the first twelve: no choice, no flattery
    figures["reconstructions"] = common.plot_images(torch.stack([x, model(x)]), ["original", "rebuilt"])

    z = model.encoder(x_test)  # (n, Z)
    if z.shape[1] == 2:
        # The middle 94 % along each axis: a few far points would otherwise squeeze the crowd into a corner.
        extent = torch.quantile(z.cpu(), torch.tensor([0.03, 0.97]), dim=0).T.flatten().tolist()
        figures["latent_space"] = common.plot_latent_space(z, y_test, extent)
        figures["latent_space_images"] = common.plot_latent_space_images(
            lambda points: model.decoder(points.to(z.device)), extent)
    return figures


# %% 5. Run

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
# What the assignment allows.
parser.add_argument("--n-epochs", type=int, default=15, help="passes over the training set")
# Small batches: 938 updates an epoch. On held-out images 0.0331, where batches of 128 gave 0.0339.
parser.add_argument("--batch-size", type=int, default=64, help="images per update, N")
# Adam's usual rate, here the peak of a one-cycle schedule. Twice as much gave 0.0339, too.
parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of Adam")
# 1.41 million parameters, of 1.5 million allowed.
parser.add_argument("--hidden-dim", type=int, default=512, help="width of the outermost hidden layers, H_d")
# Two can be drawn as a plane.
parser.add_argument("--latent-dim", type=int, default=2, help="numbers that an image is squeezed into, Z")
parser.add_argument("--seed", type=int, default=0, help="same seed, CPU and threads: same numbers")
parser.add_argument("--device", default=common.DEVICE, choices=sorted({"cpu", common.DEVICE}), help="where to compute")
parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw; None is data/ beside the script")
parser.add_argument("--out-dir", type=Path, default=Path("runs"), help="results go to OUT_DIR/ae/")
parser.add_argument("--show", action="store_true", help="open the figures in windows as well")
parser.add_argument("--smoke", action="store_true", help="every step in seconds, on a few hundred images")
parser.add_argument("--validation", action="store_true",
                    help="measure on 10,000 held-out training images, for choosing settings")


def main(argv=None):
    """Trains, evaluates, draws and writes; returns the model and the metrics. argv: flags, by default the user's."""
    args = parser.parse_args(common.flags(argv))
    if not (all(value > 0 for value in (args.n_epochs, args.batch_size, args.lr, args.latent_dim))
            and args.hidden_dim >= 8):
        parser.error("--n-epochs, --batch-size, --lr and --latent-dim must be positive, --hidden-dim at least 8")
    x_train, _, x_test, y_test = common.load_mnist(args.data_dir, args.device, args.validation)
    out_dir = args.out_dir / "ae"
    if args.smoke:
        out_dir = args.out_dir / "smoke" / "ae"  # never touches a real run
        x_train, x_test, y_test = x_train[:512], x_test[:256], y_test[:256]
        args.n_epochs = min(args.n_epochs, 2)
    out_dir.mkdir(parents=True, exist_ok=True)  # fails now, not after the training

    config = {"hidden_dim": args.hidden_dim, "latent_dim": args.latent_dim}
    torchsummary.summary(Autoencoder(**config), (1, 28, 28), device="cpu")  # prints the layers and their sizes
    torch.manual_seed(args.seed)
    model = Autoencoder(**config).to(args.device)

    history = train(model, x_train, x_test, args)
    for name in ("metrics.json", "latent_space.png", "latent_space_images.png"):  # a folder holds one run
        (out_dir / name).unlink(missing_ok=True)
    torch.save({"config": config, "state_dict": model.cpu().state_dict()}, out_dir / "model.pt")  # the rest may fail
    model.to(args.device)
    metrics = {
        "settings": vars(args),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "train_loss": evaluate(model, x_train),
        "test_loss": evaluate(model, x_test),
        "pca_test_loss": pca_mse(x_train, x_test, args.latent_dim),
        "history": history,
    }
    figures = make_figures(model, history, x_test, y_test)

    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=1, default=str))
    common.save_figures(figures, out_dir, args.show)
    print(f"wrote {out_dir}/: model.pt, metrics.json, {', '.join(f'{name}.png' for name in figures)}")
    print(f"train loss {metrics['train_loss']:.4f}, required < 0.04; {metrics['n_parameters']:,} parameters, "
          f"allowed 1,500,000; test loss {metrics['test_loss']:.4f}, PCA {metrics['pca_test_loss']:.4f}")
    return model, metrics


if __name__ == "__main__":
    model, metrics = main()
