"""The web site: what its networks say in WebAssembly is what tevq says, and its files are complete.

`TEVQ_SITE_SCENES=1000` compares 1,000 scenes and 100 captions, which takes some minutes, and with
`-s` prints what differs. `tests/test_site_page.py` drives the page in a browser.
"""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from check import ROOT

from tevq import pretrained
from tevq.config import UserError
from tevq.data import scenes
from tevq.data.render import render
from tevq.data.source import load_source
from tevq.grid import COMPARED
from tevq.models.sampling import generate_captions, generate_images, uniform
from tevq.site import __main__ as building
from tevq.site.export import plain

COUNT = int(os.environ.get("TEVQ_SITE_SCENES") or 40)
SEED, NUMBERS = 7, [(0, 0), (7 * 2**32, 255), ((2**21 - 1) * 2**32 + 12_345, 3)]
# float32 sums differ in their last digits, so that a code may change where two are equally near
EQUAL, NEAR = 0.9999, 1e-3


@pytest.fixture(scope="module", params=COMPARED)
def both(request, site, tmp_path_factory) -> dict:
    """What the networks of a variant say in torch, and what the same files say in Node."""
    node = shutil.which("node")
    if not node or not (site / "runtime").is_dir():
        pytest.skip("no Node.js, or no npm to fetch onnxruntime-web")
    te, data = pretrained.load(request.param), json.loads((site / "data.json").read_text())
    items = load_source(data["digits"]["source"], "test")
    found = scenes.build(te.settings.data, "test", items.labels.numpy()).take(slice(0, COUNT))
    images = render(found, items)
    with torch.no_grad():
        # tevq's own group norm is less exact for small maps in memory as it wants it
        exact = torch.cat([plain(te.evaluator.vqgan).codes(part) for part in images.split(50)])
    few = max(4, COUNT // 10)
    texts, codes = [te.evaluator.tokenizer.decode(row) for row in found.caption[:few]], exact[:few]
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "images.f32").write_bytes(images.numpy().tobytes())
    (folder / "task.json").write_text(json.dumps({
        "variant": request.param, "captions": texts, "codes": codes.flatten(1).tolist(),
        "seed": SEED, "uniform": NUMBERS}))
    script = ROOT / "tests/site_truth.mjs"
    said = subprocess.run([node, script, site, folder], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    ours = json.loads((folder / "found.json").read_text())
    decoded = np.fromfile(folder / "decoded.f32", np.float32).reshape(-1, *images.shape[1:])
    return {"te": te, "images": images, "exact": exact, "texts": texts, "codes": codes,
            "topK": data["topK"] or None, "temperature": data["temperature"],
            "decoded": torch.from_numpy(decoded)} | ours


def painted(both: dict, greedy: bool) -> list[list[int]]:
    te, texts = both["te"], both["texts"]
    rows, seeds = torch.tensor([te._tokens(x) for x in texts]), torch.tensor([SEED << 32])
    return generate_images(te.model, rows, seeds.repeat(len(rows)), both["temperature"],
                           both["topK"], greedy).flatten(1).tolist()


def differing(name: str, a: list, b: list) -> list[int]:
    """Which rows differ; printed, for `-s`."""
    rows = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    print(f"\n{name}: {len(rows)} of {len(a)} differ", rows)
    return rows


def test_codes_are_those_of_torch(both):
    te, there = both["te"], torch.tensor(both["codes_found"]).view_as(both["exact"])
    for name, here in (("torch", both["exact"]), ("tevq", te.codes(both["images"]))):
        same = here == there
        print(f"\n{te.settings.variant} against {name}: {(~same).sum()} of {same.numel()} cells "
              f"differ, in images {(~same).flatten(1).any(1).nonzero()[:, 0].tolist()}")
        assert same.double().mean() >= (EQUAL if name == "torch" else 1 - NEAR)


def test_codes_that_differ_are_as_near(both):
    """In float64 the two codes are equally far, but for a thousandth of the distance."""
    te, there = both["te"], torch.tensor(both["codes_found"]).view_as(both["exact"])
    rows = (te.codes(both["images"]) != there).flatten(1).any(1)
    if not rows.any():
        return
    exact = plain(te.evaluator.vqgan).double()
    with torch.no_grad():
        v = exact.encode(both["images"][rows].double()).permute(0, 2, 3, 1)
    table = exact.quantizer.table()
    far = [(v - table[codes[rows]]).norm(dim=-1) for codes in (te.codes(both["images"]), there)]
    assert ((far[0] - far[1]).abs() <= NEAR * torch.maximum(*far)).all()


def test_decoded_images_are_those_of_torch(both):
    with torch.no_grad():
        error = (both["te"].evaluator.decode(both["codes"]) - both["decoded"]).abs().max()
    print(f"\ndecoder: largest difference {error:.1e}")
    assert error <= 1e-4


def test_greedy_paintings_are_those_of_torch(both):
    assert not differing("painted", both["painted"], painted(both, greedy=True))


def test_a_seed_paints_the_same_here_and_there(both):
    assert not differing("sampled", both["sampled"], painted(both, greedy=False))


def test_descriptions_are_those_of_torch(both):
    te, codes = both["te"], both["codes"]
    seeds = torch.zeros(len(codes), dtype=torch.int64)
    rows = generate_captions(te.model, codes, seeds, greedy=True).tolist()
    assert not differing("described", both["described"],
                         [te.evaluator.tokenizer.decode(row) for row in rows])


def test_random_numbers_are_those_of_tevq(both):
    assert both["uniform"] == [float(uniform(torch.tensor([seed]), step)) for seed, step in NUMBERS]


class Links(HTMLParser):
    """What a page loads, and what it leads to."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.leads = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href", "data", "action", "srcset", "poster"):
                (self.leads if tag == "a" else self.loads).append(value)


def test_pages_load_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= 10
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not [x for x in Links(text).loads if re.match("(https?:)?//", x)], page
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", text), page
    for file in [*site.rglob("*.js"), *site.rglob("*.mjs"), *site.rglob("*.css")]:
        text = re.sub(r"^\s*(//|\*).*$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert not re.search(r"(import|fetch|url|Worker|open)\(?\s*['\"`]https?:", text), file
        assert not re.search(r"\bcdn\.|unpkg|jsdelivr|\bregistry\.", text), file


def test_files_of_the_builder_name_no_host_of_packages():
    for file in (ROOT / "tevq/site").glob("*.*"):
        assert not re.search(r"https?://|\bregistry\.", file.read_text(encoding="utf-8")), file
    lock = json.loads((ROOT / "tevq/site/package-lock.json").read_text())["packages"]
    wanted = json.loads((ROOT / "tevq/site/package.json").read_text())["dependencies"]
    assert set(lock[""]["dependencies"].items()) == set(wanted.items())
    for name, version in wanted.items():  # exactly one version, and its checksum
        assert re.fullmatch(r"[\d.]+", version)
        assert lock[f"node_modules/{name}"]["version"] == version
    assert all(part["integrity"] for name, part in lock.items() if name)


def test_links_lead_to_pages_that_are_there(site):
    """Planted faults: a link without its address; one of a notebook as it is in the repository."""
    for page in site.rglob("*.html"):
        links = Links(text := page.read_text(encoding="utf-8"))
        assert "<a >" not in text, page
        for link in links.loads + links.leads:
            target = link.partition("#")[0].partition("?")[0]
            if target and not re.match("[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.name}: {link}"


def test_the_first_page_explains_its_words_and_leads_to_the_plan(site):
    """Planted faults: the table without the list above it in README.md; a page left out; Markdown
    in a title."""
    index = (site / "index.html").read_text(encoding="utf-8")
    for word in ("<code>Quad1</code>", "<em>Kappa</em>", "<em>stride</em>", "In short."):
        assert word in index
    assert 'href="plan.html"' in index
    assert 'href="../plan.html"' in (site / "notebooks/08_why.html").read_text(encoding="utf-8")
    for page in site.glob("*.html"):
        assert "`" not in re.search("<title>(.*?)</title>", page.read_text("utf-8"))[1], page


def test_every_executed_notebook_and_the_answers_are_on_the_site(site):
    index = (site / "index.html").read_text(encoding="utf-8")
    notebooks = sorted(building.NOTEBOOKS.glob("*.ipynb"))
    assert len(notebooks) > 5
    for path in notebooks:
        page = (site / f"notebooks/{path.stem}.html").read_text(encoding="utf-8")
        assert "width=device-width" in page and "tevq-bar" in page
        assert page.count("main { max-width") == 1  # today's style, not beside an older one
        assert f'href="notebooks/{path.stem}.html"' in index
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| ([+-]\d[^|]+) \|", readme, re.MULTILINE)
    assert len(rows) > 5 and all(number in index for number in rows)


def test_sizes_are_told_and_right(site):
    known = json.loads((site / "data.json").read_text())["files"]
    assert known and all((site / name).stat().st_size == size for name, size in known.items())
    assert f"{sum(known.values()) / 1e6:.1f} MB" in (site / "index.html").read_text("utf-8")


def test_without_npm_all_else_is_built(site, tmp_path, monkeypatch):
    monkeypatch.setenv("TEVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(building.shutil, "which", lambda name: None)
    monkeypatch.setattr(building, "export",
                        lambda networks, folder: shutil.copytree(site / "models", folder))
    said = building.build(tmp_path / "site", looked_at=8)
    assert said.splitlines()[0] == f"tevq: the playground is left out; {building.HOW}"
    made = tmp_path / "site"
    assert building.HOW in json.loads((made / "data.json").read_text())["noRuntime"]
    names = {x.relative_to(site).as_posix() for x in site.rglob("*.html")}
    assert {x.relative_to(made).as_posix() for x in made.rglob("*.html")} == names
    assert not (made / "runtime").exists() and not made.with_name("site.partial").exists()


def test_a_missing_package_is_one_line_and_keeps_the_older_site(tmp_path, monkeypatch):
    def missing(*_):
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")

    monkeypatch.setattr(building, "export", missing)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("older")
    with pytest.raises(UserError, match="the site needs onnx: pip install -r requirements.txt"):
        building.build(tmp_path / "site")
    assert (tmp_path / "site/index.html").read_text() == "older"
