"""An executed notebook as one HTML file that needs no network.

nbconvert's page fetches MathJax and require.js; here formulas become MathML, which browsers draw
themselves, and the scripts are left out. (Widgets need a running kernel: every widget of the
notebooks has a picture beside it.)
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import nbformat
from jinja2 import DictLoader
from latex2mathml.converter import convert
from nbconvert import HTMLExporter

_PAGE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
"""

# code first, so that a dollar sign inside code is not taken for a formula
_FORMULA = re.compile(
    r"(?P<code>```.*?```|`[^`\n]*`|\\\$)|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^\s$](?:[^$]*?[^\s$])?)\$",
    re.DOTALL,
)


def write(notebook: nbformat.NotebookNode, path: Path, title: str) -> None:
    """Writes `notebook` to `path` as HTML."""
    page = copy.deepcopy(notebook)
    page.metadata["title"] = title
    page.metadata.pop("widgets", None)
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = mathml(cell.source)
    exporter = HTMLExporter(template_file="page.j2", extra_loaders=[DictLoader({"page.j2": _PAGE})])
    path.write_text(exporter.from_notebook_node(page)[0], encoding="utf-8")


def mathml(markdown: str) -> str:
    """Markdown with its formulas replaced by MathML; what cannot be converted stays as it is."""
    return _FORMULA.sub(_convert, markdown)


def _convert(match: re.Match) -> str:
    if match["code"]:
        return match["code"]
    display = "block" if match["block"] else "inline"
    formula = (match["block"] or match["inline"]).strip().replace(r"\arg", r"\mathrm{arg}")
    try:
        text = convert(formula, display=display)
    except Exception:  # the converter raises many kinds; the source text is still readable
        return match[0]
    if "\\" in text:  # a command that it does not know
        return match[0]
    # these two would start emphasis in Markdown
    return text.replace("*", "&#42;").replace("_", "&#95;")
