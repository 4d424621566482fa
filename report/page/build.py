"""Makes the pages for the browser, report/*.html, from report.md, report/*.md and the scripts:

    python report/page/build.py

Nothing is made by hand in them, and the same sources give the same bytes, so test_page.py can compare. They hold the
text, the formulas as MathML, the diagrams as SVG and the scripts, all of it readable without JavaScript; page.css sets
them, read.js keeps the code beside the text in step with it, and panels.js brings the models to life where
<!--panel:name--> stands.
"""

import ast
import os
import re
import struct
import sys
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import pygments
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from math_core import LatexToMathML
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments.filter import simplefilter
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String, Text

PAGE = Path(__file__).resolve().parent
REPORT = PAGE.parent
ROOT = REPORT.parent
sys.path.insert(0, str(PAGE))

import diagrams

PAGES = {ROOT / "report.md": "index.html", REPORT / "vqvae.md": "vqvae.html", REPORT / "choices.md": "choices.html"}
NAMES = {"index.html": "Report", "vqvae.html": "Experiments of section 6", "choices.html": "Choices"}
SCRIPTS = ("ae.py", "denoise_ae.py", "vae.py", "cvae.py", "cvae_structured.py", "vqvae.py", "common.py")
COLOURED = (Comment, String, Number, Keyword, Operator.Word, Name.Function, Name.Class, Name.Builtin, Name.Decorator)
math = LatexToMathML()


# %% Code

@simplefilter
def few_kinds(self, lexer, stream, options):
    """Only the kinds of tokens that page.css colours: every script is in the page, which is to stay small."""
    for token, text in stream:
        yield next((kind for kind in COLOURED if token in kind), Text), text


LEXER = PythonLexer(stripnl=False)
LEXER.add_filter(few_kinds())


def highlight(source):
    """Its lines in HTML."""
    html = pygments.highlight(source, LEXER, HtmlFormatter(nowrap=True))
    html = re.sub('<span class="m">(.*?)</span>', r"<b>\1</b>", html)  # numbers; shorter, as are <i> and bare quotes
    html = re.sub('<span class="(..?)">(.*?)</span>', r"<i class=\1>\2</i>", html)
    return html.replace("&quot;", '"').replace("&#39;", "'").rstrip("\n").split("\n")


def block(source, first=1, anchors=(), kind="code"):
    """Python with numbered lines, some with an anchor, {line: id}. --i is where a line goes on that needs two rows."""
    html = ""
    for number, line in enumerate(highlight(source), first):
        text = re.sub("<.*?>", "", line)
        indent = len(text) - len(text.lstrip())
        anchor = f" id={anchors[number]}" if number in anchors else ""
        hang = f" style=--i:{indent}" if indent and len(text) > 40 else ""
        html += f"<span{anchor}{hang}>{line}\n</span>"
    return f'<pre class="{kind}" style="counter-reset:line {first - 1}"><code>{html}</code></pre>\n'


def find(script, name):
    """The definition called name, such as myVAE.decode."""
    node = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    for part in name.split("."):
        node = next(n for n in node.body if getattr(n, "name", None) == part)
    return node


def quote(script, first, signature, source):
    """Quoted lines of a script. read.js shows them in it, or below them the whole definition that they are from."""
    name, first = signature.partition("(")[0], int(first)
    node, last = find(script, name), first + source.rstrip("\n").count("\n")
    return (f'<figure class="quote" data-script="{script}" data-lines="{first}-{last}" '
            f'data-whole="{node.lineno}-{node.end_lineno}"><figcaption>'
            f'<a href="#{script}-L{first}">{script}:{first}</a> <code>{escape(signature)}</code></figcaption>'
            f"{block(source, first)}</figure>\n")


# %% Formulas

def formula(tex, display):
    """MathML. A long formula in the text comes in pieces, so that a line can break after = and such, as in print."""
    tex = tex.strip().replace(r"\mathop{\mathrm{argmin}}_j", r"\operatorname*{argmin}_j\,")  # with the j below it
    tex = tex.replace("'", r"\mathord{\prime}")  # Chromium makes a raised one too small
    whole = math.convert_with_local_state(tex, displaystyle=display).replace("&ApplyFunction;", "\u2061")
    tree = ElementTree.fromstring(whole)
    length = len("".join(tree.itertext()))
    if display or length < 16:
        return whole
    html = text = ""
    most = 1 if length > 40 else 0  # brackets that it may be broken in
    for child in tree:
        html += ElementTree.tostring(child, encoding="unicode")
        text += "".join(child.itertext())
        depth = len(re.findall(r"[(\[{]", text)) - len(re.findall(r"[)\]}]", text))
        outside = depth <= most and text.count("‖") % 2 == 0
        if outside and re.search("<mo>[=≥≤≈←+−]</mo>$", html):  # the sign of -1 has attributes
            html += "</math><wbr><math>"
    return f"<math>{html}</math>"


# %% Text

def target(href, folder, scripts):
    """Where a link of a Markdown file in this folder leads on a page that holds these scripts."""
    file, _, anchor = href.partition("#")
    if not file or re.match("https?:", href):
        return href
    path = (folder / file).resolve()
    if path.name in SCRIPTS:
        return f"{'' if path.name in scripts else 'index.html'}#{path.name}-{anchor}"
    page = PAGES.get(path) or os.path.relpath(path, REPORT).replace(os.sep, "/")
    return page + ("#" + anchor if anchor else "")


def panel(found):
    """The place of a panel, the first or, for <!--panel:planes again-->, another one of its kind."""
    title = re.search('title: "(.*?)"', (PAGE / "panels" / f"{found[1]}.js").read_text(encoding="utf-8"))[1]
    anchor = found[1] + (found[2] or "").replace(" ", "-")
    return (f'<section class="panel" id="{anchor}" data-panel="{found[1]}" '
            f'aria-label="{escape(title)}{found[2] or ""}"></section>')


class Renderer(RendererHTML):
    """Each method renders the tokens of its name."""

    def fence(self, tokens, i, options, env):
        kind, content = tokens[i].info, tokens[i].content
        if kind == "math":
            return f'<div class="formula">{formula(content, True)}</div>\n'
        if kind == "mermaid":
            return diagrams.chart(content)
        if kind != "python":
            return f'<pre class="{kind}"><code>{escape(content, quote=False)}</code></pre>\n'
        quoted = re.match(r"# (\w+\.py):(\d+)  (.*)\n", content)  # pages.py writes this above the lines
        return quote(*quoted.groups(), content[quoted.end():]) if quoted else block(content, kind="code bare")

    def image(self, tokens, i, options, env):
        width, height = struct.unpack(">II", (REPORT / tokens[i].attrs["src"]).read_bytes()[16:24])  # of a PNG
        tokens[i].attrs.update(width=width, height=height, decoding="async")  # so that nothing moves when it comes
        return super().image(tokens, i, options, env)

    def code_inline(self, tokens, i, options, env):
        """A line may break at its spaces, not at a hyphen."""
        code = escape(tokens[i].content, quote=False)
        return "<code>" + re.sub(r"\S*-\S*", r"<span>\g<0></span>", code) + "</code>"

    def text(self, tokens, i, options, env):
        """With links to the figures that it names."""
        def link(found):
            return f'{found[1]}<a href="#figure-{found[2]}">{found[2]}</a>' if found[2] in env["figures"] else found[0]

        return re.sub(r"\b([Ff]igures? )(\d+(?:\.\d+)?)", link, escape(tokens[i].content, quote=False))


# What the pages need beyond the HTML that the libraries make.
FINISH = {
    '<span class="math inline">(.*?)</span>': r"\1",  # dollarmath's, of no use here
    # The # beside a heading is for the mouse only; the contents have the same link.
    '<a class="header-anchor"': '<a class="anchor" aria-hidden="true" tabindex="-1"',
    r"<h2( .*<code>(\w+\.py)</code>)": r'<h2 data-script="\2"\1',
    # Images and the paragraph below that says Figure 1.1 are one figure.
    r'<p>((?:<img [^>]*>\s*)+)</p>\s*<p>(<strong>Figure <a href="#(.*?)">(?s:.*?))</p>':
        r'<figure id="\3">\1<figcaption>\2</figcaption></figure>',
    "<table>(?s:(.*?))</table>": r'<div class="table"><table>\1</table></div>',
    "<th>(|<math>.*)</th>": r"<td>\1</td>",  # a heading has words, unlike the corner of a table
}


def convert(text, folder, scripts):
    """Markdown that lies in a folder -> HTML."""
    text = re.sub(r"\*\*Read it in a browser:\*\*(?s:.*?)\n\n", "", text)
    text = re.sub(r"<!--panel:(\w+)( again)?-->", panel, text)
    text = re.sub("<!--.*?-->", "", text)
    text = re.sub('<img src="(.*?)" width="49%" alt="(.*?)">', r"![\2](\1)", text)
    text = re.sub(r"\[(vqvae|choices)\.md\]", r"[\1.html]", text)  # links named by their file
    text = text.replace("</details>", "\n\n</details>\n\n")  # else the end of a paragraph, and that inside it
    markdown = MarkdownIt("commonmark", {"typographer": True, "xhtmlOut": False}, renderer_cls=Renderer)
    markdown.enable(["table", "smartquotes"])
    markdown.use(anchors_plugin, max_level=3, permalink=True, permalinkSymbol="#", permalinkBefore=True,
                 permalinkSpace=False)
    markdown.use(dollarmath_plugin, renderer=lambda tex, _: formula(tex, False))
    normalize = markdown.normalizeLink
    markdown.normalizeLink = lambda href: normalize(target(href, folder, scripts))
    html = markdown.render(text, {"figures": re.findall(r"^\*\*Figure ([\d.]*\d)", text, re.MULTILINE)})
    for found, made in FINISH.items():
        html = re.sub(found, made, html)
    return html


# %% Pages

def build(source):
    """The page of a Markdown file, with the scripts that it quotes, or all."""
    text, page = source.read_text(encoding="utf-8"), PAGES[source]
    scripts = [script for script in SCRIPTS if page == "index.html" or f"<!--code:{script}" in text]
    body = convert(text, source.parent, scripts)
    contents = "".join(f'<li class="h{level}"><a href="#{anchor}">{heading}</a></li>\n' for level, anchor, heading
                       in re.findall(r'<h([23]) .*?id="(.*?)"><a .*?</a>(.*)</h', body))
    pages = "".join(f'<li><a href="{name}"{" aria-current=page" if name == page else ""}>{label}</a></li>\n'
                    for name, label in NAMES.items())
    tabs = "".join(f'<a href="#{script}">{script}</a>\n' for script in scripts)
    files = ""
    sources = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    for script in scripts:  # an anchor for each line that any page links to
        anchors = {int(line): f"{script}-L{line}" for line in re.findall(rf"\b{script}(?:#L|:)(\d+)", sources)}
        files += (f'<section class="script" id="{script}" aria-label="{script}"><h2>{script}</h2>'
                  f'{block((ROOT / script).read_text(encoding="utf-8"), anchors=anchors)}</section>\n')
    return TEMPLATE.format(title=escape(re.search("^# (.*)", text)[1]), contents=contents, pages=pages, body=body,
                           code=CODE.format(tabs=tabs, files=files) if scripts else "")


CODE = """<aside id="code" popover aria-label="The scripts">
<button id="shut" popovertarget="code" popovertargetaction="hide">Back to the text</button>
<nav aria-label="Scripts">
{tabs}</nav>
<div class="files" tabindex="0">
{files}</div>
</aside>
"""
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
<body>
<div class="text">
<header>
<button id="menu" popovertarget="contents"><span id="where">Contents</span></button>
<nav aria-label="Contents" id="contents" popover>
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
