# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "matplotlib>=3.8", "torchsummary>=1.5.1"]
# ///
"""VQ-VAE: photographs in 64 words out of 512, and new ones. Results: report.md#6-discrete-codes-vqvaepy

The encoder turns a 32 x 32 image into an 8 x 8 grid of vectors z. Each is replaced by the nearest of the K vectors of a
codebook, e, and the decoder sees only these. The latent space is thus discrete: an image is 64 whole numbers below K.
Encoder, codebook and decoder are learned together (sg is the stop-gradient, `.detach()`):

    L  =  ||x_hat - x||^2 / var(x)   +   lambda ||z - sg(e)||^2   +   gamma ||e - sg(z)||^2
          reconstruction:                commitment: the encoder      codebook: the codes go to the encoder outputs.
          encoder and decoder            stays near the codes,        gamma = 1 with --codebook-loss; by default 0, and
                                         lambda = 0.25                the codes follow by a moving average instead

"The nearest" has no useful gradient. The straight-through estimator copies the decoder's gradient at e to z, as if the
quantizer were not there. When all this is learned, a small causal transformer learns p(codes), which code follows
which; what it writes, decoded, are new images.

Run it:    python vqvae.py              this run, the start of the same without commitment, and the prior; half an
                                        hour on two cores of a laptop
           python vqvae.py --study      also the codebook loss, the usual start and other sizes: twice as long
           python vqvae.py --smoke      all of it in seconds, on a few hundred images
           python vqvae.py --reference  instead, the recipe of github.com/zalandoresearch/pytorch-vq-vae, with and
                                        without the commitment loss: hours on a CPU
           python vqvae.py --resume     go on where a run with the same flags was stopped
Writes:    runs/vqvae/: metrics.json, summary.txt, model.pt, prior.pt, loss.png, codebook.png, commitment.png,
           reconstructions.png and samples.png; with --study also start.png and codebook_loss.png; while it runs
           checkpoint-*.pt. With --reference: runs/vqvae_reference/, without the prior, and with a figure of both
           recipes, if runs/vqvae/ is there.
Papers:    van den Oord, Vinyals and Kavukcuoglu, Neural Discrete Representation Learning, NeurIPS 2017,
           arXiv:1711.00937 (the loss is equation 3, the moving average is in appendix A.1).
           Bengio, Leonard and Courville, Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
           Computation, 2013, arXiv:1308.3432 (the straight-through estimator).
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
import numpy as np
import torch
import torch.nn.functional as F
import torchsummary
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import common

# %% 1. Settings

NAME = "vqvae"
PRIOR_SHARE, PRIOR_BATCH_SIZE, PRIOR_LR = 0.24, 64, 2e-3  # the prior gets 0.24 times --n-updates
COMPARED_UPDATES = 2000  # how far the runs beside the main one go: what they show has happened by then
LOG_EVERY = 100  # updates between two lines of the history, and between two checkpoints


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
# On a CPU time is what counts. On held-out images 10,000 updates of 32 reached 0.0545 of the variance; 8,000 of 64
# needed nearly twice the time for 0.0538.
parser.add_argument("--n-updates", type=number(int, 1), help="number of updates; None is 10000 on a CPU, and 15000 on "
                    "an accelerator or with --reference")
parser.add_argument("--batch-size", type=number(int, 1), help="images per update, N; None is 32 on a CPU, and 256 on "
                    "an accelerator or with --reference")
# The usual rate is a constant 1e-3. The one-cycle schedule climbs to twice that and ends near 0; a peak of 1e-3 did as
# well (0.0547 on held-out images).
parser.add_argument("--lr", type=number(float, 1e-9), help="peak learning rate of Adam; None is 2e-3, and a constant "
                    "1e-3 with --reference")
# Width, K, D and lambda are those that the usual implementations have.
parser.add_argument("--hidden-dim", type=number(int, 1), default=128, help="channels of both networks, num_hiddens")
parser.add_argument("--latent-dim", type=number(int, 1), default=64, help="size of a code, D")
parser.add_argument("--seed", type=number(int, 0, 2**63), default=0, help="same seed, same CPU: same numbers")
parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, mps, ...")
parser.add_argument("--data-dir", type=Path, help="folder that holds CIFAR-10; None is data/ beside the script")
parser.add_argument("--out-dir", type=Path, default=Path("runs"), help=f"results go to OUT_DIR/{NAME}/")
parser.add_argument("--show", action="store_true", help="open the figures in windows as well")
parser.add_argument("--smoke", action="store_true", help="all of it in seconds, on a few hundred images")
parser.add_argument("--validation", action="store_true", help="test on 5,000 held-out training images, to choose by")
parser.add_argument("--codebook-size", type=number(int, 2), default=512, help="number of codes, K")
parser.add_argument("--commitment-cost", type=number(float, 0), default=0.25, help="lambda; the comparison run has 0")
parser.add_argument("--codebook-loss", action="store_true", help="learn the codes by their loss, not by the average")
parser.add_argument("--float32", action="store_true", help="compute in float32 where bfloat16 would be faster, too")
parser.add_argument("--reference", action="store_true", help="the usual recipe to the letter, with and without the "
                    "commitment loss, to OUT_DIR/vqvae_reference/")
parser.add_argument("--study", action="store_true", help="more runs: codebook loss, the usual start, other sizes")
parser.add_argument("--resume", action="store_true", help="go on from OUT_DIR/vqvae/checkpoint-*.pt")


# %% 2. Model

class VectorQuantizer(nn.Module):
    """Replaces each vector z by the nearest of K codes e (arXiv:1711.00937, equations 1 and 2).

    ema=True: the codes follow z by an exponential moving average (appendix A.1). ema=False: the codes are parameters,
        and learn by the codebook term of the loss.
    revive=True: a code that is hardly ever the nearest becomes a random z of the present batch. After the first update
        nearly all codes are in that state, so this is also how the codebook starts: from data.
    revive=False: what is usual. Codes start from N(0, I) and nobody looks after them; start.png shows what happens.
    """

    def __init__(self, num_embeddings=512, embedding_dim=64, decay=0.99, ema=True, revive=True):
        super().__init__()
        self.decay, self.ema, self.revive = decay, ema, revive
        self.codebook = nn.Parameter(torch.randn(num_embeddings, embedding_dim), requires_grad=not ema)  # (K, D)
        self.register_buffer("ema_count", torch.zeros(num_embeddings))  # N_i of the paper: how often a code is used
        # m_i of the paper: the sum of the z that use it. It starts from a draw of its own, as is usual.
        self.register_buffer("ema_sum", torch.randn(num_embeddings, embedding_dim))

    def nearest(self, z):
        """z (M, D) -> index of the nearest code (M,)"""
        # ||z - e||^2 = ||z||^2 - 2 z.e + ||e||^2, and the first term is the same for all codes.
        return torch.addmm((self.codebook**2).sum(1), z, self.codebook.T, alpha=-2).argmin(dim=1)

    @torch.no_grad()
    def update(self, z, index):
        """Moves each code to the running mean of the z that use it, and revives the dead ones. z (M, D), index (M,)

            N_i <- decay N_i + (1 - decay) n_i      n_i of the batch's vectors use code i
            m_i <- decay m_i + (1 - decay) sum of these vectors,      e_i <- m_i / N_i
        """
        # index_add_ adds each vector to its code's row. The usual product with a one-hot matrix (M, K) does K times
        # the work, nearly all of it multiplications by 0.
        count = torch.zeros_like(self.ema_count).index_add_(0, index, torch.ones_like(z[:, 0]))  # n_i, (K,)
        total = torch.zeros_like(self.codebook).index_add_(0, index, z)  # (K, D)
        self.ema_count.lerp_(count, 1 - self.decay)
        self.ema_sum.lerp_(total, 1 - self.decay)
        # Laplace smoothing: every code gets a little of all counts, so that none is 0 and their sum stays what it was.
        n = self.ema_count.sum()
        self.ema_count.add_(1e-5).mul_(n / (n + len(self.codebook) * 1e-5))
        if self.ema:
            self.codebook.copy_(self.ema_sum / self.ema_count.unsqueeze(1))
        if self.revive:
            # A fair share is n_i if all codes were used alike. The higher the threshold, the more alike they are used;
            # in trials 0.4 instead of 0.1 cost hardly any error.
            share = len(z) / len(self.codebook)
            dead = self.ema_count < 0.4 * share  # (K,)
            # Drawn for all codes and used for the dead ones: to ask how many these are would make an accelerator wait.
            chosen = z[torch.randint(len(z), (len(dead),), device=z.device)]  # (K, D)
            self.codebook.copy_(torch.where(dead.unsqueeze(1), chosen, self.codebook))
            # Just above the threshold: if no z uses it here either, it has another chance 19 updates later.
            self.ema_count.masked_fill_(dead, 0.48 * share)
            self.ema_sum.copy_(torch.where(dead.unsqueeze(1), 0.48 * share * chosen, self.ema_sum))

    def forward(self, z):
        """z (N, D, h, w) -> e (N, D, h, w), the nearest codes, and their index (N, h, w)"""
        n, _, height, width = z.shape
        flat = z.permute(0, 2, 3, 1).flatten(0, 2)  # (N*h*w, D)
        index = self.nearest(flat.detach()).reshape(n, height, width)
        e = self.embed(index)
        if self.training:
            self.update(flat.detach(), index.flatten())
        return e, index

    def embed(self, index):
        """index (N, h, w) -> e (N, D, h, w)"""
        return F.embedding(index, self.codebook).permute(0, 3, 1, 2)


class ResidualStack(nn.Module):
    """num_residual_layers times x + conv1x1(relu(conv3x3(relu(x)))), each with num_residual_hiddens channels inside:
    (N, num_hiddens, h, w) -> (N, num_hiddens, h, w)

    relu_skip=True: relu(x) is added in place of x. So does the usual implementation, whose first ReLU works in place
        and thereby changes the x that is added, too.
    """

    def __init__(self, num_hiddens, num_residual_hiddens, num_residual_layers, relu_skip=False):
        super().__init__()
        self.relu_skip = relu_skip
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(num_hiddens, num_residual_hiddens, 3, padding=1, bias=False),
                          nn.ReLU(), nn.Conv2d(num_residual_hiddens, num_hiddens, 1, bias=False))
            for _ in range(num_residual_layers))

    def forward(self, x):
        for layer in self.layers:
            h = F.relu(x)
            x = (h if self.relu_skip else x) + layer(h)
        return F.relu(x)


class VQVAE(nn.Module):
    """Convolutional encoder, VectorQuantizer, convolutional decoder: images (N, 3, 32, 32) in [0, 1], codes (N, 8, 8).

    num_hiddens: the channels of everything between pixels and codes. num_residual_hiddens: the channels inside the
    residual blocks. num_residual_layers: how many blocks, in the encoder and in the decoder.
    """

    def __init__(self, num_hiddens=128, num_residual_hiddens=32, num_residual_layers=2, num_embeddings=512,
                 embedding_dim=64, commitment_cost=0.25, decay=0.99, ema=True, revive=True, relu_skip=False):
        super().__init__()
        self.commitment_cost = commitment_cost
        self.bfloat16 = False  # do the convolutions compute in it? `train` says so where that is fast
        half = max(1, num_hiddens // 2)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, half, 4, stride=2, padding=1), nn.ReLU(),  # -> (N, half, 16, 16)
            nn.Conv2d(half, num_hiddens, 4, stride=2, padding=1), nn.ReLU(),  # -> (N, num_hiddens, 8, 8)
            nn.Conv2d(num_hiddens, num_hiddens, 3, padding=1),
            ResidualStack(num_hiddens, num_residual_hiddens, num_residual_layers, relu_skip),
            nn.Conv2d(num_hiddens, embedding_dim, 1))  # -> (N, D, 8, 8)
        self.quantizer = VectorQuantizer(num_embeddings, embedding_dim, decay, ema, revive)
        self.decoder = nn.Sequential(
            nn.Conv2d(embedding_dim, num_hiddens, 3, padding=1),
            ResidualStack(num_hiddens, num_residual_hiddens, num_residual_layers, relu_skip),
            nn.ConvTranspose2d(num_hiddens, half, 4, stride=2, padding=1), nn.ReLU(),  # -> (N, half, 16, 16)
            nn.ConvTranspose2d(half, 3, 4, stride=2, padding=1))  # -> (N, 3, 32, 32)

    def encode(self, x):
        """x (N, 3, 32, 32) -> z (N, D, 8, 8)"""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.encoder(x - 0.5).float()  # distances to the codes are measured in float32

    def decode(self, e):
        """e (N, D, 8, 8) -> x_hat (N, 3, 32, 32)"""
        with torch.autocast(e.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.decoder(e).float() + 0.5

    def forward(self, x):
        """x (N, 3, 32, 32) -> x_hat (N, 3, 32, 32), z and e (N, D, 8, 8), index (N, 8, 8)"""
        z = self.encode(x)
        e, index = self.quantizer(z)
        # Straight-through: in value this is e; for the gradient it is z, as what is detached counts as a constant.
        return self.decode(z + (e - z).detach()), z, e, index


class Prior(nn.Module):
    """A causal transformer over the 8 x 8 codes, read row by row: index (N, 64) -> logits (N, 64, K) of
    p(code t | the codes before t). Its input is shifted by one: place t sees a start symbol and the codes before t,
    never code t itself."""

    def __init__(self, num_embeddings=512, length=64, width=128, n_layers=4, n_heads=4):
        super().__init__()
        self.token = nn.Embedding(num_embeddings + 1, width)  # the last one is the start symbol
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, n_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
                                           norm_first=True)
        self.layers = nn.TransformerEncoder(layer, n_layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, num_embeddings)
        # An "encoder" in PyTorch's words; this mask, -inf above the diagonal, makes it causal.
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, index):
        t = index.shape[1]
        start = torch.full_like(index[:, :1], self.token.num_embeddings - 1)
        h = self.token(torch.cat([start, index[:, :-1]], dim=1)) + self.place[:t]  # (N, t, width)
        return self.head(self.layers(h, mask=self.mask[:t, :t], is_causal=True))

    @torch.no_grad()
    def sample(self, n):
        """The codes (n, 8, 8) of n new images, each drawn from its distribution given those before it."""
        index = torch.zeros(n, 0, dtype=torch.long, device=self.place.device)
        for _ in range(len(self.place)):
            # The 0 only makes room: place t never sees code t.
            logits = self(F.pad(index, (0, 1)))[:, -1]  # (n, K)
            index = torch.cat([index, torch.multinomial(logits.softmax(-1), 1)], dim=1)
        return index.reshape(n, 8, 8)


# %% 3. Loss

def loss_function(model, x_hat, x, z, e, variance):
    """The loss and its terms, scalars: {loss, reconstruction, commitment, codebook} (arXiv:1711.00937, equation 3).

    reconstruction: mean squared error per pixel and channel over the variance of the training data. 1 is what an image
        of nothing but the mean gets, 0 is perfect.
    commitment, codebook: ||z - e||^2 / D, the mean over the codes. They are the same number; they differ in who learns
        from it.
    """
    reconstruction = F.mse_loss(x_hat, x) / variance
    commitment = F.mse_loss(z, e.detach())  # moves the encoder, not the codes
    codebook = F.mse_loss(e, z.detach())  # moves the codes, not the encoder
    loss = reconstruction + model.commitment_cost * commitment
    if not model.quantizer.ema:
        loss = loss + codebook
    return {"loss": loss, "reconstruction": reconstruction, "commitment": commitment, "codebook": codebook}


def prior_loss(prior, index):
    """Minus log2 p(code | codes before it), the mean over the codes index (N, 64): bits per code."""
    return F.cross_entropy(prior(index).flatten(0, 1), index.flatten()) / math.log(2)


# %% 4. Training

def train(phase, config, x_train, x_test, n_updates, args, last=None, seed=None, lr=None, float32=False):
    """Trains VQVAE(**config) on x_train (n, 3, 32, 32); returns the model and its history (see `fit`; the test entries
    are of the first 1,000 images of x_test). seed, lr and float32 are those of args, if nothing else is said."""
    torch.manual_seed(args.seed if seed is None else seed)
    model = VQVAE(**config).to(args.device, memory_format=best_layout(args.device))
    model.bfloat16 = has_bfloat16(args.device) and not (args.float32 or float32)
    variance = float(x_train.var())

    def batch_loss():
        # Drawn with replacement, so the state of the random numbers is all that a resumed run needs to know.
        x = x_train[torch.randint(len(x_train), (args.batch_size,)).to(x_train.device)]
        x_hat, z, e, _ = model(x)
        return loss_function(model, x_hat, x, z, e, variance)

    return model, fit(phase, model, batch_loss, lambda: evaluate(model, x_test[:1000], variance), n_updates,
                      lr or args.lr, args, last)


def train_prior(codes_train, codes_test, args):
    """Trains a Prior on the codes (n, 64) of images; returns it and its history, in bits per code."""
    torch.manual_seed(args.seed)
    prior = Prior(args.codebook_size).to(args.device)

    def batch_loss():
        rows = torch.randint(len(codes_train), (PRIOR_BATCH_SIZE,)).to(codes_train.device)
        return {"loss": prior_loss(prior, codes_train[rows])}

    return prior, fit("prior", prior, batch_loss, lambda: evaluate_prior(prior, codes_test[:1000]),
                      math.ceil(PRIOR_SHARE * args.n_updates), PRIOR_LR, args)


def fit(phase, model, batch_loss, test_loss, n_updates, lr, args, last=None):
    """Minimises batch_loss()["loss"] with Adam; returns the history: lists of `update`, `lr`, `seconds` (since the
    start), `train_...` (what `batch_loss` returns, the mean since the entry before) and `test_...` (what `test_loss`
    returns).

    With --reference the learning rate stays as it is, and Adam's betas are PyTorch's defaults.

    batch_loss: takes a random minibatch and returns {loss, ...}. test_loss: {loss, ...} on test data.
    last: the update after which to stop, if it is to be before the schedule's end.
    """
    last = last or n_updates
    # The second beta averages squared gradients over 100 updates, as in vae.py; fused: one pass over the weights.
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr, fused=True,
                                 betas=(0.9, 0.999) if args.reference else (0.95, 0.99))
    # One cycle: the learning rate climbs to its peak in the first 30 % of the updates and then falls to nearly 0. The
    # schedule also moves Adam's first beta, against the rate: from 0.95 to 0.85 and back.
    scheduler = (torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1) if args.reference
                 else torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=n_updates))
    history, parts, sums = {"update": [], "lr": [], "seconds": []}, (model, optimizer, scheduler), {}
    if args.resume:
        history = load_checkpoint(phase, parts, args) or history
    done, seconds = (history[key][-1] if history[key] else 0 for key in ("update", "seconds"))
    start = time.perf_counter() - seconds
    for update in range(done + 1, last + 1):
        model.train()
        terms = batch_loss()
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        scheduler.step()
        sums = {key: sums.get(key, 0) + term.detach() for key, term in terms.items()}
        if update % LOG_EVERY == 0 or update == last:
            means = {key: float(total) / (update - done) for key, total in sums.items()}
            history["lr"].append(scheduler.get_last_lr()[0])
            log(phase, update, last, time.perf_counter() - start, means, test_loss(), history)
            save_checkpoint(phase, parts, history, args)
            done, sums = update, {}
    return history


def log(phase, update, last, seconds, means, tested, history):
    """Adds an entry to the history and prints it."""
    if not math.isfinite(means["loss"]):
        sys.exit(f"{NAME}.py: error: the loss is no longer a number: try a smaller --lr")
    entry = {"update": update, "seconds": seconds, **{f"train_{key}": value for key, value in means.items()},
             **{f"test_{key}": value for key, value in tested.items()}}
    for key, value in entry.items():
        history.setdefault(key, []).append(value)
    terms = "".join(f" {key} {value:.4f} " for key, value in means.items())
    print(f"{phase}: update {update:5d}/{last}  {terms}  test {tested['loss']:.4f}   "
          f"{seconds / update * 1000:.0f} ms   eta {seconds / update * (last - update):.0f} s", flush=True)


def has_bfloat16(device):
    """Does this processor compute in bfloat16? Half the bytes of float32, the same range, 8 bits of precision. Inside
    `torch.autocast` layers compute in it; weights, distances to the codes, loss and Adam stay in float32."""
    if device.startswith("cpu"):
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)


def best_layout(device):
    """Convolutions are fastest with the channels last in memory, on CPUs and NVIDIA's GPUs. On Apple's it has led to
    errors (pytorch/pytorch#140902), so elsewhere everything stays as it is."""
    return torch.channels_last if device.startswith(("cpu", "cuda")) else torch.contiguous_format


# How a run is resumed; nothing else depends on the next three functions. Every phase has a checkpoint of its own, with
# weights, moments, schedule, history and random state: on a CPU a resumed run goes through the same numbers as one that
# was not stopped. A phase that is finished finds that no update is left to do.

def checkpoint(phase, args):
    """The file of a phase's checkpoint, and the settings that it depends on."""
    elsewhere = ("data_dir", "out_dir", "show", "study", "resume")
    return folder(args) / f"checkpoint-{phase}.pt", {k: v for k, v in vars(args).items() if k not in elsewhere}


def save_checkpoint(phase, parts, history, args):
    path, settings = checkpoint(phase, args)
    with common.replacing(path) as temporary:
        torch.save({"settings": settings, "history": history, "rng": torch.get_rng_state(),
                    "parts": [part.state_dict() for part in parts]}, temporary)


def load_checkpoint(phase, parts, args):
    """Restores what an interrupted run with the same settings has saved of this phase; returns the history so far, None
    if there is none."""
    path, settings = checkpoint(phase, args)
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        different = [key for key in settings if saved["settings"][key] != settings[key]]
        if not different:
            for part, state in zip(parts, saved["parts"]):
                part.load_state_dict(state)
    except Exception:  # a damaged file can raise nearly anything
        raise OSError(f"cannot --resume: {path} is damaged: delete it, and this phase is done again") from None
    if different:
        key = different[0]
        raise OSError(f"cannot --resume: {path} was made with {key} {saved['settings'][key]}, and this would be "
                      f"{settings[key]}: use the same flags")
    torch.set_rng_state(saved["rng"])
    return saved["history"]


# %% 5. Evaluation

@torch.no_grad()
def evaluate(model, x, variance):
    """Over all of x (n, 3, 32, 32): the loss and its terms; psnr_db; quantization_error, the share of ||z||^2 that the
    quantizer does not keep; perplexity and codes_used; perplexity_of_256, that of 256 images, as others give it, the
    mean over x; the 1st, 50th and 99th percentile of the norms of z and e; z_range, the least and the greatest number
    in z."""
    model.eval()
    sums, norms, indices, extremes = {}, [], [], []
    for batch in x.split(256):
        x_hat, z, e, index = model(batch)
        terms = loss_function(model, x_hat, batch, z, e, variance)
        # Peak signal-to-noise ratio: 10 log10(1 / MSE) of each image. 10 dB more is a tenth of the squared error.
        terms["psnr_db"] = -10 * torch.log10(((x_hat - batch) ** 2).flatten(1).mean(1)).mean()
        terms["quantization_error"] = ((z - e) ** 2).sum() / (z**2).sum()
        terms["perplexity_of_256"] = 2 ** entropy_bits(torch.bincount(index.flatten()))
        sums = {key: sums.get(key, 0) + value * len(batch) for key, value in terms.items()}
        norms.append(z.norm(dim=1).flatten())
        indices.append(index)
        extremes += [z.min(), z.max()]
    codebook, levels = model.quantizer.codebook.cpu(), torch.tensor([0.01, 0.5, 0.99])
    counts = torch.bincount(torch.cat(indices).flatten(), minlength=len(codebook))
    return {**{key: float(value) / len(x) for key, value in sums.items()},
            "perplexity": 2 ** entropy_bits(counts), "codes_used": int((counts > 0).sum()),
            "z_range": [float(min(extremes)), float(max(extremes))],
            "z_norm": torch.quantile(torch.cat(norms).cpu(), levels).tolist(),
            "code_norm": torch.quantile(codebook.norm(dim=1), levels).tolist()}


def entropy_bits(counts):
    """The entropy in bits of the distribution that counts (K,) show. 2 to this power is the perplexity: K if all K are
    used alike, 1 if a single one is."""
    p = counts.cpu().double()  # float64 on the CPU: Apple's GPUs have none
    p = p / p.sum()
    return float(-(p * torch.log2(p.clamp_min(1e-300))).sum())


@torch.no_grad()
def encode_all(model, x):
    """The codes of x (n, 3, 32, 32): index (n, 64)"""
    model.eval()
    return torch.cat([model.quantizer(model.encode(batch))[1].flatten(1) for batch in x.split(500)])


@torch.no_grad()
def evaluate_prior(prior, index):
    """{loss: bits per code, the mean over all of index (n, 64)}"""
    prior.eval()
    return {"loss": float(sum(prior_loss(prior, batch) * len(batch) for batch in index.split(500))) / len(index)}


def doubling_updates(history):
    """In how many updates the median norm of z doubles: the mean over the last three quarters of a run."""
    start = len(history["update"]) // 4
    doublings = math.log2(history["test_z_norm"][-1][1] / history["test_z_norm"][start][1])
    return (history["update"][-1] - history["update"][start]) / doublings if doublings else None


def multiply_adds(model):
    """Multiply-adds for one image, forwards. (PyTorch counts a multiply-add as two operations.)"""
    x = torch.zeros(1, 3, 32, 32, device=model.quantizer.codebook.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    return counter.get_total_flops() // 2


def count_parameters(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# %% 6. Figures

def plot_runs(runs, until=math.inf, notes=None):
    """Runs against each other, {label: [history, ...]}, where those of one label differ only in the seed, up to update
    `until`: the training curve, the perplexity, the norms of encoder outputs and codes, the error between them, and the
    learning rate. A line of the middle row is the median of the norms; its band, for the first run of each label, goes
    from the 1st to the 99th percentile. notes: {key of the history: what is written above its panel}."""
    figure, axes = plt.subplots(3, 2, figsize=(8, 8), sharex=True)
    panels = {"train_reconstruction": "MSE / variance, training", "test_perplexity": "perplexity",
              "test_z_norm": "norm of encoder outputs z", "test_code_norm": "norm of codes e",
              "test_quantization_error": "$||z - e||^2$ / $||z||^2$", "lr": "learning rate"}
    for (label, group), color, style in zip(runs.items(), (common.BLUE, common.RED, "0.3"), ("-", "--", ":")):
        for i, history in enumerate(group):
            shown = sum(update <= until for update in history["update"])
            for axis, (key, name) in zip(axes.flat, panels.items()):
                updates, values = history["update"][:shown], np.array(history[key][:shown])
                if values.ndim == 2:
                    if i == 0:
                        axis.fill_between(updates, values[:, 0], values[:, 2], color=color, alpha=0.2, linewidth=0)
                    values = values[:, 1]
                axis.plot(updates, values, style, color=color, linewidth=1.5 if i == 0 else 0.8,
                          label=label if i == 0 else None)
                axis.set(ylabel=name, yscale="linear" if key in ("test_perplexity", "lr") else "log")
                axis.set_title((notes or {}).get(key, ""), fontsize="medium", color=common.RED)
    for axis in axes[2]:
        axis.set_xlabel("update")
        axis.locator_params(axis="x", nbins=5)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def plot_recipes(ours, reference):
    """The test error of two recipes, each as its history and its batch size, against the images seen and the time."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
    for (history, batch_size), label, color, style in ((ours, "ours", common.BLUE, "-"),
                                                       (reference, "the notebook's", common.RED, "--")):
        images = np.array(history["update"]) * batch_size
        axes[0].plot(images, history["test_reconstruction"], style, color=color, label=label)
        axes[1].plot(np.array(history["seconds"]) / 60, history["test_reconstruction"], style, color=color)
    axes[0].set(xlabel="images seen", ylabel="MSE / variance, test", xscale="log", yscale="log")
    axes[1].set(xlabel="minutes of training", xscale="log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@torch.no_grad()
def plot_codebooks(models, x):
    """The codes of each of models {title: model}, projected on the two directions in which they vary most (PCA). A
    disc's area shows how often the code is used for x (n, 3, 32, 32), its colour what it decodes to."""
    figure, axes = plt.subplots(1, len(models), figsize=(8, 4.2))
    for axis, (title, model) in zip(axes, models.items()):
        codes = F.pad(model.quantizer.codebook.detach().cpu(), (0, 1))  # (K, D + 1): two directions even if D = 1
        counts = torch.bincount(encode_all(model, x).flatten().cpu(), minlength=len(codes))
        _, s, v = torch.linalg.svd(codes - codes.mean(0), full_matrices=False)
        share = 100 * s**2 / (s**2).sum()
        # An image of nothing but this code, and of that the mean of the middle.
        grids = model.quantizer.embed(torch.arange(len(codes), device=x.device).reshape(-1, 1, 1).expand(-1, 8, 8))
        colors = model.decode(grids)[:, :, 12:20, 12:20].mean((2, 3)).clamp(0, 1).cpu().numpy()
        axis.scatter(*((codes - codes.mean(0)) @ v[:2].T).T, s=4 + 30 * counts / counts.float().mean(), c=colors,
                     edgecolors="0.4", linewidths=0.4)
        if axis is axes[0]:
            others = codes
        else:  # the first model's codes on these axes
            axis.plot(*((others - codes.mean(0)) @ v[:2].T).T, "x", color=common.RED)
            axis.plot([], [], "x", color=common.RED, label="all codes from the left, to scale")
            axis.legend(loc="upper left")
            axis.margins(y=0.12)
        axis.set(title=title, xlabel=f"component 1, {share[0]:.0f} % of the variance",
                 ylabel=f"component 2, {share[1]:.0f} %")
        axis.ticklabel_format(scilimits=(-3, 3))
    return figure


@torch.no_grad()
def make_figures(model, prior, history, others, codes_train, x_test):
    """All figures, as {file name without ending: figure}. others: {phase: (model, history)} of the runs beside the main
    one; codes_train (n, 64)."""
    model.eval()
    figures = {"loss": common.plot_losses(history, {
        "reconstruction": "MSE / variance", "commitment": "commitment term", "perplexity": "perplexity"}, "update")}
    without, history_without = others["no_commitment"]
    figures["codebook"] = plot_codebooks({
        f"with the commitment loss,\n{history['update'][-1]:,} updates": model,
        f"without it,\n{history_without['update'][-1]:,} updates": without}, x_test)
    curves = {phase: curve for phase, (_, curve) in others.items()}
    runs = {"with the commitment loss": [history],
            "without": [curves[f"no_commitment{seed}"] for seed in ("", "_seed_b", "_seed_c")
                        if f"no_commitment{seed}" in curves]}
    if "base" in others:  # --study
        runs["without, float32"] = [curves["no_commitment_float32"]]
        figures["start"] = plot_runs({"from data, dead codes revived": [curves["base"]],
                                      "from N(0, I), left alone": [curves["usual_start"]]})
        figures["codebook_loss"] = plot_runs({"with the commitment loss": [curves["codebook_loss"]],
                                              "without": [curves["codebook_loss_no_commitment"]]})
    # Without the commitment loss our recipe is followed for a while only, and the other one to the end.
    until, notes = math.inf, {}
    if prior is not None:
        until, pace = history_without["update"][-1], doubling_updates(history_without)
        lowest, best = min(zip(history_without["train_reconstruction"], history_without["update"]))
        notes = {"train_reconstruction": f"breaks: {lowest:.2f} at update {best}, then worse",
                 "test_z_norm": f"grows: doubles in {pace:.0f} updates" if pace else ""}
    figures["commitment"] = plot_runs(runs, until, notes)

    x = x_test[:20]
    x_hat, _, _, index = model(x)
    colors = torch.rand(len(model.quantizer.codebook), 3)  # a colour for each code: equal codes, equal colours
    codes = colors[index.cpu()].permute(0, 3, 1, 2).to(x.device)  # (20, 3, 8, 8)
    codes = codes.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    figures["reconstructions"] = common.plot_images(
        torch.stack([part[rows] for rows in (slice(10), slice(10, 20)) for part in (x, codes, x_hat)]),
        2 * ["image", "its 64\ncodes", "decoded"])

    if prior is None:
        return figures
    prior.eval()
    frequencies = torch.bincount(codes_train.flatten(), minlength=len(colors)).float()
    blocks = prior.sample(35), torch.multinomial(frequencies, 10 * 64, replacement=True).reshape(10, 8, 8)
    written, drawn = (model.decode(model.quantizer.embed(index)).reshape(5, -1, 3, 32, 32) for index in blocks)
    gap = torch.ones(5, 1, 3, 32, 32, device=x.device)
    figures["samples"] = common.plot_images(
        torch.cat([written, gap, drawn], dim=1),
        column_labels=[*[""] * 3, "codes written by the prior", *[""] * 4, "      drawn one by one", ""])
    return figures


# %% 7. Run

def study(config):
    """The runs of --study that have the commitment loss, {phase: constructor arguments that change}: short, each with a
    whole schedule of its own. And one that has not: with codes that learn by their loss."""
    variants = {"base": {"ema": True}, "usual_start": {"ema": True, "revive": False}, "codebook_loss": {"ema": False},
                "codebook_loss_no_commitment": {"ema": False, "commitment_cost": 0.0}}
    for name in ("num_hiddens", "num_residual_hiddens", "num_residual_layers"):
        for value in (max(1, config[name] // 2), 2 * config[name]):
            variants[f"{name}_{value}"] = {name: value}
    return variants


def folder(args):
    return args.out_dir / (f"{NAME}_reference" if args.reference else NAME)


def main(argv=None):
    """Trains, evaluates, draws and writes; returns the model, the prior and the metrics. argv: a list of flags, None
    for those of the command line."""
    args = parser.parse_args(argv)
    short = args.device.startswith("cpu") and not args.reference
    args.n_updates = args.n_updates or (10000 if short else 15000)
    args.batch_size = args.batch_size or (32 if short else 256)
    args.lr = args.lr or (1e-3 if args.reference else 2e-3)
    out_dir = folder(args)
    out_dir.mkdir(parents=True, exist_ok=True)
    if args.resume and not any(out_dir.glob("checkpoint-*.pt")):
        parser.error(f"nothing to --resume: there is no checkpoint in {out_dir}")
    common.use_windows(args.show)
    x_train, x_test, dataset = common.load_cifar10(args.data_dir, args.device, args.validation, download=not args.smoke)
    args.dataset = dataset  # a run on the sample is not resumed on the whole
    for old in [] if args.resume else out_dir.glob("checkpoint-*.pt"):
        old.unlink()
    if args.smoke:
        x_train, x_test, args.n_updates = x_train[:512], x_test[:256], min(args.n_updates, 3)
    x_train, x_test = (x.contiguous(memory_format=best_layout(args.device)) for x in (x_train, x_test))
    args.batch_size = min(args.batch_size, len(x_train))

    config = {"num_hiddens": args.hidden_dim, "num_residual_hiddens": 32, "num_residual_layers": 2,
              "num_embeddings": args.codebook_size, "embedding_dim": args.latent_dim,
              "commitment_cost": args.commitment_cost, "ema": not args.codebook_loss,
              "revive": not args.reference, "relu_skip": args.reference}
    model, history = train("main", config, x_train, x_test, args.n_updates, args)
    codes_train, codes_test = encode_all(model, x_train), encode_all(model, x_test)
    prior = None
    if not args.reference:
        prior, prior_history = train_prior(codes_train, codes_test, args)
    # The same run as the main one, schedule and all, but for one number; it is stopped early. How far does it depend on
    # chance, on precision, and on how fast the codes follow?
    few = min(args.n_updates, COMPARED_UPDATES)
    # The notebook computes in float32. Its recipe without the commitment loss gets other results in bfloat16.
    usual = {"last": min(args.n_updates, 5000), "float32": True} if args.reference else {"last": few}
    variants = {"no_commitment": ({}, {})}
    if args.study or args.reference:
        variants |= {"no_commitment_seed_b": ({}, {"seed": args.seed + 1}),
                     "no_commitment_seed_c": ({}, {"seed": args.seed + 2})}
    if args.study:
        variants |= {"no_commitment_float32": ({}, {"float32": True}),
                     "no_commitment_half_lr": ({}, {"lr": args.lr / 2}),
                     "no_commitment_fast_codes": ({"decay": 0.9}, {}),
                     "no_commitment_slow_codes": ({"decay": 0.999}, {})}
    others = {phase: train(phase, {**config, "commitment_cost": 0.0, **changes}, x_train, x_test, args.n_updates, args,
                           **{**usual, **how}) for phase, (changes, how) in variants.items()}
    if args.study:
        others |= {phase: train(phase, {**config, **changes}, x_train, x_test, few, args)
                   for phase, changes in study(config).items()}

    trained, variance = evaluate(model, x_train, float(x_train.var())), float(x_train.var())
    measured = {phase: {"n_updates": curves["update"][-1], "n_parameters": count_parameters(net),
                        "multiply_adds": multiply_adds(net), "seconds": curves["seconds"][-1], "history": curves,
                        "doubling_updates": doubling_updates(curves),
                        **{f"test_{key}": value for key, value in evaluate(net, x_test, variance).items()}}
                for phase, (net, curves) in {"main": (model, history), **others}.items()}
    metrics = {
        "script": NAME, "dataset": dataset, "n_train": len(x_train), "n_test": len(x_test), "seed": args.seed,
        "bfloat16": model.bfloat16, **measured.pop("main"),
        "train_loss": trained["loss"], "train_reconstruction": trained["reconstruction"],
        "prior": prior and {
            "n_updates": prior_history["update"][-1], "n_parameters": count_parameters(prior),
            "seconds": prior_history["seconds"][-1],
            "train_bits_per_code": evaluate_prior(prior, codes_train)["loss"],
            "test_bits_per_code": evaluate_prior(prior, codes_test)["loss"],
            "code_entropy_bits": entropy_bits(torch.bincount(codes_test.flatten(), minlength=args.codebook_size)),
            "uniform_bits": math.log2(args.codebook_size), "history": prior_history},
        **measured, "settings": vars(args), "device": args.device, "threads": torch.get_num_threads(),
        "processor": getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", platform.processor()),
        "accelerator": torch.cuda.get_device_name(args.device) if "cuda" in args.device else None,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy")},
    }
    torch.manual_seed(args.seed)  # the figures do not depend on how much the training has drawn
    figures = make_figures(model, prior, history, others, codes_train, x_test)
    ours = args.out_dir / NAME / "metrics.json"
    if args.reference and ours.exists():
        ours = json.loads(ours.read_text(encoding="utf-8"))
        figures["recipes"] = plot_recipes((ours["history"], ours["settings"]["batch_size"]), (history, args.batch_size))
    with contextlib.redirect_stdout(io.StringIO()) as summary:  # torchsummary prints; it knows only cpu and cuda
        # In two parts, as it fails on layers that return several tensors, such as the quantizer.
        torchsummary.summary(model.cpu().encoder, (3, 32, 32), device="cpu")
        torchsummary.summary(model.decoder, (args.latent_dim, 8, 8), device="cpu")

    # Everything is ready: write it all, each file whole or not at all.
    for name, net, arguments in (("model", model, config), ("prior", prior, {"num_embeddings": args.codebook_size})):
        if net is None:
            continue
        with common.replacing(out_dir / f"{name}.pt") as path:
            torch.save({"config": arguments, "state_dict": net.cpu().state_dict()}, path)
    texts = {"summary.txt": summary.getvalue(), "metrics.json": json.dumps(metrics, indent=1, default=str) + "\n"}
    for name, text in texts.items():
        with common.replacing(out_dir / name) as path:
            Path(path).write_text(text)
    common.save_figures(figures, out_dir, args.show)
    for path in out_dir.glob("checkpoint-*.pt"):  # nothing is left to resume
        path.unlink()
    for phase, numbers in measured.items():
        print(f"{phase:27} {numbers['n_parameters']:9,} parameters {numbers['multiply_adds'] / 1e6:6.1f}M multiply-adds"
              f"   test error {numbers['test_reconstruction']:.4f}   perplexity {numbers['test_perplexity']:.0f}")
    print(f"wrote {out_dir}{os.sep}")
    print(f"test error {metrics['test_reconstruction']:.4f}, perplexity {metrics['test_perplexity']:.0f}"
          + (f", {metrics['prior']['test_bits_per_code']:.2f} bits a code" if prior else ""))
    return model, prior, metrics


if __name__ == "__main__":
    try:
        # In a notebook sys.argv holds the notebook's flags, not ours.
        model, prior, metrics = main(None if Path(sys.argv[0]).name == f"{NAME}.py" else [])
    except KeyboardInterrupt:
        parser.exit(130, f"\n{NAME}.py: stopped; --resume goes on from the last checkpoint, once there is one\n")
    except OSError as error:  # data, a folder or a checkpoint that is not as it should be
        parser.error(str(error))
