"""Makes the pages for the browser, report/*.html, from report.md, report/*.md and the scripts:

    python report/page/build.py

Nothing is made by hand in them, and the same sources give the same bytes, so test_page.py can compare. They hold the
text, the formulas as MathML, the diagrams as SVG and the scripts, all of it readable without JavaScript; page.css sets
them, read.js keeps the code beside the text in step with it, and panels.js brings the models to life where
<!--panel:name--> stands.
"""

import ast
import functools
import os
import re
import struct
import sys
from html import escape, unescape
from pathlib import Path
from xml.etree import ElementTree

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from math_core import LatexToMathML
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String

PAGE = Path(__file__).resolve().parent
REPORT = PAGE.parent
ROOT = REPORT.parent
sys.path.insert(0, str(PAGE))

import diagrams

PAGES = {ROOT / "report.md": "index.html", REPORT / "vqvae.md": "vqvae.html", REPORT / "choices.md": "choices.html"}
NAMES = {"index.html": "Report", "vqvae.html": "Experiments of section 6", "choices.html": "Choices"}
SCRIPTS = ("ae.py", "denoise_ae.py", "vae.py", "cvae.py", "cvae_structured.py", "vqvae.py", "common.py")
KINDS = {Comment: "c", String: "s", Number: "n", Keyword: "k", Operator.Word: "k", Name.Function: "d", Name.Class: "d",
         Name.Builtin: "b", Name.Decorator: "b"}
CODE = re.compile(r"<!--code:(?P<script>\w+\.py):(?P<name>[\w.]+)(:(?P<first>\d+)-(?P<last>\d+))?-->")
FIGURE = re.compile(r"\*\*Figure ([\d.]*\d)\.\*\*")
math = LatexToMathML()


# %% Code

@functools.cache
def highlighted(script):
    return highlight((ROOT / script).read_text(encoding="utf-8"))


def highlight(source):
    """Its lines in HTML. A run of tokens of one kind is one element, which never crosses the end of a line."""
    html, open_kind = "", None
    for token, text in PythonLexer(stripnl=False).get_tokens(source):
        kind = next((kind for parent, kind in KINDS.items() if token in parent), None)
        for part in re.split("(\n)", text):
            new_kind = None if part == "\n" else kind if part else open_kind
            if new_kind != open_kind:
                html += ("</i>" if open_kind else "") + (f"<i class={new_kind}>" if new_kind else "")
            html, open_kind = html + escape(part, quote=False), new_kind
    return html.rstrip("\n").split("\n")


def block(lines, first=1, script=None):
    """Numbered lines. In a script each has its own anchor. --i is where a line that needs two rows goes on."""
    html = ""
    for number, line in enumerate(lines, first):
        text = unescape(re.sub("<[^>]*>", "", line))
        indent = len(text) - len(text.lstrip())
        html += (f"<span{f' id={script}-L{number}' if script else ''}"
                 f"{f' style=--i:{indent}' if indent and len(text) > 40 else ''}>{line}\n</span>")
    reset = f' style="counter-reset:line {first - 1}"' if first > 1 else ""
    return f'<pre class="code"{reset}><code>{html}</code></pre>'


def find(script, name):
    """The definition called name, such as myVAE.decode."""
    node = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    for part in name.split("."):
        node = next(n for n in node.body if getattr(n, "name", None) == part)
    return node


def quote(marker, content):
    """A block of quoted lines, with file, line and signature above it."""
    script, name = marker["script"], marker["name"]
    node = find(script, name)
    first = node.body[0].end_lineno + 1 if ast.get_docstring(node) else node.body[0].lineno
    last = node.end_lineno
    if marker["first"]:
        first, last = first + int(marker["first"]) - 1, first + int(marker["last"]) - 1
    source = (ROOT / script).read_text(encoding="utf-8").splitlines()[first - 1:last]
    while not source[0]:
        source, first = source[1:], first + 1
    indent = min(len(line) - len(line.lstrip()) for line in source if line)
    _, *quoted = content.rstrip("\n").split("\n")  # above the lines pages.py says in a comment where they stand
    assert [line[indent:] for line in source] == quoted, f"{marker[0]}: report/pages.py?"
    lines = [re.sub(rf"^((<[^>]*>)*) {{{indent}}}", r"\1", line) for line in highlighted(script)[first - 1:last]]
    arguments = re.sub(r"^self(, )?", "", ast.unparse(node.args))
    return (f'<figure class="quote" data-script="{script}" data-lines="{first}-{last}" '
            f'data-whole="{node.lineno}-{node.end_lineno}"><figcaption>'
            f'<a href="#{script}-L{first}">{script}:{first}</a> '
            f"<code>{name}({escape(arguments)})</code></figcaption>{block(lines, first)}</figure>\n")


# %% Formulas

def formula(tex, display):
    """MathML. A long formula in the text comes in pieces, so that a line can break after = and such, as in print."""
    # An index goes below the name only if that is an operator.
    tex = re.sub(r"\\mathop\{\\mathrm\{(\w+)\}\}(_\w)?", r"\\operatorname*{\1}\2\,", tex.strip())
    whole = math.convert_with_local_state(tex, displaystyle=display)
    # Chromium makes a raised prime too small.
    whole = re.sub("<msup>(<mi>.</mi>)<mo>′</mo></msup>", r'\1<mo form="postfix" lspace="0" rspace="0">′</mo>', whole)
    if display or len(re.sub("<[^>]*>", "", whole)) < 16:
        return whole
    pieces, depth, norms = [[]], 0, 0
    tree = ElementTree.fromstring(re.sub(r"&(?!lt|gt|amp)\w+;", lambda name: unescape(name[0]), whole))
    children, deepest = list(tree), len("".join(tree.itertext())) > 40  # brackets that it may be broken in
    for i, child in enumerate(children):
        pieces[-1].append(child)
        text = "".join(child.itertext())
        depth += sum(text.count(c) for c in "([{") - sum(text.count(c) for c in ")]}")
        norms += text.count("‖")
        sign = text in ("+", "−") and i and "".join(children[i - 1].itertext()) not in "=≥≤≈←([{,"
        if depth <= deepest and norms % 2 == 0 and child.tag == "mo" and (text in ("=", "≥", "≤", "≈", "←") or sign):
            pieces.append([])
    html = ["".join(ElementTree.tostring(child, encoding="unicode") for child in piece) for piece in pieces if piece]
    return "<wbr>".join(f"<math>{piece}</math>" for piece in html)


# %% Text

def slug(heading):
    """GitHub's name of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def plain(tokens):
    return "".join(token.content for token in tokens if token.type in ("text", "code_inline"))


def picture(source, alt, env, half=False):
    path = (env["folder"] / source).resolve()
    width, height = struct.unpack(">II", path.read_bytes()[16:24])  # of a PNG, so that nothing moves when it comes
    return (f'<img src="{os.path.relpath(path, REPORT).replace(os.sep, "/")}" alt="{escape(alt)}" width="{width}" '
            f'height="{height}"{" class=half" if half else ""} decoding="async">')


def target(href, env):
    """Where a link leads on these pages."""
    file, _, anchor = href.partition("#")
    if re.match(r"\w+:", href) or not file:
        return href
    path = (env["folder"] / file).resolve()
    if path in PAGES:
        return PAGES[path] + ("#" + anchor if anchor else "")
    if path.name in SCRIPTS:
        page = "" if path.name in env["scripts"] else "index.html"
        return f"{page}#{path.name}" + ("-" + anchor if anchor else "")
    return os.path.relpath(path, REPORT).replace(os.sep, "/") + ("#" + anchor if anchor else "")


class Renderer(RendererHTML):
    """Each method renders the tokens of its name."""

    def heading_open(self, tokens, i, options, env):
        title = plain(tokens[i + 1].children)
        anchor = slug(title)
        n = env["slugs"][anchor] = env["slugs"].get(anchor, -1) + 1
        anchor += f"-{n}" if n else ""
        level = int(tokens[i].tag[1])
        script = re.search(r"\w+\.py", title)
        if level in (2, 3):
            env["contents"].append((level, anchor, self.renderInline(tokens[i + 1].children, options, env)))
        data = f' data-script="{script[0]}"' if script and level == 2 else ""
        return (f'<h{level} id="{anchor}"{data}>'
                f'<a class="anchor" href="#{anchor}" aria-hidden="true" tabindex="-1">#</a>')

    def fence(self, tokens, i, options, env):
        kind, content = tokens[i].info, tokens[i].content
        if kind == "math":
            return f'<div class="formula">{formula(content, True)}</div>\n'
        if kind == "mermaid":
            return diagrams.chart(content)
        marker = CODE.match(tokens[i - 1].content) if i else None
        if marker:
            return quote(marker, content)
        if kind == "python":
            return block(highlight(content)).replace('"code"', '"code bare"') + "\n"
        return f'<pre class="{kind}"><code>{escape(content, quote=False)}</code></pre>\n'

    def math_inline(self, tokens, i, options, env):
        return formula(tokens[i].content, False)

    def html_block(self, tokens, i, options, env):
        panel = re.match(r"<!--panel:([\w-]+)-->", tokens[i].content)
        if panel:
            script = PAGE / "panels" / f"{panel[1]}.js"
            title = re.search(r'title: "([^"]+)"', script.read_text(encoding="utf-8")) if script.exists() else None
            return (f'<section class="panel" id="{panel[1]}" data-panel="{panel[1]}" '
                    f'aria-label="{escape(title[1] if title else panel[1])}"></section>\n')
        return re.sub(r"<!--.*?-->\n?", "", tokens[i].content)

    def html_inline(self, tokens, i, options, env):
        image = re.match(r'<img src="([^"]+)" width="[^"]+" alt="([^"]+)">', tokens[i].content)
        return picture(*image.groups(), env, half=True) if image else re.sub("<!--.*?-->", "", tokens[i].content)

    def image(self, tokens, i, options, env):
        return picture(tokens[i].attrs["src"], tokens[i].content, env)

    def link_open(self, tokens, i, options, env):
        tokens[i + 1].content = re.sub(r"^(vqvae|choices)\.md$", r"\1.html", tokens[i + 1].content)  # named by its file
        return f'<a href="{escape(target(tokens[i].attrs["href"], env))}">'

    def code_inline(self, tokens, i, options, env):
        line = re.fullmatch(r"(\w+\.py):(\d+)", tokens[i].content)
        words = escape(tokens[i].content, quote=False).split(" ")  # a line may break between them, not after a hyphen
        code = f"<code>{' '.join(f'<span>{word}</span>' if '-' in word else word for word in words)}</code>"
        return f'<a href="{target(f"{ROOT / line[1]}#L{line[2]}", env)}">{code}</a>' if line else code

    def text(self, tokens, i, options, env):
        """With links to the figures that it names."""
        before = [token.type for token in tokens[:i]]
        inside = before.count("link_open") > before.count("link_close")
        number = r"\b([Ff]igures?[ \n])(\d(?:\.\d)?)\b"
        text = escape(tokens[i].content, quote=False)
        return text if inside else re.sub(
            number, lambda found: f'{found[1]}<a href="#figure-{found[2]}">{found[2]}</a>'
            if found[2] in env["figures"] else found[0], text)

    def th_open(self, tokens, i, options, env):
        if not plain(tokens[i + 1].children).strip():  # the corner of a table is no heading
            tokens[i].tag = tokens[i + 2].tag = "td"
        return self.renderToken(tokens, i, options, env)

    def table_open(self, tokens, i, options, env):
        return '<div class="table"><table>\n'

    def table_close(self, tokens, i, options, env):
        return "</table></div>\n"


def with_figures(tokens, env):
    """A paragraph of images and the paragraph below that says Figure 1.1 are one figure."""
    i = 0
    while i + 5 < len(tokens):
        image, caption = tokens[i + 1], tokens[i + 4]
        if (tokens[i].type == tokens[i + 3].type == "paragraph_open" and (found := FIGURE.match(caption.content))
                and all(c.type == "image" or c.content.startswith("<img") or not c.content.strip()
                        for c in image.children)):
            env["figures"].add(found[1])
            tokens[i].tag = "figure"
            tokens[i].attrs["id"] = f"figure-{found[1]}"
            tokens[i + 2].hidden = True
            tokens[i + 3].tag = "figcaption"
            tokens[i + 5].tag = "figcaption></figure"  # the caption ends, and with it the figure
            i += 5
        i += 1
    return tokens


# %% Pages

def convert(text, folder, scripts):
    """Markdown that lies in a folder -> HTML, and its headings: (level, anchor, HTML)."""
    text = text.replace("</details>", "\n\n</details>\n\n")  # else the end of a paragraph, and that inside it
    env = {"folder": folder, "scripts": scripts, "slugs": {}, "contents": [], "figures": set()}
    markdown = MarkdownIt("commonmark", {"typographer": True}, renderer_cls=Renderer).enable(["table", "smartquotes"])
    markdown.use(dollarmath_plugin)
    markdown.renderer.rules["math_inline"] = markdown.renderer.math_inline  # not the plugin's own
    tokens = with_figures(markdown.parse(text, env), env)
    return markdown.renderer.render(tokens, markdown.options, env), env["contents"]


def build(source):
    """The page of a Markdown file, with the scripts that it quotes, or all."""
    text = source.read_text(encoding="utf-8")
    scripts = [script for script in SCRIPTS if PAGES[source] == "index.html" or f"<!--code:{script}" in text]
    body, headings = convert(text, source.parent, scripts)
    page = PAGES[source]
    title = re.search(r"^# (.*)", text, re.MULTILINE)[1]
    contents = "".join(f'<li class="h{level}"><a href="#{anchor}">{re.sub("</?a[^>]*>", "", heading)}</a></li>\n'
                       for level, anchor, heading in headings)
    pages = "".join(f'<li><a href="{name}"{" aria-current=page" if name == page else ""}>{label}</a></li>\n'
                    for name, label in NAMES.items())
    tabs = "".join(f'<a href="#{script}">{script}</a>\n' for script in scripts)
    files = "".join(f'<section class="script" id="{script}" aria-label="{script}"><h2>{script}</h2>'
                    f'{block(highlighted(script), script=script)}</section>\n' for script in scripts)
    code = (f'<aside id="code" aria-label="The scripts">\n'
            f'<button id="shut">Back to the text</button>\n<nav aria-label="Scripts">\n{tabs}</nav>\n'
            f'<div class="files" tabindex="0">\n{files}</div>\n</aside>\n') if scripts else ""
    return TEMPLATE.format(title=escape(title), kind="" if scripts else " class=alone", contents=contents, pages=pages,
                           body=body, code=code)


TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="page/page.css">
<link rel="stylesheet" href="page/panels.css">
<script>document.documentElement.classList.add("js")</script>
</head>
<body{kind}>
<div class="text">
<header>
<button id="menu" aria-expanded="false" aria-controls="contents"><span id="where">Contents</span></button>
<nav aria-label="Contents" id="contents">
<ul class="pages">
{pages}</ul>
<ol>
{contents}</ol>
</nav>
</header>
<main>
{body}</main>
</div>
{code}<script src="page/panels.js"></script>
<script src="page/read.js"></script>
</body>
</html>
"""

if __name__ == "__main__":
    for source, page in PAGES.items():
        (REPORT / page).write_text(build(source), encoding="utf-8", newline="\n")
