"""Runs everything that the pages quote: python report/reproduce.py

Each line of RUNS is one command, repeated for each seed. What is done is in report/<script>/runs.json and is not done
again, so this can be stopped at any time. All of it takes days on two CPU cores.

    python report/reproduce.py                everything that is missing
    python report/reproduce.py vae: cvae:m    what is missing of the runs whose script:run:seed starts with one of these
    python report/reproduce.py cvae:main:0    this one, even if it is done: its weights may be gone
    python report/reproduce.py --list         only say what would be run

runs.json: {run: {command, processor, seeds: {seed: metrics}}}, with the main run first. The main run's first seed also
writes report/<script>/. What else a run writes stays in runs/report/<script>-<run>-<seed>/, for comparisons.py.
When nothing is missing any more, report/explore/weights.js is written. Afterwards: python report/comparisons.py draws,
python report/pages.py writes the numbers into the pages.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

REPORT = Path(__file__).resolve().parent
ROOT = REPORT.parent
NOT_MAIN = "--no-prior --stop-at 2000"

# script, run, flags, number of seeds (or which)
RUNS = [
    ("ae", "main", "", 5),
    *[("ae", f"latent-{z}", f"--latent-dim {z}", 3) for z in (1, 4, 8, 16, 32)],
    ("denoise_ae", "main", "", 5),
    *[("denoise_ae", f"latent-{z}", f"--latent-dim {z}", 3) for z in (2, 6, 12)],
    ("vae", "main", "", 5),
    *[("vae", f"beta-{beta}", f"--beta {beta}", 3) for beta in (0, 0.1, 0.3, 3, 10)],
    ("vae", "plane", "--latent-dim 2", 1),
    ("vae", "binarized", "--binarize", 5),
    ("cvae", "main", "", 5),
    ("cvae", "no-label", "--no-label", 5),
    ("cvae_structured", "main", "", 5),
    *[("cvae_structured", f"quadrants-{n}", f"--quadrants {n}", 5) for n in (2, 3)],
    *[("cvae_structured", f"learned-prior-{n}", f"--learned-prior --quadrants {n}", 3) for n in (1, 2, 3)],
    ("vqvae", "main", "", 3),
    # Without the commitment loss, to the end. Then other weights of it.
    *[("vqvae", f"lambda-{cost}", f"--no-prior --commitment-cost {cost}", 3) for cost in (0, 0.05, 1, 2)],
    # The notebook's recipe, with and without the commitment loss: one seed without it to the end.
    ("vqvae", "notebook", "--reference --no-prior", 1),
    ("vqvae", "notebook-lambda-0", "--reference --no-prior --commitment-cost 0", 1),
    ("vqvae", "notebook-lambda-0-stopped", "--reference --no-prior --commitment-cost 0 --stop-at 5000", (1, 2)),
    # What makes it cheap? Its recipe in ours' small batches, then with a codebook from data; the rest is the schedule.
    ("vqvae", "small-notebook", "--reference --no-prior --n-updates 10000 --batch-size 32", 3),
    ("vqvae", "small-notebook-revive", "--no-prior --lr 1e-3 --constant-lr --relu-skip", 3),
    # Why does z grow without the commitment loss?
    ("vqvae", "lambda-0-decay-0.9", f"{NOT_MAIN} --commitment-cost 0 --decay 0.9", 3),
    ("vqvae", "lambda-0-decay-0.999", f"{NOT_MAIN} --commitment-cost 0 --decay 0.999", 3),
    ("vqvae", "lambda-0-half-lr", f"{NOT_MAIN} --commitment-cost 0 --lr 1e-3", 3),
    ("vqvae", "lambda-0-constant-lr", f"{NOT_MAIN} --commitment-cost 0 --lr 1e-3 --constant-lr", 1),
    # Short runs with a whole schedule of their own.
    ("vqvae", "short", "--no-prior --n-updates 2000", 3),
    ("vqvae", "short-no-revive", "--no-prior --n-updates 2000 --no-revive", 3),
    ("vqvae", "short-codebook-loss", "--no-prior --n-updates 2000 --codebook-loss", 3),
    ("vqvae", "short-codebook-loss-lambda-0", "--no-prior --n-updates 2000 --codebook-loss --commitment-cost 0", 3),
    ("vqvae", "short-codebook-size-64", "--no-prior --n-updates 2000 --codebook-size 64", 3),
    *[("vqvae", f"short-{flag.replace('num-', '')}-{value}", f"--no-prior --n-updates 2000 --{flag} {value}", 3)
      for flag, values in (("hidden-dim", (64, 256)), ("num-residual-hiddens", (16, 64)),
                           ("num-residual-layers", (1, 4)))
      for value in values],
]
HISTORY = {"update", "seconds", "train_reconstruction", "test_reconstruction", "test_perplexity", "test_codes_used",
           "test_z_norm", "test_code_norm", "test_quantization_error"}  # kept for the figures: only vqvae.py's


def read_runs(script):
    path = REPORT / script / "runs.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_runs(script, runs):
    """One line for each seed, in the order of RUNS."""
    order = {run: i for i, (name, run, _, _) in enumerate(RUNS) if name == script}
    entries = []
    for run, entry in sorted(runs.items(), key=lambda item: order.get(item[0], len(RUNS))):
        head = json.dumps({key: value for key, value in entry.items() if key != "seeds"})[:-1]
        entries.append(f'"{run}": {head}, "seeds": {seed_lines(entry["seeds"])}}}')
    (REPORT / script / "runs.json").write_text("{" + ",\n".join(entries) + "}\n", encoding="utf-8", newline="\n")


def seed_lines(seeds):
    """{seed: metrics} as JSON, one line for each seed."""
    in_order = sorted(seeds.items(), key=lambda item: int(item[0]))
    return "{\n" + ",\n".join(f'  "{seed}": {json.dumps(metrics)}' for seed, metrics in in_order) + "}"


def trimmed(metrics, script):
    """Metrics without folders, with few of the histories, and with six digits."""
    kept = {}
    for key, value in metrics.items():
        if key.endswith("_dir"):
            continue
        if key == "history":
            if script == "vqvae":
                kept[key] = {name: rounded(values) for name, values in value.items() if name in HISTORY}
        elif isinstance(value, dict):
            kept[key] = trimmed(value, script)
        else:
            kept[key] = rounded(value)
    return kept


def rounded(value):
    """Six digits of a number, or of each number in a list."""
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value


def folder(script, run, seed):
    """What this run wrote, weights and all."""
    return ROOT / "runs" / "report" / f"{script}-{run}-{seed}" / script


def run_once(script, run, flags, seed):
    out_dir = folder(script, run, seed)
    command = [f"{script}.py", *flags.split(), "--seed"]
    print(f"\n-- {script}:{run}:{seed}: python {' '.join(command)} {seed}", flush=True)
    resume = ["--resume"] if (out_dir / "checkpoint-model.pt").exists() else []
    subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:], str(seed), "--out-dir", str(out_dir.parent),
                    *resume], check=True)
    metrics = json.loads((out_dir / "metrics.json").read_text(encoding="utf-8"))
    if run == "main" and seed == 0:
        metrics["settings"] = {key: value for key, value in metrics["settings"].items() if not key.endswith("_dir")}
        (REPORT / script / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8",
                                                      newline="\n")
        for figure in out_dir.glob("*.png"):
            shutil.copy(figure, REPORT / script)
    runs = read_runs(script)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    entry = runs.setdefault(run, {"command": f"python {' '.join(command)} SEED", "seeds": {}})
    entry["processor"] = capabilities.get("cpu_name") or platform.processor()
    entry["seeds"][str(seed)] = trimmed(metrics, script)
    write_runs(script, runs)


def to_do(only):
    """The runs that are missing, and those that are named in full: [(script, run, flags, seed)]. only: the beginnings
    of their names, or nothing for all."""
    found = []
    for script, run, flags, seeds in RUNS:
        done = read_runs(script).get(run, {"seeds": {}})["seeds"]
        for seed in range(seeds) if isinstance(seeds, int) else seeds:
            name = f"{script}:{run}:{seed}"
            asked = not only or name.startswith(tuple(only))
            if name in only or (asked and str(seed) not in done):
                found.append((script, run, flags, seed))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("only", nargs="*", help="the start of script:run:seed, such as ae: or vae:beta")
    parser.add_argument("--list", action="store_true", help="run nothing")
    args = parser.parse_args()
    todo = to_do(args.only)
    for script, run, flags, seed in todo:
        print(f"to do: {script}:{run}:{seed}, python {script}.py {flags} --seed {seed}")
    if not args.list:
        for one in todo:
            run_once(*one)
        if not args.only:
            subprocess.run([sys.executable, str(REPORT / "explore" / "export.py")], check=True)
