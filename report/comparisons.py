"""The figures that several runs make together, and what needs saved weights: python report/comparisons.py

After report/reproduce.py. Figures of curves come from runs.json; the others need the weights in runs/report/ and are
skipped where these are not there. What is measured here is added to runs.json.
"""

import math
import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

REPORT = Path(__file__).resolve().parent
sys.path[:0] = [str(REPORT.parent), str(REPORT)]

import common
import cvae
import vae
import vqvae
from reproduce import read_runs, write_runs

WEIGHTS = REPORT.parent / "runs" / "report"


def column(script, run, key):
    """One number of each seed, the seeds in order: np.array."""
    seeds = read_runs(script)[run]["seeds"]
    return np.array([seeds[seed][key] for seed in sorted(seeds, key=int)])


def histories(runs):
    """Of each seed. runs: one name in runs.json or several, with spaces between them."""
    seeds = [item for run in runs.split() for item in sorted(read_runs("vqvae")[run]["seeds"].items())]
    return [metrics["history"] for _, metrics in seeds]


def load(script, run, seed, model_class, name="model"):
    saved = torch.load(WEIGHTS / f"{script}:{run}:{seed}" / script / f"{name}.pt", weights_only=True)
    model = model_class(**saved["config"])
    model.load_state_dict(saved["state_dict"])
    return model.eval()


# %% Sections 1 to 5

def ae_sweep():
    figure, axis = plt.subplots(figsize=(8, 3.6))
    sizes = (1, 2, 4, 8, 16, 32)
    for key, style, color, label in (("pca_test_loss", "s--", common.ORANGE, "PCA"),
                                     ("test_loss", "o-", common.BLUE, "autoencoder, mean of three seeds")):
        values = [column("ae", "main" if z == 2 else f"latent-{z}", key)[:3].mean() for z in sizes]
        axis.plot(sizes, values, style, color=color, label=label)
    axis.set_xscale("log")
    axis.set_xticks(sizes, sizes)
    axis.set_xticks((), minor=True)
    axis.set(xlabel="latent size, Z", ylabel="test MSE per pixel", ylim=(0, None))
    axis.legend()
    return figure


def denoise_sweep():
    figure, axis = plt.subplots(figsize=(8, 3.2))
    runs = ["latent-2", "latent-6", "latent-12", "main"]
    sizes = [int(column("denoise_ae", run, "bottleneck_size")[0]) for run in runs]
    values = [column("denoise_ae", run, "test_loss")[:3].mean() for run in runs]
    axis.plot(sizes, values, "o-", color=common.BLUE, label="DenoiseAE, mean of three seeds")
    axis.axhline(column("denoise_ae", "main", "gaussian_filter_test_loss")[0], color=common.ORANGE, linestyle="--",
                 label="Gaussian filter")
    axis.set_xticks(sizes, sizes)
    axis.set(xlabel="numbers in the bottleneck", ylabel="test MSE per pixel", ylim=(0, None))
    axis.legend(loc="center right")
    return figure


BETAS = {"0": "beta-0", "0.1": "beta-0.1", "0.3": "beta-0.3", "1": "main", "3": "beta-3", "10": "beta-10"}


def rate_distortion():
    figure, axis = plt.subplots(figsize=(8, 3.6))
    kl, bce = ([column("vae", run, key)[:3].mean() for run in BETAS.values()] for key in ("test_kl", "test_bce"))
    axis.plot(kl, bce, "o-", color=common.BLUE)
    for beta, x, y in zip(BETAS, kl, bce):
        axis.annotate(rf"$\beta$ = {beta}", (x, y), (7, 4), textcoords="offset points")
    axis.set(xlabel="rate: KL, nats per test image", ylabel="distortion: BCE, nats", xscale="log", xlim=(3, 300))
    axis.set_xticks((5, 10, 20, 50, 100, 200), (5, 10, 20, 50, 100, 200))
    axis.set_xticks((), minor=True)
    return figure


@torch.no_grad()
def beta_samples():
    x_test = common.load_mnist()[2]
    torch.manual_seed(0)
    models = {beta: load("vae", run, 0, vae.myVAE) for beta, run in BETAS.items()}
    z = torch.randn(12, models["1"].latent_dim)  # the same for all rows
    rows = {rf"$\beta$ = {beta}": model.decode(z) for beta, model in models.items()}
    mu, _ = models["0"].encode(x_test)
    spread = torch.linalg.cholesky(torch.cov(mu.T) + 1e-6 * torch.eye(len(mu.T)))
    rows = {"$\\beta$ = 0, fitted\nGaussian": models["0"].decode(mu.mean(0) + z @ spread.T), **rows}
    return common.plot_images(torch.stack(list(rows.values())), list(rows))


def vae_plane():
    """Not drawn here: the figures of a run with --latent-dim 2."""
    for name in ("latent_space", "latent_space_images"):
        shutil.copy(WEIGHTS / "vae:plane:0" / "vae" / f"{name}.png", REPORT / "vae")


@torch.no_grad()
def binarized_nll():
    """-log p(x) of the first 1,000 binarized test images with 5,000 samples each, as Burda et al. measure it, and with
    100 as for all of them."""
    x_test = torch.bernoulli(common.load_mnist()[2], generator=torch.Generator().manual_seed(0))[:1000]
    runs = read_runs("vae")
    for seed, metrics in runs["binarized"]["seeds"].items():
        for n_samples in (100, 5000):
            if f"first_1000_nll_{n_samples}_nats" not in metrics:
                torch.manual_seed(0)
                nll = vae.importance_weighted_nll(load("vae", "binarized", seed, vae.myVAE), x_test, n_samples)
                metrics[f"first_1000_nll_{n_samples}_nats"] = round(nll, 4)
                write_runs("vae", runs)  # a seed takes minutes


@torch.no_grad()
def handwritings():
    """Ten digits in four handwritings: the first four z that cvae.py's own figure has."""
    torch.manual_seed(0)
    model = load("cvae", "main", 0, cvae.myVAE)
    z = torch.randn(8, model.latent_dim)[:4].repeat_interleave(10, dim=0)
    return common.plot_images(model.decode(z, cvae.one_hot(torch.arange(10).repeat(4))).reshape(4, 10, 1, 28, 28))


def best_of_k():
    figure, axis = plt.subplots(figsize=(8, 3.8))
    for quadrants, color in ((1, common.BLUE), (2, common.RED), (3, common.GREEN)):
        run = "main" if quadrants == 1 else f"quadrants-{quadrants}"
        for name, label, style in ((run, "N(0, I)", "-"), (f"learned-prior-{quadrants}", "learned prior", ":")):
            if name in read_runs("cvae_structured"):
                best = column("cvae_structured", name, "best_of_k_mse").mean(0)
                axis.plot(range(1, len(best) + 1), best, style, color=color, label=f"{quadrants} visible: {label}")
        axis.axhline(column("cvae_structured", run, "baseline_mse").mean(), color=color, linestyle="--", linewidth=1,
                     label=f"{quadrants} visible: BaselineNN")
    axis.set_xscale("log")
    axis.set_xticks((1, 2, 5, 10, 20, 50, 100), (1, 2, 5, 10, 20, 50, 100))
    axis.set_xticks((), minor=True)
    axis.set(xlabel="k: the best of so many samples", ylabel="MSE per unseen pixel", ylim=(0, None))
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    return figure


# %% Section 6 and report/vqvae.md

PANELS = {"train_reconstruction": "MSE / variance, training", "test_perplexity": "perplexity",
          "test_z_norm": "norm of encoder outputs z", "test_code_norm": "norm of codes e",
          "test_quantization_error": r"$\|z - e\|^2$ / $\|z\|^2$", "test_codes_used": "codes in use"}


def plot_runs(runs, panels=tuple(PANELS), until=math.inf):
    """Runs {label: name in runs.json} against each other, all seeds: the first thick and with a band from the 1st to
    the 99th percentile where norms are shown, whose lines are medians. Numbers at the lines' ends are seeds."""
    rows = math.ceil(len(panels) / 2)
    figure, axes = plt.subplots(rows, 2, figsize=(8, 0.6 + 2.4 * rows), sharex=True)
    for (label, run), color, style in zip(runs.items(), (common.BLUE, common.RED), ("-", "--")):
        for i, history in enumerate(histories(run)):
            shown = sum(update <= until for update in history["update"])
            updates = history["update"][:shown]
            for axis, key in zip(axes.flat, panels):
                values = np.maximum(np.array(history[key][:shown]), 1e-3)
                if values.ndim == 2:
                    if i == 0:
                        axis.fill_between(updates, values[:, 0], values[:, 2], color=color, alpha=0.2, linewidth=0)
                    values = values[:, 1]
                axis.plot(updates, values, style, color=color, linewidth=1.6 if i == 0 else 0.8,
                          label=label if i == 0 else None)
                if "lambda-0" in run and key == "test_z_norm":  # which seed it is
                    axis.annotate(str(i), (updates[-1], values[-1]), (4, 0),
                                  textcoords="offset points", va="center", fontsize=8, color=color)
                axis.set(ylabel=PANELS[key],
                         yscale="linear" if key in ("test_perplexity", "test_codes_used") else "log")
    for axis, key in zip(axes.flat, panels):
        if key == "train_reconstruction" and axis.get_ylim()[1] > 3:
            axis.set_ylim(top=3)  # a single leap would flatten everything else
    for axis in axes.flat[-2:]:
        axis.set_xlabel("update")
        axis.locator_params(axis="x", nbins=5)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def recipes():
    """The test error of four recipes against the images seen, and against the updates."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True)
    for run, batch_size, label, color, style in (
            ("main", 32, "ours", common.BLUE, "-"),
            ("small-notebook-revive", 32, "the notebook's, codes from data and revived, batches of 32", common.GREEN, "-."),
            ("small-notebook", 32, "the notebook's, batches of 32", common.ORANGE, ":"),
            ("notebook", 256, "the notebook's, batches of 256", common.RED, "--")):
        for i, history in enumerate(histories(run)):
            for axis, x in zip(axes, (np.array(history["update"]) * batch_size, history["update"])):
                axis.plot(x, history["test_reconstruction"], style, color=color, linewidth=1.6 if i == 0 else 0.8,
                          label=label if i == 0 else None)
    axes[0].set(xlabel="images seen", ylabel="MSE / variance, test", xscale="log", yscale="log")
    axes[1].set(xlabel="updates", xscale="log")
    for axis in axes:
        axis.set_yticks((0.06, 0.1, 0.2, 0.5, 1), (0.06, 0.1, 0.2, 0.5, 1))
        axis.set_yticks((), minor=True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def codebooks(run, run_without):
    """Both codebooks after equally many updates."""
    models = {"with": load("vqvae", run, 0, vqvae.VQVAE), "without": load("vqvae", run_without, 0, vqvae.VQVAE)}
    updates = [histories(name)[0]["update"][-1] for name in (run, run_without)]
    assert updates[0] == updates[1], f"{run}, {run_without}: {updates} updates"
    return vqvae.plot_codebooks({rf"$\lambda$ = {model.commitment_cost:g}, {updates[0]:,} updates": model
                                 for model in models.values()}, common.load_cifar10()[1])


def more_numbers_of_the_vqvae():
    """How fast z grows: the slope of log2 of its median norm over all entries up to update 2,000, as updates for a
    doubling. How long it is at the end: that norm times sqrt(lambda). Bits per dimension: the prior's bits for the codes,
    and a Gaussian of variance MSE for the pixels, whose values are whole numbers from 0 to 255."""
    runs = read_runs("vqvae")
    for run, entry in runs.items():
        for metrics in entry["seeds"].values():
            history = metrics["history"]
            points = [(update, math.log2(norm[1])) for update, norm in zip(history["update"], history["test_z_norm"])
                      if update <= 2000]
            if f"{run}-".startswith("lambda-0-"):
                metrics["doubling_updates"] = float(f"{1 / np.polyfit(*np.transpose(points), 1)[0]:.6g}")
            if run in ("main", "lambda-0.05", "lambda-1", "lambda-2"):
                norm = history["test_z_norm"][-1][1] * metrics["settings"]["commitment_cost"] ** 0.5
                metrics["norm_sqrt_lambda"] = float(f"{norm:.6g}")
            if "prior" in metrics and "data_variance" in metrics:
                codes = 64 * metrics["prior"]["test_bits_per_code"] / 3072
                mse = 255**2 * metrics["test_reconstruction"] * metrics["data_variance"]
                pixels = 0.5 * math.log2(2 * math.pi * math.e * mse)
                metrics["bits_per_dimension"] = {key: round(value, 4) for key, value in (
                    ("codes", codes), ("pixels", pixels), ("all", codes + pixels))}
    write_runs("vqvae", runs)


def no_gradient():
    """Which share of the z of 1,000 test images gets a gradient of exactly 0 from the reconstruction error."""
    runs, x_test = read_runs("vqvae"), common.load_cifar10()[1][:1000]
    for run in ("main", "lambda-0", "notebook", "notebook-lambda-0", "notebook-lambda-0-stopped"):
        for seed, metrics in runs[run]["seeds"].items():
            if (WEIGHTS / f"vqvae:{run}:{seed}").exists() and "no_gradient" not in metrics:
                model = load("vqvae", run, seed, vqvae.VQVAE)
                e = model.quantizer(model.encode(x_test))[0].detach().requires_grad_()
                F.mse_loss(model.decode(e), x_test, reduction="sum").backward()  # straight-through: z gets what e gets
                metrics["no_gradient"] = float(f"{(e.grad == 0).all(dim=1).float().mean():.6g}")
    write_runs("vqvae", runs)


@torch.no_grad()
def prior_by_counting():
    """What p(code | left) and p(code | left, upper) need, in bits per code: counts of the training images, smoothed by
    a little of what the shorter context says. The strength of the smoothing is the best on the last tenth of them."""
    runs, (x_train, x_test, _) = read_runs("vqvae"), common.load_cifar10()
    for seed, metrics in runs["main"]["seeds"].items():
        if "prior_by_counting" in metrics:
            continue
        model = load("vqvae", "main", seed, vqvae.VQVAE)
        train, test = (vqvae.encode_all(model, x).reshape(-1, 8, 8) for x in (x_train, x_test))
        k = metrics["settings"]["codebook_size"]

        def contexts(codes):  # (n, 8, 8) -> code, left, upper (n * 64,); K where there is none
            padded = F.pad(codes, (1, 0, 1, 0), value=k)
            return codes.flatten(), padded[:, 1:, :-1].flatten(), padded[:, :-1, 1:].flatten()

        def bits(known, asked, strengths):
            (code, left, upper), (code_, left_, upper_) = contexts(known), contexts(asked)
            p = torch.bincount(code, minlength=k)[code_].double() / len(code)
            results = []
            for context, context_, strength in ((left, left_, strengths[0]),
                                                (left * (k + 1) + upper, left_ * (k + 1) + upper_, strengths[1])):
                pairs, counts = (context * k + code).unique(return_counts=True)
                at = torch.searchsorted(pairs, context_ * k + code_).clamp(max=len(pairs) - 1)
                n = counts[at] * (pairs[at] == context_ * k + code_)
                total = torch.bincount(context, minlength=(k + 1) ** 2)[context_]
                p = (n + strength * p) / (total + strength)
                results.append(float(-torch.log2(p).mean()))
            return results

        split = len(train) * 9 // 10
        tried = (10, 30, 100, 300, 1000)
        best_left = min(tried, key=lambda s: bits(train[:split], train[split:], (s, 1))[0])
        best = min(tried, key=lambda s: bits(train[:split], train[split:], (best_left, s))[1])
        metrics["prior_by_counting"] = dict(zip(("left", "left_and_upper"), bits(train, test, (best_left, best))))
    write_runs("vqvae", runs)


@torch.no_grad()
def nearest_images():
    """Ten images that the prior writes, above the training images that are nearest in their pixels."""
    torch.manual_seed(0)
    x_train = common.load_cifar10()[0]
    model, prior = load("vqvae", "main", 0, vqvae.VQVAE), load("vqvae", "main", 0, vqvae.Prior, "prior")
    samples = model.decode(model.quantizer.embed(prior.sample(10))).clamp(0, 1)
    index = torch.cdist(samples.flatten(1), x_train.flatten(1)).argmin(1)
    return common.plot_images(torch.stack([samples, x_train[index]]),
                              ["written by\nthe prior", "nearest\ntraining image"])


FIGURES = {
    "ae/sweep": ae_sweep, "denoise_ae/sweep": denoise_sweep, "vae/rate_distortion": rate_distortion,
    "vae/beta": beta_samples, "cvae/handwritings": handwritings,
    "cvae_structured/best_of_k": best_of_k,
    "vqvae/commitment": lambda: plot_runs({r"$\lambda$ = 0.25": "main", r"$\lambda$ = 0": "lambda-0"},
                                          ("train_reconstruction", "test_z_norm")),
    "vqvae/commitment_all": lambda: plot_runs({r"$\lambda$ = 0.25": "main", r"$\lambda$ = 0": "lambda-0"}),
    "vqvae/codebook": lambda: codebooks("main", "lambda-0"),
    "vqvae/notebook_loss": lambda: plot_runs({r"$\lambda$ = 0.25": "notebook",
                                              r"$\lambda$ = 0": "notebook-lambda-0 notebook-lambda-0-stopped"},
                                             ("train_reconstruction", "test_z_norm")),
    "vqvae/notebook_codebook": lambda: codebooks("notebook", "notebook-lambda-0"),
    "vqvae/start": lambda: plot_runs({"codes from data, revived": "short", "codes from N(0, I)": "short-no-revive"}),
    "vqvae/codebook_loss": lambda: plot_runs({r"codebook loss, $\lambda$ = 0.25": "short-codebook-loss",
                                              r"codebook loss, $\lambda$ = 0": "short-codebook-loss-lambda-0"}),
    "vqvae/recipes": recipes, "vqvae/nearest": nearest_images}

if __name__ == "__main__":
    for work in (vae_plane, binarized_nll, more_numbers_of_the_vqvae, no_gradient, prior_by_counting, *FIGURES.items()):
        name, draw = work if isinstance(work, tuple) else (work.__name__, work)
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        try:
            figure = draw()
            if figure is not None:
                common.save_figures({Path(name).name: figure}, REPORT / Path(name).parent)
            print(f"done: {name}")
        except (FileNotFoundError, KeyError, AssertionError) as error:
            print(f"not done: {name}, as a run is missing: {error!r}")
