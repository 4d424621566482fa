# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "matplotlib>=3.8", "torchsummary>=1.5.1"]
# ///
"""Denoising autoencoder: digits dug out of heavy noise.

The input is corrupted, the target is clean. Copying would reproduce the noise, so the network has to learn what digits
look like. New noise is drawn for every batch: the network never sees the same noisy image twice and cannot learn it by
heart.

    noisy = clip(x + 0.5 epsilon, 0, 1),   epsilon ~ N(0, I)
    L = 1 / (N H W)  sum over images and pixels of (x_hat - x)^2,     x_hat = decoder(encoder(noisy))

Run it:    python denoise_ae.py                   train on all of MNIST; minutes on a laptop
           python denoise_ae.py --latent-dim 2    a bottleneck of 32 numbers instead of 384
           python denoise_ae.py --smoke           every step in seconds, on a few hundred images
Writes:    runs/denoise_ae/: metrics.json, model.pt, loss.png and denoised.png
Report:    report.md#2-denoising-autoencoder-denoise_aepy-deliverable-2
Paper:     Vincent, Larochelle, Bengio and Manzagol, Extracting and Composing Robust Features with Denoising
           Autoencoders, ICML 2008.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
import torchsummary
import torchvision
from torch import nn

import common

NOISE_STD = 0.5  # pixels lie between 0 and 1: this is heavy
N_NOISES = 5  # how many draws of the noise the test error is averaged over


# %% 1. Model

class DenoiseAE(nn.Module):
    """Convolutional denoising autoencoder: (N, 1, 28, 28) noisy -> (N, 1, 28, 28) clean.

    Height and width go 28 -> 14 -> 7 -> 4 in the encoder, by max pooling, and 4 -> 7 -> 14 -> 28 in the decoder, by
    transposed convolutions with stride 2. The bottleneck holds Z x 4 x 4 numbers, 384 by default.
    as_assigned: batch normalization and LeakyReLU after the last transposed convolution, too. Its error is higher.
    """

    def __init__(self, hidden_dim=16, latent_dim=24, as_assigned=False):
        super().__init__()

        # No bias where batch normalization follows: it subtracts the mean, and with it any bias, and adds its own.
        def block(n_in, n_out, kernel_size):
            return [nn.Conv2d(n_in, n_out, kernel_size, padding=kernel_size // 2, bias=False), nn.BatchNorm2d(n_out),
                    nn.LeakyReLU(0.1), nn.MaxPool2d(2, ceil_mode=True)]  # ceil: 7 -> 4, no row of pixels is dropped

        def up(n_in, n_out, kernel_size, padding, bias=False):  # stride 2: H -> 2 (H - 1) + kernel_size - 2 padding
            return nn.ConvTranspose2d(n_in, n_out, kernel_size, stride=2, padding=padding, bias=bias)

        # Where to spend 15,000 parameters? The first kernel is large: to tell a stroke from noise, the network has to
        # look at many pixels at once.
        self.encoder = nn.Sequential(
            *block(1, hidden_dim, 7),  # (N, 1, 28, 28) -> (N, H_d, 14, 14)
            *block(hidden_dim, hidden_dim, 3),  # -> (N, H_d, 7, 7)
            *block(hidden_dim, latent_dim, 3))  # -> (N, Z, 4, 4)
        self.decoder = nn.Sequential(
            up(latent_dim, hidden_dim, 3, 1), nn.BatchNorm2d(hidden_dim), nn.LeakyReLU(0.1),  # -> (N, H_d, 7, 7)
            up(hidden_dim, hidden_dim, 4, 1), nn.BatchNorm2d(hidden_dim), nn.LeakyReLU(0.1),  # -> (N, H_d, 14, 14)
            up(hidden_dim, 1, 6, 2, bias=not as_assigned),  # -> (N, 1, 28, 28)
            *[nn.BatchNorm2d(1), nn.LeakyReLU(0.1)] * as_assigned, nn.Sigmoid())  # pixels between 0 and 1

    def forward(self, noisy):
        """noisy (N, 1, 28, 28) -> x_hat (N, 1, 28, 28)"""
        return self.decoder(self.encoder(noisy))


# Mean squared error against the CLEAN image, averaged over images and pixels.
criterion = nn.MSELoss()


def add_noise(x, generator=None):
    """x in [0, 1] -> clip(x + 0.5 epsilon, 0, 1), of the same shape. The clipping makes black areas brighter on
    average (by 0.2): this noise is not centred, which is one reason why smoothing alone cannot undo it."""
    # torch.Generator's numbers are the same on every machine only if they are drawn on the CPU.
    epsilon = torch.randn(x.shape, generator=generator).to(x.device) if generator else torch.randn_like(x)
    return (x + NOISE_STD * epsilon).clamp(0, 1)


# %% 2. Training

def train(model, x_train, x_test, noisy_test, args):
    """Minimises the loss with Adam; returns the history: lists of `train_loss` and `test_loss`, one entry an epoch.

    The noise of the training images is new in every batch, that of noisy_test is fixed. `train_loss` is the mean over
    an epoch's images, each as its batch came; `test_loss` is measured after the epoch.
    """
    n_updates = args.n_epochs * math.ceil(len(x_train) / args.batch_size)
    # The second beta is explained in ae.py. fused: one pass over the weights instead of a dozen.
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.95, 0.99), fused=True)
    # One cycle: the learning rate climbs to its peak in the first 15 % of the updates and then falls to nearly 0.
    # A high rate explores, a low final rate settles. The schedule also moves Adam's first beta, against the rate: from
    # 0.95 to 0.85 and back.
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=n_updates, pct_start=0.15)
    history = {"train_loss": [], "test_loss": []}
    start = time.perf_counter()
    for epoch in range(1, args.n_epochs + 1):
        model.train()
        total = 0
        for (x,) in common.minibatches(args.batch_size, x_train):  # x (N, 1, H, W)
            x_hat = model(add_noise(x))
            loss = criterion(x_hat, x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.detach() * len(x)  # not .item(): that would make an accelerator wait at every update
        train_loss = float(total) / len(x_train)
        test_loss = evaluate(model, x_test, noisy_test)
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
def denoise(model, noisy):
    """The model's x_hat for all of noisy (n, 1, H, W), with batch normalization's statistics from training."""
    model.eval()
    return torch.cat([model(batch) for batch in noisy.split(1000)])


def evaluate(model, x, noisy):
    """Mean squared error per pixel between the clean x and the model's x_hat for noisy, both (n, 1, H, W)."""
    return float(criterion(denoise(model, noisy), x))


def psnr_db(x_hat, x):
    """Peak signal-to-noise ratio in dB: 10 log10(1 / MSE) of each image, averaged over the images. 10 dB more is a
    tenth of the squared error."""
    return float(-10 * torch.log10(((x_hat - x) ** 2).flatten(1).mean(1)).mean())


def gaussian_filter(x_train, noisy_train, noisy_test):
    """noisy_test (n, 1, H, W) denoised without a network: blurred by a Gaussian, then a x + b for contrast and
    brightness. The blur's width, a and b are those that are best on the training images. Returns x_hat and the width.
    """
    def blur(noisy, sigma):
        return torchvision.transforms.functional.gaussian_blur(noisy, kernel_size=11, sigma=sigma)

    best_mse = math.inf
    for sigma in (0.6, 0.8, 1.0, 1.2, 1.4, 1.6):
        smooth = blur(noisy_train, sigma)
        # Least squares in one variable: a = cov(smooth, x) / var(smooth), and b makes the means agree.
        a = ((smooth - smooth.mean()) * (x_train - x_train.mean())).mean() / smooth.var(correction=0)
        b = x_train.mean() - a * smooth.mean()
        mse = float(criterion((a * smooth + b).clamp(0, 1), x_train))
        if mse < best_mse:
            best_mse = mse
            best = sigma, a, b
    sigma, a, b = best
    return (a * blur(noisy_test, sigma) + b).clamp(0, 1), sigma


# %% 4. Figures

def make_figures(model, history, x_test, noisy_test, x_filtered):
    """All figures, as {file name without ending: figure}."""
    n = 10  # simply the first ten: no choice, no flattery
    rows = [noisy_test[:n], x_filtered[:n], denoise(model, noisy_test[:n]), x_test[:n]]
    return {"loss": common.plot_losses(history, {"loss": "MSE per pixel"}, required=0.025),
            "denoised": common.plot_images(torch.stack(rows), ["noisy", "Gaussian\nfilter", "denoised", "clean"])}


# %% 5. Run

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
# What the assignment allows.
parser.add_argument("--n-epochs", type=int, default=20, help="passes over the training set")
parser.add_argument("--batch-size", type=int, default=64, help="images per update, N")
# With batch normalization a rate of 20 times the usual 1e-3 still trains well.
parser.add_argument("--lr", type=float, default=2e-2, help="peak learning rate of Adam")
# 14,849 parameters, of 15,000 allowed. A multiple of 8: the processor's vector units work on 8 channels at once, and
# with 11 channels batch normalization took twice as long.
parser.add_argument("--hidden-dim", type=int, default=16, help="channels of the convolutions, H_d")
# 24 x 4 x 4 = 384 numbers: half of the 784 of an image.
parser.add_argument("--latent-dim", type=int, default=24, help="channels of the bottleneck, Z, each 4 x 4")
parser.add_argument("--as-assigned", action="store_true", help="batch norm and LeakyReLU after the last layer, too")
parser.add_argument("--seed", type=int, default=0, help="same seed, CPU and threads: same numbers")
parser.add_argument("--device", default=common.DEVICE, choices=sorted({"cpu", common.DEVICE}), help="where to compute")
parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST/raw; None is data/ beside the script")
parser.add_argument("--out-dir", type=Path, default=Path("runs"), help="results go to OUT_DIR/denoise_ae/")
parser.add_argument("--show", action="store_true", help="open the figures in windows as well")
parser.add_argument("--smoke", action="store_true", help="every step in seconds, on a few hundred images")
parser.add_argument("--validation", action="store_true",
                    help="measure on 10,000 held-out training images, for choosing settings")


def main(argv=None):
    """Trains, evaluates, draws and writes; returns the model and the metrics. argv: flags, by default the user's."""
    args = parser.parse_args(common.flags(argv))
    if not all(value > 0 for value in (args.n_epochs, args.batch_size, args.lr, args.hidden_dim, args.latent_dim)):
        parser.error("--n-epochs, --batch-size, --lr, --hidden-dim and --latent-dim must be positive")
    x_train, _, x_test, _ = common.load_mnist(args.data_dir, args.device, args.validation)
    out_dir = args.out_dir / "denoise_ae"
    if args.smoke:
        out_dir = args.out_dir / "smoke" / "denoise_ae"  # never touches a real run
        x_train, x_test = x_train[:512], x_test[:256]
        args.n_epochs = min(args.n_epochs, 2)
    out_dir.mkdir(parents=True, exist_ok=True)  # fails now, not after the training
    # The noise of the measurements is fixed and does not depend on --seed: all runs are compared on the same images.
    fixed = torch.Generator().manual_seed(0)
    noisy_tests = [add_noise(x_test, fixed) for _ in range(N_NOISES)]
    noisy_train = add_noise(x_train, fixed)

    config = {"hidden_dim": args.hidden_dim, "latent_dim": args.latent_dim, "as_assigned": args.as_assigned}
    torchsummary.summary(DenoiseAE(**config), (1, 28, 28), device="cpu")  # prints the layers and their sizes
    torch.manual_seed(args.seed)
    # Convolutions are fastest with the channels last in memory. On Apple's GPUs batch normalization has had wrong
    # gradients in that layout (pytorch/pytorch#175189).
    layout = torch.contiguous_format if args.device == "mps" else torch.channels_last
    model = DenoiseAE(**config).to(args.device, memory_format=layout)

    history = train(model, x_train, x_test, noisy_tests[0], args)
    (out_dir / "metrics.json").unlink(missing_ok=True)  # the last run's
    torch.save({"config": config, "state_dict": model.cpu().state_dict()}, out_dir / "model.pt")  # the rest may fail
    model.to(args.device)
    print("measuring the errors on all images")
    test_losses = [evaluate(model, x_test, noisy) for noisy in noisy_tests]
    x_hat = denoise(model, noisy_tests[0])
    x_filtered, sigma = gaussian_filter(x_train[:10000], noisy_train[:10000], noisy_tests[0])
    metrics = {
        "settings": vars(args),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "bottleneck_size": model.encoder(x_test[:1]).numel(),
        "train_loss": evaluate(model, x_train, noisy_train),
        "test_loss": sum(test_losses) / N_NOISES,
        "test_loss_by_noise": test_losses,
        "test_psnr_db": psnr_db(x_hat, x_test),
        "noisy_test_loss": float(criterion(noisy_tests[0], x_test)),
        "noisy_test_psnr_db": psnr_db(noisy_tests[0], x_test),
        "gaussian_filter_test_loss": float(criterion(x_filtered, x_test)),
        "gaussian_filter_test_psnr_db": psnr_db(x_filtered, x_test),
        "gaussian_filter_sigma_pixels": sigma,
        "history": history,
    }
    figures = make_figures(model, history, x_test, noisy_tests[0], x_filtered)

    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=1, default=str))
    common.save_figures(figures, out_dir, args.show)
    print(f"wrote {out_dir}/: model.pt, metrics.json, {', '.join(f'{name}.png' for name in figures)}")
    print(f"train loss {metrics['train_loss']:.4f}, required < 0.025; {metrics['n_parameters']:,} parameters, "
          f"allowed 15,000; test loss {metrics['test_loss']:.4f}, Gaussian filter "
          f"{metrics['gaussian_filter_test_loss']:.4f}")
    return model, metrics


if __name__ == "__main__":
    model, metrics = main()
