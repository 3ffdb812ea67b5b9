"""The playground in a browser: what a reader does, and what goes wrong.

It needs Chromium (or Chrome) on this machine, and npm when the site is built. Nothing is timed.
"""

import functools
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from tevq.config import PUBLISHED
from tevq.data.captions import PLACES
from tevq.evaluate.metrics import quadrant_ink

pytest.importorskip("playwright", reason="no playwright: pip install playwright")
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium or Chrome on this machine")
WAIT = 60_000  # ms that a slow machine may take for one step
WIDTHS = {"desktop": (1280, "light"), "phone": (390, "dark")}
expect.set_options(timeout=WAIT)


class Quiet(SimpleHTTPRequestHandler):
    """A web server as `python -m http.server` starts one, without its lines."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the built site is served."""
    if not (site / "runtime").is_dir():
        pytest.skip("no npm, or no network for it: the site has no onnxruntime-web")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/playground.html"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def visit(browser: Browser, address: str, width: str = "desktop", wait: str = "codes") -> Page:
    """The page as a new reader opens it, once its networks run; errors and requests are noted."""
    pixels, scheme = WIDTHS[width]
    context = browser.new_context(viewport={"width": pixels, "height": 900}, color_scheme=scheme,
                                  has_touch=width == "phone")
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.errors, page.asked = [], []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda m: m.type == "error" and page.errors.append(m.text))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    if wait:
        page.wait_for_selector({"codes": "body[data-ready]", "kept": "body[data-kept]"}[wait])
    return page


@pytest.fixture(scope="module")
def page(browser, address) -> Iterator[Page]:
    """One reader's page, for tests that may follow each other."""
    page = visit(browser, address)
    yield page
    page.context.close()


def shares(page: Page, part: str = "drag") -> list[int]:
    """The agreement of both variants in percent."""
    texts = page.locator(f"[data-cards={part}] .number b")
    expect(texts).to_have_text([re.compile(r"\d+ %")] * 2)
    return [int(text.split()[0]) for text in texts.all_text_contents()]


def pixels(page: Page, selector: str) -> list[int]:
    """What a canvas shows."""
    return page.locator(selector).first.evaluate(
        "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_asks_nobody_else(browser, address, width):
    page = visit(browser, address, width)
    assert page.errors == []
    assert all(url.startswith((address.rsplit("/", 1)[0], "data:", "blob:")) for url in page.asked)
    for part in ("drag", "type", "describe", "book"):
        page.locator(f"#tab-{part}").click()
        expect(page.locator(f"#{part}")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    page.locator("#tab-book").press("ArrowRight")
    expect(page.locator("#tab-drag")).to_be_focused()
    page.context.close()


@pytest.mark.parametrize("path", ["index.html", "results.html", "plan.html",
                                  "notebooks/06_discussion.html", "notebooks/08_why.html"])
def test_tables_and_figures_can_be_read_on_a_phone(browser, address, path):
    """Planted faults: a word a line in a wide table; what is too wide cut, or moved without a word
    about it; the claim of a row out of sight when its verdict is read."""
    page = visit(browser, address.replace("playground.html", path), "phone", wait="")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    boxes = page.locator(":is(.scroll, .jp-OutputArea-output):has(table, img)")
    wide = 0
    for i in range(boxes.count()):
        told, moved, highest, still = boxes.nth(i).evaluate("""box => {
            const rows = [...box.querySelectorAll('tbody tr')], first = rows[0]?.children[0];
            const before = first?.getBoundingClientRect().left;
            box.scrollLeft = 100;
            const told = getComputedStyle(box, '::before').content.includes('sideways');
            return [told, box.scrollLeft, Math.max(0, ...rows.map(row => row.offsetHeight)),
                    !first || !told || box.querySelector('tbody [rowspan]') !== null ||
                    first.getBoundingClientRect().left >= before - 10]; }""")
        too_wide = boxes.nth(i).evaluate("box => box.scrollWidth > box.clientWidth + 1")
        assert boxes.nth(i).evaluate("box => box.getBoundingClientRect().right <= innerWidth + 1")
        assert (told and moved) or not too_wide, f"{path}: box {i}"
        assert highest < 260 and still, f"{path}: box {i}"
        wide += too_wide
    assert wide or path == "index.html"
    page.context.close()


def test_dragging(page):
    page.locator("#tab-drag").click()
    page.locator("#home").click()
    expect(page.locator("#where")).to_contain_text("0 px to the right and 0 px down")
    expect(page.locator("[data-cards=drag] .number b")).to_have_text(["100 %", "100 %"])
    before = pixels(page, "#scene")
    page.locator("#scene").scroll_into_view_if_needed()
    box = page.locator("#scene").bounding_box()
    step = box["width"] / 64
    page.mouse.move(box["x"] + 20 * step, box["y"] + 20 * step)
    page.mouse.down()
    page.mouse.move(box["x"] + 22 * step, box["y"] + 21 * step, steps=3)
    page.mouse.up()
    expect(page.locator("#where")).to_contain_text("2 px to the right and 1 px down")
    expect(page.locator("#heard")).to_contain_text("and 1 px down. Agreement: sc ")
    moved = pixels(page, "#scene")
    assert before != moved
    assert before[:4 * 64 * 60] == [v for row in range(1, 61)  # the same digit, elsewhere
                                    for v in [*moved[4 * (64 * row + 2):4 * 64 * (row + 1)],
                                              *[0, 0, 0, 255] * 2]]
    assert max(shares(page)) < 100
    page.locator("#scene").press("Shift+ArrowRight")
    page.locator("#scene").press("ArrowUp")
    page.locator("#right").press("ArrowLeft")
    expect(page.locator("#where")).to_contain_text("5 px to the right and 0 px down")
    page.locator("#colours button").nth(1).click()
    page.locator("#digits button").first.click()
    expect(page.locator("#digits button").first).to_have_attribute("aria-pressed", "true")
    assert page.errors == []


def test_a_drawn_digit_and_its_link(page, browser, address):
    page.locator("#tab-drag").click()
    page.locator("#drag summary").click()
    page.locator("#pad").scroll_into_view_if_needed()
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 90, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 150, steps=9)
    page.mouse.up()
    page.wait_for_url("**/*drawn=*")
    page.wait_for_timeout(1_000)  # until the link has the last part of the stroke, too
    expect(page.locator("#digits [aria-pressed=true]")).to_have_count(0)
    again = visit(browser, page.url)
    assert pixels(again, "#scene") == pixels(page, "#scene")
    assert shares(again) == shares(page)
    again.context.close()
    page.locator("#wipe").click()
    page.locator("#drag summary").click()


def test_typing_with_suggested_words(page):
    page.locator("#tab-type").click()
    page.locator("#caption").fill("")
    for word in ("the", "upper", "left", "is", "red", "seven", ", and", "the", "lower", "right",
                 "shows", "a", "blue", "three", "."):
        page.locator("#words").get_by_role("button", name=word, exact=True).click()
    expect(page.locator("#caption")).to_have_value(
        "the upper left is red seven, and the lower right shows a blue three.")
    page.locator("#ask .main").click()
    expect(page.locator("#painted")).to_contain_text("Painted greedily in")
    for card in page.locator("[data-cards=type] .card").all():
        expect(card.locator(".readings .tag")).to_have_count(1)
        lines = card.locator(".readings li").count()
        assert lines >= 2 and card.locator(".mark").count() == lines  # a mark in the picture each
        expect(card.locator(".tag")).to_have_text(["never shown"])  # of the second digit
        assert card.locator("progress").evaluate("bar => bar.value") == 256
    assert page.errors == []


@pytest.mark.parametrize("caption", ["the upper left is red five.", "white two at the center."])
def test_ink_in_corners_that_nobody_asked_for_is_told(page, caption):
    """Planted fault: only the digits that the caption names are judged."""
    page.locator("#tab-type").click()
    page.locator("#caption").fill(caption)
    page.locator("#ask .main").click()
    expect(page.locator("#painted")).to_contain_text("Painted")
    for card in page.locator("[data-cards=type] .card").all():
        shown = card.locator("canvas").evaluate(
            "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
        image = torch.tensor(shown).view(1, 64, 64, 4)[..., :3].permute(0, 3, 1, 2) / 127.5 - 1
        ink = quadrant_ink(image, torch.tensor(["center" in caption]))[0].tolist()
        wanted = [f"✗ {name} should be empty" for name, there in zip(PLACES, ink, strict=False)
                  if there and name not in caption]
        expect(card.locator(".readings li:has-text('should be empty')")).to_have_text(wanted)


def test_a_seed_gives_its_painting_again(page):
    page.locator("#tab-type").click()
    page.locator("#caption").fill("white two at the center.")
    painted = []
    for _ in range(2):
        page.locator("#surprise").click()
        page.locator("#caption").fill("white two at the center.")
        if page.locator("#greedy").is_checked():
            page.locator("#options summary").click()
            page.locator("#greedy").uncheck()
        page.locator("#seed").fill("5")
        page.locator("#ask .main").click()
        expect(page.locator("#painted")).to_contain_text("Painted with seed 5 in")
        painted.append(pixels(page, "[data-cards=type] canvas"))
    assert painted[0] == painted[1]
    page.locator("#topk").fill("999")
    page.locator("#topk").press("Tab")
    expect(page.locator("#painted")).to_contain_text("whole number from 0 to 256")


@pytest.mark.parametrize(("caption", "said"), [
    ("the upper left is purple one.", "“purple” is not a word of these captions. Known are: the a"),
    ("the upper left is.", "This cannot be painted: not a clause"),
    ("", "Type a caption first")])
def test_a_bad_caption_is_told(page, caption, said):
    page.locator("#tab-type").click()
    page.locator("#caption").fill(caption)
    page.locator("#caption").press("Enter")
    expect(page.locator("#problem")).to_contain_text(said)
    assert page.errors == []


def test_describing(page):
    page.locator("#tab-describe").click()
    page.locator("[data-take=scene]").click()
    expect(page.locator("#truth")).to_contain_text("It shows: ")
    verdicts = page.locator("#describe .says small")
    expect(verdicts).to_have_count(2)
    said = page.locator("#describe .says").all_text_contents()
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain",
                                   "buffer": b"This is no image."})
    expect(page.locator("#refused")).to_have_text(
        "notes.txt is not an image that this browser reads; choose a PNG or JPEG.")
    assert page.locator("#describe .says").all_text_contents() == said  # the last picture stays
    page.set_input_files("#file", next((PUBLISHED / "laptop/figures").glob("*.png")))
    expect(page.locator("#refused")).to_be_hidden()
    expect(page.locator("#truth")).to_be_empty()
    assert page.errors == []


def test_the_code_book(page):
    page.locator("#tab-book").click()
    cards = page.locator("[data-cards=book] .card")
    first = cards.first.locator("input")
    first.fill("3")
    cards.first.locator(".shelf").press("ArrowRight")
    expect(first).to_have_value("4")
    near = cards.first.locator(".near button").first
    number = near.text_content()
    near.click()
    expect(first).to_have_value(number)
    before = shares(page, "merge")
    page.locator("#groups").press("End")
    expect(page.locator("output[for=groups]")).to_have_text("2")
    expect(page.locator("[data-cards=merge] .detail").first).to_contain_text("of 2 codes in use")
    assert all(few >= many for few, many in zip(shares(page, "merge"), before, strict=True))
    assert page.errors == []


def test_two_tabs_and_no_network_once_loaded(browser, address):
    page = visit(browser, address, wait="kept")
    other = page.context.new_page()  # beside the first
    other.goto(f"{address}#tab=describe")
    other.wait_for_selector("#describe .says small", timeout=WAIT)
    page.context.set_offline(True)
    page.goto("about:blank")
    page.goto(f"{address}#tab=type")
    expect(page.locator("#painted")).to_contain_text("Painted greedily in")
    assert page.errors == []
    page.context.close()


@pytest.mark.parametrize("missing", ["te-encoder.onnx", "data.json", "ort-wasm"])
def test_a_file_that_does_not_come(browser, address, missing):
    page = visit(browser, "about:blank", wait="")
    page.route(f"**/*{missing}*", lambda route: route.abort())
    page.goto(address)
    expect(page.locator("#alert")).to_contain_text("cannot be loaded")
    expect(page.locator("#alert")).to_contain_text(missing)
    expect(page.locator("#loading")).to_be_hidden()
    page.unroute(f"**/*{missing}*")
    page.locator("#alert button").click()  # try again
    page.wait_for_selector("body[data-ready]")
    page.context.close()


def test_a_browser_without_webassembly(browser, address):
    page = visit(browser, "about:blank", wait="")
    page.add_init_script("delete globalThis.WebAssembly")
    page.goto(address)
    expect(page.locator("#alert")).to_contain_text("does not run WebAssembly")
    page.locator("#scene").press("ArrowRight")  # what needs no network still works
    expect(page.locator("#where")).to_contain_text("3 px to the right")
    page.locator("#tab-type").click()
    page.locator("#ask .main").click()
    expect(page.locator("#painted")).to_have_text("The networks cannot run here; see above.")
    page.context.close()
