# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "matplotlib>=3.8", "torchsummary>=1.5.1"]
# ///
"""VQ-VAE: describe a photograph by 64 words out of a dictionary of 512, and write new photographs in that language.

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

Run it:    python vqvae.py              this run, the same without commitment, and the prior: 25 minutes on 2 CPU cores
           python vqvae.py --study      also the codebook loss, the usual start and other sizes: 20 minutes more
           python vqvae.py --smoke      every line of it in seconds, on a few hundred images
           python vqvae.py --resume     go on where a run with the same flags was stopped
Writes:    runs/vqvae/: metrics.json, summary.txt, model.pt, prior.pt, loss.png, codebook.png, commitment.png,
           reconstructions.png and samples.png; with --study also start.png and codebook_loss.png; while it runs
           checkpoint.pt.
Papers:    van den Oord, Vinyals and Kavukcuoglu, Neural Discrete Representation Learning, NeurIPS 2017,
           arXiv:1711.00937 (the loss is equation 3, the moving average is in appendix A.1).
           Bengio, Leonard and Courville, Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
           Computation, 2013, arXiv:1308.3432 (the straight-through estimator).
"""

import argparse
import contextlib
import functools
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
import torch.nn.functional as F
import torchsummary
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import common

# %% 1. Settings

NAME = "vqvae"
CHECKPOINT_SECONDS = 120  # between two checkpoints
PRIOR_SHARE, PRIOR_BATCH_SIZE, PRIOR_LR = 0.3, 64, 2e-3  # the prior gets 0.3 times --n-updates
STUDY_UPDATES = 2000  # of each run of --study

# Without a usage line, an error is one line.
parser = argparse.ArgumentParser(prog=f"{NAME}.py", usage=argparse.SUPPRESS, description=__doc__.split("\n")[0],
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
# On a CPU time is what counts, and many updates on few images teach more in an hour than few on many.
parser.add_argument("--n-updates", type=int, help="number of updates; None is 15000 on an accelerator, as is usual, "
                    "and 8000 on a CPU")
parser.add_argument("--batch-size", type=int, help="images per update, N; None is 256 on an accelerator, 64 on a CPU")
# The usual rate is a constant 1e-3. The one-cycle schedule climbs to twice that and ends near 0.
parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of Adam")
parser.add_argument("--hidden-dim", type=int, default=128, help="channels of encoder and decoder, num_hiddens")
parser.add_argument("--latent-dim", type=int, default=64, help="size of a code, D")
parser.add_argument("--seed", type=int, default=0, help="same seed, same machine: same numbers")
parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...; auto takes an accelerator if any")
parser.add_argument("--data-dir", type=Path, help="folder that holds CIFAR-10 (default: data/ beside the script)")
parser.add_argument("--out-dir", type=Path, default=Path("runs"), help=f"results go to OUT_DIR/{NAME}/")
parser.add_argument("--show", action="store_true", help="open the figures in windows as well")
parser.add_argument("--smoke", action="store_true", help="a run of seconds that goes through every line")
parser.add_argument("--codebook-size", type=int, default=512, help="number of codes, K")
parser.add_argument("--commitment-cost", type=float, default=0.25, help="lambda; the comparison run has 0")
parser.add_argument("--codebook-loss", action="store_true", help="learn the codes by their loss, not by the average")
parser.add_argument("--study", action="store_true", help="more runs: codebook loss, the usual start, other sizes")
parser.add_argument("--resume", action="store_true", help="go on from OUT_DIR/vqvae/checkpoint.pt")


def parse_args(argv=None):
    """The command line, checked. Every error is one line on stderr and exit status 2."""
    args = parser.parse_args(argv)
    if args.device == "auto":
        args.device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    try:
        torch.zeros(1, device=args.device).item()
    except (RuntimeError, AssertionError):
        parser.error(f"--device {args.device} is not available here: try --device auto or --device cpu")
    if args.n_updates is None:
        args.n_updates = 8000 if args.device == "cpu" else 15000
    if args.batch_size is None:
        args.batch_size = 64 if args.device == "cpu" else 256
    for name in ("n_updates", "batch_size", "hidden_dim", "latent_dim"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.codebook_size < 2:
        parser.error("--codebook-size must be at least 2")
    if not 0 < args.lr < math.inf:
        parser.error("--lr must be a positive number")
    if not 0 <= args.commitment_cost < math.inf:
        parser.error("--commitment-cost must be 0 or a positive number")
    if not 0 <= args.seed < 2**63:
        parser.error("--seed must be a whole number from 0 to 2^63 - 1")
    try:
        (args.out_dir / NAME).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out_dir / NAME).close()
    except OSError as error:
        parser.error(f"cannot write to --out-dir {args.out_dir}: {error.strerror}")
    return args


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
        codes = torch.randn(num_embeddings, embedding_dim)
        self.codebook = nn.Parameter(codes, requires_grad=not ema)  # (K, D)
        self.register_buffer("ema_count", torch.zeros(num_embeddings))  # N_i of the paper: how often a code is used
        self.register_buffer("ema_sum", codes.clone())  # m_i of the paper: the sum of the z that use it

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
        count = torch.bincount(index, minlength=len(self.codebook)).to(z.dtype)  # n_i, (K,)
        total = torch.zeros_like(self.codebook).index_add_(0, index, z)  # (K, D)
        self.ema_count.lerp_(count, 1 - self.decay)
        self.ema_sum.lerp_(total, 1 - self.decay)
        if self.ema:
            # The small number avoids 0 / 0. A code that no z has used yet has N_i = 0: this throws it far away.
            self.codebook.copy_(self.ema_sum / (self.ema_count + 1e-5).unsqueeze(1))
        if self.revive:
            # A fair share is n_i if all codes were used alike. The higher the threshold, the more alike they are used;
            # in trials 0.4 instead of 0.1 cost hardly any error.
            share = len(z) / len(self.codebook)
            dead = (self.ema_count < 0.4 * share).nonzero().squeeze(1)
            chosen = z[torch.randint(len(z), (len(dead),)).to(z.device)]
            self.codebook[dead] = chosen
            # Just above the threshold: if no z uses it here either, it has another chance 18 updates later.
            self.ema_count[dead] = 0.48 * share
            self.ema_sum[dead] = 0.48 * share * chosen

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
    (N, num_hiddens, h, w) -> (N, num_hiddens, h, w)"""

    def __init__(self, num_hiddens, num_residual_hiddens, num_residual_layers):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(num_hiddens, num_residual_hiddens, 3, padding=1, bias=False),
                          nn.ReLU(), nn.Conv2d(num_residual_hiddens, num_hiddens, 1, bias=False))
            for _ in range(num_residual_layers))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return F.relu(x)


class VQVAE(nn.Module):
    """Convolutional encoder, VectorQuantizer, convolutional decoder: images (N, 3, 32, 32) in [0, 1], codes (N, 8, 8).

    num_hiddens: the channels of everything between pixels and codes. num_residual_hiddens: the channels inside the
    residual blocks. num_residual_layers: how many blocks, in the encoder and in the decoder.
    """

    def __init__(self, num_hiddens=128, num_residual_hiddens=32, num_residual_layers=2, num_embeddings=512,
                 embedding_dim=64, commitment_cost=0.25, decay=0.99, ema=True, revive=True):
        super().__init__()
        self.commitment_cost = commitment_cost
        half = max(1, num_hiddens // 2)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, half, 4, stride=2, padding=1), nn.ReLU(),  # -> (N, half, 16, 16)
            nn.Conv2d(half, num_hiddens, 4, stride=2, padding=1), nn.ReLU(),  # -> (N, num_hiddens, 8, 8)
            nn.Conv2d(num_hiddens, num_hiddens, 3, padding=1),
            ResidualStack(num_hiddens, num_residual_hiddens, num_residual_layers),
            nn.Conv2d(num_hiddens, embedding_dim, 1))  # -> (N, D, 8, 8)
        self.quantizer = VectorQuantizer(num_embeddings, embedding_dim, decay, ema, revive)
        self.decoder = nn.Sequential(
            nn.Conv2d(embedding_dim, num_hiddens, 3, padding=1),
            ResidualStack(num_hiddens, num_residual_hiddens, num_residual_layers),
            nn.ConvTranspose2d(num_hiddens, half, 4, stride=2, padding=1), nn.ReLU(),  # -> (N, half, 16, 16)
            nn.ConvTranspose2d(half, 3, 4, stride=2, padding=1))  # -> (N, 3, 32, 32)

    def encode(self, x):
        """x (N, 3, 32, 32) -> z (N, D, 8, 8)"""
        with fast_convolutions(x.device.type):
            return self.encoder(x - 0.5).float()  # distances to the codes are measured in float32

    def decode(self, e):
        """e (N, D, 8, 8) -> x_hat (N, 3, 32, 32)"""
        with fast_convolutions(e.device.type):
            return self.decoder(e).float() + 0.5

    def forward(self, x):
        """x (N, 3, 32, 32) -> x_hat (N, 3, 32, 32), z and e (N, D, 8, 8), index (N, 8, 8)"""
        z = self.encode(x)
        e, index = self.quantizer(z)
        # Straight-through: in value this is e; for the gradient it is z, as what is detached counts as a constant.
        return self.decode(z + (e - z).detach()), z, e, index


@functools.cache
def has_bfloat16(device_type):
    """Does this processor compute in bfloat16? Half the bytes of float32, the same range, 8 bits of precision."""
    if device_type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return device_type == "cuda" and torch.cuda.is_bf16_supported()


def fast_convolutions(device_type):
    """Inside this context layers compute in bfloat16 where that is fast. Weights, loss and Adam stay in float32."""
    return torch.autocast(device_type, torch.bfloat16, enabled=has_bfloat16(device_type))


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

def fit(phase, model, train, test, losses, evaluate, n_updates, batch_size, lr, args, saved):
    """Minimises losses(model, batch)["loss"] over random batches of `train` with Adam. Returns the history, lists of
    `update`, `train_...` (what `losses` returns, the mean since the entry before) and `test_...` (what
    `evaluate(model, test)` returns), and the seconds it took.

    saved: {"done": {phase: its model and history}, "part": the state of an unfinished phase}. What is there is not
        computed again. With weights, moments, schedule and random state restored, a resumed run goes through the same
        numbers as one that was not stopped.
    """
    if phase in saved["done"]:
        model.load_state_dict(saved["done"][phase]["model"])
        return saved["done"][phase]["history"], saved["done"][phase]["seconds"]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.99))
    # One cycle: the learning rate climbs to its peak in the first 30 % of the updates and then falls to nearly 0.
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=n_updates)
    history, done, seconds = {"update": []}, 0, 0.0
    if saved["part"].get("phase") == phase:
        part = saved["part"]
        for item, key in ((model, "model"), (optimizer, "optimizer"), (scheduler, "scheduler")):
            item.load_state_dict(part[key])
        history, done, seconds = part["history"], part["update"], part["seconds"]
        torch.set_rng_state(part["rng"])
    log_every, batch_size = max(1, min(100, n_updates // 40)), min(batch_size, len(train))
    start = last_saved = time.perf_counter()
    sums, since = {}, 0
    for update in range(done + 1, n_updates + 1):
        model.train()
        batch = train[torch.randint(len(train), (batch_size,)).to(train.device)]
        loss = losses(model, batch)
        optimizer.zero_grad()
        loss["loss"].backward()
        optimizer.step()
        scheduler.step()
        sums, since = {key: sums.get(key, 0) + value.detach() for key, value in loss.items()}, since + 1
        if update % log_every and update < n_updates:
            continue
        means = {key: float(value) / since for key, value in sums.items()}
        if not math.isfinite(means["loss"]):
            parser.exit(1, f"{NAME}.py: error: the loss is no longer a number: try a smaller --lr\n")
        tested = evaluate(model, test)
        for which, numbers in (("train", means), ("test", tested)):
            for key, value in numbers.items():
                history.setdefault(f"{which}_{key}", []).append(value)
        history["update"].append(update)
        sums, since = {}, 0
        spent = seconds + time.perf_counter() - start
        if update % 100 < log_every or update == n_updates:
            terms = ", ".join(f"{key} {value:.4f}" for key, value in means.items() if key != "loss")
            codes = f"   perplexity {tested['perplexity']:.0f}" if "perplexity" in tested else ""
            print(f"{phase}: update {update:5d}/{n_updates}   loss {means['loss']:.4f}{f' ({terms})' if terms else ''}"
                  f"   test {tested['loss']:.4f}{codes}   {spent / update * 1000:.0f} ms   "
                  f"eta {spent / update * (n_updates - update):.0f} s", flush=True)
        if time.perf_counter() - last_saved > CHECKPOINT_SECONDS and update < n_updates:
            saved["part"] = {"phase": phase, "update": update, "history": history, "seconds": spent,
                             "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                             "scheduler": scheduler.state_dict(), "rng": torch.get_rng_state()}
            save_checkpoint(args, saved)
            last_saved = time.perf_counter()
    seconds += time.perf_counter() - start
    saved["done"][phase] = {"model": model.state_dict(), "history": history, "seconds": seconds}
    saved["part"] = {}
    save_checkpoint(args, saved)
    return history, seconds


def train(phase, config, x_train, x_test, variance, n_updates, args, saved):
    """Trains VQVAE(**config) on x_train (n, 3, 32, 32); returns the model, its history (see `fit`; the test entries are
    of the first 1,000 images of x_test) and the seconds."""
    torch.manual_seed(args.seed)
    model = VQVAE(**config).to(args.device, memory_format=torch.channels_last)

    def losses(model, x):
        x_hat, z, e, _ = model(x)
        return loss_function(model, x_hat, x, z, e, variance)

    return model, *fit(phase, model, x_train, x_test[:1000], losses, functools.partial(evaluate, variance=variance),
                       n_updates, args.batch_size, args.lr, args, saved)


def train_prior(codes_train, codes_test, n_codes, n_updates, args, saved):
    """Trains a Prior on the codes (n, 64) of images; returns it, its history in bits per code and the seconds."""
    torch.manual_seed(args.seed)
    prior = Prior(n_codes).to(args.device)
    return prior, *fit("prior", prior, codes_train, codes_test[:1000],
                       lambda prior, index: {"loss": prior_loss(prior, index)}, evaluate_prior, n_updates,
                       PRIOR_BATCH_SIZE, PRIOR_LR, args, saved)


def print_plan(phases, prior_updates, x):
    """Says what will be trained, and how long that takes at the pace of a few trial updates on images x (N, ...)."""
    def pace(model, loss):  # seconds for one update
        for trial in range(4):
            if trial == 1:  # the first one only warms up
                start = time.perf_counter()
            loss(model.train()).backward()
            float(next(model.parameters()).grad.sum())  # waits for an accelerator to finish
        return (time.perf_counter() - start) / 3

    models = {phase: VQVAE(**config).to(x.device, memory_format=torch.channels_last)
              for phase, (config, _) in phases.items()}
    codes = torch.zeros(PRIOR_BATCH_SIZE, 64, dtype=torch.long, device=x.device)
    seconds = prior_updates * pace(Prior().to(x.device), lambda prior: prior_loss(prior, codes))
    unit = pace(models["main"], lambda model: F.mse_loss(model(x)[0], x)) / multiply_adds(models["main"])
    seconds += sum(n * unit * multiply_adds(models[phase]) for phase, (_, n) in phases.items())
    print("updates: " + ", ".join(f"{phase} {n:,}" for phase, (_, n) in phases.items()) + f", prior {prior_updates:,}")
    print(f"time: about {max(1, round(seconds / 60))} minutes on this machine, by a few trial updates", flush=True)


def save_checkpoint(args, saved):
    with common.replacing(args.out_dir / NAME / "checkpoint.pt") as path:
        torch.save(saved, path)


def load_checkpoint(args, settings):
    """What an interrupted run with the same settings has saved; ends the program with one line if there is none."""
    path = args.out_dir / NAME / "checkpoint.pt"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        different = [key for key in settings if saved["settings"][key] != settings[key]]
    except FileNotFoundError:
        parser.error(f"nothing to --resume: there is no {path}")
    except Exception:  # a damaged file can raise nearly anything
        parser.error(f"cannot --resume: {path} is damaged, or not a checkpoint of {NAME}.py: run without --resume")
    if different:
        was, now = (f"{different[0]} {values[different[0]]}" for values in (saved["settings"], settings))
        parser.error(f"cannot --resume: {path} was made with {was}, and this would be {now}: use the same flags")
    return saved


# %% 5. Evaluation

@torch.no_grad()
def evaluate(model, x, variance):
    """Over all of x (n, 3, 32, 32): the loss and its terms; psnr_db; quantization_error, the share of ||z||^2 that the
    quantizer does not keep; perplexity and codes_used; the 1st, 50th and 99th percentile of the norms of z and e."""
    model.eval()
    sums, norms, indices = {}, [], []
    for batch in x.split(500):
        x_hat, z, e, index = model(batch)
        terms = loss_function(model, x_hat, batch, z, e, variance)
        # Peak signal-to-noise ratio: 10 log10(1 / MSE) of each image. 10 dB more is a tenth of the squared error.
        terms["psnr_db"] = -10 * torch.log10(((x_hat - batch) ** 2).flatten(1).mean(1)).mean()
        terms["quantization_error"] = ((z - e) ** 2).sum() / (z**2).sum()
        sums = {key: sums.get(key, 0) + value * len(batch) for key, value in terms.items()}
        norms.append(z.norm(dim=1).flatten())
        indices.append(index)
    codebook = model.quantizer.codebook
    counts = torch.bincount(torch.cat(indices).flatten(), minlength=len(codebook))
    levels = torch.tensor([0.01, 0.5, 0.99], device=x.device)
    return {**{key: float(value) / len(x) for key, value in sums.items()},
            "perplexity": 2 ** entropy_bits(counts), "codes_used": int((counts > 0).sum()),
            "z_norm": torch.quantile(torch.cat(norms), levels).tolist(),
            "code_norm": torch.quantile(codebook.norm(dim=1), levels).tolist()}


def entropy_bits(counts):
    """The entropy in bits of the distribution that counts (K,) show. 2 to this power is the perplexity: K if all K are
    used alike, 1 if a single one is."""
    p = counts.double() / counts.sum()
    return float(-(p * torch.log2(p.clamp_min(1e-300))).sum())


@torch.no_grad()
def encode_all(model, x):
    """The codes of x (n, 3, 32, 32): index (n, 64)"""
    model.eval()
    return torch.cat([model(batch)[-1].flatten(1) for batch in x.split(500)])


@torch.no_grad()
def evaluate_prior(prior, index):
    """{loss: bits per code, the mean over all of index (n, 64)}"""
    prior.eval()
    return {"loss": float(sum(prior_loss(prior, batch) * len(batch) for batch in index.split(500))) / len(index)}


def multiply_adds(model):
    """Multiply-adds for one image, forwards. (PyTorch counts a multiply-add as two operations.)"""
    x = torch.zeros(1, 3, 32, 32, device=model.quantizer.codebook.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    return counter.get_total_flops() // 2


def count_parameters(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# %% 6. Figures

def plot_runs(histories):
    """Two runs against each other, {label: history}: reconstruction, perplexity, and the encoder outputs beside the
    codes: the median of their norms, in a band from the 1st to the 99th percentile, and the error between them."""
    figure, axes = plt.subplots(3, 2, figsize=(8, 8), sharex=True)
    axes[1, 1].sharey(axes[1, 0])
    panels = {"reconstruction": "MSE / variance", "perplexity": "perplexity", "z_norm": "norm of encoder outputs z",
              "code_norm": "norm of codes e", "commitment": "$||z - e||^2$ / D",
              "quantization_error": "$||z - e||^2$ / $||z||^2$"}
    for (label, history), color, style in zip(histories.items(), (common.BLUE, common.RED), ("-", "--")):
        for axis, (key, name) in zip(axes.flat, panels.items()):
            values = np.array(history[f"test_{key}"])
            if values.ndim == 2:
                axis.fill_between(history["update"], values[:, 0], values[:, 2], color=color, alpha=0.2, linewidth=0)
                values = values[:, 1]
            axis.plot(history["update"], values, style, color=color, label=label)
            axis.set(ylabel=name, yscale="linear" if key == "perplexity" else "log")
    for axis in axes[2]:
        axis.set_xlabel("update")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@torch.no_grad()
def plot_codebooks(models, x):
    """The codes of each of models {title: model}, projected on the two directions in which they vary most (PCA). A
    disc's area shows how often the code is used for x (n, 3, 32, 32), its colour what it decodes to."""
    figure, axes = plt.subplots(1, len(models), figsize=(8, 4.2))
    for axis, (title, model) in zip(axes, models.items()):
        codes = F.pad(model.quantizer.codebook.detach().cpu(), (0, 1))  # (K, D + 1): two directions even if D = 1
        counts = torch.bincount(encode_all(model, x).flatten(), minlength=len(codes)).cpu()
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
    """All figures, as {file name without ending: figure}. others: {phase: (model, history, metrics)} of the runs beside
    the main one; codes_train (n, 64)."""
    model.eval()
    prior.eval()
    figures = {"loss": common.plot_losses(history, {
        "reconstruction": "MSE / variance", "commitment": "commitment term", "perplexity": "perplexity"}, "update")}
    without, history_without, _ = others["no_commitment"]
    figures["codebook"] = plot_codebooks({"with the commitment loss": model, "without": without}, x_test)
    figures["commitment"] = plot_runs({"with the commitment loss": history, "without": history_without})

    x = x_test[:20]
    x_hat = model(x)[0]
    figures["reconstructions"] = common.plot_images(torch.stack([x[:10], x_hat[:10], x[10:], x_hat[10:]]),
                                                    2 * ["image", "from its\n64 codes"])

    n, n_codes = 30, len(model.quantizer.codebook)
    frequencies = torch.bincount(codes_train.flatten(), minlength=n_codes).float()
    blocks = [prior.sample(n), torch.multinomial(frequencies, n * 64, replacement=True).reshape(n, 8, 8),
              torch.randint(n_codes, (n, 8, 8)).to(x.device)]
    images = [model.decode(model.quantizer.embed(index)).reshape(6, 5, 3, 32, 32) for index in blocks]
    gap = torch.ones(6, 1, 3, 32, 32, device=x.device)
    figures["samples"] = common.plot_images(
        torch.cat([images[0], gap, images[1], gap, images[2]], dim=1),
        column_labels=[{2: "codes written by the prior", 8: "drawn one by one, by frequency",
                        14: "drawn uniformly"}.get(column, "") for column in range(17)])
    if "base" in others:
        curves = {phase: history for phase, (_, history, _) in others.items()}
        figures["start"] = plot_runs({"from data, dead codes revived": curves["base"],
                                      "from N(0, I), left alone": curves["usual_start"]})
        figures["codebook_loss"] = plot_runs({"with the commitment loss": curves["codebook_loss"],
                                              "without": curves["codebook_loss_no_commitment"]})
    return figures


# %% 7. Run

def main(argv=None):
    """Trains, evaluates, draws and writes; returns the metrics. argv: a list of flags, None for sys.argv[1:]."""
    args = parse_args(argv)
    out_dir = args.out_dir / NAME
    if not args.show:
        matplotlib.use("Agg")  # draw to files only; needs no display
    try:
        x_train, x_test, dataset = common.load_cifar10(args.data_dir, args.device, download=not args.smoke)
    except common.DataError as error:
        parser.error(str(error))
    study_updates = STUDY_UPDATES
    if args.smoke:
        x_train, x_test = x_train[:512], x_test[:256]
        args.n_updates = study_updates = min(args.n_updates, 3)
    prior_updates = math.ceil(PRIOR_SHARE * args.n_updates)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    same = {key: value for key, value in settings.items() if key not in ("data_dir", "out_dir", "show", "resume")}
    saved = {"settings": {**same, "dataset": dataset}, "done": {}, "part": {}}
    if args.resume:
        saved = load_checkpoint(args, saved["settings"])
    variance = float(x_train.var())
    config = {"num_hiddens": args.hidden_dim, "num_residual_hiddens": 32, "num_residual_layers": 2,
              "num_embeddings": args.codebook_size, "embedding_dim": args.latent_dim,
              "commitment_cost": args.commitment_cost, "ema": not args.codebook_loss}
    # What is trained: {phase: (constructor arguments, updates)}
    phases = {"main": (config, args.n_updates), "no_commitment": ({**config, "commitment_cost": 0.0}, args.n_updates)}
    if args.study:
        variants = {"base": {}, "codebook_loss": {"ema": False},
                    "codebook_loss_no_commitment": {"ema": False, "commitment_cost": 0.0},
                    "usual_start": {"ema": True, "revive": False}}
        for name in ("num_hiddens", "num_residual_hiddens", "num_residual_layers"):
            for value in (max(1, config[name] // 2), 2 * config[name]):
                variants[f"{name}_{value}"] = {name: value}
        phases |= {phase: ({**config, **changes}, study_updates) for phase, changes in variants.items()}
    print_plan(phases, prior_updates, x_train[:args.batch_size])

    results = {}  # {phase: (model, history, what was measured)}
    for phase, (arguments, n_updates) in phases.items():
        model, history, seconds = train(phase, arguments, x_train, x_test, variance, n_updates, args, saved)
        test = evaluate(model, x_test, variance)
        results[phase] = model, history, {
            "n_updates": n_updates, "n_parameters": count_parameters(model), "multiply_adds": multiply_adds(model),
            "seconds": seconds, **{f"test_{key}": value for key, value in test.items()}}
    model, history, measured = results.pop("main")
    trained = evaluate(model, x_train, variance)
    codes_train, codes_test = encode_all(model, x_train), encode_all(model, x_test)
    prior, prior_history, seconds = train_prior(codes_train, codes_test, args.codebook_size, prior_updates, args, saved)
    metrics = {
        "script": NAME, "dataset": dataset, "n_train": len(x_train), "n_test": len(x_test), "seed": args.seed,
        "device": args.device, "bfloat16": has_bfloat16(torch.device(args.device).type), **measured,
        "train_loss": trained["loss"], "train_reconstruction": trained["reconstruction"],
        "prior": {"n_updates": prior_updates, "n_parameters": count_parameters(prior),
                  "seconds": seconds,
                  "train_bits_per_code": evaluate_prior(prior, codes_train)["loss"],
                  "test_bits_per_code": evaluate_prior(prior, codes_test)["loss"],
                  "code_entropy_bits": entropy_bits(torch.bincount(codes_test.flatten(), minlength=args.codebook_size)),
                  "uniform_bits": math.log2(args.codebook_size), "history": prior_history},
        "history": history,
        # The sizes need no curves, and metrics.json is long enough.
        **{phase: numbers if phase.startswith("num_") else {**numbers, "history": curves}
           for phase, (_, curves, numbers) in results.items()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "torchvision": torchvision.__version__, "numpy": np.__version__},
        "settings": settings,
    }
    torch.manual_seed(args.seed)  # the figures do not depend on how much the training has drawn
    figures = make_figures(model, prior, history, results, codes_train, x_test)
    summary = io.StringIO()
    with contextlib.redirect_stdout(summary):  # torchsummary prints; it knows no devices but cpu and cuda
        # In two parts, as it fails on layers that return several tensors, such as the quantizer.
        torchsummary.summary(model.cpu().encoder, (3, 32, 32), device="cpu")
        torchsummary.summary(model.decoder, (args.latent_dim, 8, 8), device="cpu")

    # Everything is ready: write it all, each file whole or not at all.
    for name, figure in figures.items():
        common.save_figure(figure, out_dir / f"{name}.png")
    with common.replacing(out_dir / "summary.txt") as path:
        Path(path).write_text(summary.getvalue())
    for name, net, arguments in (("model", model, config), ("prior", prior, {"num_embeddings": args.codebook_size})):
        with common.replacing(out_dir / f"{name}.pt") as path:
            torch.save({"config": arguments, "state_dict": net.state_dict()}, path)
    with common.replacing(out_dir / "metrics.json") as path:
        Path(path).write_text(json.dumps(metrics, indent=1) + "\n")
    (out_dir / "checkpoint.pt").unlink(missing_ok=True)  # nothing is left to resume

    for phase, (_, _, numbers) in results.items():
        print(f"{phase:27} {numbers['n_parameters']:9,} parameters {numbers['multiply_adds'] / 1e6:6.1f}M multiply-adds"
              f"   test error {numbers['test_reconstruction']:.4f}   perplexity {numbers['test_perplexity']:.0f}")
    print(f"wrote {os.path.join(out_dir, '')}")
    ok = {True: "ok", False: "missed"}
    print(f"test error {metrics['test_reconstruction']:.4f} <= 0.057: {ok[metrics['test_reconstruction'] <= 0.057]},   "
          f"perplexity {metrics['test_perplexity']:.0f} >= 420: {ok[metrics['test_perplexity'] >= 420]}")
    if args.show:
        plt.show()
    plt.close("all")
    return metrics


if __name__ == "__main__":
    try:
        main([] if "ipykernel" in sys.modules else None)  # in a notebook, sys.argv is the notebook's own
    except KeyboardInterrupt:
        parser.exit(130, f"\n{NAME}.py: stopped; --resume goes on from checkpoint.pt, once there is one\n")
