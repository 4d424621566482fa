"""Holds the pages, their numbers and their figures to what they claim: `python report/test_report.py`, or with a word
behind it the tests that have it in their name.

Nothing is trained for real, no network is needed, nothing is left behind. `pytest report/test_report.py` works, too.
test_all.py tests the scripts, test_page.py the pages in a browser.
"""

import contextlib
import math
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F

REPORT = Path(__file__).resolve().parent
ROOT = REPORT.parent
sys.path[:0] = [str(ROOT), str(REPORT)]

# test_all refuses python -O, and keeps everything on the CPU.
from test_all import cifar10, expect, given, mnist, quiet, replaced, run_tests, smoke, smoke_sets

import ae
import common
import comparisons
import cvae
import cvae_structured
import denoise_ae
import pages
import reproduce
import vae
import vqvae

SCRIPTS = {"ae": ae, "denoise_ae": denoise_ae, "vae": vae, "cvae": cvae, "cvae_structured": cvae_structured,
           "vqvae": vqvae}


# %% The pages

def test_pages_show_what_runs_measured_and_what_the_scripts_say():
    for page in pages.PAGES:
        text = page.read_text(encoding="utf-8")
        rendered = pages.render(text)
        for line, expected in zip(text.splitlines(), rendered.splitlines()):
            assert line == expected, f"{page.name}: python report/pages.py changes\n{line}\nto\n{expected}"
        assert text == rendered, page.name


def test_numbers_of_the_pages():
    """Mean, standard deviation with n - 1, paired difference, first seed and derived numbers, of runs made up here."""
    files = {"runs.json": {"main": {"seeds": {"0": {"a": 1.0}, "1": {"a": 2.0}, "2": {"a": 4.0}}},
                           "other": {"seeds": {"1": {"a": 2.0}, "2": {"a": 1.0}, "0": {"a": 0.5}, "10": {"a": 9.0}}},
                           "few": {"seeds": {"3": {"a": 7.0, "list": [5, {"b": 6}]}, "4": {"a": 8.0}}}},
             "metrics.json": {"a": 1.0001},
             "derived.json": {"main": {"0": {"c": 0.25, "a": 8.0}, "1": {"c": 0.5}}, "few": {"3": {"c": 9.0}}}}
    mean, std = np.mean([1, 2, 4]), math.sqrt(sum((a - 7 / 3) ** 2 for a in (1, 2, 4)) / 2)
    difference = np.array([1 - 0.5, 2 - 2, 4 - 1])  # seeds 0, 1 and 2 are in both runs
    std_of_difference = math.sqrt(sum((difference - difference.mean()) ** 2) / 2)
    expected = {"vae:seeds:a": f"{mean:.4f}\xa0±\xa0{std:.4f}", "vae:seeds:main/a": f"{mean:.4f}\xa0±\xa0{std:.4f}",
                "vae:seeds:main/a minus other/a": f"{difference.mean():.4f}\xa0±\xa0{std_of_difference:.4f}",
                "vae:a": "1.0001", "vae:0:a": "1.0000", "vae:2:a": "4.0000", "vae:few/a": "7.0000",
                "vae:few/list.1.b": "6.0000", "vae:c": "0.2500", "vae:1:c": "0.5000", "vae:few/c": "9.0000",
                "vae:main/a minus other/a": "0.5001"}
    with replaced(pages, "read", lambda script, name: files[name]):
        for key, number in expected.items():
            before = "0.0000 ± 0.0000" if "±" in number else "0.0000"
            got = pages.render(f"{before}<!--{key}-->")
            assert got == f"{number}<!--{key}-->", f"expected {number}, got {got}"
        assert pages.render("1.0 %<!--vae:c-->") == "25.0 %<!--vae:c-->"
        for wrong, error in (("a word<!--vae:a-->", ValueError), ("1<!--vae:seeds:few/a-->", AssertionError),
                             ("1<!--vae:nothing-->", KeyError), ("<!--code:vae.py:myVAE.decode-->\n", AssertionError)):
            with raised(error):
                pages.render(wrong)


@contextlib.contextmanager
def raised(kind):
    try:
        yield
    except kind:
        return
    raise AssertionError(f"expected a {kind.__name__}")


def without_code(page):
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page):
    """GitHub's names of a page's headings."""
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)", without_code(page), re.MULTILINE)}


def test_links_and_figures_of_the_pages_are_there():
    for page in (*pages.PAGES, ROOT / "data" / "README.md"):
        links = re.findall(r"\]\(([^)\s]+)\)", without_code(page))
        sources = re.findall(r'(?:src|href)="([^"]+)"', without_code(page))
        for target in (*links, *sources):
            if target.startswith("http"):
                continue
            file, _, anchor = target.partition("#")
            file = page.parent / file if file else page
            assert file.exists(), f"{page.name}: {target}"
            assert not anchor or file.suffix != ".md" or anchor in anchors(file), f"{page.name}: {target}"
    for script, module in SCRIPTS.items():  # each script names its section
        assert re.search(r"report\.md#(\S+)", module.__doc__)[1] in anchors(ROOT / "report.md"), script


def test_github_shows_formulas_lists_and_tables_right():
    for page in pages.PAGES:
        cells, item, lines = 0, 0, without_code(page).splitlines()
        for line, after in zip(lines, [*lines[1:], ""]):
            # Markdown comes before maths: it takes the backslash from \\, or \\| and so on.
            assert not re.search(r"\$[^$`]*\\[!-/:-@\[-`{-~][^$`]*\$", line), f"{page.name}: {line}"
            assert re.sub(r"`[^`]*`", "", line).count("$") % 2 == 0, f"{page.name}: a formula over two lines: {line}"
            assert not re.fullmatch(r"\s*(\d+\.|[-*])\s*", line), f"{page.name}: an empty item"
            if numbered := re.match(r"(\d+)\. ", line):  # else a sentence that ends in a number has become a list
                assert int(numbered[1]) in (1, item + 1), f"{page.name}: {line}"
                item = int(numbered[1])
            if line.startswith("|"):  # a bar splits a cell wherever it stands, also in a comment or in a formula
                assert cells in (0, line.count("|")), f"{page.name}: {line}"
                assert cells or re.fullmatch(r"[|-]+", after), f"{page.name}: a table without a head: {line}"
            cells = line.count("|") if line.startswith("|") else 0


def test_the_pages_lines_of_python_work():
    """The README's lines that load model.pt run as they stand, beside the runs/ of a run; the report's lines for one's
    own images fit its models."""
    readme, report = (re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
                      for page in ("README.md", "report.md"))
    block, = [block for block in readme if "model.pt" in block]
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as tmp:
        shutil.copytree(smoke("cvae").folder, Path(tmp) / "runs" / "cvae")
        os.chdir(tmp)
        try:
            exec(block, names := {})
            assert names["images"].shape == (10, 1, 28, 28) and Path("sevens.png").stat().st_size > 1000
        finally:
            os.chdir(before)
    block, = [block for block in report if "your images" in block]
    quiet(exec, block, names := {})
    assert names["images"].shape == (10, 1, 64, 64)
    x = torch.rand(2, 3, 24, 40)  # and what the page says of vqvae.py
    assert vqvae.VQVAE()(x)[0].shape == x.shape


# %% Runs, and what is derived from them

def test_stored_runs_are_those_of_reproduce():
    """Each run was started with the flags that its command has, and today's defaults for all others; and each change of
    a script that a run needs can be made today."""
    for script, run, flags, seeds, *changes in reproduce.RUNS:
        for change in changes:
            compile(reproduce.changed(script, change), script, "exec")
        entry = reproduce.read_runs(script).get(run, {"command": None, "seeds": {}})  # not every run is done yet
        assert entry["command"] in (None, " ".join(f"python {script}.py {flags} --seed SEED".split())), (script, run)
        seeds = range(seeds) if isinstance(seeds, int) else seeds
        assert set(entry["seeds"]) <= set(map(str, seeds)), (script, run)
        for seed, metrics in entry["seeds"].items():
            argv, parser = [*flags.split(), "--seed", seed], SCRIPTS[script].parser
            args = parser.parse_args(argv)
            if "--reference" in flags:
                args = parser.parse_args(argv, vqvae.argparse.Namespace(**vqvae.NOTEBOOK))
            for flag, value in vars(args).items():
                stored = metrics["settings"].get(flag, value)  # a flag may have been added since
                same = stored == value or flag in ("device", "resume")
                assert same, f"{script}:{run}:{seed}: {flag} was {stored}, not {value}"
    for file in REPORT.glob("*/*.json"):
        assert not re.search(r'"(/|[A-Z]:\\)', file.read_text(encoding="utf-8")), f"{file}: somebody's own folder"


def test_derived_numbers_follow_from_the_runs():
    """All runs have those that comparisons.py promises. What needs no weights is computed again."""
    for name, (runs, function, *only) in comparisons.NUMBERS.items():
        script, key = name.split("/")
        derived = pages.read(script, "derived.json")
        for run in runs:
            for seed, metrics in comparisons.seeds_of(script, run).items():
                if only and seed not in only[0]:
                    continue
                assert key in derived[run][seed], f"{name} of {run}, {seed}: python report/comparisons.py"
                if key in ("slopes", "doubling_updates", "norm_sqrt_lambda", "bits_per_dimension", "multiply_adds",
                           "before_leap", "held", "growth", "energy_taken", "longest", "layer_off",
                           "least_on"):
                    expected = reproduce.rounded(function(run, seed, metrics))
                    assert derived[run][seed][key] == expected, (name, run, seed, derived[run][seed][key], expected)
    # A line by hand: z grows from 1 to 16 in 400 updates.
    history = {"update": [100, 300, 500, 5000], "test_z_norm": [[0, 1, 9], [0, 4, 9], [0, 16, 9], [0, 1, 9]]}
    metrics = {"history": history, "settings": {"commitment_cost": 0.25}}
    expect("doubling_updates", comparisons.doubling_updates("", "", metrics), 100)
    expect("norm_sqrt_lambda", comparisons.norm_sqrt_lambda("", "", metrics), 0.5)
    # Another: z grows from 1 to 4 and 16 while the push leads outward, and falls to 8 after an update with -0.5.
    history = {"update": [5, 6, 7, 8], "test_z_norm": [[0, 1, 9], [0, 4, 9], [0, 16, 99], [0, 8, 9]],
               "push_cos_outward": [0.1, 0.2, -0.5, 0.7], "push_outward_energy": [0, 0.1, 0.2, 0.5]}
    metrics = {"history": history}
    assert comparisons.before_leap("", "", metrics)["updates"] == 7
    expect("before_leap", comparisons.before_leap("", "", metrics)["push_cos_outward"], -0.2 / 3, 1e-6)
    expect("growth", list(comparisons.growth("", "", metrics).values()), [4, 0.5], 1e-6)
    expect("energy_taken", comparisons.energy_taken("", "", metrics), 0.2, 1e-6)
    # And one: a layer is off after update 7, when z has been at 99.
    history = {"update": [5, 6, 7, 8, 9], "test_z_norm": [[0, z, 9] for z in (1, 4, 99, 50, 5)],
               "decoder_least": [0.5, 0.4, 0, 0.1, 0]}
    assert comparisons.layer_off("", "", {"history": history}) == {"before": 0.4, "update": 7, "norm": 99}


def test_what_the_runs_of_section_6_4_change():
    x = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def changed_vqvae(changes):
        script = {"__name__": "changed"}
        exec(compile(reproduce.changed("vqvae", changes), "changed", "exec"), script)
        torch.manual_seed(0)
        return script, script["VQVAE"](num_hiddens=8, num_residual_hiddens=4, embedding_dim=6, commitment_cost=0)

    # z gets the push at e without its part along z - e, where that leads outward, or wherever it leads.
    for part, taken in (({}, lambda along: along.clamp(min=0)), ({"part": ""}, lambda along: along)):
        _, model = changed_vqvae(reproduce.without_push_along("direction = outward", **part))
        x_hat, z, e, _ = model(x)
        z.retain_grad()
        F.mse_loss(x_hat, x).backward()
        e = e.detach().requires_grad_()
        push = -torch.autograd.grad(F.mse_loss(model.decode(e), x), e)[0]
        outward = F.normalize((z - e).detach(), dim=1)
        along = (push * outward).sum(1, keepdim=True)
        assert 0.05 < (along > 0).float().mean() < 0.95, "the toy shows one case only"
        expect(f"the push on z {part}", -z.grad, push - taken(along) * outward, 1e-9)
    # z gets the gradient of the image decoded from z, the decoder that of the image decoded from e, which is shown.
    _, model = changed_vqvae(reproduce.AT_Z)
    output = x_hat, z, e, _ = model(x)
    z.retain_grad()
    losses = model.loss_function(output, x)
    losses["loss"].backward()
    expect("the image is that of e", x_hat, model.decode(e), 1e-6)
    expect("the loss is that of e", losses["loss"], F.mse_loss(x_hat, x), 1e-6)
    at_z, first = z.detach().requires_grad_(), model.decoder[0].weight
    expect("the gradient at z", z.grad, torch.autograd.grad(F.mse_loss(model.decode(at_z), x), at_z)[0], 1e-9)
    expect("the decoder's", first.grad, torch.autograd.grad(F.mse_loss(model.decode(e.detach()), x), first)[0], 1e-7)
    # z and the codes become longer, and no image changes. (With a learning rate of 0 nothing else does, either.)
    args = vqvae.parser.parse_args(["--n-updates", "3", "--lr", "0.1"], vqvae.argparse.Namespace(**vqvae.NOTEBOOK))
    args.lr = 0.0
    models = []
    for changes in ([], [(old, new.replace("update == 1001", "update == 2")) for old, new in reproduce.longer(100)]):
        script, model = changed_vqvae(changes)
        with tempfile.TemporaryDirectory() as args.out_dir:
            args.out_dir = Path(args.out_dir)
            quiet(script["train"], model, x, x, args)
        models.append(model.eval())
    (images, z, _, codes), (images_100, z_100, _, codes_100) = (model(x) for model in models)
    expect("longer z", z_100, 100 * z, 1e-3)
    assert torch.equal(codes, codes_100)
    expect("images", images_100, images, 1e-5)


def test_the_smallest_example_of_section_6_4():
    """Straight-through moves z by the same step for ever; the commitment loss holds it at 1 / lambda; and a decoder
    that sees z leads it to x."""
    steps = np.arange(81)[:, None] * np.array([1, -1])
    expect("straight-through", comparisons.two_images(), 0.1 * 2 * steps)
    expect("with commitment loss", comparisons.two_images(0.25, n_updates=400)[-1], [4, -4])
    expect("the decoder sees z", comparisons.two_images(at_z=True)[-1], [1, -1])


def test_the_best_denoiser_of_section_2():
    """Between two clean values it is a sigmoid; what both share equally counts as two images."""
    clean = torch.tensor([[0.0], [1.0]])
    for noisy, std in ((0.5, 0.3), (0.8, 0.5), (-1.0, 2.0)):
        best, n = comparisons.best_denoised(torch.tensor([noisy]), clean, std)
        p = 1 / (1 + math.exp(-(2 * noisy - 1) / (2 * std**2)))
        expect("mean", best, [p], 1e-5)
        expect("how many", n, p**-p * (1 - p) ** (p - 1), 1e-5)
    assert abs(comparisons.best_denoised(torch.tensor([0.5]), clean, 0.3)[1] - 2) < 1e-5
    x_train = torch.stack([torch.zeros(1, 28, 28), torch.ones(1, 28, 28)])
    x_test = torch.full((3, 1, 28, 28), 0.9)  # taken for the white one, in each of 784 pixels
    with replaced(common, "load_mnist", lambda: (x_train, None, x_test, None)):
        expect("list_error", comparisons.list_error("main", "0", {}), 0.1**2, 1e-4)


def test_diffusion_without_a_network():
    stds = 10 * 0.99 ** np.arange(1000)
    clean = torch.tensor([[0.0], [1.0]])
    for noise, end in ((0.5, 0.5), (0.6, 1), (0.4, 0), (-12.0, 0)):  # between two images 0.5 is the border
        expect("two images", comparisons.denoise_stepwise(torch.tensor([noise]), clean, stds)[-1][1], [end], 1e-3)
    # If clean images are normal, so are noisy ones, with variance 1 + std^2: the flow only shrinks them.
    clean = torch.distributions.Normal(0, 1).icdf((torch.arange(4000) + 0.5) / 4000).unsqueeze(1)
    images = comparisons.denoise_stepwise(torch.tensor([15.0]), clean, stds)
    for i in (100, 300, 500):
        expect("normal images", images[i][0], [15 * math.sqrt((1 + stds[i] ** 2) / (1 + stds[0] ** 2))], 2e-2)


def test_cvae_nll_gives_each_image_its_own_label():
    class Paper(torch.nn.Module):
        """Its image depends on the label alone, so that -log p(x|c) is known."""
        conditional_vec_dim, latent_dim = 10, 2

        def encode(self, x, c):
            return torch.zeros(len(x), 2), torch.zeros(len(x), 2)

        def decode(self, z, c):
            return (0.05 + 0.08 * c.argmax(1)).reshape(-1, 1, 1, 1).expand(-1, 1, 28, 28)

    x, y = mnist()[2][:200], mnist()[3][:200]
    with replaced(comparisons, "load", lambda *_: Paper()), \
         replaced(common, "load_mnist", lambda: (None, None, x, y)):
        got = comparisons.cvae_nll("main", "0", {})
    x_hat = (0.05 + 0.08 * y).reshape(-1, 1, 1, 1).expand_as(x)
    expect("cvae_nll", got, F.binary_cross_entropy(x_hat, x, reduction="sum") / len(x), 1e-4)


def test_clouds_that_are_known():
    """All images have the cloud N(0, I), in which 95 % of the prior's draws lie, or a far one, in which none does."""
    class Model:
        latent_dim = 16

        def encode(self, x):
            return torch.full((len(x), 16), self.place), torch.zeros(len(x), 16)

    model = Model()
    with replaced(comparisons, "load", lambda *_: model), \
         replaced(common, "load_mnist", lambda: (torch.zeros(1500, 1, 28, 28),)):
        for model.place, share, tolerance in ((0.0, 0.95, 0.02), (9.0, 0, 0)):
            assert abs(comparisons.in_a_cloud("main", "0", {}) - share) <= tolerance


def test_places_on_a_line_that_is_known():
    """z lies on a line, from 5 - 3 at black to 5 + 3 at white, plus noise across it with 1 / 64 of the variance."""
    torch.manual_seed(0)
    x = (torch.rand(256, 1, 8, 8) < 0.5).float().repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    way, across = torch.eye(64)[3], torch.eye(64)[5]

    class Model:
        def encode(self, images):
            sign = 2 * images[:, 0, ::4, ::4] - 1
            noise = 3 / 63**0.5 * (2 * (torch.rand_like(sign) < 0.5) - 1)
            return (5 + 3 * sign)[:, None] * way.reshape(1, -1, 1, 1) + noise[:, None] * across.reshape(1, -1, 1, 1)

    with replaced(comparisons, "load", lambda *_: Model()), replaced(comparisons, "cifar10", lambda: (None, x)):
        got = comparisons.line("main", "0", {})
    for key, value in (("share", 63 / 64), ("correlation", 1), ("bright", 8), ("dark", 2)):
        expect(key, got[key], value, 0.01)


def test_bits_by_counting():
    torch.manual_seed(0)
    codes = torch.randint(0, 3, (6, 8, 8))
    known, asked = codes, codes[:2].flip(0)

    def examples(grids):  # (code, left, upper) of each place, None at an edge
        return [(int(grid[r, c]), int(grid[r, c - 1]) if c else None, int(grid[r - 1, c]) if r else None)
                for grid in grids for r in range(8) for c in range(8)]

    def smoothed(code, shorter, strength, same):  # same: the known codes with the same neighbours
        return (same.count(code) + strength * shorter) / (len(same) + strength)

    seen, left, both = examples(known), [], []
    for code, l, u in examples(asked):
        p = [c for c, _, _ in seen].count(code) / len(seen)
        p = smoothed(code, p, 10, [c for c, l2, _ in seen if l2 == l])
        left.append(-math.log2(p))
        both.append(-math.log2(smoothed(code, p, 30, [c for c, l2, u2 in seen if (l2, u2) == (l, u)])))
    expect("bits", comparisons.bits_by_counting(known, asked, 3, (10, 30)), [np.mean(left), np.mean(both)])


def test_comparisons_names_the_run_that_is_missing_and_hides_no_fault():
    with replaced(comparisons, "folder", lambda *_: Path("nowhere")):
        n_missing, _, out, _ = quiet(comparisons.main, ["vae/latent_space"])
    assert n_missing == 1 and "python report/reproduce.py vae:plane:0" in out
    with replaced(comparisons, "read_runs", lambda script: {"main": {"seeds": {}}}):
        assert "python report/reproduce.py ae:latent-1:" in quiet(comparisons.main, ["ae/sweep"])[2]
    with replaced(comparisons, "FIGURES", {"ae/sweep": lambda: {}["a fault"]}), raised(KeyError):
        quiet(comparisons.main, ["ae/sweep"])


# %% What the numbers claim

WATCHED = ("pca_mse", "gaussian_filter", "bce_floor", "importance_weighted_nll", "train_judge", "judge_samples",
           "probe_latents", "likelihood", "best_of_k", "train_prior", "make_figures")


def watched(script, *flags):
    """A smoke run, with `data`: for each of the script's WATCHED functions the sets of images, labels or codes that it
    was called with; and `brightness`: the mean of every batch of numbers from 0 to 1 that a network was trained on."""
    data, brightness, module = {}, [], SCRIPTS[script]
    schedules, zeroed, zero_grad = [], [], torch.optim.Optimizer.zero_grad
    one_cycle = torch.optim.lr_scheduler.OneCycleLR

    def note_brightness(network, args):
        whole = type(network).__module__ == script or isinstance(network, torch.nn.Sequential)  # and no layer
        x = args[0].float()
        if whole and network.training and torch.is_grad_enabled() and x.min() >= 0 and x.max() <= 1:
            brightness.append(float(x.mean()))

    def noted(name, function):
        def call(*args):
            data[name] = [arg for arg in args if isinstance(arg, torch.Tensor) and len(arg) in (512, 256)]
            return function(*args)
        return call

    def schedule(*args, **kwargs):
        schedules.append(one_cycle(*args, **kwargs))
        return schedules[-1]

    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(torch.optim.lr_scheduler, "OneCycleLR", schedule))
        stack.enter_context(replaced(torch.optim.Optimizer, "zero_grad", lambda self: zeroed.append(zero_grad(self))))
        for name in WATCHED:
            if hasattr(module, name):
                stack.enter_context(replaced(module, name, noted(name, getattr(module, name))))
        hook = torch.nn.modules.module.register_module_forward_pre_hook(note_brightness)
        stack.callback(hook.remove)
        run = smoke.__wrapped__(script, *flags)
    assert all(schedule.last_epoch == schedule.total_steps for schedule in schedules), f"{script}: the schedule"
    assert len(zeroed) == sum(schedule.total_steps for schedule in schedules), f"{script}: gradients add up"
    run.data, run.brightness = data, brightness
    return run


def load(kind, file):
    saved = torch.load(file, weights_only=True)
    model = kind(**saved["config"])
    model.load_state_dict(saved["state_dict"])
    return model.eval()


def test_on_which_images_everything_is_trained_and_measured():
    """The training images of a smoke run are 512 and dark, its test images 256 and bright (smoke_sets)."""
    runs = {script: watched(script) for script in SCRIPTS}
    train, test = 512, 256
    for script, function, expected in (
            ("ae", "pca_mse", [train, test]), ("ae", "make_figures", [test, test]),
            ("denoise_ae", "gaussian_filter", [train, train, test]), ("denoise_ae", "make_figures", [test] * 3),
            ("vae", "bce_floor", [test]), ("vae", "importance_weighted_nll", [test]),
            ("vae", "make_figures", [test, test]), ("cvae", "make_figures", [test, test]),
            ("cvae", "train_judge", [train, train]), ("cvae", "judge_samples", [test, test]),
            ("cvae", "probe_latents", [train, train, test, test]), ("cvae_structured", "likelihood", [test]),
            ("cvae_structured", "best_of_k", [test]), ("cvae_structured", "make_figures", [test, test]),
            ("vqvae", "train_prior", [train, test]), ("vqvae", "make_figures", [train, test])):
        assert [len(data) for data in runs[script].data[function]] == expected, (script, function)
        for images in runs[script].data[function]:
            if images.dim() == 4:
                assert (images.mean() < 0.5) == (len(images) == train), f"{script}: {function} gets other images"
    for script, run in runs.items():
        assert run.brightness and max(run.brightness) < 0.65, f"{script}: a network is trained on test images"

    fixed = torch.Generator().manual_seed(0)
    x, y, x_test, y_test = smoke_sets("ae")
    noisy_tests = [denoise_ae.add_noise(x_test, fixed) for _ in range(denoise_ae.N_NOISES)]
    visible = cvae_structured.visible_pixels(1)
    photographs, _, test_photographs, _ = smoke_sets("vqvae")
    for script, kind, train, test, tolerance in (  # every loss again, from the saved weights
            ("ae", ae.Autoencoder, (x,), (x_test,), 1e-5),
            ("denoise_ae", denoise_ae.DenoiseAE, (x, denoise_ae.add_noise(x, fixed)), (x_test, noisy_tests[0]), 1e-5),
            ("vae", vae.myVAE, (x,), (x_test,), 0.05), ("cvae", cvae.myVAE, (x, y), (x_test, y_test), 0.05),
            ("cvae_structured", cvae_structured.myVAE, (x, visible), (x_test, visible), 0.05),
            ("vqvae", vqvae.VQVAE, (photographs,), (test_photographs,), 1e-4)):
        run = runs[script]
        model = load(kind, run.folder / "model.pt")
        metrics = {**run.metrics, "last": run.metrics["history"]["test_loss"][-1]}
        for images, keys in ((train, ["train_loss"]), (test, ["test_loss", "last"])):
            losses = [SCRIPTS[script].evaluate(model, *images) for _ in range(5 if tolerance == 0.05 else 1)]
            mean = np.mean([loss["loss"] if isinstance(loss, dict) else loss for loss in losses])
            for key in keys:
                tolerance_here = 0.02 if script == "denoise_ae" and key == "test_loss" else tolerance  # of five noises
                expect(f"{script}: {key}", metrics[key], mean, tolerance_here)
        assert abs(metrics["train_loss"] / metrics["test_loss"] - 1) > 0.1, script  # so the wrong images are noticed
    run = runs["cvae_structured"]
    baseline = load(cvae_structured.BaselineNN, run.folder / "baseline.pt")
    for key, images in (("baseline_train_loss", x), ("baseline_nll_nats", x_test)):
        expect(key, run.metrics[key], cvae_structured.evaluate(baseline, images, visible)["loss"])
    expect("test_baseline_loss", run.metrics["history"]["test_baseline_loss"][-1], run.metrics["baseline_nll_nats"])
    for key, part in (("n_decoder_parameters", run.models[0].decoder), ("n_baseline_parameters", baseline)):
        assert run.metrics[key] == sum(p.numel() for p in part.parameters()), key
    assert len(run.metrics["best_of_k_mse"]) == run.metrics["n_samples"] == 100
    run = runs["vqvae"]
    model, prior = load(vqvae.VQVAE, run.folder / "model.pt"), load(vqvae.Prior, run.folder / "prior.pt")
    expect("data_variance", run.metrics["data_variance"], photographs.var())
    for key, images in (("train_bits_per_code", photographs), ("test_bits_per_code", test_photographs)):
        bits = vqvae.evaluate_prior(prior, vqvae.encode_all(model, images))
        expect(f"prior: {key}", run.metrics["prior"][key], bits)
    expect("uniform_bits", run.metrics["prior"]["uniform_bits"], 9)
    counts = torch.bincount(vqvae.encode_all(model, test_photographs).flatten())
    expect("code_entropy_bits", run.metrics["prior"]["code_entropy_bits"], vqvae.entropy_bits(counts))
    run = runs["denoise_ae"]
    expect("noisy_test_loss", run.metrics["noisy_test_loss"], F.mse_loss(noisy_tests[0], x_test))
    expect("test_loss", run.metrics["test_loss"], np.mean(run.metrics["test_loss_by_noise"]))
    model = load(denoise_ae.DenoiseAE, run.folder / "model.pt")
    fixed = torch.Generator().manual_seed(0)
    for _ in noisy_tests:
        denoise_ae.add_noise(x_test, fixed)
    filtered, _ = denoise_ae.gaussian_filter(x, denoise_ae.add_noise(x, fixed), noisy_tests[0])
    for key, images in (("test_psnr_db", denoise_ae.denoise(model, noisy_tests[0])),
                        ("noisy_test_psnr_db", noisy_tests[0]), ("gaussian_filter_test_psnr_db", filtered)):
        expect(key, run.metrics[key], denoise_ae.psnr_db(images, x_test))
    expect("gaussian_filter_test_loss", run.metrics["gaussian_filter_test_loss"], F.mse_loss(filtered, x_test))
    assert run.metrics["bottleneck_size"] == 24 * 4 * 4
    run = runs["vae"]
    model = load(vae.myVAE, run.folder / "model.pt")
    kl = model.kl_divergence(*model.encode(x_test)).mean(0)
    expect("test_kl_per_dimension", run.metrics["test_kl_per_dimension"], kl, 1e-4)
    assert run.metrics["importance_samples"] == 100
    run = smoke("ae", "--latent-dim", "3", "--n-epochs", "1")
    expect("pca_test_loss, of as many components", run.metrics["pca_test_loss"], ae.pca_mse(x, x_test, 3))


def test_the_prior_learns_from_training_codes_only():
    prior, seen = vqvae.Prior(num_embeddings=4), []
    args = vqvae.parser.parse_args(["--n-updates", "5"])
    loss_function = prior.loss_function

    def noted(logits, codes):
        seen.append((torch.is_grad_enabled(), int(codes[0, 0])))
        return loss_function(logits, codes)

    prior.loss_function = noted
    with tempfile.TemporaryDirectory() as tmp:
        args.out_dir = Path(tmp)
        quiet(vqvae.train_prior, prior, torch.full((40, 64), 1), torch.full((40, 64), 2), args)
    assert seen == [(True, 1), (True, 1), (False, 2)]  # two updates, one test


def test_what_is_measured_does_not_depend_on_the_seed():
    for script, function, flags in (("denoise_ae", "make_figures", []), ("vae", "bce_floor", ["--binarize"])):
        one, other = (watched(script, *flags, "--n-epochs", "1", "--seed", seed) for seed in ("0", "1"))
        assert all(map(torch.equal, one.data[function][:1], other.data[function][:1])), script
        assert one.metrics["test_loss"] != other.metrics["test_loss"]
    denoised = [smoke("denoise_ae", "--n-epochs", "1", "--seed", seed).metrics for seed in ("0", "1")]
    assert denoised[0]["gaussian_filter_test_loss"] == denoised[1]["gaussian_filter_test_loss"]


def test_flags_and_seeds_reach_the_model():
    for script, flags, key, value in (
            ("ae", ["--hidden-dim", "16"], "hidden_dim", 16), ("denoise_ae", ["--latent-dim", "8"], "latent_dim", 8),
            ("denoise_ae", ["--as-assigned"], "as_assigned", True),
            ("cvae", ["--no-label"], "conditional_vec_dim", 0),
            ("cvae_structured", ["--quadrants", "2", "--learned-prior"], "conditional_vec_dim", 392),
            ("vqvae", ["--codebook-loss"], "ema", False), ("vqvae", ["--commitment-cost", "3"], "commitment_cost", 3),
            ("vqvae", ["--decay", "0.5"], "decay", 0.5), ("vqvae", ["--no-revive"], "revive_until", 0),
            ("vqvae", [], "revive_until", 2)):  # nine tenths of three updates
        few = ["--no-prior"] if script == "vqvae" else ["--n-epochs", "1"]
        saved = torch.load(smoke(script, *few, *flags).folder / "model.pt", weights_only=True)
        assert saved["config"][key] == value, (script, flags, saved["config"])
    assigned = smoke("denoise_ae", "--n-epochs", "1", "--as-assigned").models[0]
    assert [type(layer).__name__ for layer in assigned.decoder] == [
        *3 * ["ConvTranspose2d", "BatchNorm2d", "LeakyReLU"], "Sigmoid"], "the assignment's decoder"
    assert sum(p.numel() for p in assigned.parameters()) <= 15_000
    learned = smoke("cvae_structured", "--n-epochs", "1", "--quadrants", "2", "--learned-prior").models[0]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learned.prior.parameters())
    assert smoke("vqvae", "--no-prior", "--stop-at", "2").metrics["history"]["update"] == [2]
    for script in SCRIPTS:
        few = ["--no-prior"] if script == "vqvae" else ["--n-epochs", "1"]
        one, other = (smoke(script, *few, "--seed", seed).metrics for seed in ("0", "1"))
        assert one["test_loss"] != other["test_loss"], script


def test_an_epoch_counts_every_image_alike():
    """The last batch is smaller: its images must not count more. The brighter, the larger the loss."""
    x = torch.linspace(0, 1, 10).reshape(-1, 1, 1, 1) ** 4 * torch.ones(10, 1, 28, 28)
    y, visible, pixel = torch.arange(10), cvae_structured.visible_pixels(1), torch.nn.Conv2d(1, 1, 1)
    flags = ["--n-epochs", "1", "--batch-size", "8", "--lr", "1e-12"]  # so small that nothing is learned
    for script, model, data, key in (
            ("ae", ae.Autoencoder(), (x, x), "loss"), ("denoise_ae", pixel, (x, x, x), "loss"),
            ("vae", vae.myVAE(), (x, x), "kl"), ("cvae", cvae.myVAE(conditional_vec_dim=10), (x, y, x, y), "kl"),
            ("cvae_structured", cvae_structured.myVAE(conditional_vec_dim=196), (x, x, visible), "kl")):
        with replaced(denoise_ae, "add_noise", lambda x: x):
            history, *_ = quiet(SCRIPTS[script].train, model, *data, SCRIPTS[script].parser.parse_args(flags))
        expect(f"{script}: train_{key}", history[f"train_{key}"], history[f"test_{key}"])
    x = torch.cat([mnist()[2][:1000], torch.ones(200, 1, 28, 28)])  # two batches of an evaluation, of different sizes
    model = ae.Autoencoder()
    expect("ae.evaluate", ae.evaluate(model, x), F.mse_loss(model(x), x))
    model = vae.myVAE()
    expect("vae.evaluate", vae.evaluate(model, x)["kl"], model.kl_divergence(*model.encode(x)).sum(1).mean())


def test_beta_and_binarize():
    plain, binarized, heavy = (smoke("vae", *flags).metrics for flags in ((), ("--binarize",), ("--beta", "4")))
    expect("bce_floor of binarized images", binarized["test_bce_floor"], 0)
    means, x, model = [], torch.full((200, 1, 28, 28), 0.3), vae.myVAE()
    model.register_forward_pre_hook(lambda _, images: means.append(float(images[0].mean())) if model.training else None)
    quiet(vae.train, model, x, x, vae.parser.parse_args(["--binarize", "--n-epochs", "1"]))
    expect("the share of white pixels drawn for a grey of 0.3", np.mean(means), 0.3, 0.01)
    for metrics in (plain, heavy):  # the losses of the history have beta = 1
        history = metrics["history"]
        expect("train_loss", history["train_loss"], np.add(history["train_bce"], history["train_kl"]))
    assert binarized["history"]["train_bce"] != plain["history"]["train_bce"] and heavy["test_kl"] < plain["test_kl"]
    assert plain["n_used_dimensions"] == sum(kl > 0.05 for kl in plain["test_kl_per_dimension"])


def test_psnr_db():
    x_hat = torch.stack([torch.full((1, 2, 2), 0.1), torch.full((1, 2, 2), 0.01)])
    expect("psnr_db of errors of 0.1 and of 0.01", denoise_ae.psnr_db(x_hat, torch.zeros(2, 1, 2, 2)), (20 + 40) / 2)


def test_probe_latents():
    class Fake:  # an "encoder" whose mu is what `encode` makes of the condition
        conditional_vec_dim, reparameterize = 10, cvae.myVAE.reparameterize

        def __init__(self, encode, std):
            self.encode = lambda x, c: (encode(c), torch.full_like(encode(c), 2 * math.log(std)))
            self.eval = lambda: self

    torch.manual_seed(0)
    sets = mnist()[0][:2000], mnist()[1][:2000], mnist()[2][:1000], mnist()[3][:1000]
    for encode, std, linear, nearest, mu_nearest in (
            (lambda c: c + 2, 0.01, 1, 1, 1),  # plain to see
            (lambda c: 0.01 * c + 0.0001 * torch.randn(len(c), 10), 1.0, 0.1, 0.1, 1),  # in mu, but drowned in noise
            # Digit d lies on a circle of radius d, anywhere: curled up, but all there.
            (lambda c: c.argmax(1, keepdim=True) * F.normalize(torch.randn(len(c), 2)), 0.01, 0.12, 1, 1)):
        probed = given("probe_latents", cvae.probe_latents(Fake(encode, std), *sets))
        for name, expected in (("linear", linear), ("nearest", nearest), ("mu_nearest", mu_nearest)):
            expect(f"probe_latents: {name}", probed[f"latent_label_{name}"], expected, 0.05)


def test_judge_samples():
    class Fake:  # a "decoder" that marks the label as a white pixel in the first row, and draws a 0 for every third
        latent_dim = 2

        def decode(self, z, c):
            c = torch.where(torch.arange(len(c)).unsqueeze(1) % 3 == 0, torch.eye(10)[:1], c)
            return F.pad(c, (0, 774)).reshape(-1, 1, 28, 28)

    y = torch.arange(1, 10).repeat(30)
    real = torch.zeros(len(y), 1, 28, 28)
    real[::2] = 1  # within every digit half of the images are white, half black,
    real[y == 5] = 1  # but all of the fives are white: their variance is 0, that of the others 1/4 (times 30/29)
    judged = given("judge_samples", cvae.judge_samples(Fake(), lambda images: images[:, 0, 0, :10], real, y))
    for key, expected in (("sample_accuracy", 2 / 3), ("judge_test_accuracy", 0),
                          ("test_std", math.sqrt(8 / 9 * 0.25 * 30 / 29))):
        expect(f"judge_samples: {key}", judged[key], expected)
    assert judged["sample_std"] < 0.1
    Fake.decode = lambda self, z, c: z[:, :1, None, None].expand(-1, 1, 28, 28)  # samples show z: a draw from the prior
    y = torch.arange(10).repeat(500)
    blank = torch.zeros(5000, 1, 28, 28)
    judged = cvae.judge_samples(Fake(), lambda images: images[:, 0, 0, :10], blank, y)
    expect("judge_samples: sample_std of z itself", judged["sample_std"], 1, 0.05)
    torch.manual_seed(0)
    judge = cvae.train_judge(mnist()[0][:5000], mnist()[1][:5000])
    assert (judge(mnist()[2][:1000]).argmax(1) == mnist()[3][:1000]).float().mean() > 0.85


def test_entropy_bits():
    for counts, expected in (([3] * 512, 9), ([0, 9], 0), ([1, 1, 2], 1.5)):
        expect("entropy_bits", vqvae.entropy_bits(torch.tensor(counts)), expected)


@torch.no_grad()
def test_evaluate_of_the_vqvae():
    torch.manual_seed(0)
    model = vqvae.VQVAE(num_hiddens=16, num_embeddings=6, embedding_dim=4, data_variance=0.06).eval()
    x = cifar10()[1][:600]
    model.quantizer.codebook.copy_(1.05 * model.encode(x[:6])[:, :, 3, 3])  # so that several codes are used, unequally
    x_hat, z, e, index = model(x)
    share = np.bincount(index.flatten(), minlength=6) / index.numel()
    parts, weights = [slice(0, 256), slice(256, 512), slice(512, 600)], [256 / 600, 256 / 600, 88 / 600]
    norms = [np.percentile(vectors.norm(dim=1).flatten(), [1, 50, 99]) for vectors in (z, model.quantizer.codebook)]
    expected = {
        "reconstruction": ((x_hat - x) ** 2).mean() / 0.06, "psnr_db": denoise_ae.psnr_db(x_hat, x),
        "codes_used": (share > 0).sum(), "perplexity": math.exp(-sum(p * math.log(p) for p in share if p > 0)),
        "quantization_error": np.dot(weights, [((z[part] - e[part]) ** 2).sum() / (z[part] ** 2).sum()
                                               for part in parts]),
        "z_range": [z.min(), z.max()], "z_norm": norms[0], "code_norm": norms[1]}
    tested = vqvae.evaluate(model, x)
    for key, value in expected.items():
        expect(f"evaluate: {key}", tested[key], value, 1e-3)
    assert tested["codes_used"] > 2 and torch.equal(vqvae.encode_all(model, x), index.flatten(1))


# %% What the figures claim

HISTORY = {f"{which}_{part}": [2.0, 1.0] for which in ("train", "test") for part in ("loss", "bce", "kl")}


def drawn(make_figures, *args):
    """The figures, {name: figure}; those of images are (images, row labels, column labels) instead."""
    torch.manual_seed(0)
    with replaced(common, "plot_images", lambda images, row_labels=(), column_labels=(), width=8:
                  (images, list(row_labels), list(column_labels))), torch.no_grad():
        figures = make_figures(*args)
    common.plt.close("all")
    return figures


def check_plane(figures, decoder, z, y):
    """Both figures show the same part of the plane: the points z, and what the decoder makes of each place."""
    points, grid = figures["latent_space"].axes[0], figures["latent_space_images"].axes[0]
    left, right, bottom, top = grid.images[0].get_extent()
    assert (left, right, bottom, top) == (*points.get_xlim(), *points.get_ylim())
    for digit, dots in enumerate(points.collections):
        expect("the dots", np.array(dots.get_offsets()), z[y == digit])
    corner = decoder(torch.tensor([[left + (right - left) / 40, top - (top - bottom) / 40]]))
    expect("the upper left image", grid.images[0].get_array()[:28, :28], corner[0, 0], 1e-3)


def test_figures_of_ae_and_denoise_ae():
    torch.manual_seed(0)
    x, y, model = mnist()[2][:300], mnist()[3][:300], ae.Autoencoder().eval()
    figures = drawn(ae.make_figures, model, HISTORY, x, y)
    expect("the first twelve", figures["reconstructions"][0], torch.stack([x[:12], model(x[:12])]))
    assert figures["reconstructions"][1] == ["original", "rebuilt"]
    check_plane(figures, model.decoder, model.encoder(x), y)
    axis = figures["latent_space"].axes[0]
    expect("the middle 94 %", [axis.get_xlim(), axis.get_ylim()],
           np.quantile(model.encoder(x).detach(), [0.03, 0.97], axis=0).T, 1e-4)
    model, noisy = denoise_ae.DenoiseAE().eval(), denoise_ae.add_noise(x)
    images, rows, _ = drawn(denoise_ae.make_figures, model, HISTORY, x, noisy, 0.5 * x)["denoised"]
    assert rows == ["noisy", "Gaussian\nfilter", "denoised", "clean"]
    expect("the first ten", images, torch.stack([noisy[:10], 0.5 * x[:10], model(noisy[:10]), x[:10]]))


def test_figures_of_the_vae():
    class Glass(torch.nn.Module):
        """Shows what it is given: its image has z in the first pixels. mu is the middle of the image, logvar is -1."""
        latent_dim, reparameterize = 20, vae.myVAE.reparameterize

        def encode(self, x):
            mu = x.flatten(1)[:, 380:400]
            return mu, torch.full_like(mu, -1.0)

        def decode(self, z):
            return F.pad(z, (0, 764)).reshape(-1, 1, 28, 28)

    x, y, kl = mnist()[2][:300], mnist()[3][:300], list(range(20))
    figures = drawn(vae.make_figures, Glass(), HISTORY, x, y, kl)
    z = {name: figure[0].flatten(2)[:, :, :20] for name, figure in figures.items() if name != "loss"}
    expect("samples, from the prior", [z["samples"].mean(), z["samples"].std()], [0, 1], 0.1)
    mu, labels = x[0].flatten()[380:400], figures["variance"][1]
    assert labels[::2] == ["variance x 1", "variance x 20"]
    for rows, factor in ((slice(0, 2), 1), (slice(2, 4), 20)):
        variance = (z["variance"][rows, 1:] - mu).square().mean()
        expect(f"variance x {factor}", variance / (factor * math.exp(-1)), 1, 0.12)
    for row, (a, b) in zip(figures["walk"][0], [(1, 7), (3, 8), (4, 9), (0, 6)]):
        first, last = (x[(y == digit).nonzero()[0, 0]] for digit in (a, b))
        assert torch.equal(row[0], first) and torch.equal(row[-1], last)
        steps = torch.linspace(0, 1, 11).unsqueeze(1)
        between = (1 - steps) * first.flatten()[380:400] + steps * last.flatten()[380:400]
        expect("walk", row[1:-1].flatten(1)[:, :20], between)
    _, labels, values = figures["traversals"]
    for row, label in enumerate(labels):
        i, expected = 19 - row, mu.repeat(11, 1)  # sorted by kl, the largest first
        expected[:, i] = torch.tensor(values)
        expect("traversals", z["traversals"][row], expected)
        assert label == f"$z_{{{i + 1}}}$: {kl[i]:.2f}"
    torch.manual_seed(0)
    model = vae.myVAE(latent_dim=2).eval()
    figures = drawn(vae.make_figures, model, HISTORY, x, y, [1, 1])
    mu = model.encode(x)[0]
    expect("from mu", figures["reconstructions"][0], torch.stack([x[:12], model.decode(mu[:12])]))
    check_plane(figures, model.decode, mu, y)
    assert [circle.get_radius() for circle in figures["latent_space"].axes[0].patches] == [1, 2, 3]
    assert figures["reconstructions"][1] == ["original", "rebuilt\nfrom mu"]
    assert [axis.get_ylabel() for axis in figures["loss"].axes] == ["loss, nats per image", "BCE", "KL"]


def test_figures_of_the_cvae():
    class Glass(torch.nn.Module):
        """Shows what it is given: its image has z in the first pixels and c behind. mu is the middle of the image, and
        1 more if the condition is a 0."""
        latent_dim, conditional_vec_dim = 20, 10

        def encode(self, x, c):
            return x.flatten(1)[:, 380:400] + c[:, :1], None

        def decode(self, z, c):
            return F.pad(torch.cat([z, c], dim=1), (0, 754)).reshape(-1, 1, 28, 28)

    x, y = mnist()[2][:300], mnist()[3][:300]
    figures = drawn(cvae.make_figures, Glass(), HISTORY, x, y)
    for name, first_column in (("digits", 0), ("style", 2)):
        images, _, columns = figures[name]
        assert columns[first_column:] == list(range(10))
        shown = images[:, first_column:].flatten(2)
        assert torch.equal(shown[:, :, 20:30], torch.eye(10).expand(len(shown), 10, 10))  # the column's label
        assert torch.equal(shown[:, :, :20], shown[:, :1, :20].expand(-1, 10, -1))  # one z a row
    z = figures["digits"][0].flatten(2)[:, 0, :20]
    assert len(z.unique(dim=0)) == 8 and abs(z.std() - 1) < 0.2
    for digit, row in enumerate(figures["style"][0]):
        original = x[(y == digit).nonzero()[0, 0]]  # the first of its kind
        assert torch.equal(row[0], original)
        expect("style", row[2].flatten()[:20], original.flatten()[380:400] + (digit == 0))
    with replaced(comparisons, "load", lambda *_: Glass()):
        for name, n_row_labels in (("cvae/handwritings", 0), ("cvae/digits_as_vae", 4)):
            axis, = comparisons.FIGURES[name]().axes
            assert (len(axis.get_yticks()), len(axis.get_xticks())) == (n_row_labels, 10), name
    common.plt.close("all")


def test_figures_of_cvae_structured():
    torch.manual_seed(0)
    x, y, visible = mnist()[2][:1000], mnist()[3][:1000], cvae_structured.visible_pixels(1)
    model, baseline = cvae_structured.myVAE(conditional_vec_dim=196).eval(), cvae_structured.BaselineNN().eval()
    metrics = {"best_of_k_mse": [3.0, 2.0, 1.0], "baseline_mse": 1.5, "mean_of_k_mse": 1.7,
               "history": {**HISTORY, "train_baseline_loss": [2.0, 1.0], "test_baseline_loss": [2.0, 1.0]}}
    figures = drawn(cvae_structured.make_figures, model, baseline, metrics, x, y, visible)
    torch.manual_seed(0)
    picked = cvae_structured.pick_images(model, x, y, visible)
    assert y[picked].tolist() == [4, 9, 3, 5, 0, 1, 7]
    images, originals = figures["samples"][0].flatten(2), x[picked + [0, 1, 2]].flatten(1)
    expect("the originals", images[:, 1], originals)
    expect("what is not given is grey", images[:, 0][:, ~visible], 0.5)
    for column in (0, *range(2, 13)):  # what is visible is shown as it is
        expect("visible pixels", images[:, column][:, visible], originals[:, visible])
    answer = baseline(originals[:, visible]).flatten(1)[:, ~visible]
    expect("the baseline's answer", images[:, 2][:, ~visible], answer)
    assert images[:, 3:][:, :, ~visible].std(1).mean() > 1e-3  # samples differ
    errors = ((images[:, 3:] - originals.unsqueeze(1)) ** 2).mean(-1)  # (10, 10)
    assert (errors[:, -1:] <= errors).all()  # the last is the nearest
    assert figures["samples"][2][:2] == ["given", "original"]
    for line, name, values in zip(figures["best_of_k"].axes[0].lines, ("best", "BaselineNN", "mean"),
                                  ([3, 2, 1], [1.5, 1.5], [1.7, 1.7])):
        assert name in line.get_label() and list(line.get_ydata()) == values, line.get_label()


def test_figures_of_the_vqvae():
    torch.manual_seed(0)
    x, codes_train = cifar10()[1][:40], torch.tensor([[0] * 48 + [1] * 16])
    model, prior = painter(x), vqvae.Prior(num_embeddings=6)
    prior.sample = lambda n: torch.full((n, 8, 8), 5)
    history = {"update": [1, 2], "train_reconstruction": [2.0, 1.0], "train_commitment": [1.0, 1.0],
               "train_perplexity": [1.0, 2.0]}
    figures = drawn(vqvae.make_figures, model, history, prior, codes_train, x)
    x_hat, _, _, index = model(x[:20])
    images = figures["reconstructions"][0]
    expect("the images", torch.cat([images[0], images[3]]), x[:20])
    expect("the decoded rows", torch.cat([images[2], images[5]]), x_hat)
    cells = torch.cat([images[1], images[4]])[:, :, 1::4, 2::4].permute(0, 2, 3, 1)  # (20, 8, 8, 3)
    for code in index.unique():  # a colour for each code, and it stays the same
        assert len(cells[index == code].unique(dim=0)) == 1
    assert len(cells.reshape(-1, 3).unique(dim=0)) == len(index.unique()) > 1
    expect("the last row", figures["samples"][0][5], x_hat[:10])
    images = figures["samples"][0][:5, :, :, 12:20, 12:20]  # (5, 10, 3, 8, 8)
    codes = model.quantizer.codebook.detach()
    shown = (images.permute(0, 1, 3, 4, 2).unsqueeze(-2) - codes[:, :3]).norm(dim=-1).argmin(-1)
    assert (shown[:4] == 5).all()  # what the prior wrote
    drawn_codes = torch.bincount(shown[4].flatten()) / shown[4].numel()
    expect("drawn one by one, by frequency", drawn_codes, [0.75, 0.25], 0.05)


@torch.no_grad()
def painter(x):
    """A VQVAE with six codes, near the z of six images, so that images differ in their codes. Its decoder shows the
    codes' first three numbers in the middle of a picture."""
    model = vqvae.VQVAE(num_hiddens=8, num_embeddings=6, embedding_dim=4, commitment_cost=0.4).eval()
    z = model.encode(x)[:6, :, 3, 3]
    model.quantizer.codebook.copy_(z + 1e-3 * torch.randn_like(z))
    model.decode = lambda e: F.pad(e, (12, 12, 12, 12))[:, :3]
    return model


def test_plot_latent_space_and_its_images_correspond():
    extent, asked = (-1.0, 3.0, 10.0, 20.0), []
    z, y = torch.tensor([[0.0, 12.0], [0.2, 13.0], [2.9, 19.0], [1.0, 15.0]]), torch.tensor([3, 3, 3, 8])
    axis = common.plot_latent_space(z, y, extent, [1]).axes[0]
    assert axis.get_xlim() == (-1, 3) and axis.get_ylim() == (10, 20)
    colors = {tuple(c.get_offsets()[0]): c.get_facecolor()[0] for c in axis.collections if len(c.get_offsets())}
    expect("the colour of a 3", colors[0.0, 12.0][:3], list(matplotlib.colors.to_rgb(common.DIGIT_COLORS[3])))
    for text, digit, median in zip(axis.texts, "38", ((0.2, 13), (1, 15))):
        assert text.get_text() == digit
        expect("where the number stands", list(text.get_position()), list(median))
    image = common.plot_latent_space_images(  # one pixel an image, the brighter the larger z2
        lambda z: asked.append(z) or z[:, 1].reshape(-1, 1, 1, 1) / 20, extent, rows=4, columns=4).axes[0].images[0]
    expect("the corners", asked[0][[0, -1]], [[-0.5, 18.75], [2.5, 11.25]])
    expect("the upper row", image.get_array()[0], 18.75 / 20)
    assert image.get_extent() == list(extent)
    axis = common.plot_latent_space(torch.zeros(4, 2), torch.tensor([1, 1, 2, 2]), (-1, 1, -1, 1), [0.5]).axes[0]
    assert axis.texts[0].get_position() != axis.texts[1].get_position()  # two numbers never on one another
    assert [circle.get_radius() for circle in axis.patches] == [0.5]
    common.plt.close("all")


def test_plot_images():
    images = torch.arange(6).reshape(2, 3, 1, 1, 1) / 10 * torch.ones(2, 3, 1, 4, 5)
    expected = np.kron(np.arange(6).reshape(2, 3) / 10, np.ones((5, 6)))  # in reading order,
    expected[4::5], expected[:, 5::6] = 1, 1  # white between them
    expect("tile", common.tile(images, pad=1)[..., 0], expected[:-1, :-1])
    axis = common.plot_images(images, ["a", "b"], ["x", "y", "z"]).axes[0]
    assert [t.get_text() for t in (*axis.get_yticklabels(), *axis.get_xticklabels())] == list("abxyz")
    assert list(axis.get_yticks()) == [2, 8] and axis.images[0].get_clim() == (0, 1)
    expect("an image brighter than white", common.tile(torch.full((1, 1, 1, 2, 2), 3.0)), 1)
    common.plt.close("all")


def test_plot_losses():
    history = {"train_loss": [3.0, 2.5], "test_loss": [4.0, 3.0], "train_kl": [1.0, 1.0], "test_kl": [1.0, 2.0]}
    loss, kl = common.plot_losses(history, {"loss": "loss, nats", "kl": "KL"}).axes
    assert loss.lines[1].get_ydata().tolist() == [4, 3] and kl.lines[0].get_xdata().tolist() == [1, 2]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train: 2.5", "test: 3"]
    axis = common.plot_losses({"update": [100, 200, 300], "train_l": [1.0, 3.0, 2.0]}, {"l": "l"}, "update").axes[0]
    assert axis.lines[0].get_xdata().tolist() == [100, 200, 300] and axis.get_yscale() == "log"
    assert axis.get_legend().get_texts()[0].get_text() == "train: 2"
    common.plt.close("all")


def test_codebooks():
    """Discs as large as their codes are often used, on the two directions in which each codebook varies most; on the
    right also the left one's codes, in the same coordinates."""
    torch.manual_seed(0)
    x = cifar10()[1][:40]
    models = [painter(x), painter(x.flip(0))]
    with replaced(comparisons, "load", lambda script, run, *_: models[run == "lambda-0"]), \
         replaced(comparisons, "cifar10", lambda: (None, x)):
        axes = comparisons.codebooks("main", "lambda-0").axes
    for axis, model in zip(axes, models):
        codes = model.quantizer.codebook.detach().double().numpy()
        counts = torch.bincount(vqvae.encode_all(model, x).flatten(), minlength=6)
        discs = axis.collections[0]
        expect("the discs", discs.get_sizes(), 4 + 200 * counts / counts.max(), 1e-4)
        _, s, v = np.linalg.svd(codes - codes.mean(0))
        expect("the places", np.abs(discs.get_offsets()), np.abs((codes - codes.mean(0)) @ v[:2].T), 1e-3)
        assert axis.get_xlabel().startswith(f"component 1, {100 * s[0]**2 / (s**2).sum():.0f} %")
    # v and codes are now the right panel's; the signs of its components are those of its discs.
    signs = np.sign(discs.get_offsets() / ((codes - codes.mean(0)) @ v[:2].T))[0]
    others = models[0].quantizer.codebook.detach().double().numpy()
    cross, = axes[1].lines
    expect("the crosses", cross.get_xydata(), (others - codes.mean(0)) @ v[:2].T * signs, 1e-3)
    common.plt.close("all")


def test_curves_of_the_comparisons():
    """Each line is the history of the run and seed that its colour and its dashes, or its number, say."""
    figure = comparisons.FIGURES["vqvae/notebook_loss"]()
    errors, norms = figure.axes
    runs = reproduce.read_runs("vqvae")
    shown = [(runs[run], seed, color) for run, color in (("notebook", common.BLUE), ("notebook-lambda-0", common.RED))
             for seed in "012"]
    assert len(errors.lines) == len(norms.lines) == len(shown)
    for error, norm, (entry, seed, color) in zip(errors.lines, norms.lines, shown):
        history = entry["seeds"][seed]["history"]
        assert error.get_color() == norm.get_color() == color
        assert error.get_linestyle() == norm.get_linestyle() == {"0": "-", "1": "--", "2": ":"}[seed]
        expect("errors", error.get_ydata(), history["train_reconstruction"])
        expect("medians", norm.get_ydata(), np.maximum([median for _, median, _ in history["test_z_norm"]], 1e-3))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [r"$\lambda$ = 0.25", r"$\lambda$ = 0"]
    numbered = comparisons.FIGURES["vqvae/push"]().axes[1]
    assert [text.get_text() for text in numbered.texts] == ["0", "1", "2"]
    example, real = comparisons.FIGURES["vqvae/runaway"]().axes
    expect("the example's z", example.lines[0].get_ydata(), comparisons.two_images()[:, 0])
    for line, seed in zip(real.lines, "012"):
        history = runs["notebook-early-lambda-0"]["seeds"][seed]["history"]
        expect("the real z", line.get_ydata(), [median for _, median, _ in history["test_z_norm"]])
    common.plt.close("all")


def test_no_comparison_has_the_name_of_a_scripts_own_figure():
    for script in SCRIPTS:
        own = {path.stem for path in smoke(script).folder.glob("*.png")}
        assert own, script
        assert not own & {Path(name).name for name in comparisons.FIGURES if name.startswith(f"{script}/")}, script


if __name__ == "__main__":
    run_tests(globals())
