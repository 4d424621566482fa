"""Puts the measured numbers, the scripts' code and its line numbers into the pages: python report/pages.py

A number is followed by a marker, a comment that a reader does not see:

    97.8<!--vae:test_loss-->                     that key of report/vae/metrics.json: the main run with its first seed
    97.8 ± 0.4<!--vae:seeds:test_loss-->         mean and standard deviation (n - 1) over the seeds of the main run
    79.7<!--vae:beta-0.3/test_bce-->             another run of report/vae/runs.json, its first seed; seeds: works, too
    0.99<!--vqvae:2:lambda-0/test_loss-->        the run with --seed 2
    5.2 ± 0.5<!--cvae:seeds:no-label/test_loss minus main/test_loss-->       the difference, paired by seeds

A number that no run wrote is in report/<script>/derived.json, where comparisons.py puts what it derives from runs.

The number's decimals stay as they are written, and ± never stands at the end of a line; with % after it, it is a
percentage. <!--code:vae.py:myVAE.decode:1-2--> stands before a block with the code below that function's docstring, all
of it or those lines, below a comment that says where it stands. <!--summary:vae.py--> stands before one with what the
script prints of its layers, <!--summary:vae.py:RUN--> with that run's flags, and [`decode`](vae.py#L9) links to its
line. <!--panel:noise--> is for page/build.py.
"""

import ast
import contextlib
import functools
import importlib
import io
import json
import re
import statistics
import sys
import tempfile
import textwrap
from pathlib import Path

REPORT = Path(__file__).resolve().parent
ROOT = REPORT.parent
PAGES = [ROOT / "README.md", ROOT / "report.md", *sorted(REPORT.glob("*.md"))]

NUMBER = re.compile(r"(?P<number>-?[\d,]*\.?\d+)(?P<std>[ \xa0]±[ \xa0][\d,]*\.?\d+)?(?P<percent> ?%)?"
                    r"(?P<marker><!--(?P<script>\w+):((?P<seed>seeds|\d+):)?(?P<key>[^>]+)-->)")
CODE = re.compile(r"(?P<marker><!--code:(?P<script>\w+\.py):(?P<name>[\w.]+)(:(?P<first>\d+)-(?P<last>\d+))?-->)\n"
                  r"```python\n.*?```", re.DOTALL)
SUMMARY = re.compile(r"(?P<marker><!--summary:(?P<script>\w+)\.py(:(?P<run>[\w-]+))?-->)\n```text\n.*?```", re.DOTALL)
LINK = re.compile(r"\[`(?P<name>[\w.]+)`\]\((?P<folder>(\.\./)?)(?P<script>\w+\.py)#L\d+\)")


@functools.cache
def read(script, name):
    return json.loads((REPORT / script / name).read_text(encoding="utf-8"))


def measured(script, run, seed):
    """All that is known of a run with one seed, None for its first: its metrics, and what comparisons.py derived."""
    seeds = read(script, "runs.json")[run]["seeds"]
    first = min(seeds, key=int)
    metrics = read(script, "metrics.json") if run == "main" and seed is None else seeds[seed or first]
    derived = read(script, "derived.json") if (REPORT / script / "derived.json").exists() else {}
    return {**derived.get(run, {}).get(seed or first, {}), **metrics}


def look_up(script, seed, key):
    """The number at key, such as beta-0.3/test_bce, for one seed; seed None is the first."""
    run, _, key = key.rpartition("/")
    value = measured(script, run or "main", seed)
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def number(found):
    """What a marked number should be, printed with the decimals that it has."""
    keys, script, seed = found["key"].split(" minus "), found["script"], found["seed"]
    if seed == "seeds":
        runs = [key.rpartition("/")[0] or "main" for key in keys]
        seeds = sorted(set.intersection(*(set(read(script, "runs.json")[run]["seeds"]) for run in runs)))
        assert len(seeds) >= 3, f"{found['marker']}: fewer than three seeds"
    else:
        seeds = [seed]
    values = [look_up(script, s, keys[0]) - (look_up(script, s, keys[1]) if keys[1:] else 0) for s in seeds]

    def printed(value, like):
        return f"{value * (100 if found['percent'] else 1):,.{len(like.partition('.')[2])}f}"

    text = printed(statistics.mean(values), found["number"])
    if found["std"]:
        text += "\xa0±\xa0" + printed(statistics.stdev(values), found["std"])
    return f"{text}{found['percent'] or ''}{found['marker']}"


def link(found):
    """A link to a function or class, with the line that it stands in today."""
    lines, line = (ROOT / found["script"]).read_text(encoding="utf-8").splitlines(), 0
    for name in found["name"].split("."):
        line = next(i for i in range(line, len(lines)) if re.match(rf"\s*(def|class) {name}\b", lines[i]))
    return f"[`{found['name']}`]({found['folder']}{found['script']}#L{line + 1})"


def code(found):
    """The lines of a function or class below its docstring, all or those from `first` to `last`, as they are today."""
    text = (ROOT / found["script"]).read_text(encoding="utf-8")
    node = ast.parse(text)
    for name in found["name"].split("."):
        node = next(n for n in node.body if getattr(n, "name", None) == name)
    above = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
    lines = text.splitlines()[above:node.end_lineno]
    if found["first"]:
        above += int(found["first"]) - 1
        lines = lines[int(found["first"]) - 1:int(found["last"])]
    above += next(i for i, line in enumerate(lines) if line)  # a docstring may have an empty line below it
    arguments = re.sub(r"^self(, )?", "", ast.unparse(node.args))
    head = f"# {found['script']}:{above + 1}  {found['name']}({arguments})"
    body = textwrap.dedent("\n".join(lines)).strip("\n")
    return f"{found['marker']}\n```python\n{head}\n{body}\n```"


def summary(found):
    return f"{found['marker']}\n```text\n{layers(found['script'], found['run'] or 'main')}\n```"


@functools.cache
def layers(script, run):
    """What a script prints of its layers, with that run's flags: all until it draws the first random number."""
    import torch

    import reproduce

    class Printed(Exception):
        pass

    def stop(seed):
        raise Printed

    flags = next(line[2] for line in reproduce.RUNS if line[:2] == (script, run))
    out, manual_seed = io.StringIO(), torch.manual_seed
    sys.path.insert(0, str(ROOT))
    with (tempfile.TemporaryDirectory() as tmp, contextlib.redirect_stdout(out),
          contextlib.redirect_stderr(io.StringIO())):
        torch.manual_seed = stop
        try:
            importlib.import_module(script).main(["--smoke", *flags.split(), "--device", "cpu", "--out-dir", tmp])
        except Printed:
            pass
        finally:
            torch.manual_seed = manual_seed
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def render(text):
    """The page with every number, code block and link as it should be. Raises if a marker has no number before it."""
    text, n_numbers = NUMBER.subn(number, text)
    others = re.findall(r"<!--(?!code:|summary:|panel:).*?-->", text)
    if n_numbers != len(others):
        whole = {found["marker"] for found in NUMBER.finditer(text)}
        raise ValueError(f"no number before {sorted(set(others) - whole)}")
    text, n_blocks = CODE.subn(code, text)
    assert n_blocks == text.count("<!--code:"), "a code marker has no block of Python right below it"
    text, n_blocks = SUMMARY.subn(summary, text)
    assert n_blocks == text.count("<!--summary:"), "a summary marker has no block of text right below it"
    return LINK.sub(link, text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
