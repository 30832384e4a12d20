"""Pages in headless Chromium, at the width of a phone and of a desk, light, dark and printed."""

import chromium
import pytest
import torch
from test_layout import HOSTILE

from prunesampler import Budget, ExactCurvature, InfluencePruner, Target
from prunesampler.select.moment import Moment

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(chromium.BINARY is None, reason="no Chromium is installed"),
]
OVERFLOWING = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('svg') || e.tagName == 'svg')
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(e => e.outerHTML.slice(0, 200))
"""
CONTRASTS = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = colour => {
    const [r, g, b] = colour.map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour[3] == 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) continue;
    if (e.tagName == 'title') continue;
    const style = getComputedStyle(e);
    const lights = [rgb(e.closest('svg') ? style.fill : style.color), ground(e)].map(luminance).sort((a, b) => b - a);
    found.push([(lights[0] + .05) / (lights[1] + .05), e.outerHTML.slice(0, 200)]);
  }
  return found;
})()
"""
FOCUS = """
(() => {
  const e = document.activeElement, style = getComputedStyle(e);
  return [e.tagName, e.matches(':focus-visible'), style.outlineStyle, parseFloat(style.outlineWidth)];
})()
"""


class Pictures:
    """Samples of five classes with names from hell, some of which cannot be drawn or read."""

    classes = HOSTILE[:5]

    def __init__(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(n) % 5
        self.x = torch.randn(n, 1, 8, 8, generator=generator)
        self.x[torch.arange(n), 0, self.labels] += 2

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], int(self.labels[index])


class Broken(Pictures):
    def __getitem__(self, index):
        if index % 7 == 0:
            raise OSError("<b>no such file</b> " * 50)
        if index % 7 == 1:
            return float("nan") * self.x[index], 0
        if index % 7 == 2:
            return HOSTILE[index % len(HOSTILE)], 0
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder, data, wanted = tmp_path_factory.mktemp("pages"), Pictures(300, 0), Pictures(60, 1)
    data.labels[:30] = (data.labels[:30] + 1) % 5
    data.x[250:280] = data.x[100:130] + 1e-3
    data.labels[250:280] = data.labels[100:130]
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(data.x), data.labels).backward()
        optimizer.step()
    pruner = InfluencePruner(
        data, budget=Budget(fraction=0.5), curvature=ExactCurvature(damping=0.01),
        objective=Target(wanted), progress=False,
    )  # fmt: skip
    scores, broken = pruner.measure(model), Broken(300, 0)
    scores.audit().report(folder / "audit.html", broken)
    selection = pruner.choose_from(scores)
    lengths = (300, 300) + (150,) * 8
    selection.report(
        folder / "selection.html", broken, scores, frontier=[selection],
        moment=Moment(1, 3.0, 2.0, lengths, torch.arange(0, 300, 2)),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = chromium.Chromium(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["audit", "selection"])
def test_pages_are_whole_and_readable(browser, pages, name, width, dark):
    tab = browser.view(pages / f"{name}.html", width, dark)
    ask = browser.ask
    assert ask(tab, "matchMedia('(prefers-color-scheme: dark)').matches") is dark
    ground = ask(tab, "getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(22, 23, 24)" if dark else "rgb(252, 251, 248)")
    assert ask(tab, "innerWidth") == width
    assert ask(tab, "document.documentElement.scrollWidth") <= width
    assert ask(tab, OVERFLOWING) == []
    assert ask(tab, "document.images.length") > 10
    assert ask(tab, "[...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 0
    assert ask(tab, "[...document.images].filter(i => !i.alt).length") == 0
    assert ask(tab, "[...document.querySelectorAll('svg')].filter(s => s.clientWidth < 250).length") == 0  # fmt: skip
    contrasts = ask(tab, CONTRASTS)
    assert len(contrasts) > 50
    assert min(contrasts)[0] >= 4.5, min(contrasts)
    browser.press_tab(tab)
    tag, visible, style, thickness = ask(tab, FOCUS)
    assert (tag, visible, style) == ("A", True, "solid")
    assert thickness >= 2
    assert not browser.of(tab, "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")  # fmt: skip
    asked = [e["params"]["request"]["url"] for e in browser.of(tab, "Network.requestWillBeSent")]
    assert all(url.startswith(("file:", "data:")) for url in asked), asked


@pytest.mark.parametrize("name", ["audit", "selection"])
def test_pages_print_in_black_on_white(browser, pages, name):
    tab = browser.view(pages / f"{name}.html", 720, dark=True, printed=True)
    assert (
        browser.ask(tab, "getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )
    assert browser.ask(tab, "getComputedStyle(document.querySelector('nav')).display") == "none"
    contrasts = browser.ask(tab, CONTRASTS)
    assert min(contrasts)[0] >= 4.5, min(contrasts)


def test_a_script_would_not_run(browser, pages, tmp_path):
    """Were escaping to fail, the page still forbids scripts and addresses."""
    harmful = "<script>document.title='run'</script><img src='https://example.org/x.png'>"
    path = tmp_path / "harmed.html"
    html = (pages / "audit.html").read_text().replace("<main>", f"<main>{harmful}")
    path.write_text(html)
    tab = browser.view(path, 390)
    assert browser.ask(tab, "document.title") != "run"
    said = [e["params"]["entry"]["text"] for e in browser.of(tab, "Log.entryAdded")]
    assert len([text for text in said if "Content Security Policy" in text]) >= 2
