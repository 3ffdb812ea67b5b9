"""Web pages of executed notebooks, their links, and the words that notebooks and README explain."""

import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from fakes import read
from test_packaging import broken

from tevq import execute, pipeline
from tevq.config import ROOT
from tevq.grid import choose
from tevq.pipeline import FOLDER, NOTEBOOKS
from tevq.report import views

# A word of ours -> how it looks in text or code, and what must stand beside it the first time
WORDS = {
    "sc": (r"(?<![\w.])sc(?![\w(])", "strided convolutions"),
    "te": (r"(?<![\w.])te(?![\w(])", "orthogonal codes"),
    "mb": (r"\bmb\b", "MaxBlurpool"), "mp": (r"\bmp\b", "MaxPool"),
    "cb": (r"\bcb\b", "ConvBlurpool"), "kappa": (r"[Kk]appa", r"beyond\s+chance"),
    "Quad1": (r"\b[Qq]uad[1-4]\b", r"one (to|…) four .*(items|digits)"),
}


def unexplained(texts: list[str]) -> list[str]:
    """Words whose first text does not say what they mean."""
    found = []
    for word, (look, meaning) in WORDS.items():
        first = next((text for text in texts if re.search(look, text)), None)
        if first is not None and not re.search(meaning, first, re.DOTALL):
            found.append(f"{word}: {first[:80]}")
    return found


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_explains_its_words(name):
    """Planted fault: a variant that is named before its meaning."""
    assert unexplained([cell["source"] for cell in read(FOLDER, name)["cells"]]) == []


def test_the_readme_explains_its_words_and_its_first_figure():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown, rest = re.split(r"(?<=\*)\n\n", text.split("![", 1)[1], maxsplit=1)
    assert "`sc`, the baseline" in shown and "orthogonal codes" in shown
    assert unexplained(re.split(r"\n## ", rest)) == []
    assert unexplained(["`te` wins", "`te` has orthogonal codes"]) == ["te: `te` wins"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_within_a_notebook_lead_to_a_heading(name):
    """Planted fault: a heading that was renamed, not its entry in the contents."""
    text = "\n".join(cell["source"] for cell in read(FOLDER, name)["cells"]
                     if cell["cell_type"] == "markdown")
    there = {head.replace(" ", "-") for head in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= there
    assert name != "05_evaluation" or text.count("](#") > 8


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_asks_before_it_answers(name):
    """Answers are folded; notebook 08 predicts, and its runs answer."""
    text = "\n".join(cell["source"] for cell in read(FOLDER, name)["cells"])
    asked = text.count("**Predict, then run.**")
    assert 2 <= asked + text.count("**Prediction.**") and asked <= 4
    assert text.count("<details><summary>Answer</summary>") >= asked


GRID = choose("laptop", "sc,te", "0,1", "1,2,3,4", results=str(ROOT / "results"))


@pytest.fixture(scope="module")
def jobs() -> dict[str, execute.Job]:
    return pipeline.plan(GRID).jobs


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", text)


def test_links_of_a_copy_lead_to_copies_and_back_to_the_repository(jobs):
    """Planted faults: links as in the stored notebook; the first cell for every cell."""
    text = ("[a](04_stage2.ipynb) [b](#x) [c](../README.md) [d](https://e.org/f) "
            "[e](05_evaluation.ipynb#g)")
    assert links(execute.relinked(text, jobs["03_stage1-sc-s1"])) == [
        "04_stage2-sc-s1.ipynb", "#x", "../../../README.md", "https://e.org/f",
        "05_evaluation.ipynb#g"]
    for label in ("02_aliasing", "03_stage1-te-s0-fashion"):
        assert jobs[label].copies["04_stage2"] == "04_stage2-te-s0"


def test_no_link_of_any_copy_is_broken(jobs):
    """Planted fault: notebook 02 leads to a copy of notebook 03 that nobody makes."""
    known = {f"results/laptop/notebooks/{label}.ipynb" for label in jobs}
    known |= {str(place.relative_to(ROOT)) for part in ("results", "tevq", "notebooks", ".")
              for place in (ROOT / part).glob("**/*.md" if part != "." else "*.md")}
    for label, job in jobs.items():
        name = Path(job.source).stem
        for cell in read(FOLDER, name)["cells"]:
            if cell["cell_type"] == "markdown":
                text = execute.relinked(cell["source"], job)
                assert not broken(text, "results/laptop/notebooks", known), label


def test_published_pages_lead_to_published_pages():
    """Planted faults: the next page is raw JSON, or is not there."""
    folder = ROOT / "results/laptop/notebooks"
    pages = sorted(folder.glob("*.html"))
    assert len(pages) > 5
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r'<a href="(?!#|[a-z]+:)([^"#]+)', text):
            assert (folder / link).exists() and not link.endswith(".ipynb"), f"{page.name}: {link}"
    for copy in sorted(folder.glob("*.ipynb")):
        for cell in json.loads(copy.read_text(encoding="utf-8"))["cells"]:
            for link in links("".join(cell["source"])) if cell["cell_type"] == "markdown" else ():
                target = link.split("#")[0]
                assert not target or ":" in target or (folder / target).exists(), copy.name


def test_a_page_can_be_read_on_a_phone():
    """Planted faults: figures shrink with the screen; a caption as wide as its table."""
    png = ("iVBORw0KGgoAAAANSUhEUgAABAAAAAABCAYAAAA", 1024)  # begin of a file 1024 pixels wide
    table = pd.DataFrame({"a": [1]}).style.set_caption("What it says").to_html()
    new = nbformat.v4
    outputs = [new.new_output("display_data", {"image/png": png[0]}),
               new.new_output("display_data", {"text/html": table})]
    long, link = "\n".join(f"x = {i}" for i in range(12)), "**Next:** [a](04_stage2-te-s0.ipynb)"
    book = new.new_notebook(cells=[
        new.new_markdown_cell(link), new.new_code_cell(long, outputs=outputs),
        new.new_code_cell(long)])
    page = execute._page(book, "title", ["04_stage2-te-s0"])
    assert f"min-width: {0.7 * png[1]:.0f}px" in page and "overflow-x: auto" in page
    assert "<caption><span>What it says</span></caption>" in page
    assert page.count("Code, 12 lines") == 1 and 'href="04_stage2-te-s0.html"' in page
    assert "<script" not in page


def test_what_nobody_asked_for_is_not_missing():
    view = pd.DataFrame({"a": [views.MISSING, "0.5"], "b": ["missing  missing", "1"]})
    asked, other = (views.show(view, "title", "name", planned).to_html()
                    for planned in (True, False))
    assert "missing" in asked and "missing" not in other and other.count("not planned") >= 3
    for page in (asked, other):
        assert not re.search(r"color:\s*(red|#B00020|#[Ff][Ff]0000)", page)
