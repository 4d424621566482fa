# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "matplotlib>=3.8", "torchsummary>=1.5.1"]
# ///
"""VQ-VAE: photographs in 64 words out of 512, and new ones.

The encoder turns a 32 x 32 image into an 8 x 8 grid of vectors z. Each is replaced by its code e, the nearest of the K
vectors of a codebook, and the decoder sees only these. The latent space is thus discrete: an image is 64 whole numbers
below K. Encoder, codebook and decoder are learned together (sg is the stop-gradient, `.detach()`; MSE is the mean over
all numbers, var the variance of the training images):

    L  =  MSE(x_hat, x) / var      +   lambda MSE(z, sg(e))         +   gamma MSE(e, sg(z))
          reconstruction:              commitment: the encoder          codebook: the codes go to the encoder outputs.
          encoder and decoder          stays near the codes,            gamma = 1 with --codebook-loss; by default 0,
                                       lambda = 0.25                    and the codes follow by a moving average instead

"The nearest" has no useful gradient. The straight-through estimator copies the decoder's gradient at e to z, past the
quantizer. When all this is learned, a second network, a small causal transformer, learns which code
follows which. It takes the place of a VAE's prior N(0, I): the decoder turns codes that it samples into new images.

Run it:    python vqvae.py                the model, then the prior; about half an hour on a laptop
           python vqvae.py --no-prior     only the model
           python vqvae.py --smoke        every step in seconds, on a few hundred images
           python vqvae.py --resume       continue an interrupted run, with its flags (after the first 100 updates)
           python vqvae.py --reference    the settings of github.com/zalandoresearch/pytorch-vq-vae: hours on a CPU
           python vqvae.py --no-prior --commitment-cost 0 --out-dir runs/without    what happens without commitment
Writes:    runs/vqvae/: metrics.json, model.pt, loss.png, codebook.png, reconstructions.png; without --no-prior also
           prior.pt and samples.png; while it runs, checkpoint-model.pt and checkpoint-prior.pt
Report:    report.md#6-discrete-codes-vqvaepy-deliverable-6
Papers:    van den Oord, Vinyals and Kavukcuoglu, Neural Discrete Representation Learning, NeurIPS 2017,
           arXiv:1711.00937 (the loss is equation 3, the moving average is in appendix A.1).
           Bengio, Leonard and Courville, Estimating or Propagating Gradients Through Stochastic Neurons, 2013,
           arXiv:1308.3432 (the straight-through estimator).
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import torchsummary
from torch import nn

import common

LOG_EVERY = 100  # updates between two entries of the history, and between two checkpoints


# %% 1. Model

class VectorQuantizer(nn.Module):
    """Replaces each vector z by the nearest of K codes e (arXiv:1711.00937, equations 1 and 2).

    ema=True: the codes follow z by an exponential moving average (appendix A.1). ema=False: the codes are parameters,
        and learn by the codebook term of the loss.
    revive_until: up to this update, a code that is seldom the nearest becomes a random z of the present batch. At the
        first update that is nearly every code, so the codebook starts from data. With 0 it starts from N(0, I), as is
        usual, and most codes wait for thousands of updates (report/vqvae.md).
    """

    def __init__(self, num_embeddings=512, embedding_dim=64, decay=0.99, ema=True, revive_until=0):
        super().__init__()
        self.decay, self.ema, self.revive_until = decay, ema, revive_until
        self.codebook = nn.Parameter(torch.randn(num_embeddings, embedding_dim), requires_grad=not ema)  # (K, D)
        self.register_buffer("ema_count", torch.zeros(num_embeddings))  # N_i of the paper: how often a code is used
        # m_i of the paper: the sum of the z that use it. The notebook of --reference draws it anew, too.
        self.register_buffer("ema_sum", torch.randn(num_embeddings, embedding_dim))
        self.register_buffer("n_updates", torch.tensor(0))  # a buffer, so that a checkpoint has it

    def nearest(self, z):
        """z (V, D), V vectors -> index of the nearest code (V,)"""
        # ||z - e||^2 = ||z||^2 - 2 z.e + ||e||^2, and the first term is the same for all codes.
        return ((self.codebook**2).sum(1) - 2 * z @ self.codebook.T).argmin(dim=1)  # one index per z

    @torch.no_grad()
    def update(self, z, index):
        """Moves each code to the running mean of the z that use it (if ema), and revives the dead. z (V, D), index (V,)

            N_i <- decay N_i + (1 - decay) n_i      n_i of the batch's vectors use code i
            m_i <- decay m_i + (1 - decay) sum of these vectors,      e_i <- m_i / N_i
        """
        # index_add_ adds each vector to its code's row. The usual product with a one-hot matrix (V, K) does K times
        # the work, nearly all of it multiplications by 0.
        count = torch.zeros_like(self.ema_count).index_add_(0, index, torch.ones_like(z[:, 0]))  # n_i, (K,)
        total = torch.zeros_like(self.codebook).index_add_(0, index, z)  # (K, D)
        self.ema_count.lerp_(count, 1 - self.decay)
        self.ema_sum.lerp_(total, 1 - self.decay)
        # Laplace smoothing: every code gets a little of all counts, so that none is 0; their sum stays the same.
        n = self.ema_count.sum()
        self.ema_count.add_(1e-5).mul_(n / (n + len(self.codebook) * 1e-5))
        if self.ema:
            self.codebook.copy_(self.ema_sum / self.ema_count.unsqueeze(1))
        self.revive(z)

    def revive(self, z):
        """Each code that is used less than 0.4 times its fair share becomes one of z (V, D), another each if V >= K."""
        self.n_updates += 1
        order = torch.randperm(len(z), device=z.device)  # in any case: --no-revive sees the same batches
        if self.n_updates > self.revive_until:
            return
        share = len(z) / len(self.codebook)  # n_i if all codes were used alike
        dead = (self.ema_count < 0.4 * share).nonzero().squeeze(1)  # their numbers
        chosen = z[order[dead % len(z)]]  # another z each, if V >= K
        self.codebook[dead] = chosen
        # Just above the threshold: 0.48 * 0.99^19 < 0.4, so if no z uses it, it is revived again after 19 updates.
        self.ema_count[dead] = 0.48 * share
        self.ema_sum[dead] = 0.48 * share * chosen

    def forward(self, z):
        """z (N, D, h, w) -> e (N, D, h, w), the nearest codes, and their index (N, h, w)"""
        n, _, height, width = z.shape
        flat = z.permute(0, 2, 3, 1).flatten(0, 2)  # (N*h*w, D)
        index = self.nearest(flat.detach()).reshape(n, height, width)
        e = self.embed(index)  # the codes as they are before the update
        if self.training:
            self.update(flat.detach(), index.flatten())
        return e, index

    def embed(self, index):
        """index (N, h, w) -> e (N, D, h, w)"""
        return F.embedding(index, self.codebook).permute(0, 3, 1, 2)


class ResidualStack(nn.Module):
    """num_residual_layers times x + conv1x1(relu(conv3x3(relu(x)))), each with num_residual_hiddens channels inside:
    (N, num_hiddens, h, w) -> (N, num_hiddens, h, w)

    relu_skip=True adds relu(x) in place of x. The usual code does so, as its first ReLU works in place and changes x.
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

    num_hiddens: the channels of the 8 x 8 grids; those of 16 x 16 have half as many. data_variance: that of the
    training images, by which the loss divides. The rest: see VectorQuantizer and ResidualStack.
    """

    def __init__(self, num_hiddens=128, num_residual_hiddens=32, num_residual_layers=2, num_embeddings=512,
                 embedding_dim=64, commitment_cost=0.25, data_variance=1.0, decay=0.99, ema=True, revive_until=0,
                 relu_skip=False):
        super().__init__()
        self.commitment_cost, self.data_variance = commitment_cost, data_variance
        half = max(1, num_hiddens // 2)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, half, 4, stride=2, padding=1), nn.ReLU(),  # -> (N, half, 16, 16)
            nn.Conv2d(half, num_hiddens, 4, stride=2, padding=1), nn.ReLU(),  # -> (N, num_hiddens, 8, 8)
            nn.Conv2d(num_hiddens, num_hiddens, 3, padding=1),
            ResidualStack(num_hiddens, num_residual_hiddens, num_residual_layers, relu_skip),
            nn.Conv2d(num_hiddens, embedding_dim, 1))  # -> (N, D, 8, 8)
        self.quantizer = VectorQuantizer(num_embeddings, embedding_dim, decay, ema, revive_until)
        self.decoder = nn.Sequential(
            nn.Conv2d(embedding_dim, num_hiddens, 3, padding=1),
            ResidualStack(num_hiddens, num_residual_hiddens, num_residual_layers, relu_skip),
            nn.ConvTranspose2d(num_hiddens, half, 4, stride=2, padding=1), nn.ReLU(),  # -> (N, half, 16, 16)
            nn.ConvTranspose2d(half, 3, 4, stride=2, padding=1))  # -> (N, 3, 32, 32)

    def encode(self, x):
        """x (N, 3, 32, 32) -> z (N, D, 8, 8)"""
        return self.encoder(x - 0.5)

    def decode(self, e):
        """e (N, D, 8, 8) -> x_hat (N, 3, 32, 32)"""
        return self.decoder(e) + 0.5

    def forward(self, x):
        """x (N, 3, 32, 32) -> x_hat (N, 3, 32, 32), z and e (N, D, 8, 8), index (N, 8, 8)"""
        z = self.encode(x)
        e, index = self.quantizer(z)
        # Straight-through: in value this is e; for the gradient it is z, as what is detached is a constant.
        return self.decode(z + (e - z).detach()), z, e, index

    def loss_function(self, output, x):
        """What forward returned for x -> the loss and its terms, scalars: {loss, reconstruction, commitment, codebook}
        (arXiv:1711.00937, equation 3).

        reconstruction: about 1 if every pixel is the mean grey of all images, 0 if all are right.
        commitment, codebook: the same number; they differ in who learns from it.
        """
        x_hat, z, e, _ = output
        reconstruction = F.mse_loss(x_hat, x) / self.data_variance
        commitment = F.mse_loss(z, e.detach())  # moves the encoder, not the codes
        codebook = F.mse_loss(e, z.detach())  # moves the codes, not the encoder, with ema=False
        loss = reconstruction + self.commitment_cost * commitment
        if not self.quantizer.ema:
            loss = loss + codebook
        return {"loss": loss, "reconstruction": reconstruction, "commitment": commitment, "codebook": codebook}


class Prior(nn.Module):
    """A causal transformer over the 8 x 8 codes, read row by row: index (N, 64) -> logits (N, 64, K) of
    p(code t | the codes before t). Its input is shifted by one: place t sees a start symbol and the codes before t.

    codebook (K, D): the embedding of a code starts as a random projection of its vector, so that codes which are near
    each other start out alike. With None, embeddings start from random numbers.
    """

    def __init__(self, num_embeddings=512, length=64, width=128, n_layers=4, n_heads=4, codebook=None):
        super().__init__()
        self.token = nn.Embedding(num_embeddings + 1, width)  # the last one is the start symbol
        if codebook is not None:
            codes = (codebook - codebook.mean(0)) / codebook.std()
            # Divided so that the variance is about 1, as nn.Embedding's.
            self.token.weight.data[:-1] = codes @ torch.randn(codes.shape[1], width) / codes.shape[1] ** 0.5
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, n_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
                                           norm_first=True)
        self.layers = nn.TransformerEncoder(layer, n_layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, num_embeddings)
        # An "encoder" in PyTorch's words; this mask, -inf above the diagonal, makes it causal.
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, index):
        """index (N, n) -> logits (N, n, K), for n up to 64"""
        n = index.shape[1]
        start = torch.full_like(index[:, :1], self.token.num_embeddings - 1)
        h = self.token(torch.cat([start, index[:, :-1]], dim=1)) + self.place[:n]
        return self.head(self.layers(h, mask=self.mask[:n, :n], is_causal=True))

    def loss_function(self, logits, index):
        """Minus log2 p(code | the codes before it), the mean over the codes index (N, 64): bits per code"""
        return F.cross_entropy(logits.flatten(0, 1), index.flatten()) / math.log(2)

    @torch.no_grad()
    def sample(self, n):
        """The codes (n, 8, 8) of n new images, each drawn from its distribution given those before it."""
        index = torch.zeros(n, 0, dtype=torch.long, device=self.place.device)
        for _ in range(len(self.place)):
            # The 0 only makes room: place t never sees code t.
            logits = self(F.pad(index, (0, 1)))[:, -1]  # (n, K)
            index = torch.cat([index, torch.multinomial(logits.softmax(-1), 1)], dim=1)
        return index.reshape(n, 8, 8)


# %% 2. Training

def train(model, x_train, x_test, args):
    """Minimises the loss with Adam; returns the history: lists of `update`, `train_...` (the terms of the loss, means
    since the entry before) and `test_...` (what `evaluate` returns for the first 1,000 of x_test).

    Each entry is also a checkpoint. With args.resume the training goes on from there, on a CPU with the same numbers.
    """
    if args.reference:
        optimizer = torch.optim.Adam(model.parameters(), args.lr, fused=True)
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)  # does nothing
    else:
        # The second beta, 0.99, averages squared gradients over 100 updates. fused: one pass over the weights.
        optimizer = torch.optim.Adam(model.parameters(), args.lr, betas=(0.95, 0.99), fused=True)
        # One cycle: the learning rate climbs to its peak in the first 30 % of the updates and then falls to nearly 0.
        # The schedule also moves Adam's first beta, against the rate: from 0.95 to 0.85 and back.
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.n_updates)
    checkpoint = args.out_dir / "checkpoint-model.pt"
    entries = load_checkpoint(checkpoint, model, optimizer, scheduler, args)
    first = logged = entries[-1]["update"] if entries else 0
    last = min(args.stop_at or args.n_updates, args.n_updates)
    start = time.perf_counter()
    sums = {}
    for update in range(first + 1, last + 1):
        model.train()
        # Drawn with replacement, so the state of the random numbers is all that a resumed run needs to know.
        x = x_train[torch.randint(len(x_train), (args.batch_size,)).to(x_train.device)]  # (N, 3, 32, 32)
        output = model(x)  # also moves the codes: VectorQuantizer.update
        terms = model.loss_function(output, x)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        scheduler.step()
        for key, term in terms.items():
            sums[key] = sums.get(key, 0) + term.detach()
        if update % LOG_EVERY == 0 or update == last:
            entry = {"update": update}
            for key, total in sums.items():
                entry[f"train_{key}"] = float(total) / (update - logged)
            for key, value in evaluate(model, x_test[:1000]).items():
                entry[f"test_{key}"] = value
            if not math.isfinite(entry["train_loss"] + entry["test_loss"]):
                sys.exit("error: the loss is no longer finite: try a smaller --lr")
            pace = (time.perf_counter() - start) / (update - first)
            print(f"update {update:5d}/{last}   reconstruction {entry['train_reconstruction']:.4f}   "
                  f"test {entry['test_reconstruction']:.4f}   commitment {entry['train_commitment']:.4f}   "
                  f"{1000 * pace:.0f} ms   eta {pace * (last - update):.0f} s", flush=True)
            entries.append(entry)
            save_checkpoint(checkpoint, model, optimizer, entries, args)
            (args.out_dir / "checkpoint-prior.pt").unlink(missing_ok=True)  # it has learned the codes of another model
            logged = update
            sums = {}
    return {key: [entry[key] for entry in entries] for key in entries[0]}


def train_prior(prior, codes_train, codes_test, args):
    """Minimises the bits per code with Adam, in 0.4 times as many updates as the model has, of 32 images each; returns
    the history as `train` does. codes_train, codes_test (n, 64)."""
    last = math.ceil(0.4 * args.n_updates)
    optimizer = torch.optim.Adam(prior.parameters(), lr=2e-3, betas=(0.95, 0.99), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=last)
    checkpoint = args.out_dir / "checkpoint-prior.pt"
    entries = load_checkpoint(checkpoint, prior, optimizer, scheduler, args)
    first = logged = entries[-1]["update"] if entries else 0
    start = time.perf_counter()
    total = 0
    for update in range(first + 1, last + 1):
        prior.train()
        codes = codes_train[torch.randint(len(codes_train), (32,)).to(codes_train.device)]  # (32, 64)
        loss = prior.loss_function(prior(codes), codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        total += loss.detach()
        if update % LOG_EVERY == 0 or update == last:
            entry = {"update": update, "train_loss": float(total) / (update - logged),
                     "test_loss": evaluate_prior(prior, codes_test[:1000])}
            if not math.isfinite(entry["train_loss"] + entry["test_loss"]):
                sys.exit("error: the prior's loss is no longer finite: --resume --no-prior leaves it out")
            pace = (time.perf_counter() - start) / (update - first)
            print(f"update {update:5d}/{last}   bits per code {entry['train_loss']:.3f}   test {entry['test_loss']:.3f}"
                  f"   {1000 * pace:.0f} ms   eta {pace * (last - update):.0f} s", flush=True)
            entries.append(entry)
            save_checkpoint(checkpoint, prior, optimizer, entries, args)
            logged = update
            total = 0
    return {key: [entry[key] for entry in entries] for key in entries[0]}


def save_checkpoint(path, model, optimizer, entries, args):
    """Everything that --resume needs, the flags and the state of the random numbers included."""
    half_written = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(),
                "entries": entries, "flags": json.dumps(vars(args), default=str)}, half_written)
    half_written.replace(path)  # whole or not at all


def load_checkpoint(path, model, optimizer, scheduler, args):
    """With args.resume puts a checkpoint's state into model, optimizer and scheduler; returns the history's entries so
    far: [] without a checkpoint."""
    if not (args.resume and path.exists()):
        return []
    saved = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(saved["model"])
    # Only Adam's averages of the gradients: its learning rate follows from args.lr and the number of updates alone.
    optimizer.load_state_dict({**saved["optimizer"], "param_groups": optimizer.state_dict()["param_groups"]})
    done = saved["entries"][-1]["update"]
    scheduler.load_state_dict({"last_epoch": done - 1, "_step_count": done + 1})
    scheduler.step()  # sets the rate of the next update
    torch.set_rng_state(saved["rng"])
    return saved["entries"]


# %% 3. Evaluation

@torch.no_grad()
def evaluate(model, x):
    """Over all of x (n, 3, 32, 32): the loss and its terms; psnr_db; quantization_error, ||z - e||^2 / ||z||^2;
    perplexity and codes_used; z_range, the least and the greatest number in z; z_norm and code_norm, the 1st, 50th and
    99th percentile of the norms of z and of all codes."""
    model.eval()
    sums = {}
    norms, indices, extremes = [], [], []
    for batch in x.split(256):
        output = model(batch)
        x_hat, z, e, index = output
        terms = model.loss_function(output, batch)
        # Peak signal-to-noise ratio: 10 log10(1 / MSE) of each image. 10 dB more is a tenth of the squared error.
        terms["psnr_db"] = -10 * torch.log10(((x_hat - batch) ** 2).flatten(1).mean(1)).mean()
        terms["quantization_error"] = ((z - e) ** 2).sum() / (z**2).sum()
        for key, value in terms.items():
            sums[key] = sums.get(key, 0) + value * len(batch)
        norms.append(z.norm(dim=1).flatten())
        indices.append(index)
        extremes += [z.min(), z.max()]
    codebook = model.quantizer.codebook.cpu()
    counts = torch.bincount(torch.cat(indices).flatten(), minlength=len(codebook))
    percentiles = torch.tensor([0.01, 0.5, 0.99])
    results = {key: float(value) / len(x) for key, value in sums.items()}
    results["perplexity"] = 2 ** entropy_bits(counts)
    results["codes_used"] = int((counts > 0).sum())
    results["z_range"] = [float(min(extremes)), float(max(extremes))]
    results["z_norm"] = torch.quantile(torch.cat(norms).cpu(), percentiles).tolist()
    results["code_norm"] = torch.quantile(codebook.norm(dim=1), percentiles).tolist()
    return results


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
    """Bits per code, the mean over all of index (n, 64)."""
    prior.eval()
    total = sum(prior.loss_function(prior(batch), batch) * len(batch) for batch in index.split(500))
    return float(total) / len(index)


# %% 4. Figures

@torch.no_grad()
def colors_of_codes(model):
    """The colour that each code decodes to, (K, 3): the middle of an image of nothing but this code, on average."""
    index = torch.arange(len(model.quantizer.codebook), device=model.quantizer.codebook.device)
    images = model.decode(model.quantizer.embed(index.reshape(-1, 1, 1).expand(-1, 8, 8)))  # (K, 3, 32, 32)
    return images[:, :, 12:20, 12:20].mean((2, 3)).clamp(0, 1)


@torch.no_grad()
def plot_codebook(axis, model, x):
    """The codes, projected on the two directions in which they vary most (PCA). A disc's area shows how often the code
    is used for x (n, 3, 32, 32), its colour what it decodes to. Returns the projection: codes (K, D) -> (K, 2)."""
    codes = model.quantizer.codebook.detach().cpu()  # (K, D)
    counts = torch.bincount(encode_all(model, x).flatten().cpu(), minlength=len(codes))  # (K,)
    centered = F.pad(codes - codes.mean(0), (0, 1))  # (K, D + 1): two directions even if D = 1
    _, s, v = torch.linalg.svd(centered, full_matrices=False)
    share = 100 * s**2 / (s**2).sum()
    axis.scatter(*(centered @ v[:2].T).T, s=4 + 200 * counts / counts.max(),
                 c=colors_of_codes(model).cpu().numpy(), edgecolors="black", linewidths=0.3)
    axis.set(xlabel=f"component 1, {share[0]:.0f} % of the variance", ylabel=f"component 2, {share[1]:.0f} %")
    axis.ticklabel_format(scilimits=(-3, 3))
    return lambda others: F.pad(others - codes.mean(0), (0, 1)) @ v[:2].T


@torch.no_grad()
def make_figures(model, history, prior, codes_train, x_test):
    """All figures, as {file name without ending: figure}. prior: None with --no-prior; codes_train (n, 64)."""
    model.eval()
    figures = {"loss": common.plot_losses(history, {
        "reconstruction": "MSE / variance", "commitment": "commitment term", "perplexity": "perplexity"}, "update")}

    figure, axis = plt.subplots(figsize=(6, 4.2))
    plot_codebook(axis, model, x_test)
    figures["codebook"] = figure

    x = x_test[:20]
    x_hat, _, _, index = model(x)
    codes = F.interpolate(colors_of_codes(model)[index].permute(0, 3, 1, 2), scale_factor=4)  # (20, 3, 32, 32)
    figures["reconstructions"] = common.plot_images(
        torch.stack([x[:10], codes[:10], x_hat[:10], x[10:], codes[10:], x_hat[10:]]),
        2 * ["image", "its 64\ncodes", "decoded"])

    if prior is not None:
        prior.eval()
        frequencies = torch.bincount(codes_train.flatten(), minlength=len(model.quantizer.codebook)).float()
        independent = torch.multinomial(frequencies, 10 * 64, replacement=True).reshape(10, 8, 8)
        # The last row is what the decoder makes of the right codes: its blur is the decoder's, not the prior's.
        index = torch.cat([prior.sample(40), independent, index[:10]])
        figures["samples"] = common.plot_images(
            model.decode(model.quantizer.embed(index)).reshape(6, 10, 3, 32, 32),
            [*4 * ["written by\nthe prior"], "drawn inde-\npendently", "codes of\ntest images"])
    return figures


# %% 5. Run

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
# Chosen on held-out images: 8,000 updates of 64 took 1.5 to 1.8 times as long, for 0.0539 in place of 0.0546.
parser.add_argument("--n-updates", type=int, default=10000, help="number of updates")
parser.add_argument("--batch-size", type=int, default=32, help="images per update, N")
# The usual rate is a constant 1e-3. The one-cycle schedule climbs to twice that; a peak of 1e-3 did slightly worse.
parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of Adam")
# Widths, K, D and lambda are those that the usual implementations have.
parser.add_argument("--hidden-dim", type=int, default=128, help="channels of both networks, num_hiddens")
parser.add_argument("--latent-dim", type=int, default=64, help="size of a code, D")
parser.add_argument("--num-residual-hiddens", type=int, default=32, help="channels inside the residual blocks")
parser.add_argument("--num-residual-layers", type=int, default=2, help="residual blocks in encoder and in decoder")
parser.add_argument("--codebook-size", type=int, default=512, help="number of codes, K")
parser.add_argument("--commitment-cost", type=float, default=0.25, help="lambda")
parser.add_argument("--codebook-loss", action="store_true", help="learn the codes by their loss, not by the average")
parser.add_argument("--decay", type=float, default=0.99, help="of the codes' moving average")
parser.add_argument("--no-revive", action="store_true", help="codes start from N(0, I), and none is revived")
parser.add_argument("--stop-at", type=int, help="end the training after this update, before the schedule does")
parser.add_argument("--no-prior", action="store_true", help="train only the model")
parser.add_argument("--reference", action="store_true", help="the settings of the usual notebook")
parser.add_argument("--resume", action="store_true", help="continue an interrupted run, with its flags")
parser.add_argument("--seed", type=int, default=0, help="same seed, CPU and threads: same numbers")
parser.add_argument("--device", default=common.DEVICE, choices=sorted({"cpu", common.DEVICE}), help="where to compute")
parser.add_argument("--data-dir", type=Path, help="folder that holds CIFAR-10; None is data/ beside the script")
parser.add_argument("--out-dir", type=Path, default=Path("runs"), help="results go to OUT_DIR/vqvae/")
parser.add_argument("--show", action="store_true", help="open the figures in windows as well")
parser.add_argument("--smoke", action="store_true", help="every step in seconds, on a few hundred images")
parser.add_argument("--validation", action="store_true", help="measure on 5,000 held-out training images")
# The defaults with --reference. It also means relu_skip, and Adam with a constant rate and its usual betas.
NOTEBOOK = {"n_updates": 15000, "batch_size": 256, "lr": 1e-3, "no_revive": True}


def main(argv=None):
    """Trains, evaluates, draws and writes; returns the model, the prior (None with --no-prior) and the metrics."""
    argv = common.flags(argv)
    args = parser.parse_args(argv)
    out_dir = args.out_dir / ("smoke/vqvae" if args.smoke else "vqvae")  # a smoke run never touches a real one
    out_dir.mkdir(parents=True, exist_ok=True)  # fails now, not after the training
    checkpoint = out_dir / "checkpoint-model.pt"
    if checkpoint.exists() and not args.resume:
        parser.error(f"{checkpoint} is an unfinished run: --resume continues it; delete it to start anew")
    defaults = NOTEBOOK if args.reference else {}
    if args.resume:
        defaults = json.loads(torch.load(checkpoint, map_location="cpu", weights_only=True)["flags"])
    args = parser.parse_args(argv, argparse.Namespace(**defaults))  # a flag that is given wins over these
    args.out_dir = out_dir
    if not all(value > 0 for value in (args.n_updates, args.batch_size, args.lr, args.hidden_dim, args.latent_dim,
                                       args.num_residual_hiddens, args.num_residual_layers, args.codebook_size - 1,
                                       1 if args.stop_at is None else args.stop_at)):
        parser.error("--n-updates, --stop-at, --batch-size, --lr and sizes must be positive, --codebook-size above 1")
    if not (0 <= args.decay < 1 and 0 <= args.commitment_cost < math.inf):
        parser.error("--decay must be below 1, neither it nor --commitment-cost negative")
    x_train, x_test, args.dataset = common.load_cifar10(args.data_dir, args.device, args.validation,
                                                        download=not args.smoke)
    if args.smoke:
        x_train, x_test = x_train[:512], x_test[:256]
        args.n_updates = min(args.n_updates, 3)

    config = {"num_hiddens": args.hidden_dim, "num_residual_hiddens": args.num_residual_hiddens,
              "num_residual_layers": args.num_residual_layers, "num_embeddings": args.codebook_size,
              "embedding_dim": args.latent_dim, "commitment_cost": args.commitment_cost,
              "data_variance": float(x_train.var()), "decay": args.decay, "ema": not args.codebook_loss,
              # Not in the schedule's last tenth: a code that was just revived is a single z, and no mean of many.
              "revive_until": 0 if args.no_revive else args.n_updates * 9 // 10, "relu_skip": args.reference}
    layers = VQVAE(**config)  # torchsummary fails on layers that return several tensors, such as the quantizer
    torchsummary.summary(layers.encoder, (3, 32, 32), device="cpu")
    torchsummary.summary(layers.decoder, (args.latent_dim, 8, 8), device="cpu")

    torch.manual_seed(args.seed)
    model = VQVAE(**config).to(args.device)
    history = train(model, x_train, x_test, args)
    for name in ("prior.pt", "samples.png", "metrics.json"):  # what an earlier run may have left beside model.pt
        (out_dir / name).unlink(missing_ok=True)
    torch.save({"config": config, "state_dict": model.cpu().state_dict()}, out_dir / "model.pt")  # the rest may fail
    model.to(args.device)
    print("measuring the errors on all images")
    codes_train = encode_all(model, x_train)
    codes_test = encode_all(model, x_test)
    train_metrics = evaluate(model, x_train)
    metrics = {
        "settings": vars(args),
        "dataset": args.dataset,
        "n_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "data_variance": config["data_variance"],
        "train_loss": train_metrics["loss"],
        "train_reconstruction": train_metrics["reconstruction"],
        **{f"test_{key}": value for key, value in evaluate(model, x_test).items()},
        "history": history,
    }
    prior = None
    if not args.no_prior:
        print("the prior: a transformer that learns which code follows which")
        torch.manual_seed(args.seed)
        prior = Prior(args.codebook_size, codebook=model.quantizer.codebook.detach().cpu()).to(args.device)
        history_prior = train_prior(prior, codes_train, codes_test, args)
        torch.save({"config": {"num_embeddings": args.codebook_size}, "state_dict": prior.cpu().state_dict()},
                   out_dir / "prior.pt")
        prior.to(args.device)
        print("measuring the bits per code of all images")
        metrics["prior"] = {
            "n_parameters": sum(p.numel() for p in prior.parameters()),
            "n_updates": history_prior["update"][-1],
            "train_bits_per_code": evaluate_prior(prior, codes_train),
            "test_bits_per_code": evaluate_prior(prior, codes_test),
            "code_entropy_bits": entropy_bits(torch.bincount(codes_test.flatten(), minlength=args.codebook_size)),
            "uniform_bits": math.log2(args.codebook_size),
            "history": history_prior,
        }
    torch.manual_seed(args.seed)  # the figures do not depend on how much the training has drawn
    figures = make_figures(model, history, prior, codes_train, x_test)

    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=1, default=str))
    common.save_figures(figures, out_dir, args.show)
    for name in ("checkpoint-model.pt", "checkpoint-prior.pt"):  # nothing is left to resume
        (out_dir / name).unlink(missing_ok=True)
    print(f"wrote {out_dir}/: {', '.join(sorted(path.name for path in out_dir.iterdir()))}")
    print(f"test error {metrics['test_reconstruction']:.4f}, perplexity {metrics['test_perplexity']:.0f}")
    if prior is not None:
        print(f"the prior needs {metrics['prior']['test_bits_per_code']:.2f} bits per code")
    return model, prior, metrics


if __name__ == "__main__":
    model, prior, metrics = main()
