"""Runs everything that report.md and README.md quote, and writes the numbers into them.

    python report/reproduce.py                all six scripts, all seeds: a day on two CPU cores
    python report/reproduce.py vae ae         only these
    python report/reproduce.py --pages        runs nothing: writes the pages from what is there

It prints beforehand what it will run, and can be stopped: what is done is not done again (--again does it again).
Seed 0 writes report/<script>/ whole. Of the other seeds only the metrics are kept, without their histories, in
report/<script>/seeds.json, together with those of seed 0.
"""

import argparse
import ast
import json
import re
import shutil
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

REPORT = Path(__file__).resolve().parent
ROOT = REPORT.parent
sys.path.insert(0, str(ROOT))

import common

# {folder in report/: (flags of its runs, flags of the first runs only, how many first runs, how many runs)}
RUNS = {
    "ae": ([], ["--sweep"], 3, 5),
    "denoise_ae": ([], ["--sweep"], 3, 5),
    "vae": ([], ["--sweep"], 3, 5),
    "cvae": (["--compare"], [], 0, 5),
    "cvae_structured": (["--quadrants", "1", "2", "3"], [], 0, 5),
    "vqvae": (["--study"], [], 0, 3),
    "vqvae_reference": (["--reference"], [], 0, 1),
}


def file_of(script):
    return script.removesuffix("_reference") + ".py"


def flags_of(script, seed):
    flags, first, n_first, _ = RUNS[script]
    return [*flags, *(first if seed < n_first else []), "--seed", str(seed)]


def without_histories(metrics):
    return {key: without_histories(value) if isinstance(value, dict) else value
            for key, value in metrics.items() if key != "history"}


def read_seeds(script):
    path = REPORT / script / "seeds.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": {}}


def run(script, seed):
    """One run; seed 0 writes to report/, the others to a folder that is thrown away. A stopped run of vqvae goes on."""
    out_dir = REPORT if seed == 0 else ROOT / "runs" / f"seed-{seed}"
    resume = ["--resume"] if any((out_dir / script).glob("checkpoint-*.pt")) else []
    command = [sys.executable, str(ROOT / file_of(script)), *flags_of(script, seed), "--out-dir", str(out_dir), *resume]
    subprocess.run(command, check=True)
    metrics = json.loads((out_dir / script / "metrics.json").read_text(encoding="utf-8"))
    if seed != 0:
        shutil.rmtree(out_dir / script)
    metrics["settings"] = {key: value for key, value in metrics["settings"].items() if not key.endswith("_dir")}
    runs = dict(sorted({**read_seeds(script)["runs"], str(seed): without_histories(metrics)}.items()))
    command = " ".join(["python", file_of(script), *flags_of(script, 0)[:-1], "SEED"])
    text = json.dumps({"command": command, "seeds": sorted(map(int, runs)), "runs": runs}, indent=1)
    with common.replacing(REPORT / script / "seeds.json") as path:
        Path(path).write_text(text + "\n", encoding="utf-8")


# %% The pages

MARKER = re.compile(r"(?P<number>-?[\d,]*\.?\d+)(?P<std> ± [\d,]*\.?\d+)?(?P<percent> ?%)?"
                    r"<!--(?P<script>\w+):(?P<seeds>seeds:)?(?P<key>[\w.|-]+)-->")
CODE = re.compile(r"(?P<marker><!--code:(?P<script>\w+\.py):(?P<name>[\w.]+)(:(?P<first>\d+)-(?P<last>\d+))?-->)\n"
                  r"```python\n.*?```", re.DOTALL)
LINK = re.compile(r"\[`(?P<name>[\w.]+)`\]\((?P<script>\w+\.py)#L\d+\)")


def look_up(metrics, key):
    """The number at key; for a|b the number at a minus that at b, of the same run."""
    if "|" in key:
        return look_up(metrics, key.split("|")[0]) - look_up(metrics, key.split("|")[1])
    for part in key.split("."):
        metrics = metrics[int(part)] if isinstance(metrics, list) else metrics[part]
    return metrics


def number(marker):
    """What a marked number should be, printed with the decimals it has."""
    if marker["seeds"]:
        values = [look_up(run, marker["key"]) for run in read_seeds(marker["script"])["runs"].values()
                  if run[marker["key"].split(".")[0]] is not None]  # not every seed has a sweep
    else:
        metrics = (REPORT / marker["script"] / "metrics.json").read_text(encoding="utf-8")
        values = [look_up(json.loads(metrics), marker["key"])]
    scale = 100 if marker["percent"] else 1

    def printed(value, like):
        return f"{value * scale:,.{len(like.partition('.')[2])}f}"

    text = printed(statistics.mean(values), marker["number"])
    if marker["std"]:
        text += " ± " + printed(statistics.stdev(values), marker["std"])
    key = (marker["seeds"] or "") + marker["key"]
    return f"{text}{marker['percent'] or ''}<!--{marker['script']}:{key}-->"


def link(marker):
    """A link to a function or class, with the line that it stands in today."""
    lines, line = (ROOT / marker["script"]).read_text(encoding="utf-8").splitlines(), 0
    for name in marker["name"].split("."):
        line = next(i for i in range(line, len(lines)) if re.match(rf"\s*(def|class) {name}\b", lines[i]))
    return f"[`{marker['name']}`]({marker['script']}#L{line + 1})"


def code(marker):
    """The lines of a function or class below its docstring, all or those from `first` to `last`, as they are today."""
    node, text = None, (ROOT / marker["script"]).read_text(encoding="utf-8")
    body = ast.parse(text).body
    for name in marker["name"].split("."):
        node = next(n for n in body if getattr(n, "name", None) == name)
        body = node.body
    above = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
    lines = text.splitlines()[above:node.end_lineno]
    if marker["first"]:
        lines = lines[int(marker["first"]) - 1:int(marker["last"])]
    return f"{marker['marker']}\n```python\n" + textwrap.dedent("\n".join(lines)).strip("\n") + "\n```"


def write_pages():
    for page in (ROOT / "report.md", ROOT / "README.md"):
        text = CODE.sub(code, LINK.sub(link, MARKER.sub(number, page.read_text(encoding="utf-8"))))
        with common.replacing(page) as path:
            Path(path).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scripts", nargs="*", help=f"of {', '.join(RUNS)}; none means all")
    parser.add_argument("--again", action="store_true", help="run what is done already, too")
    parser.add_argument("--pages", action="store_true", help="run nothing, only write the pages")
    args = parser.parse_args()
    if unknown := set(args.scripts) - set(RUNS):
        parser.error(f"no such script: {', '.join(unknown)}")
    todo = [] if args.pages else [(script, seed) for script in args.scripts or RUNS for seed in range(RUNS[script][3])
                                  if args.again or str(seed) not in read_seeds(script)["runs"]]
    for script, seed in todo:
        print("to run: python", file_of(script), *flags_of(script, seed))
    for script, seed in todo:
        print(f"\n-- {script}, seed {seed}", flush=True)
        run(script, seed)
    write_pages()
