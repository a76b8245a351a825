"""The pages of `attrflow report`, as a person sees and uses them."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import unicodedata
from pathlib import Path

import pytest
from conftest import PAGES, SHOTS
from driver import Browser
from PIL import Image
from pypdf import PdfReader

ALL = ["run", "failed", "hostile", "compared", "many"]
RUN = PAGES / "run.html"
CAPTIONS = "return [...document.querySelectorAll('.said')].map(said => said.textContent)"

# Texts whose contrast with what is behind them is below 4.5.
FAINT = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (color) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = (color) => {
  const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = color.map((part) => linear(part / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (part) => {
  for (let box = part; box; box = box.parentElement) {
    const color = rgba(getComputedStyle(box).backgroundColor);
    if (color[3] === 255) return color;
  }
  return [255, 255, 255, 255];
};
const isText = (part) => [...part.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
const faint = [];
let texts = 0;
for (const part of document.querySelectorAll("body *")) {
  if (!isText(part) || part.matches("script, title, desc")) continue;
  if (!part.checkVisibility({ visibilityProperty: true })) continue;
  texts += 1;
  const style = getComputedStyle(part);
  const [one, other] = [light(rgba(part.closest("svg") ? style.fill : style.color)), light(behind(part))];
  const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  if (contrast < 4.5) faint.push(`${part.outerHTML.slice(0, 120)}: ${contrast.toFixed(2)}`);
}
return [texts, faint];
"""


def page(name: str) -> Path:
    return PAGES / f"{name}.html"


def phone(browser: Browser) -> None:
    screen = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.chromium("Emulation.setDeviceMetricsOverride", **screen)


def letters(text: str) -> str:
    """A text without the spaces and ligatures that a PDF has where it likes."""
    return "".join(unicodedata.normalize("NFKC", text).split())


@pytest.mark.parametrize("name", ALL)
def test_a_page_asks_for_nothing_and_has_no_errors(browser: Browser, name: str) -> None:
    browser.open(page(name))
    events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    requests = [request["request"]["url"] for request in sent]
    assert page(name).as_uri() in requests
    assert [url[:80] for url in requests if not url.startswith(("file:", "data:"))] == []
    assert browser.log("browser") == []


@pytest.mark.parametrize("name", ALL)
def test_all_pictures_decode(browser: Browser, name: str) -> None:
    browser.open(page(name))
    decode = """
        const pictures = [...document.querySelectorAll("symbol image")].map(async (part) => {
          const picture = new Image();
          picture.src = part.href.baseVal;
          await picture.decode();
          return picture.naturalWidth === part.width.baseVal.value;
        });
        return Promise.all(pictures);"""
    pictures = browser.run(decode)
    assert pictures and all(pictures)
    lost = """
        const uses = [...document.querySelectorAll("use")];
        return uses.filter((use) => !document.querySelector(use.href.baseVal)).length;"""
    assert browser.run(lost) == 0


def test_pictures_are_seen(browser: Browser) -> None:
    browser.open(RUN)
    browser.run("document.querySelector('.rows').scrollIntoView({ behavior: 'instant' })")
    where = """
        const pictures = [...document.querySelectorAll(".rows:first-of-type svg.pic")].slice(0, 5);
        return pictures.map((picture) => picture.getBoundingClientRect());"""
    boxes = browser.run(where)
    screen = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    assert len(boxes) == 5
    for box in boxes:
        pixels = screen.crop((int(box["left"]), int(box["top"]), int(box["right"]), int(box["bottom"])))
        colors = pixels.getcolors(pixels.width * pixels.height)
        assert colors and len(colors) > 20, "more than a background"


def test_keys(browser: Browser) -> None:
    browser.open(RUN)

    def focus() -> tuple[str, str]:
        """The query and the rank of the picture that has the focus."""
        where = """
            const row = document.activeElement.closest(".row");
            const texts = [row.closest(".query").querySelector("h2"), row.querySelector(".rank")];
            return texts.map((part) => part.textContent);"""
        query, rank = browser.run(where)
        return query, rank

    opened = "return document.getElementById('look').open"
    browser.press("j", "j")
    assert focus() == ("grin", "2")
    browser.press("Enter")
    assert browser.run(opened)
    assert browser.texts("#look h2") == ["grin, rank 2"]
    browser.press("j")
    assert browser.texts("#look h2") == ["grin, rank 3"]
    browser.press("k", "Esc")
    assert not browser.run(opened)
    assert focus() == ("grin", "2"), "the focus is back"
    browser.press("n")
    assert focus() == ("pizza", "1")
    browser.press("p", "k")
    assert focus() == ("grin", "1")
    browser.press("?")
    assert browser.run("return document.getElementById('help').open")
    browser.press("Esc", "t")
    assert browser.run("return document.documentElement.classList.contains('as-table')")
    shown = """
        const parts = [...document.querySelectorAll(".cards li, .query")];
        return parts.filter((part) => part.checkVisibility()).length;"""
    assert browser.run(shown) == 4
    browser.press("/", *"pizza")
    assert browser.run("return document.activeElement.id") == "filter"
    assert browser.texts("#matches") == ["1 found"]
    assert browser.run(shown) == 2
    browser.press("Esc")
    assert browser.run("return document.activeElement === document.body")


def test_rows_are_sorted(browser: Browser) -> None:
    browser.open(RUN)
    sort = """
        const select = document.querySelector("[data-sort]");
        select.value = arguments[0];
        select.dispatchEvent(new Event("change"));
        const number = (row) => row.dataset[arguments[1]] ?? row.querySelector(".rank").textContent;
        return [...document.getElementById(select.dataset.sort).children].map((row) => +number(row));"""
    for order, key in [("index", "index"), ("rank", "rank")]:
        numbers = browser.run(sort, order, key)
        assert len(numbers) > 2 and numbers == sorted(numbers)


@pytest.mark.parametrize("name", ["run", "failed", "compared"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors(browser: Browser, name: str, scheme: str) -> None:
    ink = "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    light, dark = ["rgb(251, 250, 247)", "rgb(27, 29, 33)"], ["rgb(20, 22, 26)", "rgb(233, 231, 226)"]
    browser.media(scheme=scheme)
    browser.open(page(name))
    assert browser.run(ink) == (dark if scheme == "dark" else light)
    browser.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    texts, faint = browser.run(FAINT)
    assert texts > 100 and faint == []
    browser.run("document.querySelector('[data-do=theme]').click()")
    assert browser.run(ink) == (light if scheme == "dark" else dark), "the switch"
    browser.media("print", scheme)
    assert browser.run("return getComputedStyle(document.body).color") == "rgb(27, 29, 33)", "paper is light"


def test_paper_has_everything(browser: Browser) -> None:
    browser.media(scheme="dark")
    browser.open(RUN)
    captions, queries = browser.run(CAPTIONS), len(browser.texts(".query"))
    pdf = browser.print()
    (SHOTS / "print.pdf").write_bytes(pdf)
    pages = [letters(page.extract_text()) for page in PdfReader(io.BytesIO(pdf)).pages]
    assert captions and [said for said in captions if not any(letters(said) in page for page in pages)] == []
    assert 1 + queries <= len(pages) <= 4 + 3 * queries
    assert not any("Filterbyname" in page for page in pages), "nothing to press on paper"


def test_a_page_needs_no_script(browser: Browser) -> None:
    browser.open(RUN)
    captions = [" ".join(said.split()) for said in browser.run(CAPTIONS)]
    browser.chromium("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(RUN)
    shown = browser.texts("summary .said, .cards .said, .lead .said")
    assert len(shown) > 10 and set(shown) <= set(captions)
    assert len(browser.texts("#q1-rows .row")) == 6
    assert set(browser.texts("[data-js]")) == {""}, "what needs a script is not there"


@pytest.mark.parametrize("name", ALL)
def test_a_phone_scrolls_in_one_direction(browser: Browser, name: str) -> None:
    phone(browser)
    browser.open(page(name))
    browser.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    wide = "const root = document.documentElement; return [root.clientWidth, root.scrollWidth]"
    assert browser.run(wide) == [360, 360]
    browser.run("document.documentElement.classList.add('as-table')")
    assert browser.run(wide) == [360, 360]


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("run", "light"), ("run", "dark"), ("failed", "light"), ("hostile", "light"), ("compared", "dark")],
)
def test_axe_finds_no_fault(browser: Browser, name: str, scheme: str) -> None:
    package = importlib.util.find_spec("axe_playwright_python")
    assert package and package.submodule_search_locations
    axe = Path(package.submodule_search_locations[0]) / "axe.min.js"
    browser.media(scheme=scheme)
    browser.open(page(name))
    browser.run(axe.read_text(encoding="utf-8"))
    check = """
        document.querySelectorAll("details").forEach((part) => { part.open = true; });
        if (arguments[0]) document.querySelector(".row summary").click();
        const told = (rule) => [rule.id, rule.nodes.length, rule.nodes[0].html, rule.nodes[0].failureSummary];
        return axe.run({ runOnly: ["wcag2a", "wcag2aa"] }).then((found) => found.violations.map(told));"""
    assert browser.run(check, False) == []
    if name == "run":
        assert browser.run(check, True) == [], "with a picture opened"


def test_a_hundred_queries(browser: Browser) -> None:
    browser.open(page("many"))
    loaded, elements = browser.run(
        "const [page] = performance.getEntriesByType('navigation');"
        "return [page.loadEventEnd / 1000, document.querySelectorAll('*').length]"
    )
    size = page("many").stat().st_size / 1e6
    print(f"\n100 queries: {size:.1f} MB, {elements} elements, loaded in {loaded:.2f} s")
    assert elements <= 60_000
    # Two seconds on an idle machine.
    assert 0 < loaded < 20


def test_screenshots(browser: Browser) -> None:
    """For people to look at."""
    for name, scheme in [("light", "light"), ("dark", "dark"), ("phone", "light")]:
        browser.media(scheme=scheme)
        if name == "phone":
            phone(browser)
        browser.open(RUN)
        browser.run(
            "document.querySelectorAll('.query').forEach((part) => { part.style.contentVisibility = 'visible'; })"
        )
        size = browser.chromium("Page.getLayoutMetrics")["cssContentSize"]
        area = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 6000), "scale": 1}
        shot = browser.chromium("Page.captureScreenshot", clip=area, captureBeyondViewport=True)
        (SHOTS / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))
