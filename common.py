"""Data loaders and plotting helpers, shared by the six scripts. No model, loss or training lives here.

The loaders return whole data sets, each as one tensor on the device, and `minibatches` indexes into it:

    x_train, y_train, x_test, y_test = load_mnist()                  # (60000, 1, 28, 28), (60000,), ...
    for x, y in minibatches(128, x_train, y_train): ...              # (128, 1, 28, 28), (128,)

Why not the usual `DataLoader` over `transforms.ToTensor()`? That decodes, converts and collates image by image in
Python, every epoch again, and with a model this small it takes longer than the training itself. MNIST as float32 is
188 MB: convert it once, keep it where the model is, and a minibatch is one indexing operation. The values are exactly
those of `ToTensor`: float32, channels first, divided by 255.
"""

import contextlib
import gzip
import os
import socket
import sys
import tempfile
import zlib
from pathlib import Path

import matplotlib.patheffects
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
import torch
import torchvision

DATA_DIR = Path(__file__).with_name("data")  # what the repo embeds; works from any working directory
NETWORK_TIMEOUT = 20  # seconds of silence after which a download is given up
DEVICE = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
IN_NOTEBOOK = "ipykernel" in sys.modules  # there a figure that is still open at the end of a cell appears under it

# Ten colours that stay apart for colour-blind readers too: those of Okabe and Ito, and two more. What is near in most
# latent spaces (3, 5 and 8; 4, 7 and 9) is far apart in brightness. Digit d has DIGIT_COLORS[d] in every figure.
DIGIT_COLORS = ["#cc79a7", "#e69f00", "#999999", "#d55e00", "#0072b2",
                "#56b4e9", "#8c510a", "#009e73", "#000000", "#e0cc00"]
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"  # Okabe and Ito, for lines
plt.rcParams.update({"savefig.dpi": 150, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
                     "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False,
                     "figure.constrained_layout.use": True})


# %% Data

class DataError(SystemExit):
    """A data file is missing or damaged. Nobody needs to catch it: Python prints its one line and exits."""


def load_mnist(data_dir=None, device="cpu", validation=False):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits.

    data_dir: the folder that holds MNIST/raw/*.gz, the four official files; None means data/ beside this file. If
        one is missing, torchvision downloads it.
    validation: hold out the last 10,000 training images and return them in place of the test set. Settings are chosen
        on these: whoever looks at the test set to choose has no test set left.
    Returns x_train (60000, 1, 28, 28) float32 in [0, 1], y_train (60000,) int64, x_test (10000, 1, 28, 28), y_test;
        with validation 50,000 and 10,000.
    Raises DataError if a file is damaged, or missing and not to be downloaded.
    """
    def read(name, header, *shape):  # after a header of 16 or 8 bytes, each number is one byte
        file = data_dir / "MNIST" / "raw" / f"{name}-ubyte.gz"
        try:
            with gzip.open(file) as unzipped:  # checks a checksum
                numbers = np.frombuffer(unzipped.read(), np.uint8, offset=header).reshape(-1, *shape)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            what = "missing" if isinstance(error, FileNotFoundError) else "damaged"
            raise DataError(f"error: {file} is {what}: check --data-dir or the network, or restore data/") from None
        return torch.from_numpy(numbers.copy()).to(device)

    data_dir = Path(data_dir or DATA_DIR)
    if len(list(data_dir.glob("MNIST/raw/*.gz"))) < 4:
        _download(torchvision.datasets.MNIST, data_dir)
    images = [read(f"{part}-images-idx3", 16, 1, 28, 28).float().div_(255) for part in ("train", "t10k")]
    labels = [read(f"{part}-labels-idx1", 8).long() for part in ("train", "t10k")]
    if validation:
        images, labels = images[0].split((50000, 10000)), labels[0].split((50000, 10000))
    return images[0], labels[0], images[1], labels[1]


def load_cifar10(data_dir=None, device="cpu", validation=False, download=True):
    """CIFAR-10: colour photographs, 32 x 32. The first source that is there:

    1. data_dir/cifar10.npz: all 60,000 images, decoded; written by 2, loads in a fraction of a second.
    2. torchvision's download (170 MB), unless download=False.
    3. data_dir/cifar10-sample.png: the first 5,000 training and 1,000 test images, embedded in the repo.
    data_dir None means data/ beside this file.
    validation: hold out the last tenth of the training images and return it in place of the test set.
    Returns x_train (50000 or 5000, 3, 32, 32) float32 in [0, 1], x_test (10000 or 1000, 3, 32, 32), and the source:
        "CIFAR-10" or "CIFAR-10 sample". With validation 45000 or 4500, and 5000 or 500.
    Raises DataError if a file is damaged, or there is none and no download.
    """
    data_dir = Path(data_dir or DATA_DIR)
    cache, sample, source = data_dir / "cifar10.npz", data_dir / "cifar10-sample.png", "CIFAR-10"
    try:
        if cache.exists():
            with np.load(cache) as arrays:
                sets = arrays["train_images"], arrays["test_images"]
        else:
            with tempfile.TemporaryDirectory() as tmp:
                sets = _download(torchvision.datasets.CIFAR10, tmp) if download else None
            if sets:
                with contextlib.suppress(OSError):  # a read-only folder: just no cache
                    half_written = cache.with_name(f"cifar10-{os.getpid()}.npz")
                    np.savez(half_written, train_images=sets[0], test_images=sets[1])
                    half_written.replace(cache)  # whole or not at all
        if not sets:
            source = "CIFAR-10 sample"
            print(f"note: using the embedded sample of CIFAR-10 ({sample.name}: 5,000 + 1,000 images), as there is no "
                  f"{cache.name}" + " and no download" * download, file=sys.stderr)
            sheet = plt.imread(sample)  # (60 * 32, 100 * 32, 3) float in [0, 1]: 60 rows of 100 images
            tiles = np.rint(sheet[..., :3] * 255).astype(np.uint8).reshape(60, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4)
            sets = np.split(tiles.reshape(6000, 32, 32, 3), [5000])
        train, test = (torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(255) for images in sets)
    except Exception as error:  # a damaged file can raise nearly anything
        file = cache if cache.exists() else sample
        what = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise DataError(f"error: {file} is {what}: check --data-dir, delete cifar10.npz to download it again, or "
                        "restore data/ with git checkout") from None
    if validation:
        train, test = train.split((len(train) * 9 // 10, len(train) // 10))
    return train, test, source


def _download(dataset, folder):
    """Downloads a data set of torchvision's to `folder`; returns the images, training and test, None without a network.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)  # torchvision sets none: a server that never answers would hang us
    try:
        return [dataset(folder, train=train, download=True).data for train in (True, False)]
    except (OSError, RuntimeError):
        return None
    finally:
        socket.setdefaulttimeout(before)


def minibatches(batch_size, *tensors):
    """Yields the tensors' rows in batches, in a new random order at every call. The last batch may be smaller.

    Why not `next(iter(loader))` inside a training loop? Every call of `iter` starts a new pass: it shuffles anew and
    never gets past the first batch. Write `for x, y in minibatches(...)`, once an epoch.
    """
    order = torch.randperm(len(tensors[0])).to(tensors[0].device)
    for index in order.split(batch_size):
        yield tuple(tensor[index] for tensor in tensors)


# %% Plots

def save_figures(figures, folder, show=False):
    """Writes figures, a dict {file name without ending: figure}, to `folder` (PNG, 150 dpi); with `show` also opens
    them in windows, and waits until these are closed."""
    for name, figure in figures.items():
        figure.savefig(Path(folder) / f"{name}.png", bbox_inches="tight", pad_inches=0.05, metadata={"Software": None})
    if show:
        plt.show()
    if not IN_NOTEBOOK:
        plt.close("all")


def plot_losses(history, panels, xlabel="epoch"):
    """Learning curves side by side, one panel for each part of the loss, on a logarithmic axis; returns the figure.
    The legends give the curves' last values.

    history: dict of equally long lists: `train_<key>` and `test_<key>` for every panel (one of the two may be
        missing), and `xlabel` if the x axis is not simply 1, 2, 3, ...
    panels: dict from key to the panel's y label, such as {"loss": "MSE per pixel"}.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(8, 3.4), squeeze=False)
    for axis, (key, label) in zip(axes[0], panels.items()):
        for which, color, style in (("train", BLUE, "-"), ("test", ORANGE, "--")):
            values = history.get(f"{which}_{key}", [])
            steps = history.get(xlabel, range(1, len(values) + 1))
            if values:
                axis.plot(steps, values, style, color=color, label=f"{which}: {values[-1]:.4g}", markersize=3,
                          marker="o" if len(values) < 35 else None)
        axis.set(xlabel=xlabel, ylabel=label, yscale="log")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), title="last value", fontsize=9, title_fontsize=9)
        axis.xaxis.get_major_locator().set_params(integer=True)
        # Plain numbers, and between the powers of ten, too, as a curve may lie between two of them.
        axis.yaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=(1.5, 2, 3, 4, 5, 7)))
        for set_formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            set_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    return figure


def tile(images, pad=2):
    """One picture out of many: (R, C, ch, H, W) in [0, 1] -> (R * (H + pad) - pad, C * (W + pad) - pad, ch), white
    between the images."""
    images = images.detach().float().cpu().clamp(0, 1)
    rows, columns, _, height, width = images.shape
    images = torch.nn.functional.pad(images, (0, pad, 0, pad), value=1.0)
    sheet = images.permute(0, 3, 1, 4, 2).reshape(rows * (height + pad), columns * (width + pad), -1)
    return sheet[:len(sheet) - pad, :sheet.shape[1] - pad].numpy()


def plot_images(images, row_labels=(), column_labels=(), width=8):
    """A grid of images, (R, C, ch, H, W) in [0, 1], with an optional label for each row and column; returns the figure.
    """
    rows, columns, channels, height_px, width_px = images.shape
    labels = 0.1 * width if any(row_labels) else 0
    height = (width - labels) * rows * (height_px + 2) / (columns * (width_px + 2))
    lines = max((str(label).count("\n") + 1 for label in column_labels), default=0)
    figure, axis = plt.subplots(figsize=(width, height + 0.2 * lines + 0.1))
    sheet = tile(images)
    axis.imshow(sheet if channels == 3 else sheet[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.xaxis.tick_top()
    axis.set_yticks([r * (height_px + 2) + height_px / 2 for r in range(len(row_labels))], row_labels)
    axis.set_xticks([c * (width_px + 2) + width_px / 2 for c in range(len(column_labels))], column_labels)
    return figure


def plot_latent_space(z, y, extent, circles=()):
    """The points z (N, 2) in the latent plane, coloured by their digits y (N,), within extent = (left, right, bottom,
    top), and below it, enlarged, where they are crowded: the shortest piece of each axis that holds half of them.
    circles: radii to draw around the origin. Returns the figure."""
    z, y = z.detach().cpu().numpy(), y.cpu().numpy()
    crowd = []
    for values in np.sort(z, axis=0).T:
        half = len(values) // 2
        start = (values[half:] - values[:len(values) - half]).argmin()
        crowd += [values[start], values[start + half]]
    figure, axes = plt.subplots(2, 1, figsize=(8, 11), height_ratios=(6.4, 4))
    for axis, (left, right, bottom, top), size in zip(axes, (extent, crowd), (5, 9)):
        for digit, color in enumerate(DIGIT_COLORS):
            axis.scatter(*z[y == digit].T, s=size, color=color, alpha=0.6, linewidths=0, label=str(digit))
        # The number on its cluster: nobody has to tell ten colours apart by the legend alone. It stands where the digit
        # is frequent and the others are not, and not on another number.
        everywhere, xs, ys = np.histogram2d(*z.T, bins=25, range=((left, right), (bottom, top)))
        taken = np.zeros_like(everywhere)
        taken[[0, -1]] = taken[:, [0, -1]] = np.inf  # not on the frame
        for digit in np.unique(y):
            here = np.histogram2d(*z[y == digit].T, bins=(xs, ys))[0]
            column, row = np.unravel_index((here**2 / np.maximum(everywhere, 1) - taken).argmax(), here.shape)
            taken[max(column - 1, 0):column + 2, max(row - 1, 0):row + 2] = np.inf  # room for this number
            if here.sum() > 0.01 * everywhere.sum():
                axis.text(xs[column:column + 2].mean(), ys[row:row + 2].mean(), str(digit), fontsize=15,
                          fontweight="bold", ha="center", va="center", color=DIGIT_COLORS[digit],
                          path_effects=[matplotlib.patheffects.withStroke(linewidth=4, foreground="white")])
        _draw_circles(axis, circles, "black")
        axis.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(left, right), ylim=(bottom, top))
    axes[0].add_patch(plt.Rectangle(crowd[::2], crowd[1] - crowd[0], crowd[3] - crowd[2], fill=False))
    axes[1].set_title("the frame, enlarged")
    legend = axes[0].legend(markerscale=4, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=10, columnspacing=1.2,
                            handletextpad=0.1)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    return figure


def plot_latent_space_images(decode, extent, rows=20, columns=25, circles=()):
    """What the decoder makes of each point of the latent plane; returns the figure.

    decode: maps (rows * columns, 2) points to (rows * columns, 1, H, W) images in [0, 1].
    extent: (left, right, bottom, top) of the plane: with the extent that `plot_latent_space` shows, the two figures
        correspond point by point. circles: radii to draw around the origin.
    """
    left, right, bottom, top = extent
    step_x, step_y = (right - left) / columns, (top - bottom) / rows
    xs = torch.linspace(left + step_x / 2, right - step_x / 2, columns)
    ys = torch.linspace(top - step_y / 2, bottom + step_y / 2, rows)  # images run downwards, the z2 axis upwards
    grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
    images = decode(torch.stack([grid_x, grid_y], dim=-1).reshape(rows * columns, 2))
    figure, axis = plt.subplots(figsize=(8, 6.4))
    axis.imshow(tile(images.reshape(rows, columns, *images.shape[1:]), pad=0)[..., 0], cmap="gray", vmin=0, vmax=1,
                extent=extent, aspect="auto")
    _draw_circles(axis, circles, ORANGE)
    axis.grid(False)
    axis.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(left, right), ylim=(bottom, top))
    return figure


def _draw_circles(axis, radii, color):
    for radius in radii:
        axis.add_patch(plt.Circle((0, 0), radius, fill=False, color=color, linestyle="--"))
