"""Runs everything that the pages quote: python report/reproduce.py

Each line of RUNS is one command, repeated for each seed. What is done is in report/<script>/runs.json and is not done
again, so this can be stopped at any time. All of it takes days on two CPU cores.

    python report/reproduce.py                     everything that is missing
    python report/reproduce.py vae: cvae:main:0    only runs whose script:run:seed starts with one of these
    python report/reproduce.py --list              only say what is missing

runs.json: {run: {command, processor, seeds: {seed: metrics}}}, with the main run first. The main run's first seed also
writes report/<script>/. What else a run writes stays in runs/report/<script>:<run>:<seed>/, for comparisons.py.
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
NOT_MAIN = "--alone --stop-at 2000"

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
    *[("vqvae", f"lambda-{cost}", f"--alone --commitment-cost {cost}", 3) for cost in (0, 0.05, 1, 2)],
    # The notebook's recipe, with and without the commitment loss: one seed without it to the end.
    ("vqvae", "notebook", "--reference --alone", 1),
    ("vqvae", "notebook-lambda-0", "--reference --alone --commitment-cost 0", 1),
    ("vqvae", "notebook-lambda-0-stopped", "--reference --alone --commitment-cost 0 --stop-at 5000", (1, 2)),
    # What makes it cheap? Its recipe in ours' small batches, then with a codebook from data; the rest is the schedule.
    ("vqvae", "small-notebook", "--reference --alone --n-updates 10000 --batch-size 32", 3),
    ("vqvae", "small-notebook-revive", "--alone --lr 1e-3 --constant-lr --relu-skip", 3),
    # Why does z grow without the commitment loss?
    ("vqvae", "lambda-0-decay-0.9", f"{NOT_MAIN} --commitment-cost 0 --decay 0.9", 3),
    ("vqvae", "lambda-0-decay-0.999", f"{NOT_MAIN} --commitment-cost 0 --decay 0.999", 3),
    ("vqvae", "lambda-0-half-lr", f"{NOT_MAIN} --commitment-cost 0 --lr 1e-3", 3),
    ("vqvae", "lambda-0-constant-lr", f"{NOT_MAIN} --commitment-cost 0 --lr 1e-3 --constant-lr", 1),
    # Short runs with a whole schedule of their own.
    ("vqvae", "short", "--alone --n-updates 2000", 3),
    ("vqvae", "short-no-revive", "--alone --n-updates 2000 --no-revive", 3),
    ("vqvae", "short-codebook-loss", "--alone --n-updates 2000 --codebook-loss", 3),
    ("vqvae", "short-codebook-loss-lambda-0", "--alone --n-updates 2000 --codebook-loss --commitment-cost 0", 3),
    ("vqvae", "short-codebook-size-64", "--alone --n-updates 2000 --codebook-size 64", 3),
    *[("vqvae", f"short-{flag.replace('num-', '')}-{value}", f"--alone --n-updates 2000 --{flag} {value}", 3)
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
        seeds = ",\n".join(f'  "{seed}": {json.dumps(metrics)}'
                            for seed, metrics in sorted(entry["seeds"].items(), key=lambda item: int(item[0])))
        head = json.dumps({key: value for key, value in entry.items() if key != "seeds"})[:-1]
        entries.append(f'"{run}": {head}, "seeds": {{\n{seeds}}}}}')
    (REPORT / script / "runs.json").write_text("{" + ",\n".join(entries) + "}\n", encoding="utf-8")


def trimmed(value, script):
    """Metrics without folders, with few of the histories, and with six digits."""
    if isinstance(value, dict):
        return {key: {k: trimmed(v, script) for k, v in item.items() if k in HISTORY} if key == "history"
                else trimmed(item, script) for key, item in value.items()
                if not key.endswith("_dir") and (key != "history" or script == "vqvae")}
    if isinstance(value, list):
        return [trimmed(item, script) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def run_once(script, run, flags, seed):
    out_dir = ROOT / "runs" / "report" / f"{script}:{run}:{seed}"
    resume = ["--resume"] if any((out_dir / script).glob("checkpoint-*.pt")) else []
    command = [f"{script}.py", *flags.split(), "--seed"]
    print(f"\n-- {script}:{run}, seed {seed}: python {' '.join(command)} {seed}", flush=True)
    subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:], str(seed), "--out-dir", str(out_dir),
                    *resume], check=True)
    metrics = json.loads((out_dir / script / "metrics.json").read_text(encoding="utf-8"))
    if run == "main" and seed == 0:
        metrics["settings"] = {k: v for k, v in metrics["settings"].items() if not k.endswith("_dir")}
        (REPORT / script / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        for figure in (out_dir / script).glob("*.png"):
            shutil.copy(figure, REPORT / script)
    runs = read_runs(script)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    entry = runs.setdefault(run, {"command": f"python {' '.join(command)} SEED", "seeds": {}})
    entry["processor"] = capabilities.get("cpu_name") or platform.processor()
    entry["seeds"][str(seed)] = trimmed(metrics, script)
    write_runs(script, runs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("only", nargs="*", help="the start of script:run:seed, such as ae: or vae:beta")
    parser.add_argument("--list", action="store_true", help="run nothing")
    args = parser.parse_args()
    todo = [(script, run, flags, seed) for script, run, flags, seeds in RUNS
            for seed in (range(seeds) if isinstance(seeds, int) else seeds)
            if (not args.only or f"{script}:{run}:{seed}".startswith(tuple(args.only)))
            and str(seed) not in read_runs(script).get(run, {"seeds": {}})["seeds"]]
    for script, run, flags, seed in todo:
        print(f"missing: {script}:{run}, python {script}.py {flags} --seed {seed}")
    for missing in todo if not args.list else []:
        run_once(*missing)
    if not args.only and not args.list:
        subprocess.run([sys.executable, str(REPORT / "explore" / "export.py")], check=True)
