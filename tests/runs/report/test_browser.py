"""Reports of four searches of the zoo in a headless Chromium: two widths, light and dark, and no errors."""

import os
import shutil
import time

import pytest

import evomerge
from evomerge.runs.report.html import render
from evomerge.runs.result import Row
from evomerge.runs.verdict import Verdict
from evomerge.search.warm_start import space_of
from fitness.results import Evaluation
from tests.runs.report.conftest import SECONDS, items, scored
from tests.zoo import ZOO, few_items

pytestmark = pytest.mark.slow

TASKS = ("zoo_target_gen", "zoo_ops_en", "zoo_short_en", "zoo_target_mc")
SEARCHES = {
    "auto": {
        "space": {"method": "task_arithmetic", "modules": ["attention", "mlp", "other"]},
        "fitness": {"tasks": ["zoo_target_gen"]},
        "budget": 40,
    },
    "m2n2": {
        "space": {"kind": "mixture"},
        "strategy": {"kind": "m2n2", "archive": 6},
        "fitness": {"tasks": ["zoo_ops_en", "zoo_target_mc"], "subset": {"items": 20}},
        "budget": 30,
    },
    "nsga2": {
        "space": {"method": "task_arithmetic", "layers_per_group": 3},
        "strategy": {"kind": "nsga2", "population": 8},
        "fitness": {"tasks": ["zoo_ops_en", "zoo_short_en"], "subset": {"items": 20}, "objectives": "per_task"},
        "budget": 24,
    },
    "data_flow": {
        "space": {"kind": "data_flow", "repeats": 1},
        "strategy": {"kind": "eda", "population": 6},
        "fitness": {"tasks": ["zoo_ops_en"], "subset": {"items": 20}},
        "budget": 18,
    },
}
FIGURES = {
    "auto": {"held-out", "convergence", "steps", "search-and-held-out", "coefficients-weight", "costs"},
    "m2n2": {"held-out", "convergence", "coefficients-weight", "niches", "diversity", "lineage", "costs"},
    "nsga2": {"held-out", "convergence", "front", "diversity", "lineage", "costs"},
    "data_flow": {"held-out", "convergence", "path", "diversity", "costs"},
}
"""Figures that a run's report must have; which others there are depends on what it finds."""
WIDTHS = (1280, 390)
ARGUMENTS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return the reports of the four searches, by name."""
    folder = tmp_path_factory.mktemp("pages")
    tasks = few_items(folder / "tasks", TASKS, 80)
    files = {}
    for name, changes in SEARCHES.items():
        fitness = changes["fitness"] | {"include_path": [str(tasks)], "held_out": "test"}
        models = {model: str(ZOO / "models" / model) for model in ("base", "ops", "ja", "eo")}
        config = {"models": models, "workers": {"threads": 1}} | changes | {"fitness": fitness}
        run = folder / name
        evomerge.search(config, run=run)
        files[name] = run / "report.html"
        assert files[name].read_text() == render(run, space_of(run))  # `evomerge report` writes the same page
    return files


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Return a headless Chromium; skip without one, but fail in CI."""
    found, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if found is None or driver is None:
        message = "there is no chromium with chromedriver: apt-get install chromium chromium-driver"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = found
    for argument in (*ARGUMENTS, f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


def show(browser, file, width, dark):
    """Open a page and wait until its figures are drawn."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(file.as_uri())
    wait_until(lambda: browser.execute_script("return document.documentElement.dataset.ready"))


def wait_until(holds):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "the page is not ready after a minute"
        time.sleep(0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SEARCHES)
def test_the_page_opens_whole_and_without_errors(browser, pages, name, width, dark):
    assert pages[name].stat().st_size < 5_000_000
    show(browser, pages[name], width, dark)
    run = browser.execute_script
    run("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.get_log("browser") == []
    assert run("return document.documentElement.scrollWidth") <= width
    drawn = run(
        "return [...document.querySelectorAll('figure.drawing')].map(one => [one.dataset.figure, "
        "[...one.querySelectorAll('.plot svg')].map(svg => svg.getBoundingClientRect().width)])"
    )
    assert {figure for figure, _ in drawn} >= FIGURES[name]
    assert all(widths and all(100 < each <= width for each in widths) for _, widths in drawn)
    paper = run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper.removeprefix("rgb(").removesuffix(")").split(","))) < 200) == dark


@pytest.mark.parametrize("name", SEARCHES)
def test_every_cell_that_a_candidate_fills_is_text(browser, pages, name):
    show(browser, pages[name], 1280, False)
    run = browser.execute_script
    run("for (const one of document.querySelectorAll('details')) one.open = true")
    cells = run("return [...document.querySelectorAll('#candidates tbody :is(td, th)')].map(one => one.innerText)")
    assert len(cells) >= 5 * 7 and all(cell.strip() for cell in cells)
    shown = run("return document.body.innerText")
    assert len(shown) > 2000
    assert "object at 0x" not in shown and "built-in" not in shown and "[object" not in shown


@pytest.mark.parametrize("width", WIDTHS)
def test_long_and_hostile_names_stay_texts_inside_their_boxes(browser, writer, width):
    name = "<img src=x onerror=document.title='HACKED'>" + "a-name-without-any-space-" * 12
    models = {name: "/models/base", "b" + name: "/models/ops", "ja": "/models/ja"}
    run = writer(models=models, fitness={"tasks": [{"task": name, "weight": 1.0}]}, strategy={"kind": name})
    for number in range(3):
        run.candidate(scored(0.25 * number, items(4, name)), recipe=name + str(number), parents=range(number))
    run.candidate(Evaluation.failed(name, SECONDS))
    rows = [Row(one, kind, name, 0.5, 0.2, 0.8, 40, 0.5) for one, kind in ((name, "found"), ("b" + name, "source"))]
    run.finish(rows, Verdict("indistinguishable", name, name, ()))
    file = run.path / "report.html"
    file.write_text(render(run.close()))
    show(browser, file, width, False)
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.get_log("browser") == []
    assert "HACKED" not in browser.title
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_a_point_of_the_front_copies_its_recipe_and_the_course_can_be_against_time(browser, pages):
    from selenium.webdriver import ActionChains

    show(browser, pages["nsga2"], 1280, False)
    run = browser.execute_script
    point = run(
        "const all = document.querySelectorAll('figure[data-figure=front] .mark-symbol path');"
        "const one = [...all].find(each => each.getAttribute('aria-label').includes('number'));"
        "one.scrollIntoView({block: 'center'}); return one"
    )
    ActionChains(browser).move_to_element(point).click().perform()
    wait_until(lambda: run("return document.getElementById('said').textContent").startswith("recipe "))

    choice = run("return document.querySelectorAll('input[name=view-convergence]')[1].parentElement")
    run("arguments[0].scrollIntoView({block: 'center'})", choice)
    choice.click()
    title = "return document.querySelector('figure[data-figure=convergence] .plot').textContent"
    wait_until(lambda: "seconds of searching" in run(title))
    assert browser.get_log("browser") == []
