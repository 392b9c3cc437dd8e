"""The page in headless Chromium: nothing is asked of the network, everything can be seen, pointed at and read."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from browser import CTRL, Browser
from conftest import cannot_run_here
from report_runs import BEGIN, make_run
from training.report.page import render
from training.report.run import read_run
from training.report.themes import THEMES

LOSS = "[data-figure=loss]"
END = BEGIN + 20_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        cannot_run_here("needs Chromium (Debian: chromium)")
        return
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def page_of(folder: Path, *runs: Path) -> Path:
    path = folder / "report.html"
    path.write_text(render([read_run(run) for run in runs], END), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that was queued again three times, whose rank 2 is slow."""
    folder = tmp_path_factory.mktemp("runs")
    ends = ("node lost", "hang", "saved for requeue", "complete")
    return page_of(folder, make_run(folder / "a", ends=ends, slow_rank=2))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two runs."""
    folder = tmp_path_factory.mktemp("runs")
    return page_of(folder, make_run(folder / "a"), make_run(folder / "b", lr=3e-4))


def middle(browser: Browser, selector: str) -> tuple[float, float]:
    """The middle of an element, which is scrolled into sight."""
    browser.value(f"document.querySelector('{selector}').scrollIntoView({{block: 'center'}})")
    x, y = browser.value(
        f"(() => {{ const box = document.querySelector('{selector} canvas').getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    return x, y


def hovered(browser: Browser, selector: str) -> str:
    """What the tooltip says over the middle of a plot."""
    shown = "document.querySelector('#vg-tooltip-element.visible')"
    x, y = middle(browser, selector)
    browser.point_at(x, y)
    browser.wait(f"{shown} !== null")
    text = browser.value(f"{shown}.innerText")
    browser.point_at(1, 1)
    browser.wait(f"{shown} === null")
    return " ".join(text.split())


def picture(browser: Browser, selector: str) -> str:
    """What a plot looks like now."""
    return browser.value(f"document.querySelector('{selector} canvas').toDataURL()")


def steps_of(browser: Browser, selector: str) -> tuple[float, float]:
    """Where the x axis of a plot begins and ends."""
    begin, end = browser.value(f"views.get(document.querySelector('{selector}')).view.scale('x').domain()")
    return begin, end


def test_it_opens_light_dark_and_narrow_without_a_complaint_and_without_a_request(
    browser: Browser, report: Path, tmp_path: Path
):
    looks: dict[str, dict[str, Any]] = {"light": {}, "dark": {"dark": True}, "narrow": {"width": 360}}
    backgrounds = {}
    for name, how in looks.items():
        browser.open(report, **how)
        assert browser.screenshot(tmp_path / f"{name}.png").stat().st_size > 10_000
        assert browser.complaints() == []
        assert browser.requests() == [report.as_uri()]
        assert browser.value("document.querySelectorAll('.plot canvas').length") == 12
        assert browser.value("document.documentElement.scrollWidth <= innerWidth"), f"{name} is too wide"
        backgrounds[name] = browser.value("getComputedStyle(document.body).backgroundColor")
    assert backgrounds == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)", "narrow": "rgb(255, 255, 255)"}


def test_the_plots_follow_when_the_reader_turns_to_dark(browser: Browser, report: Path):
    browser.open(report)
    light = picture(browser, LOSS)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.wait(f"document.querySelector('{LOSS} canvas')?.toDataURL() !== {json.dumps(light)}")
    browser.open(report, dark=True)


def test_pointing_at_a_plot_shows_its_values(browser: Browser, report: Path):
    browser.open(report)
    step, loss = hovered(browser, LOSS).removeprefix("step ").split(" loss (nats per token) ")
    assert 80 <= int(step) <= 120
    assert 2 < float(loss.split(" series ")[0]) < 5
    assert "series held out" in loss or "series training" in loss
    assert hovered(browser, "[data-figure=phases-1]").startswith("phase agree step ")
    assert hovered(browser, "[data-figure=ranks-1]").startswith("rank ")


def test_ctrl_and_the_wheel_zoom_dragging_moves_and_the_wheel_alone_scrolls_the_page(browser: Browser, report: Path):
    browser.open(report)
    x, y = middle(browser, LOSS)
    browser.turn_wheel(x, y, CTRL)
    browser.wait("views.get(document.querySelector('[data-figure=loss]')).view.scale('x').domain()[0] > 1")
    begin, end = steps_of(browser, LOSS)
    assert 1 < begin < end < 200
    browser.drag(x, y, x - 50)
    browser.wait(f"views.get(document.querySelector('[data-figure=loss]')).view.scale('x').domain()[0] > {begin}")
    moved = steps_of(browser, LOSS)
    assert moved[1] > end
    top = browser.value("scrollY")
    browser.turn_wheel(x, y)
    browser.wait(f"scrollY < {top}")
    assert steps_of(browser, LOSS) == moved
    assert steps_of(browser, "[data-figure=lr]") == (1, 200)


def test_a_range_of_steps_zooms_all_plots_by_step(browser: Browser, report: Path):
    browser.open(report)
    browser.value(
        "(() => { const [from, to] = document.querySelectorAll('#steps input'); from.value = 50; to.value = 60;"
        "to.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    plots = ("loss", "lr", "phases-1", "ranks-1")
    for plot in plots:
        browser.wait(
            f"String(views.get(document.querySelector('[data-figure={plot}]')).view.scale('x').domain()) === '50,60'"
        )
    assert 50 <= int(hovered(browser, LOSS).split()[1]) <= 60
    browser.value("document.querySelector('#steps button').click()")
    browser.wait("String(views.get(document.querySelector('[data-figure=loss]')).view.scale('x').domain()) === '1,200'")


def test_by_keyboard_the_scale_becomes_logarithmic_and_the_values_are_read(browser: Browser, report: Path):
    browser.open(report)
    browser.press("Tab")
    assert browser.value("document.activeElement.innerText") == "Skip to the plots"
    before = picture(browser, LOSS)
    browser.value("document.querySelector('[data-log=loss]').focus()")
    browser.press("Space")
    browser.wait(f"document.querySelector('{LOSS} canvas')?.toDataURL() !== {json.dumps(before)}")
    browser.press("Tab")
    assert browser.value("document.activeElement.dataset.figure") == "loss"
    reading = "document.querySelector('#loss .reading').innerText"
    browser.press("ArrowRight")
    assert browser.value(reading).startswith("step: 1 · loss (nats per token): 1")
    browser.press("End")
    assert browser.value(reading).startswith("step: 200 · loss (nats per token): 2.")
    browser.press("ArrowLeft")
    assert browser.value(reading).startswith("step: 150 · ")
    browser.value("document.querySelector('[data-figure=attempts-1]').focus()")
    browser.press("ArrowRight")
    first = browser.value("document.querySelector('#attempts-1 .reading').innerText")
    assert first == "what: node lost · time (UTC): 2026-09-21T14:13:20.000Z · more: node lost it was"


def test_a_screen_reader_finds_each_plot_named_told_and_as_a_table(browser: Browser, report: Path):
    browser.open(report)
    tree: Sequence[dict[str, Any]] = browser.call("Accessibility.getFullAXTree")["nodes"]
    plots = [node["name"]["value"] for node in tree if node.get("role", {}).get("value") == "graphics-document"]
    assert len(plots) == 12
    assert plots[0].startswith("Loss training: from 10")
    assert all(" " in told for told in plots)
    headings = [node["name"]["value"] for node in tree if node.get("role", {}).get("value") == "heading"]
    assert headings[:3] == ["a", "Results", "Plots"]
    assert {"Loss", "Each rank's own time of a step", "Attempts and faults"} < set(headings)
    assert browser.value("[...document.querySelectorAll('figure')].every((figure) => figure.querySelector('table'))")


def test_two_runs_lie_over_one_another_and_what_differs_is_said(browser: Browser, compared: Path, tmp_path: Path):
    browser.open(compared)
    browser.screenshot(tmp_path / "compared.png")
    assert browser.complaints() == []
    assert browser.requests() == [compared.as_uri()]
    assert "run " in hovered(browser, LOSS)
    table = browser.value("document.querySelector('#options').parentElement.querySelector('tbody').innerText")
    assert table.split() == ["--lr", "0.0006", "0.0003"]


def test_nothing_that_a_run_wrote_is_carried_out(browser: Browser, tmp_path: Path):
    hostile = "</script><script>document.title = 'mine'</script><img src=x onerror=\"document.title = 'mine'\">"
    make_run(tmp_path / "a", steps=4, answer=hostile, ends=(hostile,))
    run = (tmp_path / "a").rename(tmp_path / "<img src=x onerror=\"document.title = 'mine'\">")
    page = page_of(tmp_path, run, make_run(tmp_path / "b", steps=4))
    browser.open(page)
    assert "run " in hovered(browser, LOSS)
    assert browser.value("document.title").startswith("<img src=x")
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]


def test_16_ranks_and_10_000_steps_are_less_than_3_mb(browser: Browser, tmp_path: Path):
    page = page_of(tmp_path, make_run(tmp_path / "a", steps=10_000, ranks=16))
    assert page.stat().st_size < 3_000_000
    browser.open(page)
    assert browser.complaints() == []


def luminance(colour: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance, of a colour like #1b1f24."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_words_and_lines_stand_out_from_the_background(name: str):
    theme = THEMES[name]
    assert contrast(theme["axis"]["labelColor"], theme["background"]) >= 7
    assert all(contrast(line, theme["background"]) >= 4.5 for line in theme["range"]["category"])
