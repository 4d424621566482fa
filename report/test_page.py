"""Holds the pages for the browser, report/*.html, to what they claim: `python report/test_page.py`, or with words
behind it the tests that have them all in their names.

Needs Chromium or Chrome, without it all is skipped but what needs none. `pytest report/test_page.py` works, too.
"""

import atexit
import contextlib
import functools
import json
import math
import re
import shutil
import sys
import tempfile
import unittest
from html import unescape
from pathlib import Path
from urllib.parse import unquote

REPORT = Path(__file__).resolve().parent
ROOT = REPORT.parent
sys.path[:0] = [str(ROOT), str(REPORT), str(REPORT / "page")]

import torch
import torchvision
from torch import nn

import ae
import build
import common
import cvae
import cvae_structured
import denoise_ae
import diagrams
import export
import pages
import vae
import vqvae
from comparisons import MissingRun
from test_all import run_tests
from axe_playwright_python.sync_playwright import Axe
from fontTools.ttLib import TTFont
from playwright.sync_api import sync_playwright

PAGES = list(build.PAGES.values())
WIDE, NARROW = (1400, 900), (360, 740)


# %% The browser

@functools.cache
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "chrome",
             "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise unittest.SkipTest("no Chromium or Chrome here")
    playwright = sync_playwright().start()
    opened_browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
    atexit.register(playwright.stop)
    atexit.register(opened_browser.close)  # before that
    return opened_browser


@contextlib.contextmanager
def opened(page="index.html", size=WIDE, dark=False, **options):
    """A page in a tab of its own: name.html, or name.html#anchor. Whatever it asks for must lie on this disk and be
    there, and it must say nothing on the console."""
    context = browser().new_context(viewport={"width": size[0], "height": size[1]},
                                    color_scheme="dark" if dark else "light", **options)
    tab, faults = context.new_page(), []
    tab.on("request", lambda request: faults.append(request.url) if not re.match("file:|data:|blob:", request.url)
           else None)
    tab.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
    tab.on("console", lambda message: faults.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: faults.append(f"error: {error}"))
    try:
        file, _, anchor = page.partition("#")
        tab.goto((REPORT / file).as_uri() + ("#" + anchor if anchor else ""))
        tab.evaluate("document.fonts.ready.then(() => 0)")  # without its fonts the text has other lines
        yield tab
        assert not faults, f"{page}: {faults}"
    finally:
        context.close()


def settled(tab):
    """Until what follows the scrolling has followed: the browser tells of what came into view a frame or two later."""
    tab.evaluate("""async () => {
        const frame = () => new Promise(done => requestAnimationFrame(done));
        const state = () => `${scrollY} ${document.querySelector(".files")?.scrollTop}`;
        let last = "", still = 0;
        while (still < 8) { await frame(); still = state() === last ? still + 1 : 0; last = state(); }
    }""")


# %% The pages as files

def test_pages_are_what_build_makes_today():
    for source, page in build.PAGES.items():
        committed, today = (REPORT / page).read_text(encoding="utf-8").splitlines(), build.build(source).splitlines()
        for number, (line, expected) in enumerate(zip(committed, today), 1):
            assert line == expected, (f"python report/page/build.py changes line {number} of {page}:\n{line[:300]}\n"
                                      f"to\n{expected[:300]}")
        assert len(committed) == len(today), page


def test_size_of_the_page():
    files = [REPORT / "index.html", *(REPORT / "page").glob("*.css"), *(REPORT / "page").glob("*.js"),
             *(REPORT / "page" / "fonts").glob("*.woff2")]
    size = sum(file.stat().st_size for file in files)
    assert size < 700_000, f"{size:,} bytes without figures, panels and weights"


def ids(page):
    return re.findall(r'\sid="?([^\s">]+)', (REPORT / page).read_text(encoding="utf-8"))


def test_anchors_and_links_of_the_pages_resolve():
    for source, page in build.PAGES.items():
        assert len(ids(page)) == len(set(ids(page))), f"{page}: an id twice"
        text = (REPORT / page).read_text(encoding="utf-8")
        for target in re.findall(r'(?:href|src)="([^"]+)"', text):
            if re.match("https?:|data:", target):
                continue
            file, _, anchor = unquote(target).partition("#")
            assert (REPORT / file).exists(), f"{page}: {target}"
            assert not file.endswith(".md") or file == "../README.md", f"{page} leads to Markdown: {target}"
            assert not anchor or anchor in ids(file or page), f"{page}: {target}"
        markdown = re.sub(r"```.*?```", "", source.read_text(encoding="utf-8"), flags=re.DOTALL)
        for heading in re.findall(r"^#+ (.*)", markdown, re.MULTILINE):  # GitHub's names of the headings
            assert re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") in ids(page), f"{page}: {heading}"
        for figure in re.findall(r"^\*\*Figure ([\d.]*\d)", markdown, re.MULTILINE):
            assert f"figure-{figure}" in ids(page), f"{page}: {figure}"
        for script, line in re.findall(r"(\w+\.py)#L(\d+)", markdown):  # a line's link leads to that line
            assert re.search(rf'href="(index\.html)?#{re.escape(script)}-L{line}"', text), f"{page}: {script}#L{line}"


def test_diagrams_are_those_of_the_text():
    source = """flowchart LR
  a["one<br>two"] -- "x < y" --> b(("round")) -.-> c[("store")] --> d["end"]
  a -- "over" --> d
  e["feeds"] --> b
  d -. "back" .-> b
"""
    nodes, edges = diagrams.parse(source)
    assert nodes == {"a": ("box", ["one", "two"]), "b": ("circle", ["round"]), "c": ("store", ["store"]),
                     "d": ("box", ["end"]), "e": ("box", ["feeds"])}
    assert edges == [("a", "b", "x < y", False), ("b", "c", None, True), ("c", "d", None, False),
                     ("a", "d", "over", False), ("e", "b", None, False), ("d", "b", "back", True)]
    at, back = diagrams.place(nodes, edges)
    assert at == {"a": (0, 0), "b": (1, 0), "c": (2, 0), "d": (3, 0), "e": (1, -1)} and back == {("d", "b")}
    corners = [path.count("L") for path in re.findall(r'class="edge[^>]*', diagrams.draw(source, down=False))]
    assert corners == [1, 1, 1, 3, 1, 3], corners  # only a to d and back to b have to go around others
    assert "one two to round (x &lt; y)" in diagrams.draw(source, down=False)
    for wrong in ("flowchart TB\n  a --> b", 'flowchart LR\n  a["x"] ==> b["y"]', 'flowchart LR\n  a{"x"} --> b["y"]'):
        try:
            diagrams.parse(wrong)
        except AssertionError:
            continue
        raise AssertionError(f"understood: {wrong}")


def test_what_build_makes_of_markdown():
    def made(text):
        return build.convert(text, ROOT, ["vae.py"]).strip()

    kl = build.find("vae.py", "myVAE.kl_divergence").lineno
    for text, html in {
            "3.1 ± 0.2<!--vae:loss--> \"nats\"": "<p>3.1 ± 0.2 “nats”</p>",
            "[`kl`](vae.py#L97)": '<p><a href="#vae.py-L97"><code>kl</code></a></p>',
            "[`kl`](cvae.py#L9)": '<p><a href="index.html#cvae.py-L9"><code>kl</code></a></p>',
            "[a](report/vqvae.md#b) [c](report/choices.md) [d](README.md) [e](https://f.g)":
                '<p><a href="vqvae.html#b">a</a> <a href="choices.html">c</a> <a href="../README.md">d</a> '
                '<a href="https://f.g">e</a></p>',
            "`python vae.py --smoke`": "<p><code>python vae.py <span>--smoke</span></code></p>",
            "<!--panel:noise-->": '<section class="panel" id="noise" data-panel="noise" '
                                  'aria-label="Noise, and without it"></section>',
            "<details><summary>A</summary>\n\nb. </details>":
                "<details><summary>A</summary>\n<p>b.</p>\n</details>"}.items():
        assert made(text) == html, f"expected\n{html}\ngot\n{made(text)}"
    assert re.findall(r'id="([^"]*)"', made("## `vae.py`: What, and why?\n\n## A B\n\n### A B")) == [
        "vaepy-what-and-why", "a-b", "a-b-1"]
    broken = made(r"$\log p(x|c) - \log p(x) = \log p(c|x) - \log p(c) \le -\log p(c)$")
    assert broken.count("<math>") == 5 and broken.count("<wbr>") == 4  # after - = - and ≤, but not after the sign
    assert made(r"$E\lVert f - m \rVert^2 = a + b + c + d + e$").count("<wbr>") == 5  # not within the bars
    assert made("$f(a + b + c + d) = g(h + i - j)$").count("<wbr>") == 1  # not within brackets, if it is short
    assert "<msup>" not in made("$f'(z)$") and "<munder>" in made("```math\n\\mathop{\\mathrm{argmin}}_j x\n```")
    quote = made(pages.render("<!--code:vae.py:myVAE.kl_divergence-->\n```python\n```"))
    lines = re.search(r'data-lines="(\d+)-(\d+)" data-whole="(\d+)-(\d+)"', quote).groups()
    assert lines[1] == lines[3] and int(lines[2]) == kl and "myVAE.kl_divergence(mu, logvar)" in quote
    assert "<i class=k>return</i> " in quote and f"counter-reset:line {int(lines[0]) - 1}" in quote
    figure = made("![loss](report/vae/loss.png)\n\n**Figure 3.1.** It falls.\n\nSee figure 3.1, not figure 9.9.")
    link = '<a href="#figure-3.1">3.1</a>'
    assert re.fullmatch(r'<figure id="figure-3.1">\s*<img src="vae/loss.png" alt="loss" width="\d+" height="\d+" '
                        rf'decoding="async">\s*<figcaption><strong>Figure {link}.</strong> It falls.</figcaption>'
                        rf'</figure>\s*<p>See figure {link}, not figure 9.9.</p>', figure)
    code = ['a = <i class=s>"""b</i>', '<i class=s>c"""</i>  <i class=c># d</i>']
    assert build.highlight('a = """b\nc"""  # d') == code


# %% What one sees

def test_without_javascript_everything_is_there():
    for source, page in build.PAGES.items():
        markdown = source.read_text(encoding="utf-8")
        with opened(page, java_script_enabled=False) as tab:
            # Evaluated from outside, which works all the same.
            text = tab.evaluate("document.querySelector('main').textContent")
            seen = " ".join(text.replace("“", '"').replace("”", '"').replace("’", "'").split())
            prose = re.sub(r"```.*?```|<!--.*?-->", "", markdown, flags=re.DOTALL)
            lines = [line for line in prose.splitlines() if re.fullmatch(r"[\w ,.;:()'\"±=-]{20,}", line)]
            assert len(lines) > 5, page
            for line in lines:
                assert " ".join(re.sub(r"^\d+\. |^- ", "", line).split()) in seen, f"{page} lacks: {line}"
            n_figures = len(re.findall(r"!\[|<img", markdown))
            broken = tab.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)")
            assert not broken and tab.evaluate("document.images.length") == n_figures, (page, broken)
            assert tab.evaluate("[...document.images].every(image => image.alt.length > 10)"), page
            n_blocks = markdown.count("```math")
            assert tab.evaluate("document.querySelectorAll('.formula math[display=block]').length") == n_blocks, page
            assert "$" not in seen, page
            assert tab.evaluate("document.querySelectorAll('.chart svg').length") == 2 * markdown.count("```mermaid")
            assert tab.evaluate("document.querySelectorAll('main table').length") == len(
                re.findall(r"^\|[-|]+\|$", markdown, re.MULTILINE)), page
            assert tab.evaluate("document.querySelectorAll('main details').length") == markdown.count("<details>")
            hidden = tab.evaluate("""[...document.querySelectorAll("main *")]
                .filter(e => !e.closest("details, svg, math") && !e.matches("wbr, .panel"))
                .filter(e => getComputedStyle(e).display === "none").map(e => e.outerHTML)""")
            assert not hidden, f"{page}: {hidden}"
            for script in tab.evaluate("[...document.querySelectorAll('.script')].map(s => s.id)"):
                code = tab.evaluate("id => document.getElementById(id).querySelector('pre').textContent", script)
                assert code == (ROOT / script).read_text(encoding="utf-8"), f"{page}: {script}"
            assert tab.evaluate("[...document.querySelectorAll('.panel')].every(p => !p.offsetHeight)"), page


def test_the_page_is_silent_and_alone_from_its_beginning_to_its_end():
    for page in PAGES:
        for size in (WIDE, NARROW):
            with opened(page, size) as tab:
                for part in range(21):
                    tab.evaluate("part => scrollTo(0, document.body.scrollHeight * part / 20)", part)
                    settled(tab)
                tab.wait_for_timeout(500)


def test_axe_finds_nothing():
    axe, options = Axe(), {"preload": False, "resultTypes": ["violations"]}
    for page in PAGES:
        for size, dark in ((WIDE, False), (WIDE, True), (NARROW, False), (NARROW, True)):
            if page != "index.html" and dark == (size == WIDE):
                continue  # each of its colours and each of its sizes once
            with opened(page, size, dark) as tab:
                if size == NARROW:
                    tab.click("#menu")
                else:
                    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                tab.evaluate("document.querySelectorAll('.script:not(.shown)').forEach(s => s.remove())")  # saves time
                settled(tab)
                found = axe.run(tab, options=options).response["violations"]
                faults = [(fault["id"], node["html"][:150], node.get("failureSummary", "")[:200]) for fault in found
                          for node in fault["nodes"]]
                assert not faults, f"{page} {size} {'dark' if dark else 'light'}: {len(faults)}: {faults[:5]}"


def test_colours_have_enough_contrast():
    """All inks on all papers, also where axe does not look: it skips lines of code that are not in view."""
    def luminance(color):
        color = "".join(2 * c for c in color) if len(color) == 3 else color
        red, green, blue = (int(color[i:i + 2], 16) / 255 for i in (0, 2, 4))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    css = (REPORT / "page" / "page.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{.*?\}", css, re.DOTALL)
    light, dark, printed = (dict(re.findall(r"--(\w+): #(\w+)", block)) for block in blocks)
    for name, colors in (("light", light), ("dark", dark), ("print", {**light, **printed})):
        for ink in ("ink", "soft", "accent", "comment", "string", "number", "builtin"):
            for paper in ("paper", "plate", "mark"):
                darker, lighter = sorted((luminance(colors[ink]), luminance(colors[paper])))
                contrast = (lighter + 0.05) / (darker + 0.05)
                assert contrast >= 4.5, f"{name}: --{ink} on --{paper}: {contrast:.1f}"


def test_words_of_diagrams_lie_in_their_boxes():
    for size, kind in ((WIDE, "along"), (NARROW, "down")):
        with opened(size=size) as tab:
            outside = tab.evaluate("""kind => [...document.querySelectorAll(`.chart .${kind}`)].flatMap(svg => {
                const inside = (a, b) => a.left >= b.left && a.right <= b.right &&
                    a.top >= b.top && a.bottom <= b.bottom;
                const box = e => e.getBoundingClientRect(), nodes = [...svg.querySelectorAll(".node")].map(box);
                const touch = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
                return [...svg.querySelectorAll("text")].filter(text => !inside(box(text), box(svg)) ||
                    (text.matches(".label") ? nodes.some(node => touch(box(text), node))
                                            : !nodes.some(node => inside(box(text), node))))
                    .map(text => text.outerHTML);
            })""", kind)
            assert tab.evaluate("kind => document.querySelectorAll(`.chart .${kind}`)[0].checkVisibility()", kind)
            assert not outside, f"{kind}: {outside}"


def test_nothing_overflows_on_a_phone():
    for page in PAGES:
        with opened(page, NARROW) as tab:
            tab.evaluate("document.querySelectorAll('main details').forEach(d => d.open = true)")
            settled(tab)
            outside = tab.evaluate("""width => [...document.querySelectorAll("main *")]
                .filter(e => e.getBoundingClientRect().right > width - 8 && !e.closest(".formula, .table, pre, .panel"))
                .map(e => e.outerHTML.slice(0, 200))""", NARROW[0])
            assert not outside, f"{page}: {outside[:5]}"
            assert tab.evaluate("document.documentElement.scrollWidth") <= NARROW[0], page


def test_lines_of_prose_have_at_most_70_characters():
    with opened() as tab:
        lengths = tab.evaluate(r"""() => {
            const lengths = [];
            for (const p of document.querySelectorAll("main > p")) {
                if (p.querySelector("math, code, br")) continue;
                const range = document.createRange(), words = [];
                for (let walk = document.createTreeWalker(p, 4), node; node = walk.nextNode();)
                    for (const word of node.data.matchAll(/\S+/g)) words.push([node, word.index, word[0]]);
                let line = [], bottom = 0;
                for (const [node, at, word] of words) {
                    range.setStart(node, at); range.setEnd(node, at + word.length);
                    const box = range.getClientRects()[0];
                    if (box.top > bottom) { lengths.push(line.join(" ").length); line = [] }
                    line.push(word); bottom = box.bottom;
                }
            }
            return lengths.sort((a, b) => a - b);
        }""")
        # One line in a hundred may be full of narrow letters.
        assert len(lengths) > 100 and 55 < lengths[int(0.99 * len(lengths)) - 1] <= 70, lengths[-10:]


def test_formulas_have_their_font():
    """Every character of a formula is in the font beside the page, also as the italic letter that a browser makes of
    it; and the browser takes that font, and those of the text."""
    font = TTFont(REPORT / "page" / "fonts" / "STIXTwoMath-subset.woff2").getBestCmap()
    for page in PAGES:
        text = (REPORT / page).read_text(encoding="utf-8")
        for formula in re.findall("<math.*?</math>", text, re.DOTALL):
            letters = set(unescape(re.sub("<[^>]*>", "", formula))) - set(" \n\u2061\ufe00")
            for letter in re.findall("<mi>(.)</mi>", formula):  # one alone is italic
                if letter.isascii() and letter.isalpha():
                    letters.add("ℎ" if letter == "h" else chr(ord(letter) - 97 + 0x1D44E if letter.islower()
                                                              else ord(letter) - 65 + 0x1D434))
                elif "α" <= letter <= "ω":
                    letters.add(chr(ord(letter) - ord("α") + 0x1D6FC))
            missing = {letter for letter in letters if ord(letter) not in font}
            assert not missing, f"{page}: add {missing} to fonts/characters.txt, make the font anew (README.md there)"
    with opened() as tab:
        tab.evaluate("scrollTo(0, 9000)")
        settled(tab)
        loaded = tab.evaluate("[...document.fonts].filter(f => f.status === 'loaded').map(f => f.family + f.style)")
        assert len(loaded) == 3, loaded


# %% The code beside the text

def marked(tab):
    """The script that is shown, the numbers of its marked lines and whether all of them are in view."""
    return tab.evaluate("""() => {
        const lines = [...document.querySelectorAll(".script.shown .on")], box = document.querySelector(".files")
            .getBoundingClientRect();
        return [document.querySelector(".script.shown").id,
                lines.map(line => [...line.parentElement.children].indexOf(line) + 1),
                lines.every(line => line.getBoundingClientRect().top >= box.top - 1 &&
                                    line.getBoundingClientRect().bottom <= box.bottom + 1),
                lines.map(line => line.textContent.trim()).join("\\n").trim()];
    }""")


def test_the_code_column_follows_the_reading():
    for page in ("index.html", "vqvae.html"):
        with opened(page) as tab:
            tab.evaluate("document.querySelectorAll('main details:not(.whole)').forEach(d => d.open = true)")
            quotes = tab.evaluate("""[...document.querySelectorAll(".quote")].map(q => [q.dataset.script,
                q.dataset.lines.split("-").map(Number),
                [...q.querySelectorAll(".code span")].map(s => s.textContent.trim()).join("\\n").trim()])""")
            assert len(quotes) == (ROOT / "report.md" if page == "index.html" else REPORT / "vqvae.md").read_text(
                encoding="utf-8").count("<!--code:") > 0
            for i, (script, (first, last), text) in enumerate(quotes):
                tab.evaluate("i => document.querySelectorAll('.quote')[i].scrollIntoView({block: 'center'})", i)
                settled(tab)
                assert marked(tab) == [script, list(range(first, last + 1)), True, text], (script, first, marked(tab))
            for section in tab.evaluate("[...document.querySelectorAll('h2[data-script]')].map(h => h.id)"):
                tab.evaluate("id => document.getElementById(id).scrollIntoView()", section)
                settled(tab)
                script = tab.evaluate("id => document.getElementById(id).dataset.script", section)
                assert marked(tab)[0] == script, section
    with opened() as tab:  # until a section's first quotation, also names of functions
        tab.evaluate("""document.querySelector("a[href^='#vae.py-L']").scrollIntoView({block: "center"})""")
        settled(tab)
        number = (ROOT / "vae.py").read_text(encoding="utf-8").splitlines().index("class myVAE(nn.Module):") + 1
        assert marked(tab)[:3] == ["vae.py", [number], True], marked(tab)


def test_a_click_shows_the_code():
    with opened() as tab:
        tab.evaluate("document.querySelectorAll('.quote')[3].scrollIntoView({block: 'center'})")
        settled(tab)
        before, place = marked(tab), tab.evaluate("scrollY")
        box = tab.locator("#code nav a >> text=vqvae.py").bounding_box()
        tab.mouse.click(box["x"] + 9, box["y"] + 9)  # tab.click() would scroll the text
        settled(tab)
        assert marked(tab)[:2] == ["vqvae.py", []]
        box = tab.locator(".quote").nth(3).bounding_box()
        tab.mouse.click(box["x"] + 200, box["y"] + 50)
        settled(tab)
        assert marked(tab) == before and tab.evaluate("scrollY") == place
        tab.evaluate("document.querySelectorAll('main details').forEach(d => d.open = true)")
        for link in tab.locator("main :not(figcaption) > a[href*='.py-L']").all():
            script, line = re.fullmatch(r"#([\w.]+)-L(\d+)", link.get_attribute("href")).groups()
            link.scroll_into_view_if_needed()
            settled(tab)
            link.focus()
            link.press("Enter")  # a link works with the keyboard as with the mouse
            settled(tab)
            assert marked(tab)[:3] == [script, [int(line)], True], (script, line, marked(tab))
        cite = tab.locator(".quote figcaption a").nth(3)
        cite.scroll_into_view_if_needed()
        cite.press("Enter")
        settled(tab)
        assert marked(tab) == before
    with opened("index.html#vae.py-L60") as tab:  # and by the address
        settled(tab)
        assert marked(tab)[:3] == ["vae.py", [60], True]


def test_code_on_a_phone():
    with opened(size=NARROW, has_touch=True, is_mobile=True) as tab:
        quote = tab.locator(".quote:not(details *)").nth(1)
        quote.locator("summary").tap()
        whole = quote.evaluate("q => q.querySelector('.whole .code').textContent")
        script, (first, last) = quote.get_attribute("data-script"), quote.get_attribute("data-whole").split("-")
        lines = (ROOT / script).read_text(encoding="utf-8").splitlines(keepends=True)
        marks = quote.evaluate("q => [...q.querySelectorAll('.whole .on')].map(line => line.textContent.trim())")
        assert marks == quote.evaluate("q => [...q.querySelector('.code').querySelectorAll('span')].map("
                                       "line => line.textContent.trim())")
        assert whole == "".join(lines[int(first) - 1:int(last)]) and lines[int(first) - 1].lstrip().startswith("def")
        assert not tab.locator("#code").is_visible()
        link = tab.locator("main :not(figcaption) > a[href*='.py-L']").first
        link.scroll_into_view_if_needed()
        place = tab.evaluate("scrollY")
        link.tap()
        target = tab.locator(f"[id='{link.get_attribute('href')[1:]}']")
        tab.wait_for_function("id => document.getElementById(id).getBoundingClientRect().top > 0",
                              arg=link.get_attribute("href")[1:])
        box = target.bounding_box()
        assert target.is_visible() and 0 < box["y"] < NARROW[1], box
        tab.tap("#shut")
        assert not tab.locator("#code").is_visible() and tab.evaluate("scrollY") == place
        link.tap()
        assert tab.locator("#code").is_visible()
        tab.go_back()  # the phone's own way back
        assert not tab.locator("#code").is_visible() and tab.evaluate("scrollY") == place


def test_contents_show_where_one_is():
    for size in (WIDE, NARROW, (1920, 1080)):
        with opened(size=size) as tab:
            for i in range(tab.locator("#contents ol a").count()):
                anchor = unquote(tab.evaluate("i => document.querySelectorAll('#contents ol a')[i].hash.slice(1)", i))
                tab.evaluate("id => document.getElementById(id).scrollIntoView()", anchor)
                settled(tab)
                current = tab.evaluate("[...document.querySelectorAll('#contents ol [aria-current]')].map(a => a.hash)")
                current = [unquote(link) for link in current]
                at_end = tab.evaluate("scrollY + innerHeight >= document.documentElement.scrollHeight - 2")
                assert current == [f"#{anchor}"] or at_end, (anchor, current)
            if size[0] < 1750:
                assert not tab.locator("#contents").is_visible()
                tab.focus("#menu")
                tab.keyboard.press("Enter")
                assert tab.locator("#contents").is_visible()
                tab.keyboard.press("Escape")
                assert not tab.locator("#contents").is_visible()
                tab.keyboard.press("Enter")
                tab.click("#contents ol a >> nth=2")
                assert not tab.locator("#contents").is_visible()
            else:
                assert tab.locator("#contents").is_visible() and not tab.locator("#menu").is_visible()


def test_print():
    """On paper: formulas, figures and answers, but neither panels nor the code column nor the bar."""
    for script in (True, False):
        with opened(java_script_enabled=script) as tab:
            tab.emulate_media(media="print")
            shown = tab.evaluate("""[...document.querySelectorAll("#code, .text > header, .panel")]
                .filter(e => e.offsetHeight).length""")
            assert shown == 0
            assert tab.evaluate("""[...document.querySelectorAll("main details:not(.whole) > p")]
                .every(p => p.checkVisibility())"""), "a folded answer is not printed"
            pdf = tab.pdf(format="A4")
            assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 20
            if script:  # for browsers that do not let a style sheet unfold
                tab.evaluate("dispatchEvent(new Event('beforeprint'))")
                assert tab.evaluate("[...document.querySelectorAll('main details:not(.whole)')].every(d => d.open)")


# %% Panels: what their tests need
# The networks' weights are read from page/weights/, so the trained models themselves are not needed. Where they are
# there, in runs/report/, the files are compared with them, too.

PHONE, DESK = NARROW[0], WIDE[0]
NEAR = 0.02  # a canvas shows 256 steps, and is read as such: each number may be off by 0.002


def expect(what, got, expected, tolerance=NEAR):
    got, expected = torch.as_tensor(got).flatten().float(), torch.as_tensor(expected).flatten().float()
    assert got.shape == expected.shape, f"{what}: {len(got)} numbers, not {len(expected)}"
    difference = float((got - expected).abs().max())
    assert difference <= tolerance, f"{what}: off by {difference:.4f}"


@contextlib.contextmanager
def panel(name, width=DESK, **options):
    """One panel, ready, alone on a page: (the page, its section)."""
    address = (REPORT / "page").as_uri()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        host = Path(folder, "panel.html")
        host.write_text(f'<!doctype html><html lang="en" class="js"><meta charset="utf-8"><title>{name}</title>'
                        '<meta name="viewport" content="width=device-width, initial-scale=1">'
                        f'<link rel="stylesheet" href="{address}/page.css">'
                        f'<link rel="stylesheet" href="{address}/panels.css"><body class="alone">'
                        f'<main style="max-width: 700px; margin: auto"><h1>{name}</h1>'
                        f'<section class="panel" id="{name}" data-panel="{name}" aria-label="{name}"></section></main>'
                        f'<script src="{address}/panels.js"></script>', encoding="utf-8")
        with opened(str(host), (width, 900), **options) as page:
            section = page.locator(f"#{name}")
            page.wait_for_selector(f"#{name}[data-state=ready]", timeout=60000)
            settle(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} is wider than {width} px"
            yield page, section


def settle(page):
    """Until the frame is drawn that shows what was last asked for, and the slices of longer work are done."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30))))")


def pixels(canvas):
    """What a canvas shows, in [0, 1]: (height * width) grey values, the red ones of a coloured picture."""
    settle(canvas.page)
    return torch.tensor(canvas.evaluate("""canvas => {
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
        copy.drawImage(canvas, 0, 0);
        const {data} = copy.getImageData(0, 0, canvas.width, canvas.height);
        return Array.from({length: data.length / 4}, (_, i) => data[4 * i]);
    }""")) / 255


def canvas(section, name, i=0):
    """The canvas whose name for a screen reader begins so."""
    return section.locator(f'canvas[aria-label^="{name}"]').nth(i)


def caption(section, name, i=0):
    return canvas(section, name, i).locator("xpath=..").locator("figcaption").inner_text()


def image(canvas):
    """What a canvas shows, as a network takes it: (1, 784)"""
    return pixels(canvas).reshape(1, 784)


def stroke(target, points, how):
    """Draws a line through points (u, v) of a canvas, by "mouse", "touch" or "keyboard"."""
    page = target.page
    target.scroll_into_view_if_needed()
    box = target.bounding_box()
    places = [(box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in points]
    if how == "mouse":
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=3)
        page.mouse.up()
    elif how == "touch":
        session = page.context.new_cdp_session(page)
        for i, (x, y) in enumerate(places):
            session.send("Input.dispatchTouchEvent", {"type": "touchMove" if i else "touchStart",
                                                      "touchPoints": [{"x": x, "y": y}]})
        page.wait_for_timeout(200)  # the finger rests: after a fling, Chromium takes no tap for a while
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    else:
        target.focus()
        page.keyboard.press("Shift")  # the cursor is shown after a key
        at = [14, 14]
        for u, v in points:
            for axis, keys in ((0, ("ArrowLeft", "ArrowRight")), (1, ("ArrowUp", "ArrowDown"))):
                steps = round(28 * (u, v)[axis] - 0.5) - at[axis]
                for _ in range(abs(steps)):
                    page.keyboard.press(keys[steps > 0])
                    page.keyboard.press(" ")
                at[axis] += steps
        target.evaluate("canvas => canvas.blur()")  # no cursor on the drawing
    settle(page)


SEVEN, HOOK = [(0.3, 0.25), (0.7, 0.25), (0.45, 0.8)], [(0.35, 0.2), (0.35, 0.5), (0.65, 0.5), (0.6, 0.85)]


def ways():
    """The three ways to operate a panel, each with its width and the options of its page."""
    return (("mouse", DESK, {}), ("touch", PHONE, {"has_touch": True, "is_mobile": True}), ("keyboard", PHONE, {}))


def pad(section):
    return section.locator(".sketch canvas")


def move(section, label, value):
    """Moves the slider with this label."""
    section.locator(".slider", has_text=label).locator("input").evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", value)
    settle(section.page)


def choose(section, name, key=None):
    """Chooses a radio button, by a click or by a key on the one that is chosen."""
    if key:
        section.get_by_role("radio", name=name, exact=True).press(key)
    else:
        section.get_by_role("radio", name=name, exact=True).check(force=True)
    settle(section.page)


@functools.cache
def mnist():
    _, _, x, y = common.load_mnist()
    return x.flatten(1), y


@functools.cache
def networks(name):
    """{name: nn.Sequential} of a weights file."""
    return {key: export.rebuild(value) for key, value in export.read(name).items()
            if isinstance(value, dict) and "layers" in value}


def encoded(name, x):
    """mu and sigma of a VAE's encoder."""
    parts = networks(name)
    h = parts["encoder"](x)
    return parts["mu_layer"](h), (0.5 * parts["logvar_layer"](h).clamp(max=10)).exp()


# %% Layers and weights

LAYERS = {
    "Linear": ((20,), lambda: nn.Linear(20, 7)),
    "Linear without a bias": ((3, 20), lambda: nn.Linear(20, 7, bias=False)),
    "Linear of many weights": ((160,), lambda: nn.Linear(160, 80)),
    "Conv2d": ((3, 9, 8), lambda: nn.Conv2d(3, 5, 3, padding=1)),
    "Conv2d with a stride": ((3, 9, 8), lambda: nn.Conv2d(3, 5, 4, stride=2, padding=1, bias=False)),
    "ConvTranspose2d": ((3, 4, 5), lambda: nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1)),
    "ConvTranspose2d without a bias": ((3, 4, 5), lambda: nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1, bias=False)),
    "BatchNorm2d": ((3, 4, 5), lambda: nn.BatchNorm2d(3, eps=0.1)),
    "MaxPool2d": ((3, 7, 5), lambda: nn.MaxPool2d(2, ceil_mode=True)),
    "ResidualStack": ((6, 5, 4), lambda: vqvae.ResidualStack(6, 4, 2)),
    "LayerNorm": ((3, 20), lambda: nn.LayerNorm(20, eps=0.1)),
    "LeakyReLU": ((20,), lambda: nn.LeakyReLU(0.1)),
    "ReLU": ((20,), nn.ReLU), "SiLU": ((20,), nn.SiLU), "GELU": ((20,), nn.GELU), "Sigmoid": ((20,), nn.Sigmoid),
}


@torch.no_grad()
def test_layers_are_those_of_pytorch():
    """Each through the exporter, the page and `rebuild`."""
    torch.manual_seed(0)
    with panel("noise") as (page, _):
        for name, (shape, make) in LAYERS.items():
            layer = make().eval()
            for tensor in layer.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand_like(tensor) + 0.1 if tensor.dim() == 1 else torch.randn_like(tensor) / 4)
            packed, x = export.network(shape, [layer]), torch.randn(3, *shape)
            expected = export.rebuild(packed)(x)
            expect(f"{name}, exported and read", expected, layer(x))
            for one, other in zip(x, expected):
                got = page.evaluate("([packed, x]) => [...Panels.ready(packed)(x)]",
                                    [packed, one.flatten().tolist()])
                expect(name, got, other, 1e-4)


def test_numbers_survive_the_weights_files():
    torch.manual_seed(0)
    numbers = torch.cat([torch.randn(7000) / 10, torch.tensor([0.0, -0.0, 6e-8, -3e-6, 1.0, -100.0])]).reshape(2, -1)
    with panel("noise") as (page, _):
        for kind, tensor in (("f16", numbers), ("i12", numbers), ("u8", numbers.sigmoid())):
            packed = export.pack(tensor, kind)
            expect(kind, export.unpack(packed), tensor, 0.002 if kind == "u8" else 0.03)
            got = page.evaluate("packed => [...Panels.ready(packed)]", packed)
            expect(f"{kind} on the page", got, export.unpack(packed), 1e-6)


def todays_models():
    """{file: {name: (shape, what `network` takes)}}, of untrained models of the scripts' classes."""
    def variational(model):
        return {"encoder": model.encoder, "mu_layer": [model.mu_layer], "logvar_layer": [model.logvar_layer],
                "decoder": model.decoder}
    auto, denoising = ae.Autoencoder(), denoise_ae.DenoiseAE()
    structured = cvae_structured.myVAE(conditional_vec_dim=196)
    return {"ae": {"encoder": auto.encoder, "decoder": auto.decoder},
            "denoise_ae": {"denoise": [*denoising.encoder, *denoising.decoder]},
            "vae": variational(vae.myVAE()), "vae_plane": variational(vae.myVAE(latent_dim=2)),
            "cvae": variational(cvae.myVAE(latent_dim=10, conditional_vec_dim=10)),
            "cvae_structured": {"decoder": structured.decoder, "baseline": cvae_structured.BaselineNN().net},
            "vqvae_encoder": {"encode": vqvae.VQVAE().encoder}, "vqvae_decoder": {"decode": vqvae.VQVAE().decoder}}


def test_the_weights_are_of_todays_models():
    def bare(value):  # without the numbers
        if isinstance(value, dict):
            return {key: bare(inner) for key, inner in value.items() if key != "data"}
        return [bare(inner) for inner in value] if isinstance(value, list) else value

    for name, parts in todays_models().items():
        for part, layers in parts.items():
            today = json.loads(json.dumps(bare(export.layers(layers))))
            assert today == bare(export.read(name)[part]["layers"]), \
                f"{name}, {part} has changed: python report/page/export.py {name}"


@torch.no_grad()
def test_the_networks_compute_what_pytorch_computes():
    """On images and codes that are not stored; the trained models themselves, where they are there, differ by what the
    12 bits of a weight cost."""
    torch.manual_seed(1)
    x, y = mnist()
    x, c = x[5000:5003], cvae.one_hot(y[5000:5003])
    visible = cvae_structured.visible_pixels(1)
    h = torch.rand(3, 512) - 0.2
    inputs = {"ae": {"encoder": x, "decoder": 5 * torch.randn(3, 2)},
              "denoise_ae": {"denoise": denoise_ae.add_noise(x).reshape(3, 1, 28, 28)},
              "vae": {"encoder": x, "mu_layer": h, "logvar_layer": h, "decoder": torch.randn(3, 16)},
              "vae_plane": {"encoder": x, "mu_layer": h, "logvar_layer": h, "decoder": torch.randn(3, 2)},
              "cvae": {"encoder": torch.cat([x, c], 1), "mu_layer": h, "logvar_layer": h,
                       "decoder": torch.cat([torch.randn(3, 10), c], 1)},
              "cvae_structured": {"decoder": torch.cat([torch.randn(3, 16), x[:, visible]], 1),
                                  "baseline": x[:, visible]}}
    trained = {"ae": ("ae", "main", ae.Autoencoder), "vae": ("vae", "main", vae.myVAE),
               "vae_plane": ("vae", "plane", vae.myVAE), "cvae": ("cvae", "main", cvae.myVAE)}
    with panel("noise") as (page, _):
        for name, parts in inputs.items():
            assert parts.keys() == networks(name).keys(), name
            for part, numbers in parts.items():
                expected = networks(name)[part](numbers)
                for one, other in zip(numbers, expected):
                    got = page.evaluate("([name, part, x]) => Panels.load(name).then(all => [...all[part](x)])",
                                        [name, part, one.flatten().tolist()])
                    expect(f"{name}, {part}", got, other, 1e-3)
                if name in trained:
                    with contextlib.suppress(MissingRun):
                        script, run, model_class = trained[name]
                        model = getattr(export.load(script, run, 0, model_class), part)
                        expect(f"{name}, {part}, as it was trained", expected, model(numbers))


# %% The panels of sections 1 to 5

def test_an_address_opens_its_panel():
    for page in PAGES:
        names = re.findall(r'data-panel="(\w+)"', (REPORT / page).read_text(encoding="utf-8"))
        assert page != "index.html" or {"planes", "noise", "sample", "ask", "complete"} <= set(names), names
        for name in names:
            with opened(f"{page}#{name}", size=NARROW) as tab:
                tab.wait_for_selector(f"#{name}[data-state=ready]", timeout=60000)
                settle(tab)
                top = tab.evaluate("name => document.getElementById(name).getBoundingClientRect().top", name)
                assert -10 < top < 200, f"{name} is {top} px below the window's upper edge"


def test_sketch_pad():
    """Pen, eraser, clear; no line along the border; a drawing of one's own begins with an empty pad."""
    for how, width, options in ways():
        with panel("noise", width, **options) as (page, section):
            digit = image(pad(section))
            assert digit.sum() > 50
            stroke(pad(section), SEVEN, how)
            drawn = image(pad(section))
            assert 30 < drawn.sum() < 120 and (drawn * digit).sum() < 0.6 * digit.sum(), how
            checked = section.get_by_role("group", name="a digit of the test set").locator(":checked")
            assert checked.count() == 0, "a digit is still chosen"
            choose(section, "eraser")
            stroke(pad(section), SEVEN[:2], how)
            erased = image(pad(section))
            assert erased.sum() < drawn.sum() - 10 and (erased <= drawn + 0.01).all(), how
            section.get_by_role("button", name="clear").click()
            assert image(pad(section)).sum() == 0
    with panel("noise") as (page, section):
        stroke(pad(section), [(0.5, 0.5), (1.3, 0.5), (1.3, 0.9), (0.5, 0.9)], "mouse")
        drawn = image(pad(section)).reshape(28, 28)
        assert drawn[13, 27] > 0.9 and drawn[25, 27] > 0.9, "a stroke that leaves the pad"
        assert drawn[17:22, 25:].sum() == 0, "a line along the border"
        choose(section, "3, the first")
        choose(section, "eraser")
        before = image(pad(section))
        stroke(pad(section), [(0.2, 0.5), (0.8, 0.5)], "mouse")
        after = image(pad(section))
        assert 0.3 * before.sum() < after.sum() < before.sum(), "the eraser works on a chosen digit"


def test_a_swipe_over_a_slider_only_scrolls():
    with opened("index.html#bells", NARROW, has_touch=True, is_mobile=True) as tab:
        tab.wait_for_selector("#bells[data-state=ready]", timeout=60000)
        settled(tab)
        words, before = tab.locator("#bells .status").inner_text(), tab.evaluate("scrollY")
        stroke(tab.locator("#bells input").last, [(0.8, 0.5), (0.8, 0), (0.8, -1), (0.8, -3), (0.8, -5)], "touch")
        assert tab.evaluate("scrollY") > before + 20, "no scrolling"
        assert tab.locator("#bells .status").inner_text() == words
        assert tab.locator("#bells input").last.input_value() == "0.5"


def test_back_from_the_whole_screen():
    with opened("index.html#words", (1920, 1080)) as tab:
        for name in ("cells", "words"):
            tab.evaluate("name => document.getElementById(name).scrollIntoView()", name)
            tab.wait_for_selector(f"#{name}[data-state=ready]", timeout=60000)
            tab.evaluate("name => document.getElementById(name).scrollIntoView()", name)
            settled(tab)
            tops = []
            for words in ("fill the screen", "back to the text"):
                tops.append(tab.evaluate("name => document.getElementById(name).getBoundingClientRect().top", name))
                tab.locator(f"#{name}").get_by_role("button", name=words).evaluate("button => button.click()")
                tab.wait_for_function("name => !document.fullscreenElement == (name === 'back to the text')", arg=words)
                tab.wait_for_timeout(300)
            top = tab.evaluate("name => document.getElementById(name).getBoundingClientRect().top", name)
            assert abs(top - tops[0]) < 2, f"{name} lies at {top} and not at {tops[0]}"


def test_keys_with_alt_are_the_browsers():
    for name, index in (("noise", 0), ("planes", 1), ("ask", 1)):
        with panel(name) as (page, section):
            prevented = section.locator("canvas.drag").nth(index).evaluate("""canvas =>
                ["", "altKey", "ctrlKey", "metaKey"].map(modifier => !canvas.dispatchEvent(new KeyboardEvent("keydown",
                    {key: "ArrowLeft", cancelable: true, bubbles: true, [modifier]: true})))""")
            assert prevented == [True, False, False, False], name


def test_panels_start_alike():
    for name in ("planes", "noise", "sample", "ask", "complete"):
        shown = []
        for _ in range(2):
            with panel(name) as (page, section):
                page.wait_for_timeout(300)
                shown.append(section.locator("canvas").evaluate_all("all => all.map(canvas => canvas.toDataURL())"))
        assert shown[0] == shown[1], f"{name} starts anew"


@torch.no_grad()
def test_noise():
    filtered = export.read("denoise_ae")["filter"]

    def compare(section, what):
        x = image(canvas(section, "the input"))
        expect(f"{what}: denoised", image(canvas(section, "the network")),
               networks("denoise_ae")["denoise"](x.reshape(1, 1, 28, 28)))
        blur = torchvision.transforms.functional.gaussian_blur(x.reshape(1, 1, 28, 28), 11, filtered["sigma"])
        expect(f"{what}: filtered", image(canvas(section, "Gaussian filter")),
               (filtered["a"] * blur + filtered["b"]).clamp(0, 1))
        error = float(((image(canvas(section, "the network")) - image(pad(section))) ** 2).mean())
        expect(f"{what}: MSE", float(caption(section, "the network").split()[-1]), error, 1e-3)
        return x

    for how, width, options in ways():
        with panel("noise", width, **options) as (page, section):
            compare(section, "at the start")
            choose(section, "2, the first", "ArrowRight" if how == "keyboard" else None)
            compare(section, "chosen")
            stroke(pad(section), SEVEN, how)
            clean, half = image(pad(section)), compare(section, how)
            move(section, "amount", 0.25)
            quarter = compare(section, "less noise")
            unclipped = (half > 0.01) & (half < 0.99)
            expect("the noise stays", 2 * (quarter - clean)[unclipped], (half - clean)[unclipped])
            move(section, "amount", 0.5)
            expect("and comes back", compare(section, "as before"), half, 0)
            section.get_by_role("button", name="again").click()
            assert ((compare(section, "again") - half).abs() > 0.1).float().mean() > 0.2
            for kind, changed in (("salt and pepper", 0.05), ("a grey block", 0.05), ("blur", 0.01)):
                choose(section, kind)
                assert ((compare(section, kind) - clean).abs() > 0.05).float().mean() > changed, kind
                move(section, "amount", 0)
                expect(f"no {kind}", compare(section, f"no {kind}"), clean, 0.005)
                move(section, "amount", 0.5)


@torch.no_grad()
def test_planes():
    stored = export.read("planes")
    x_test, y_test = mnist()

    def decoded(section, i, what):
        """Compares what a plane shows with the decoder, at the z of its caption, or at `z`."""
        decoder = networks(("ae", "vae_plane")[i])["decoder"]
        return lambda z, tolerance=NEAR: expect(f"{what}: decoded by {i}", image(canvas(section, "decoded", i)),
                                                decoder(torch.as_tensor(z).reshape(1, 2)), tolerance)

    def compare(section, what):
        x = image(pad(section))
        z, (mu, sigma) = networks("ae")["encoder"](x), encoded("vae_plane", x)
        decoded(section, 0, what)(z)
        decoded(section, 1, what)(mu)
        words = section.locator(".status").first.inner_text()
        numbers = [float(number) for number in re.findall(r"-?\d+\.\d+", words.replace("−", "-"))]
        expect(f"{what}: z, mu", numbers[:4], torch.cat([z, mu], 1), 0.06)
        expect(f"{what}: sigma", numbers[4:], sigma, 0.006)

    for how, width, options in ways():
        with panel("planes", width, **options) as (page, section):
            compare(section, "at the start")
            choose(section, "2, the first", "ArrowDown" if how == "keyboard" else None)
            compare(section, "chosen")
            stroke(pad(section), HOOK, how)
            compare(section, f"drawn by {how}")
            for i, (name, kind) in enumerate((("the plane of the autoencoder", "ae"), ("the plane of the var", "vae"))):
                left, right, bottom, top = stored[kind]["extent"]
                codes = export.unpack(stored[kind]["codes"])
                plane = canvas(section, name)
                if how == "keyboard":
                    x = image(pad(section))
                    z = encoded("vae_plane", x)[0] if i else networks("ae")["encoder"](x)
                    plane.focus()
                    page.keyboard.press("ArrowRight")
                    page.keyboard.press("ArrowUp")
                    z = z + 0.02 * torch.tensor([right - left, top - bottom])
                else:
                    stroke(plane, [(0.5, 0.5)], how)  # a finger drags from the point only
                    stroke(plane, [(0.5, 0.5), (0.4, 0.7)], how)
                    z = torch.tensor([[left + 0.4 * (right - left), top - 0.7 * (top - bottom)]])
                decoded(section, i, f"moved by {how}")(z, 0.05)  # a pixel of the pointer moves z a little
                nearest = int((((codes - z) / torch.tensor([right - left, top - bottom])) ** 2).sum(1).argmin())
                near = image(canvas(section, "the nearest dot", i))
                if how == "keyboard":  # a pointer is up to half a pixel off, which may be another dot
                    expect("the nearest dot", near, x_test[nearest], 0.01)
                difference, shown = (near - x_test[:2000]).abs().mean(1).min(0)
                assert difference < 0.003, "the nearest dot shows no test image"
                assert caption(section, "the nearest dot", i).endswith(str(int(y_test[shown])))
                section.get_by_role("button", name="send this dot").nth(i).click()
                expect("sent through", image(pad(section)), x_test[shown], 0.01)
                compare(section, "sent through")


@torch.no_grad()
def test_planes_zoom_and_pointer():
    stored = export.read("planes")["ae"]
    x_test, _ = mnist()
    left, right, bottom, top = stored["extent"]
    codes = export.unpack(stored["codes"])
    with panel("planes") as (page, section):
        plane, decoder = canvas(section, "the plane of the autoencoder"), networks("ae")["decoder"]
        z = networks("ae")["encoder"](image(pad(section)))
        before = image(canvas(section, "decoded"))
        move(section, "zoom", 3)  # eight times as large, and the point in the middle
        expect("zooming moves no point", image(canvas(section, "decoded")), before, 0)
        place = z + torch.tensor([0.25 * (right - left), 0.25 * (top - bottom)]) / 8
        plane.scroll_into_view_if_needed()
        box = plane.bounding_box()
        page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"])
        distances = (((codes - place) / torch.tensor([right - left, top - bottom])) ** 2).sum(1)
        near = image(canvas(section, "the nearest dot"))
        found = int((near - x_test[:2000]).abs().mean(1).argmin())
        expect("the dot under the pointer", near, x_test[found], 0.01)
        assert distances[found].sqrt() < distances.min().sqrt() + 0.002
        expect("a pointer without a button moves no point", image(canvas(section, "decoded")), before, 0)
        page.mouse.down()
        page.mouse.up()
        expect("a click does", image(canvas(section, "decoded")), decoder(place), 0.05)


@torch.no_grad()
def test_sample():
    kl = export.unpack(export.read("vae")["kl"])
    used = [j for j in kl.argsort(descending=True).tolist() if kl[j] > 0.05]
    decoder = networks("vae")["decoder"]

    def shown(section):
        draws = torch.cat([image(canvas(section, f"draw {k + 1}")) for k in range(12)])
        return image(canvas(section, "decoded from the middle")), draws

    def compare(section, what, seed=1, factor=1, change=None):
        mu, sigma = encoded("vae", image(pad(section)))
        center = mu.clone()
        for j, value in (change or {}).items():
            center[0, j] = value
        epsilon = torch.tensor(section.page.evaluate(f"[...Panels.normals(12 * 16, {seed})]")).reshape(12, 16)
        middle, draws = shown(section)
        expect(f"{what}: the middle", middle, decoder(center))
        expect(f"{what}: draws", draws, decoder(center + factor ** 0.5 * sigma * epsilon))
        return mu, sigma

    for how, width, options in ways():
        with panel("sample", width, **options) as (page, section):
            assert section.locator(".dimension").count() == len(used) == 11
            compare(section, "at the start")
            choose(section, "7, the first", "ArrowRight" if how == "keyboard" else None)
            compare(section, "chosen")
            stroke(pad(section), HOOK, how)
            mu, sigma = compare(section, how)
            move(section, "variance", 20)
            compare(section, "twenty times the variance", factor=20)
            section.get_by_role("button", name="again").click()
            compare(section, "again", seed=2, factor=20)
            move(section, f"z{used[2] + 1},", 1.5)
            compare(section, "changed by hand", seed=2, factor=20, change={used[2]: 1.5})
            band = section.locator(".band").nth(2)
            box, track = band.bounding_box(), band.locator("xpath=..").bounding_box()
            middle = (box["x"] - track["x"] + box["width"] / 2) / track["width"]
            expect("where the cloud is", middle, 1 / 14 + 4.5 / 7, 0.01)
            expect("how wide it is", box["width"] / track["width"], 2 * 20 ** 0.5 * float(sigma[0, used[2]]) / 7, 0.01)
            section.get_by_role("button", name="reset").click()
            compare(section, "reset", seed=2)
            page.wait_for_timeout(300)
            for row, j in enumerate(used):  # what each number does
                z = mu.repeat(7, 1)
                z[:, j] = torch.arange(-3.0, 4)
                strip = pixels(section.locator(".dimension canvas").nth(row)).reshape(28, 7, 28).transpose(0, 1)
                expect(f"z{j + 1} from -3 to 3", strip, decoder(z))


@torch.no_grad()
def test_ask():
    kl = export.unpack(export.read("cvae")["kl"])
    first, second = kl.argsort(descending=True)[:2].tolist()
    decoder, labels = networks("cvae")["decoder"], torch.eye(10)

    def compare(section, what, z):
        shown = torch.cat([image(canvas(section, f"this handwriting as a {y}")) for y in range(10)])
        expect(what, shown, decoder(torch.cat([z.reshape(1, 10).expand(10, -1), labels], 1)))

    def code(section, y):
        return encoded("cvae", torch.cat([image(pad(section)), labels[y:y + 1]], 1))[0]

    def costs(x):
        """The loss of x under each label, at z = mu."""
        given = x.expand(10, -1)
        mu, sigma = encoded("cvae", torch.cat([given, labels], 1))
        p = decoder(torch.cat([mu, labels], 1))
        bce = nn.functional.binary_cross_entropy(p.flatten(1), given, reduction="none").sum(1)
        return bce + (0.5 * (mu ** 2 + sigma ** 2 - 1) - sigma.log()).sum(1)

    for how, width, options in ways():
        with panel("ask", width, **options) as (page, section):
            compare(section, "at the start", code(section, 2))
            choose(section, "2, the first", "ArrowDown" if how == "keyboard" else None)
            compare(section, "chosen", code(section, 2))
            for shape in (SEVEN, HOOK):
                section.get_by_role("button", name="clear").click()
                stroke(pad(section), shape, how)
                fewest, order = costs(image(pad(section))).sort()
                y, words = int(order[0]), section.locator(".status").inner_text().replace(",", "").split()
                expect("what it costs", float(words[words.index("lowest:") + 1]), fewest[0], 1)
                assert section.get_by_role("radio", name=str(y), exact=True).is_checked(), (how, y)
                compare(section, f"drawn by {how}", code(section, y))
            choose(section, "8")
            z = code(section, 8)
            compare(section, "encoded as an 8", z)
            board = canvas(section, "the two most informative")
            if how == "keyboard":
                board.focus()
                page.keyboard.press("ArrowLeft")
                page.keyboard.press("ArrowUp")
                z[0, first] -= 0.1
                z[0, second] += 0.1
                compare(section, "moved by a key", z)
            else:
                stroke(board, [(0.5, 0.5)], how)  # a finger drags from the point only
                stroke(board, [(0.5, 0.5), (0.75, 0.25)], how)
                words = section.locator(".status").inner_text().replace("−", "-").replace(",", "").split()
                z[0, first], z[0, second] = float(words[-4]), float(words[-1])
                expect(f"moved by {how}", z[0, [first, second]], [1.5, 1.5], 0.05)
                compare(section, f"moved by {how}", z)
            section.get_by_role("button", name="another").click()
            compare(section, "another handwriting", torch.tensor(page.evaluate("[...Panels.normals(10, 1)]")))
            assert section.get_by_role("group", name="it is encoded as").locator(":checked").count() == 0


@torch.no_grad()
def test_complete():
    visible, parts = cvae_structured.visible_pixels(1), networks("cvae_structured")
    size = export.read("cvae_structured")["latent_dim"]

    def compare(section, what, k=10, seed=1):
        x = image(pad(section))
        c = x[:, visible]
        z = torch.tensor(section.page.evaluate(f"[...Panels.normals(40 * {size}, {seed})]")).reshape(40, size)[:k]
        page.wait_for_timeout(200)
        expect(f"{what}: given", image(canvas(section, "what is given")), torch.where(visible, x, 0.4), 0.005)
        one = torch.where(visible, x, parts["baseline"](c).flatten(1))
        expect(f"{what}: BaselineNN", image(canvas(section, "BaselineNN")), one)
        answers = torch.where(visible, x, parts["decoder"](torch.cat([z, c.expand(k, -1)], 1)).flatten(1))
        shown = torch.cat([image(canvas(section, f"answer {i + 1}")) for i in range(k)])
        expect(f"{what}: answers", shown, answers)
        assert section.locator(".grid figure:visible").count() == k, what
        errors, best = ((answers - x)[:, ~visible] ** 2).mean(1).min(0)
        if x[:, ~visible].sum() == 0:
            assert section.locator(".grid .chosen").count() == 0, "there is nothing to compare with"
            return
        expect(f"{what}: the best", image(canvas(section, "CVAE")), answers[best])
        expect(f"{what}: its error", float(caption(section, "CVAE").split()[-1]), errors, 1e-3)
        expect(f"{what}: the baseline's", float(caption(section, "BaselineNN").split()[-1]),
               ((one - x)[:, ~visible] ** 2).mean(), 1e-3)
        chosen = section.locator(".grid .chosen canvas").get_attribute("aria-label")
        assert chosen.startswith(f"answer {int(best) + 1},"), chosen

    for how, width, options in ways():
        with panel("complete", width, **options) as (page, section):
            compare(section, "at the start")
            choose(section, "3, the first", "ArrowRight" if how == "keyboard" else None)
            compare(section, "chosen")
            stroke(pad(section), HOOK, how)
            compare(section, f"drawn by {how}")
            move(section, "answers", 40)
            compare(section, "forty answers", 40)
            move(section, "answers", 3)
            compare(section, "three answers", 3)
            section.get_by_role("button", name="again").click()
            compare(section, "again", 3, seed=2)
            section.get_by_role("button", name="clear").click()
            compare(section, "nothing", 3, seed=2)
            assert "empty" in section.locator(".status").inner_text()
            stroke(pad(section), [(0.1, 0.6), (0.3, 0.9)], how if how != "keyboard" else "mouse")
            compare(section, "a quarter alone", 3, seed=2)


# %% The bells, and the panels of section 6

def svg(section, shape, i=0):
    """The attributes of the shapes in a panel's drawing, in its units of px, and the width of the drawing."""
    drawing = section.locator(".drawing").nth(i)
    found = drawing.evaluate("""(drawing, shape) => [...drawing.querySelectorAll(shape)].map(found =>
        Object.fromEntries([...found.attributes].map(({name, value}) => [name, value])))""", shape)
    return found, drawing.bounding_box()["width"]


def numbers_in(text):
    """The numbers of a text, also those with a true minus and with thousands' commas."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.replace("−", "-"))
    return [float(found) for found in re.findall(r"-?\d+(?:\.\d+)?", text)]


def status(section):
    settle(section.page)
    return section.locator(".status").inner_text()


def press(section, name, how="mouse"):
    button = section.get_by_role("button", name=name, exact=True)
    if how == "keyboard":
        button.press("Enter")
    elif how == "touch":  # the click follows the finger a little later
        button.evaluate("b => { window.clicked = false; b.addEventListener('click', () => window.clicked = true); }")
        button.tap()
        section.page.wait_for_function("clicked")
    else:
        button.click()
    settle(section.page)


def test_bells():
    def compare(section, what, mu, sigma, epsilon=None):
        """Two bells, twelve z and the KL; returns epsilon."""
        mu, logvar = torch.tensor(mu), 2 * torch.tensor(sigma).log()
        expected = vae.myVAE.kl_divergence(None, mu, logvar)
        of_mu = vae.myVAE.kl_divergence(None, mu, torch.zeros(()))
        expect(f"{what}: KL", numbers_in(status(section)), [of_mu, expected - of_mu, expected], 0.0051)
        shares = section.locator(".bar").evaluate("""bar => [...bar.children].map(part =>
            part.getBoundingClientRect().width / bar.clientWidth)""")
        expect(f"{what}: bar", shares, [of_mu / 6, (expected - of_mu) / 6], 0.01)
        (noise, width), (z, _) = svg(section, "circle.epsilon"), svg(section, "circle.z")
        noise, z = [torch.tensor([10 * float(dot["cx"]) / width - 5 for dot in dots]) for dots in (noise, z)]
        expect(f"{what}: z", z, mu + sigma * noise)
        if epsilon is not None:
            expect(f"{what}: epsilon stays", noise, epsilon, 1e-3)
        for kind, m, s in (("p", 0.0, 1.0), ("q", mu, sigma)):
            (path,), _ = svg(section, f"path.{kind}")
            points = torch.tensor([float(number) for number in re.findall(r"-?[\d.]+", path["d"])]).reshape(-1, 2)[1:-1]
            density = torch.distributions.Normal(m, s).log_prob(10 * points[:, 0] / width - 5).exp()
            expect(f"{what}: bell {kind}", (219 - points[:, 1]) * 1.05 / 211, density, 0.02)
        return noise

    for how, width, options in ways():
        with panel("bells", width, **options) as (page, section):
            epsilon = compare(section, "at the start", 1.2, 0.5)
            drawing = section.locator(".drawing")
            if how == "keyboard":
                for key, n in (("ArrowLeft", 34), ("ArrowUp", 8)):
                    for _ in range(n):
                        drawing.press(key)
            else:  # the top, and then the right side
                place = lambda mu, density: ((mu + 5) / 10, (219 - 211 * density / 1.05) / 300)
                stroke(drawing, [place(1.2, 0.798), place(0, 0.5), place(-0.5, 0.3)], how)
                stroke(drawing, [place(0.0, 0.484), place(0.2, 0.4), place(0.4, 0.1)], how)
            compare(section, f"moved by {how}", -0.5, 0.9, epsilon)
            move(section, "μ", 2.5)
            move(section, "σ", 2)
            compare(section, "moved by sliders", 2.5, 2.0, epsilon)
            press(section, "again: new ε", how)
            assert (compare(section, "again", 2.5, 2.0) - epsilon).abs().max() > 0.1, how
            press(section, "reset", how)
            compare(section, "reset", 1.2, 0.5, epsilon)


class TinyVQVAE:
    """What the panel `cells` shows, with vqvae.VectorQuantizer and with gradients by PyTorch."""
    def __init__(self, codes, x, z):
        self.quantizer = vqvae.VectorQuantizer(len(codes), 2, decay=0.9).double()
        self.x, self.z = x, z
        quantizer = self.quantizer
        quantizer.codebook.copy_(codes)
        quantizer.ema_count.copy_(torch.bincount(quantizer.nearest(z), minlength=len(codes)))
        quantizer.ema_sum.copy_(quantizer.ema_count.unsqueeze(1) * codes)

    def push(self, at_z=False):
        """e, and what straight-through does to z: minus the gradient. at_z: minus that of an image decoded from z."""
        with torch.enable_grad():
            z = self.z.clone().requires_grad_()
            e = self.quantizer.codebook.detach()[self.quantizer.nearest(z.detach())]
            decoder = torch.linalg.lstsq(e, self.x).solution
            x_hat = (z if at_z else z + (e - z).detach()) @ decoder
            return e, -torch.autograd.grad(0.5 * ((x_hat - self.x) ** 2).sum(), z)[0]

    def step(self, pull, inward, at_z):
        e, push = self.push(at_z)
        away = self.z - e
        if inward:
            push = push - ((push * away).sum(1) / (away ** 2).sum(1)).clamp(min=0).unsqueeze(1) * away
        self.quantizer.update(self.z, self.quantizer.nearest(self.z))
        self.z = self.z + 0.2 * (push - pull * away)


@torch.no_grad()
def test_cells():
    codes = torch.tensor([[-1.9, 1.2], [-0.2, 1.7], [1.8, 1.3], [-1.6, -0.7], [0.35, -0.2], [2.1, -0.9], [0.1, -1.9]],
                         dtype=torch.float64)

    def dots(section, kind, view=3.7):
        found, width = svg(section, f"circle.{kind}")
        places = torch.tensor([[float(dot["cx"]), float(dot["cy"])] for dot in found], dtype=torch.float64)
        return (places / width * 2 - torch.tensor([1, 24 / 28])) * torch.tensor([view, -view])

    def compare(section, what, tiny, at_z=False):
        e, push = tiny.push(at_z)
        away, push = (tiny.z - e)[0], push[0]
        cosine = away @ push / (away.norm() * push.norm())
        _, distance, shown_cosine, median = numbers_in(status(section).split(": that part")[0])[:4]
        expect(f"{what}: distance, cosine, median", [distance, shown_cosine, median],
               [away.norm(), cosine, tiny.z.norm(dim=1).median()], 0.0101)
        if tiny.z.abs().max() < 2.9:
            expect(f"{what}: z", dots(section, "other"), tiny.z[1:], 0.01)
            expect(f"{what}: codes", dots(section, "code"), tiny.quantizer.codebook, 0.01)

    for how, width, options in ways():
        with panel("cells", width, **options) as (page, section):
            z = torch.cat([dots(section, "z"), dots(section, "other")])
            expect("the large z", z[0], [0.95, 0.35], 0.01)
            z[0] = torch.tensor([0.95, 0.35])
            x = z.clone()
            x[0] = torch.tensor([1.35, -0.55])
            tiny = TinyVQVAE(codes, x, z.clone())
            compare(section, "at the start", tiny)
            expect("the cells are as large as the drawing", sum(area(cell) for cell in svg(section, "polygon")[0]),
                   svg(section, "polygon")[1] ** 2 * 24 / 28, 2)
            for name, pull, inward, at_z in (("with commitment loss, λ = 1", 1.0, False, False),
                                             ("none, and the push without its outward part", 0.0, True, False),
                                             ("none, and the gradient taken at z, not at e", 0.0, False, True),
                                             ("no commitment loss", 0.0, False, False)):
                choose(section, name)
                tiny = TinyVQVAE(codes, x, z.clone())
                # At z, a z comes so near to a border in step 7 that the rounding of the drawing decides.
                for t in range(1, 7 if at_z else 13):
                    press(section, "step", how)
                    tiny.step(pull, inward, at_z)
                    compare(section, f"{name}, step {t}", tiny, at_z)
            press(section, "start over", how)
            tiny = TinyVQVAE(codes, x, z.clone())
            drawing = section.locator(".drawing").first
            if how == "keyboard":
                for key, n in (("ArrowRight", 6), ("ArrowDown", 9)):
                    for _ in range(n):
                        drawing.press(key)
            else:
                stroke(drawing, [(0.63, 0.44), (0.8, 0.5), (0.77, 0.62)], how)
            settle(page)
            tiny.z[0] = dots(section, "z")[0]
            assert tiny.quantizer.nearest(tiny.z)[0] == 5
            compare(section, f"moved by {how}", tiny)
    with panel("cells") as (page, section):  # to the end: only without all three it runs away
        page.evaluate("window.setInterval = (f, _) => { const id = setTimeout(function again() { f(); if (live[id]) "
                      "setTimeout(again); }); live[id] = true; return id; }; window.live = {}; "
                      "window.clearInterval = id => { delete live[id]; }")
        ends = []
        for name in ("no commitment loss", "with commitment loss, λ = 1",
                     "none, and the push without its outward part", "none, and the gradient taken at z, not at e"):
            choose(section, name)
            press(section, "play")
            page.wait_for_function("document.querySelector('#cells .status').textContent.startsWith('Step 300')")
            ends.append(numbers_in(status(section))[-1])
        assert ends[0] > 6 and max(ends[1:]) < 2.2, ends
        assert len(svg(section, "path.curve", 1)[0]) == 4
        assert section.get_by_role("button", name="play").count() == 1


def area(polygon):
    corners = torch.tensor([float(number) for number in polygon["points"].split()]).reshape(-1, 2)
    following = corners.roll(-1, 0)
    return float((corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]).sum().abs() / 2)


def test_runaway():
    stored = export.read("runaway")
    assert stored == json.loads(json.dumps(export.runaway())), "python report/page/export.py runaway"
    runs = list(stored["runs"].values())

    def compare(section, i, seed):
        for line, seeds in enumerate(runs):
            history = seeds[seed]
            expected = [history["train_reconstruction"][i], history["test_z_norm"][i][1], history["test_perplexity"][i]]
            shown = section.locator("tbody tr").nth(line).locator("td").all_inner_texts()
            for got, value in zip(shown, expected):
                step = 0.001 if value < 1 else 0.1 if value < 10 else 1
                assert abs(numbers_in(got)[0] - value) <= 0.51 * step, (got, value)
            for chart, (value, low, high) in enumerate(zip(expected, (0.04, 0.2, 0), (60, 1e8, 520))):
                dots, width = svg(section, f"circle.rule-{line}", chart)
                share = value / high if chart == 2 else math.log(max(value, low) / low) / math.log(high / low)
                expect("a dot's height", (168 - float(dots[0]["cy"])) / 160, min(share, 1), 0.002)
                expect("its place", float(dots[0]["cx"]), 62 + (width - 68) * i / 99, 1)
                (curve,), _ = svg(section, f"path.curve.rule-{line}", chart)
                assert curve["d"].count("L") == i, "what lies behind the slider is not shown"
        assert section.locator(".slider output").inner_text().replace(",", "") == str(stored["update"][i])

    for how, width, options in ways():
        with panel("runaway", width, **options) as (page, section):
            compare(section, 9, 0)
            slider = section.locator("input[type=range]")
            if how == "keyboard":
                slider.press("ArrowRight")
                settle(page)
                compare(section, 10, 0)
            for i, seed in ((20, 0), (99, 1), (57, 2)):
                choose(section, str(seed))
                move(section, "update", i)
                compare(section, i, seed)
            move(section, "update", 96)
            press(section, "play", how)
            section.get_by_role("button", name="play").wait_for()  # again, at the end
            settle(page)
            compare(section, 99, 2)


def colors(canvas):
    """What a canvas shows in colours, in [0, 1]: (3, height, width); and its transparency (height, width)"""
    settle(canvas.page)
    data, width = canvas.evaluate("""canvas => {
        const {width, height} = canvas, copy = new OffscreenCanvas(width, height).getContext("2d");
        copy.drawImage(canvas, 0, 0);
        return [[...copy.getImageData(0, 0, width, height).data], width];
    }""")
    shown = torch.tensor(data).reshape(-1, width, 4).permute(2, 0, 1) / 255
    return shown[:3], shown[3]


@functools.cache
def words_parts():
    stored = export.read("vqvae_decoder")
    encode, decode = networks("vqvae_encoder")["encode"], networks("vqvae_decoder")["decode"]
    return encode, decode, export.unpack(stored["codebook"]), export.unpack(stored["colors"]), stored["words"]


def decoded(words):
    """The image of 64 words, None where there is none."""
    _, decode, codebook, _, _ = words_parts()
    e = torch.stack([torch.zeros(64) if word is None else codebook[word] for word in words])
    return (decode(e.T.reshape(1, -1, 8, 8))[0] + 0.5).clamp(0, 1)


@torch.no_grad()
def test_words():
    encode, _, codebook, swatches, stored = words_parts()
    _, x_test, _ = common.load_cifar10(download=False)

    def compare(section, what, x, cell, changes):
        z = encode(x.unsqueeze(0) - 0.5)[0].flatten(1).T  # (64, D)
        far = torch.cdist(z, codebook)
        before = far.argmin(1).tolist()
        words = [changes.get(place, word) for place, word in enumerate(before)]
        page.wait_for_timeout(300)
        expect(f"{what}: the image", colors(canvas(section, "the image"))[0], x, 0.001)
        expect(f"{what}: its words", colors(canvas(section, "the 64 words"))[0], swatches[words].T, 0.003)
        expect(f"{what}: decoded", colors(canvas(section, "what the decoder"))[0], decoded(words))
        expect(f"{what}: the difference", colors(canvas(section, "what your"))[0],
               (4 * (decoded(words) - decoded(before)).abs()).clamp(max=1), 4 * NEAR)
        row, column, word, rank = numbers_in(status(section))[:4]
        assert (row, column, word) == (cell // 8 + 1, cell % 8 + 1, words[cell]), (what, status(section))
        assert rank == int((far[cell] < far[cell, words[cell]]).sum()) + 1, what
        shown = section.locator(".near button").all_inner_texts()
        expect(f"{what}: distances", [float(text) for text in shown], far[cell].sort().values[:8], 0.02)
        return words, far

    for how, width, options in ways():
        with panel("words", width, **options) as (page, section):
            compare(section, "at the start", x_test[0], 27, {})
            choose(section, "photograph 5", None if how != "keyboard" else "ArrowRight")
            shown = 4 if how != "keyboard" else 5  # the key leads on
            words, _ = compare(section, f"photograph {shown + 1}", x_test[shown], 27, {})
            assert sum(a != b for a, b in zip(words, stored[shown])) <= 1  # those that the encoder itself has given
            for i in (123, 456, 789):  # images that are not stored
                with tempfile.TemporaryDirectory() as folder:
                    torchvision.utils.save_image(x_test[i], Path(folder, "own.png"))
                    section.locator("input[type=file]").set_input_files(Path(folder, "own.png"))
                    page.wait_for_timeout(500)
                compare(section, f"own image {i}", x_test[i], 27, {})
            grid, palette = canvas(section, "the 64 words"), canvas(section, "all words")
            if how == "keyboard":
                for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
                    grid.press(key)
            else:
                stroke(grid, [(5.5 / 8, 4.4 / 8)], how)
            _, far = compare(section, f"chosen by {how}", x_test[789], 37, {})
            second = int(far[37].argsort()[1])
            section.locator(".near button").nth(1).press("Enter")
            compare(section, "the second nearest", x_test[789], 37, {37: second})
            columns, rows = (32, 16) if width == DESK else (16, 32)
            order = colors(palette)[0]
            assert order.shape == (3, rows, columns), order.shape
            for row, column in ((0, 0), (7, columns - 1), (rows - 1, 5)):
                if how == "keyboard":
                    palette.press("ArrowRight")
                    settle(page)
                    cell = cursor(section, -1)
                    row, column = round(cell[1] * rows), round(cell[0] * columns)
                else:
                    palette.evaluate("(canvas, share) => { const figure = canvas.closest('figure'); "
                                     "figure.scrollTop = share * canvas.clientHeight - 100; }", row / rows)
                    stroke(palette, [((column + 0.5) / columns, (row + 0.5) / rows)], how)
                word = int(numbers_in(status(section))[2])
                expect(f"the word under the {how}", swatches[word], order[:, row, column], 0.003)
                compare(section, f"put by {how}", x_test[789], 37, {37: word})
            press(section, "take back all changes", how)
            compare(section, "taken back", x_test[789], 37, {})
            section.locator("input[type=file]").set_input_files(REPORT / "page" / "panels.js")
            section.locator(".status", has_text="not an image").wait_for()


def cursor(section, i):
    """Where a cursor is in its picture: left and top, from 0 to 1."""
    return section.locator(".cursor").nth(i).evaluate(
        "({style}) => [parseFloat(style.left) / 100, parseFloat(style.top) / 100]")


@torch.no_grad()
def test_prior():
    model, (*_, swatches, stored) = export.rebuild_prior(export.read("prior")), words_parts()

    def ranking(words, temperature):
        p = (model(torch.tensor([[*words, 0]]))[0, -1] / temperature).softmax(0)
        return p.sort(descending=True)

    def draw(words, temperature, luck):
        p, ranked = ranking(words, temperature)
        return int(ranked[int((p.double().cumsum(0) <= luck[len(words)]).sum())])

    def compare(section, what, words, temperature=1.0):
        page.wait_for_timeout(100)
        shown, seen = colors(canvas(section, "decoded"))
        grid, filled = colors(canvas(section, "the words so far"))
        written = torch.arange(64).reshape(8, 8) < len(words)
        assert torch.equal(filled == 1, written), f"{what}: {int((filled == 1).sum())} words, not {len(words)}"
        if words:
            expect(f"{what}: words", grid[:, written], swatches[words].T, 0.003)
        written = written.repeat_interleave(4, 0).repeat_interleave(4, 1)
        assert torch.equal(seen == 1, written), what
        if words:
            expect(f"{what}: decoded", shown[:, written], decoded([*words, *[None] * (64 - len(words))])[:, written])
        if len(words) == 64:
            return
        p, ranked = ranking(words, temperature)
        options = section.locator(".near button").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
        options = [numbers_in(option) for option in options]
        expect(f"{what}: twenty probabilities", [option[1] / 100 for option in options], p[:20], 0.002)
        for word, percent in options:
            expect(f"{what}: word {word}", percent / 100, p[ranked == word], 0.002)
        count, share = numbers_in(status(section))[2], numbers_in(status(section))[-1]
        entropy = -(p * p.clamp(min=1e-30).log2()).sum()
        expect(f"{what}: as many words", count / float(2**entropy), 1, 0.5 / count + 0.01)
        expect(f"{what}: their share", share / 100, p[:20].sum(), 0.01)

    for how, width, options in ways():
        with panel("prior", width, **options) as (page, section):
            luck = page.evaluate("(() => { const next = Panels.random(1); return Array.from({length: 64}, next); })()")
            words = stored[3][:32]
            compare(section, "at the start", words)
            for _ in range(3):
                press(section, "one word", how)
                words = [*words, draw(words, 1.0, luck)]
                compare(section, f"{len(words)} words", words)
            move(section, "temperature", 0.5)
            compare(section, "colder", words, 0.5)
            press(section, "one word", how)
            words = [*words, draw(words, 0.5, luck)]
            compare(section, "a colder word", words, 0.5)
            if how == "keyboard":
                canvas(section, "the words so far").press("ArrowUp")
                words = words[:-8]
            else:
                stroke(canvas(section, "the words so far"), [(4.5 / 8, 3.5 / 8)], how)
                words = words[:28]
            compare(section, f"gone back by {how}", words, 0.5)
            press(section, "back", how)
            words = words[:-1]
            compare(section, "one word back", words, 0.5)
            option = section.locator(".near button").nth(7)
            words = [*words, int(numbers_in(option.get_attribute("aria-label"))[0])]
            option.press("Enter")
            compare(section, "overruled", words, 0.5)
            choose(section, "nothing")
            compare(section, "from nothing", [], 0.5)
            move(section, "temperature", 2)
            words = []
            for _ in range(3):
                press(section, "one word", how)
                words = [*words, draw(words, 2.0, luck)]
                compare(section, f"{len(words)} hot words", words, 2.0)
            move(section, "temperature", 1)
            choose(section, "photograph 8")
            press(section, "play", how)
            page.wait_for_function("document.querySelector('#prior .status').textContent.startsWith('All 64')")
            if how == "mouse":
                words = stored[7][:32]
                while len(words) < 64:
                    words = [*words, draw(words, 1.0, luck)]
                compare(section, "written to the end", words)
            press(section, "again, with other luck", how)
            other = page.evaluate("(() => { const next = Panels.random(2); return Array.from({length: 64}, next); })()")
            compare(section, "again", stored[7][:32])
            press(section, "one word", how)
            compare(section, "with other luck", [*stored[7][:32], draw(stored[7][:32], 1.0, other)])


@torch.no_grad()
def test_the_words_are_those_of_the_trained_models():
    """Where these are there. 12 bits of a weight make another code the nearest for hardly any z."""
    _, x_test, _ = common.load_cifar10(download=False)
    try:
        model = export.load("vqvae", "main", 0, vqvae.VQVAE)
        trained = export.load("vqvae", "main", 0, vqvae.Prior, "prior")
    except MissingRun as reason:
        raise unittest.SkipTest(reason) from None
    encode, _, codebook, _, stored = words_parts()
    words = vqvae.encode_all(model, x_test[:100])
    assert words[:12].flatten(1).tolist() == stored
    z = encode(x_test[:100] - 0.5).flatten(2).transpose(1, 2)
    assert (torch.cdist(z, codebook).argmin(2) != words.flatten(1)).float().mean() < 0.003
    images = model.decode(model.quantizer.embed(words[20:23].reshape(-1, 8, 8))).clamp(0, 1)
    expect("decoded", torch.stack([decoded(one) for one in words[20:23].flatten(1).tolist()]), images)
    packed = export.rebuild_prior(export.read("prior"))
    expect("prior", packed(words.flatten(1)).softmax(2), trained(words.flatten(1)).softmax(2))


# %% All panels

def test_panels_have_names_and_enough_contrast():
    """axe-core, in light and in dark, wide and narrow."""
    for name in ("planes", "noise", "sample", "ask", "complete", "bells", "cells", "runaway", "words", "prior"):
        for width, dark in ((DESK, False), (PHONE, True)):
            with panel(name, width, dark=dark) as (page, _):
                found = Axe().run(page, options={"preload": False})
                assert found.violations_count == 0, found.generate_report()


if __name__ == "__main__":
    run_tests(globals())
