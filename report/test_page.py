"""Holds the pages for the browser, report/*.html, to what they claim: `python report/test_page.py`, or with words behind
it the tests that have them all in their names.

Needs Chromium or Chrome, without it all is skipped but what needs none. `pytest report/test_page.py` works, too.
"""

import atexit
import contextlib
import functools
import re
import shutil
import sys
import time
import traceback
import unittest
from pathlib import Path

REPORT = Path(__file__).resolve().parent
ROOT = REPORT.parent
sys.path[:0] = [str(ROOT), str(REPORT), str(REPORT / "page")]

import build
import diagrams
from axe_playwright_python.sync_playwright import Axe
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
    """Until what follows the scrolling has followed."""
    tab.evaluate("""async () => {
        const frame = () => new Promise(done => requestAnimationFrame(done));
        const state = () => `${scrollY} ${document.querySelector(".files")?.scrollTop}`;
        for (let still = 0, last; still < 4; still = state() === last ? still + 1 : 0) { last = state(); await frame(); }
    }""")


# %% The pages as files

def test_pages_are_what_build_makes_today():
    for source, page in build.PAGES.items():
        committed, today = (REPORT / page).read_text(encoding="utf-8").splitlines(), build.build(source).splitlines()
        for number, (line, expected) in enumerate(zip(committed, today), 1):
            assert line == expected, f"python report/page/build.py changes line {number} of {page}:\n{line[:300]}\nto\n" \
                                     f"{expected[:300]}"
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
            file, _, anchor = target.partition("#")
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
    assert "one two to round (x &lt; y)" in diagrams.draw(source, down=False)
    for wrong in ("flowchart TB\n  a --> b", 'flowchart LR\n  a["x"] ==> b["y"]', 'flowchart LR\n  a{"x"} --> b["y"]'):
        try:
            diagrams.parse(wrong)
        except AssertionError:
            continue
        raise AssertionError(f"understood: {wrong}")


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
            n_blocks = markdown.count("```math")
            assert tab.evaluate("document.querySelectorAll('.formula math[display=block]').length") == n_blocks, page
            assert "$" not in seen, page
            assert tab.evaluate("document.querySelectorAll('.chart svg').length") == 2 * markdown.count("```mermaid")
            assert tab.evaluate("document.querySelectorAll('main table').length") == len(
                re.findall(r"^\|[-|]+\|$", markdown, re.MULTILINE)), page
            assert tab.evaluate("document.querySelectorAll('main details').length") == markdown.count("<details>")
            hidden = tab.evaluate("""[...document.querySelectorAll("main *")].filter(e => !e.closest("details, svg, math"))
                .filter(e => !e.matches("wbr, .panel") && getComputedStyle(e).display === "none").map(e => e.outerHTML)""")
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
    axe = Axe()
    for page in PAGES:
        for size, dark in ((WIDE, False), (WIDE, True), (NARROW, False), (NARROW, True)):
            if page != "index.html" and dark == (size == WIDE):
                continue  # each of its colours and each of its sizes once
            with opened(page, size, dark) as tab:
                if size == NARROW:
                    tab.click("#menu")
                else:
                    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                settled(tab)
                found = axe.run(tab, options={"preload": False}).response["violations"]
                faults = [(fault["id"], node["html"][:150], node.get("failureSummary", "")[:200]) for fault in found
                          for node in fault["nodes"]]
                assert not faults, f"{page} {size} {'dark' if dark else 'light'}: {len(faults)}: {faults[:5]}"


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
    """Every character of a formula is in the font beside the page: one that is not would be as wide as in whatever font
    takes its place."""
    with opened() as tab:
        missing = tab.evaluate("""async () => {
            await document.fonts.ready;
            await document.fonts.load('40px "STIX Two Math"');
            const brush = document.createElement("canvas").getContext("2d");
            const width = (letter, font) => { brush.font = `40px ${font}`; return brush.measureText(letter).width };
            const letters = new Set([...document.querySelectorAll("math")].map(m => m.textContent).join(""));
            return [...letters].filter(letter => letter.trim() && !/[\\u2060-\\u2064\\u200b]/.test(letter) &&
                width(letter, '"STIX Two Math", monospace') !== width(letter, '"STIX Two Math", sans-serif'));
        }""")
        assert not missing, f"not in STIXTwoMath-subset.woff2: {missing}"
        fonts = tab.evaluate("[...document.fonts].filter(f => f.status === 'loaded').map(f => f.family + f.style)")
        assert len(fonts) == 3, fonts


# %% The code beside the text

def marked(tab):
    """The script that is shown, the numbers of its marked lines and whether all of them are in view."""
    return tab.evaluate("""() => {
        const lines = [...document.querySelectorAll(".script.shown .on")], box = document.querySelector(".files")
            .getBoundingClientRect();
        return [document.querySelector(".script.shown").id, lines.map(line => Number(line.id.split("-L")[1])),
                lines.every(line => line.getBoundingClientRect().top >= box.top - 1 &&
                                    line.getBoundingClientRect().bottom <= box.bottom + 1),
                lines.map(line => line.textContent.trim()).join("\\n").trim()];
    }""")


def test_the_code_column_follows_the_reading():
    for page in ("index.html", "vqvae.html"):
        with opened(page) as tab:
            quotes = tab.evaluate("""[...document.querySelectorAll(".quote")].map(q => [q.dataset.script,
                q.dataset.lines.split("-").map(Number), [...q.querySelectorAll(".code span")].map(s => s.textContent.trim())
                .join("\\n").trim()])""")
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
                assert marked(tab)[:2] == [script, []] or marked(tab)[0] == script, section


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
        for link in tab.locator("main a[href*='.py-L']").all():
            script, line = re.fullmatch(r"#([\w.]+)-L(\d+)", link.get_attribute("href")).groups()
            link.scroll_into_view_if_needed()
            settled(tab)
            link.focus()
            link.press("Enter")  # a link works with the keyboard as with the mouse
            settled(tab)
            assert marked(tab)[:3] == [script, [int(line)], True], (script, line, marked(tab))
    with opened("index.html#vae.py-L60") as tab:  # and by the address
        settled(tab)
        assert marked(tab)[:3] == ["vae.py", [60], True]


def test_code_on_a_phone():
    with opened(size=NARROW, has_touch=True, is_mobile=True) as tab:
        quote = tab.locator(".quote").nth(1)
        quote.locator("summary").tap()
        whole = quote.evaluate("q => q.querySelector('.whole .code').textContent")
        script, (first, last) = quote.get_attribute("data-script"), quote.get_attribute("data-whole").split("-")
        lines = (ROOT / script).read_text(encoding="utf-8").splitlines(keepends=True)
        assert whole == "".join(lines[int(first) - 1:int(last)]) and lines[int(first) - 1].lstrip().startswith("def")
        assert not tab.locator("#code").is_visible()
        link = tab.locator("main a[href*='.py-L']").first
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


def test_contents_show_where_one_is():
    for size in (WIDE, NARROW, (1920, 1080)):
        with opened(size=size) as tab:
            for i in range(tab.locator("#contents ol a").count()):
                anchor = tab.evaluate("i => decodeURIComponent(document.querySelectorAll('#contents ol a')[i].hash.slice(1))", i)
                tab.evaluate("id => document.getElementById(id).scrollIntoView()", anchor)
                settled(tab)
                current = tab.evaluate("[...document.querySelectorAll('#contents ol [aria-current]')].map(a => decodeURIComponent(a.hash))")
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
            hidden = tab.evaluate("""["#code", ".text > header", ".panel"].flatMap(s => [...document.querySelectorAll(s)])
                .filter(e => e.offsetHeight).length""")
            assert hidden == 0
            pdf = tab.pdf(format="A4")
            assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 20
            if script:
                tab.evaluate("dispatchEvent(new Event('beforeprint'))")
                assert tab.evaluate("[...document.querySelectorAll('main details:not(.whole)')].every(d => d.open)")


if __name__ == "__main__":
    passed = failed = skipped = 0
    tests = {name: test for name, test in globals().items()
             if name.startswith("test_") and all(word in name for word in sys.argv[1:])}
    for name, test in tests.items():
        started = time.perf_counter()
        try:
            test()
            passed += 1
            verdict = "ok     "
        except unittest.SkipTest as reason:
            skipped += 1
            verdict = "SKIPPED"
            name = f"{name}: {reason}"
        except Exception:
            failed += 1
            verdict = "FAILED "
            traceback.print_exc()
        print(f"{verdict} {time.perf_counter() - started:5.1f} s  {name}", flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(failed > 0 or not tests)
