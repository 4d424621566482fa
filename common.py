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
import struct
import sys
import tempfile
import zipfile
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
# What stands in sys.argv[0] where the flags behind it are a notebook kernel's own, and nothing that a user has typed.
KERNELS = ("kernel_launcher.py", "ipykernel/__main__.py", "console/__main__.py", "pydevconsole.py")

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
    """Something is wrong with the data. Nobody needs to catch it: Python prints its one line and exits."""


def load_mnist(data_dir=None, device="cpu", validation=False):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits.

    data_dir: the folder that holds MNIST/raw/ with the four official files, as .gz or unpacked; None means data/ beside
        this file. If one is missing, torchvision downloads it.
    validation: hold out the last 10,000 training images and return them in place of the test set. Settings are chosen
        on these: whoever looks at the test set to choose has no test set left.
    Returns x_train (60000, 1, 28, 28) float32 in [0, 1], y_train (60000,) int64, x_test (10000, 1, 28, 28), y_test;
        with validation 50,000 and 10,000.
    Raises DataError if a file is missing and not to be downloaded, or is not what it should be.
    """
    raw = _existing(data_dir) / "MNIST" / "raw"
    sets = []
    for part in ("train", "t10k"):
        images = _read_idx(raw, f"{part}-images-idx3-ubyte", 28, 28)
        labels = _read_idx(raw, f"{part}-labels-idx1-ubyte")
        if len(images) != len(labels) or labels.max() > 9:
            raise DataError(f"error: {raw} has {len(images):,} images and {len(labels):,} labels up to {labels.max()}, "
                            "not as many from 0 to 9: check --data-dir")
        sets.append(torch.from_numpy(images).to(device).unsqueeze(1).float().div_(255))
        sets.append(torch.from_numpy(labels).to(device).long())
    if validation:
        sets = [sets[0][:-10000], sets[1][:-10000], sets[0][-10000:], sets[1][-10000:]]
    return tuple(sets)


def _read_idx(raw, name, *shape):
    """The numbers of an IDX file, (n, *shape) uint8: after a header (magic number, n, shape) one byte for each."""
    packed = raw / f"{name}.gz"  # the first choice, as gzip checks a checksum
    file = raw / name if (raw / name).exists() and not packed.exists() else packed
    if not file.exists():
        _download(torchvision.datasets.MNIST, raw.parents[1])
    with _reading(file):
        data = gzip.open(file).read() if file.suffix == ".gz" else file.read_bytes()
        numbers = np.frombuffer(data, np.uint8)[8 + 4 * len(shape):].reshape(-1, *shape)
        if data[:8 + 4 * len(shape)] != struct.pack(f">{2 + len(shape)}i", 2049 + len(shape), len(numbers), *shape):
            raise ValueError(f"it does not begin as an IDX file of {'28 x 28 images' if shape else 'labels'}")
    return numbers.copy()


def load_cifar10(data_dir=None, device="cpu", validation=False, download=True):
    """CIFAR-10: colour photographs, 32 x 32. The first source that is there:

    1. data_dir/cifar10.npz: all 60,000 images, decoded; written by 3, loads in a fraction of a second.
    2. data_dir/cifar-10-batches-py/, as torchvision unpacks it.
    3. torchvision's download (170 MB), unless download=False.
    4. data_dir/cifar10-sample.png: the first 5,000 training and 1,000 test images, embedded in the repo.
    data_dir None means data/ beside this file.
    validation: hold out the last tenth of the training images and return it in place of the test set.
    Returns x_train (50000 or 5000, 3, 32, 32) float32 in [0, 1], x_test (10000 or 1000, 3, 32, 32), and the source:
        "CIFAR-10" or "CIFAR-10 sample". With validation 45000 or 4500, and 5000 or 500.
    Raises DataError if a file is not what it should be, or there is none and no download.
    """
    data_dir = _existing(data_dir)
    cache = data_dir / "cifar10.npz"
    batches = data_dir / "cifar-10-batches-py"
    sample = data_dir / "cifar10-sample.png"
    source, sets = "CIFAR-10", None
    if cache.exists():
        with _reading(cache), np.load(cache) as arrays:
            sets = arrays["train_images"], arrays["test_images"]
            if any(images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) for images in sets):
                raise ValueError(f"{sets[0].dtype} of the shape {sets[0].shape}, not uint8 (n, 32, 32, 3)")
    elif batches.exists():
        with _reading(batches):
            sets = [torchvision.datasets.CIFAR10(data_dir, train).data for train in (True, False)]
    elif download:
        with tempfile.TemporaryDirectory() as folder:
            sets = _download(torchvision.datasets.CIFAR10, folder)
        if sets:
            half_written = cache.with_name(f"cifar10-{os.getpid()}.npz")
            try:
                data_dir.mkdir(exist_ok=True)
                np.savez(half_written, train_images=sets[0], test_images=sets[1])
                half_written.replace(cache)  # whole or not at all
            except OSError:  # a read-only folder or a full disk: just no cache
                half_written.unlink(missing_ok=True)
    if sets is None:
        source = "CIFAR-10 sample"
        print(f"note: using the embedded sample of CIFAR-10 ({sample.name}: 5,000 + 1,000 images)", file=sys.stderr)
        with _reading(sample):
            sheet = plt.imread(sample)  # (60 * 32, 100 * 32, 3) float in [0, 1]: 60 rows of 100 images
        tiles = np.rint(sheet[..., :3] * 255).astype(np.uint8).reshape(60, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4)
        sets = np.split(tiles.reshape(6000, 32, 32, 3), [5000])
    train, test = (torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(255) for images in sets)
    if validation:
        kept = len(train) * 9 // 10
        train, test = train[:kept], train[kept:]
    return train, test, source


def _existing(data_dir):
    """The folder of the data. One that is given must be there: a mistyped name creates and downloads nothing."""
    if data_dir is not None and not Path(data_dir).is_dir():
        raise DataError(f"error: there is no folder {data_dir}: check --data-dir")
    return Path(data_dir or DATA_DIR)


@contextlib.contextmanager
def _reading(file):
    """Turns what a file raises that is not what it should be into a DataError that names the file and the cause."""
    try:
        yield
    except (EOFError, KeyError, OSError, RuntimeError, SyntaxError, ValueError, zipfile.BadZipFile,
            zlib.error) as error:
        raise DataError(f"error: {file} cannot be read ({error}): check --data-dir, or restore the file") from None


def _download(dataset, folder):
    """Downloads a data set of torchvision's to `folder`; returns the images, training and test, or None, after a note
    that says why."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)  # torchvision sets none: a server that never answers would hang us
    try:
        return [dataset(folder, train=train, download=True).data for train in (True, False)]
    except (OSError, RuntimeError) as error:
        cause = str(error).strip().splitlines()[-1]
        print(f"note: {dataset.__name__} could not be downloaded ({cause})", file=sys.stderr)
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


def flags(argv=None):
    """The flags that a script parses: argv, or those of the command line, which in a notebook's cell are none."""
    if argv is None:
        return [] if Path(sys.argv[0]).as_posix().endswith(KERNELS) else sys.argv[1:]
    return argv


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


def plot_losses(history, panels, xlabel="epoch", required=None):
    """Learning curves side by side, one panel for each part of the loss, on a logarithmic axis; returns the figure.
    The legends give the curves' last values. required: what the first panel's training loss has to come below.

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
        if required and axis is axes[0, 0]:
            axis.axhline(required, color="0.3", linestyle=":", label=f"required: {required}")
        axis.set(xlabel=xlabel, ylabel=label, yscale="log")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), title="last value", fontsize=9, title_fontsize=9)
        axis.xaxis.get_major_locator().set_params(integer=True)
        # Plain numbers, and between the powers of ten, too, as a curve may lie between two of them.
        least, greatest = axis.get_ylim()
        subs = (1.2, 1.5, 2, 2.5, 3, 4, 5, 7) if greatest < 5 * least else (2, 3, 5)
        axis.yaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=subs))
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
    top). A digit's number stands at the median of its points, or beside it if another number stands there. circles:
    radii to draw around the origin. Returns the figure."""
    z, y = z.detach().cpu().numpy(), y.cpu().numpy()
    left, right, bottom, top = extent
    size = np.array([right - left, top - bottom])
    places = []
    figure, axis = plt.subplots(figsize=(6, 6))
    for digit in np.unique(y):
        color = DIGIT_COLORS[digit]
        points = z[y == digit]
        axis.scatter(*points.T, s=5, color=color, alpha=0.6, linewidths=0)
        place = np.median(points, axis=0)
        while any(np.hypot(*((place - other) / size)) < 0.05 for other in places):
            place[0] += 0.01 * size[0]
        places.append(place)
        axis.text(*place, str(digit), fontsize=18, fontweight="bold", ha="center", va="center", color=color,
                  clip_on=True, zorder=3,
                  path_effects=[matplotlib.patheffects.withStroke(linewidth=4, foreground="white")])
    _draw_circles(axis, circles, "black")
    axis.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(left, right), ylim=(bottom, top), box_aspect=1)
    return figure


def plot_latent_space_images(decode, extent, rows=20, columns=20, circles=()):
    """What the decoder makes of each point of the latent plane; returns the figure.

    decode: maps (rows * columns, 2) points to (rows * columns, 1, H, W) images in [0, 1].
    extent: (left, right, bottom, top) of the plane: with the extent that `plot_latent_space` shows, the two figures
        correspond point by point, side by side. circles: radii to draw around the origin.
    """
    left, right, bottom, top = extent
    step_x = (right - left) / columns
    step_y = (top - bottom) / rows
    xs = torch.linspace(left + step_x / 2, right - step_x / 2, columns)
    ys = torch.linspace(top - step_y / 2, bottom + step_y / 2, rows)  # images run downwards, the z2 axis upwards
    grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
    images = decode(torch.stack([grid_x, grid_y], dim=-1).reshape(rows * columns, 2))
    figure, axis = plt.subplots(figsize=(6, 6))
    axis.imshow(tile(images.reshape(rows, columns, *images.shape[1:]), pad=0)[..., 0], cmap="gray", vmin=0, vmax=1,
                extent=extent, aspect="auto")
    _draw_circles(axis, circles, ORANGE)
    axis.grid(False)
    axis.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(left, right), ylim=(bottom, top), box_aspect=1)
    return figure


def _draw_circles(axis, radii, color):
    for radius in radii:
        axis.add_patch(plt.Circle((0, 0), radius, fill=False, color=color, linestyle="--"))
