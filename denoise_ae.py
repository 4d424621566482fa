# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "matplotlib>=3.8", "torchsummary>=1.5.1"]
# ///
"""Denoising autoencoder: digits dug out of heavy noise. Results: report.md#2-denoising-autoencoder-denoise_aepy

The input is corrupted, the target is clean. Copying would reproduce the noise, so the network has to learn what digits
look like, and the noise, which looks like nothing, does not survive the bottleneck. New noise is drawn for every
batch: the network never sees the same noisy image twice and cannot learn it by heart.

    y = clip(x + 0.5 * epsilon, 0, 1),   epsilon ~ N(0, I)
    L = 1 / (N H W)  sum over images and pixels of (x_hat - x)^2,     x_hat = decoder(encoder(y))

Run it:    python denoise_ae.py              train, five to ten minutes on two cores of a laptop
           python denoise_ae.py --sweep      then train other bottleneck sizes too
           python denoise_ae.py --smoke      all of it in seconds, on a few hundred images
Writes:    runs/denoise_ae/: metrics.json, summary.txt, model.pt, loss.png, denoised.png, and sweep.png with --sweep.
Paper:     Vincent, Larochelle, Bengio and Manzagol, Extracting and Composing Robust Features with Denoising
           Autoencoders, ICML 2008.
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
import torchvision
from torch import nn

import common

# %% 1. Settings

NAME = "denoise_ae"
NOISE_STD = 0.5  # pixels lie between 0 and 1: this is heavy
N_NOISES = 5  # how many draws of the noise the test error is averaged over
SWEEP = (2, 6, 16)  # bottleneck channels of --sweep


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
parser.add_argument("--n-epochs", type=number(int, 1), default=20, help="passes over the training set")
# Twice as many did as well on held-out images (two seeds).
parser.add_argument("--batch-size", type=number(int, 1), default=64, help="images per update, N")
# With batch normalization a rate of 20 times the usual 1e-3 still trains well. Half of it did as well.
parser.add_argument("--lr", type=number(float, 1e-9), default=2e-2, help="peak learning rate of Adam")
# 14,805 parameters, of 15,000 allowed. 8 to 12 channels with other kernels gave 0.0114 to 0.0118 on held-out images.
parser.add_argument("--hidden-dim", type=number(int, 1), default=11, help="channels of the convolutions, H_d")
# 32 x 4 x 4 = 512 numbers: fewer than the 784 of an image.
parser.add_argument("--latent-dim", type=number(int, 1), default=32, help="channels of the bottleneck, Z, each 4 x 4")
parser.add_argument("--seed", type=number(int, 0, 2**63), default=0, help="same seed, same CPU: same numbers")
parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, mps, ...")
parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw; None is data/ beside the script")
parser.add_argument("--out-dir", type=Path, default=Path("runs"), help=f"results go to OUT_DIR/{NAME}/")
parser.add_argument("--show", action="store_true", help="open the figures in windows as well")
parser.add_argument("--smoke", action="store_true", help="all of it in seconds, on a few hundred images")
parser.add_argument("--validation", action="store_true", help="test on 10,000 held-out training images, to choose by")
parser.add_argument("--sweep", action="store_true", help=f"also train with {SWEEP} bottleneck channels")


# %% 2. Model

class DenoiseAE(nn.Module):
    """Convolutional denoising autoencoder: (N, 1, 28, 28) noisy -> (N, 1, 28, 28) clean.

    Height and width go 28 -> 14 -> 7 -> 4 in the encoder, by max pooling, and 4 -> 7 -> 14 -> 28 in the decoder, by
    transposed convolutions with stride 2. The bottleneck holds Z x 4 x 4 numbers, fewer than the image's 784.
    """

    def __init__(self, hidden_dim=11, latent_dim=32):
        super().__init__()

        # No bias where batch normalization follows: it subtracts the mean, and with it any bias, and adds its own.
        def block(n_in, n_out, kernel_size):
            return [nn.Conv2d(n_in, n_out, kernel_size, padding=kernel_size // 2, bias=False), nn.BatchNorm2d(n_out),
                    nn.LeakyReLU(0.1), nn.MaxPool2d(2, ceil_mode=True)]  # ceil: 7 -> 4, no row of pixels is dropped

        def up(n_in, n_out, kernel_size, padding, bias=False):  # stride 2: H -> 2 (H - 1) + kernel_size - 2 padding
            return nn.ConvTranspose2d(n_in, n_out, kernel_size, stride=2, padding=padding, bias=bias)

        # Where to spend 15,000 parameters? On few channels with large kernels: to tell a stroke from noise, the network
        # has to look at many pixels at once, above all in the first layers. A 5 x 5 and a 3 x 3 kernel did worse there.
        self.encoder = nn.Sequential(*block(1, hidden_dim, 7),  # (N, 1, 28, 28) -> (N, H_d, 14, 14)
                                     *block(hidden_dim, hidden_dim, 5),  # -> (N, H_d, 7, 7)
                                     *block(hidden_dim, latent_dim, 3))  # -> (N, Z, 4, 4)
        self.decoder = nn.Sequential(
            up(latent_dim, hidden_dim, 3, 1), nn.BatchNorm2d(hidden_dim), nn.LeakyReLU(0.1),  # -> (N, H_d, 7, 7)
            up(hidden_dim, hidden_dim, 6, 2), nn.BatchNorm2d(hidden_dim), nn.LeakyReLU(0.1),  # -> (N, H_d, 14, 14)
            up(hidden_dim, 1, 6, 2, bias=True), nn.Sigmoid())  # -> (N, 1, 28, 28), pixels between 0 and 1

    def forward(self, x):
        """x (N, 1, 28, 28) -> x_hat (N, 1, 28, 28)"""
        return self.decoder(self.encoder(x))


# %% 3. Loss

# Mean squared error against the CLEAN image, averaged over images and pixels.
criterion = nn.MSELoss()


def add_noise(x, generator=None):
    """x in [0, 1] -> clip(x + 0.5 epsilon, 0, 1), of the same shape. The clipping makes black areas brighter on
    average (by 0.2): this noise is not centred, which is one reason why smoothing alone cannot undo it."""
    # torch.Generator's numbers are the same on every machine only if they are drawn on the CPU.
    noise = torch.randn_like(x) if generator is None else torch.randn(x.shape, generator=generator).to(x.device)
    return (x + NOISE_STD * noise).clamp(0, 1)


# %% 4. Training

def best_layout(device):
    """Convolutions are fastest with the channels last in memory, on CPUs and NVIDIA's GPUs: here an epoch takes three
    quarters of the time. On Apple's GPUs it has led to errors (pytorch/pytorch#140902)."""
    return torch.channels_last if device.startswith(("cpu", "cuda")) else torch.contiguous_format


def train(model, x_train, x_test, y_test, args):
    """Minimises the loss with Adam; returns the history: lists of `train_loss` and `test_loss`, one entry an epoch.

    y_test is the noisy x_test: its noise is fixed, that of the training images is new in every batch. `train_loss` is
    the mean over an epoch's batches, as they came; `test_loss` is measured after the epoch.
    """
    updates = args.n_epochs * math.ceil(len(x_train) / args.batch_size)
    # The second beta as in vae.py; fused: one pass over the weights instead of a dozen.
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.95, 0.99), fused=True)
    # One cycle: the learning rate climbs to its peak in the first 15 % of the updates and then falls to nearly 0.
    # High at first it explores, at the end it settles: worth some epochs of a constant rate. The schedule also moves
    # Adam's first beta, against the rate: from 0.95 to 0.85 and back.
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=updates, pct_start=0.15)
    history = {"train_loss": [], "test_loss": []}
    start = time.perf_counter()
    for epoch in range(1, args.n_epochs + 1):
        model.train()
        total = 0.0
        for (x,) in common.minibatches(args.batch_size, x_train):  # x (N, 1, H, W)
            loss = criterion(model(add_noise(x)), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.detach() * len(x)  # not .item(): that would make an accelerator wait at every update
        train_loss, test_loss = float(total) / len(x_train), evaluate(model, x_test, y_test)
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
def denoise(model, y):
    """The model's x_hat for all noisy images y (n, 1, H, W), with batch normalization's statistics from training."""
    model.eval()
    return torch.cat([model(batch) for batch in y.split(1000)])


def evaluate(model, x, y):
    """Mean squared error per pixel between the clean x and the model's x_hat for the noisy y, both (n, 1, H, W)."""
    return float(criterion(denoise(model, y), x))


def psnr_db(x_hat, x):
    """Peak signal-to-noise ratio in dB: 10 log10(1 / MSE) of each image, averaged over the images. 10 dB more is a
    tenth of the squared error."""
    return float(-10 * torch.log10(((x_hat - x) ** 2).flatten(1).mean(1)).mean())


def classical(x_train, y_train, y_test):
    """y_test (n, 1, H, W) denoised without learning a network: blurred by a Gaussian, then a x + b for contrast and
    brightness. The blur's width, a and b are those that are best on the training images. Returns x_hat and the width.
    """
    def blur(y, sigma):
        return torchvision.transforms.functional.gaussian_blur(y, kernel_size=11, sigma=sigma)

    best = (math.inf,)
    for sigma in (0.6, 0.8, 1.0, 1.2, 1.4, 1.6):
        smooth = blur(y_train, sigma)
        # Least squares in one variable: a = cov(smooth, x) / var(smooth), and b makes the means agree.
        a = ((smooth - smooth.mean()) * (x_train - x_train.mean())).mean() / smooth.var(correction=0)
        b = x_train.mean() - a * smooth.mean()
        best = min(best, (float(criterion((a * smooth + b).clamp(0, 1), x_train)), sigma, a, b))
    _, sigma, a, b = best
    return (a * blur(y_test, sigma) + b).clamp(0, 1), sigma


def sweep(model, x_train, x_test, y_test, args):
    """Test MSE against the size of the bottleneck: {latent_dim, bottleneck_size, n_parameters, test_loss}."""
    results = {"latent_dim": [], "bottleneck_size": [], "n_parameters": [], "test_loss": []}
    for latent_dim in sorted({*SWEEP, args.latent_dim}):
        if latent_dim != args.latent_dim:  # that one is trained already
            print(f"sweep: latent_dim {latent_dim}")
            torch.manual_seed(args.seed)
            candidate = DenoiseAE(args.hidden_dim, latent_dim)
            candidate.to(args.device, memory_format=best_layout(args.device))
            train(candidate, x_train, x_test, y_test, args)
        else:
            candidate = model
        results["latent_dim"].append(latent_dim)
        results["bottleneck_size"].append(candidate.encoder(x_test[:1]).numel())
        results["n_parameters"].append(sum(p.numel() for p in candidate.parameters()))
        results["test_loss"].append(evaluate(candidate, x_test, y_test))
    return results


# %% 6. Figures

def make_figures(model, history, x_test, y_test, x_classical, sweep_results):
    """All figures, as {file name without ending: figure}."""
    figures = {"loss": common.plot_losses(history, {"loss": "MSE per pixel"})}

    x, y = x_test[:10], y_test[:10]  # simply the first ten: no choice, no flattery
    figures["denoised"] = common.plot_images(torch.stack([y, x_classical[:10], denoise(model, y), x]),
                                             ["noisy", "Gaussian\nfilter", "denoised", "clean"])

    if sweep_results:
        figure, axis = plt.subplots(figsize=(8, 3.6))
        axis.plot(sweep_results["bottleneck_size"], sweep_results["test_loss"], "o-", color=common.BLUE)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sweep_results["bottleneck_size"], sweep_results["bottleneck_size"])
        axis.set(xlabel="numbers in the bottleneck (an image has 784)", ylabel="test MSE per pixel", ylim=(0, None))
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
    x_train, _, x_test, _ = common.load_mnist(args.data_dir, args.device, args.validation)
    if args.smoke:
        x_train, x_test, args.n_epochs = x_train[:512], x_test[:256], min(args.n_epochs, 2)
    # The noise of the measurements is fixed and does not depend on --seed: all runs are compared on the same images.
    fixed = torch.Generator().manual_seed(0)
    draws = [add_noise(x_test, fixed) for _ in range(N_NOISES)]
    y_test, y_train = draws[0], add_noise(x_train, fixed)

    torch.manual_seed(args.seed)
    config = {"hidden_dim": args.hidden_dim, "latent_dim": args.latent_dim}
    model = DenoiseAE(**config).to(args.device, memory_format=best_layout(args.device))
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"DenoiseAE with {n_parameters:,} parameters, {len(x_train):,} images, on {args.device}")

    start = time.perf_counter()
    history = train(model, x_train, x_test, y_test, args)
    seconds = time.perf_counter() - start
    test_losses = [evaluate(model, x_test, y) for y in draws]
    x_hat, (x_classical, blur_sigma) = denoise(model, y_test), classical(x_train[:10000], y_train[:10000], y_test)
    metrics = {
        "script": NAME, "dataset": "MNIST", "n_train": len(x_train), "n_test": len(x_test),
        "n_parameters": n_parameters, "n_epochs": args.n_epochs, "seed": args.seed, "seconds": seconds,
        "train_loss": evaluate(model, x_train, y_train), "test_loss": sum(test_losses) / N_NOISES,
        "test_loss_by_noise": test_losses, "bottleneck_size": model.encoder(x_test[:1]).numel(), "noise_std": NOISE_STD,
        "test_psnr_db": psnr_db(x_hat, x_test),
        "noisy_test_loss": float(criterion(y_test, x_test)), "noisy_test_psnr_db": psnr_db(y_test, x_test),
        "gaussian_filter_test_loss": float(criterion(x_classical, x_test)),
        "gaussian_filter_test_psnr_db": psnr_db(x_classical, x_test), "gaussian_filter_sigma_pixels": blur_sigma,
        "sweep": sweep(model, x_train, x_test, y_test, args) if args.sweep else None,
        "history": history, "settings": vars(args), "device": args.device, "threads": torch.get_num_threads(),
        "processor": getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", platform.processor()),
        "accelerator": torch.cuda.get_device_name(args.device) if "cuda" in args.device else None,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy")},
    }
    figures = make_figures(model, history, x_test, y_test, x_classical, metrics["sweep"])
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
    print(f"train loss {metrics['train_loss']:.4f} < 0.025: {ok[metrics['train_loss'] < 0.025]},   "
          f"{n_parameters:,} parameters <= 15,000: {ok[n_parameters <= 15_000]}")
    return model, metrics


if __name__ == "__main__":
    try:
        # In a notebook sys.argv holds the notebook's flags, not ours.
        model, metrics = main(None if Path(sys.argv[0]).name == f"{NAME}.py" else [])
    except KeyboardInterrupt:
        parser.exit(130, f"\n{NAME}.py: stopped; every file that is there is whole\n")
    except OSError as error:  # data or a folder that is not as it should be
        parser.error(str(error))
