"""Every page for every reader: axe, light and dark, three languages, 360 px, the keyboard alone."""

from __future__ import annotations

import pytest

from layersync_plugin_webui.app import PAGES
from layersync_plugin_webui.language import LANGUAGES
from plugins.webui.tests.browser import NEEDED
from plugins.webui.tests.folders import id_of
from plugins.webui.tests.screenshots import png

pytestmark = NEEDED

HOSTILE = "<b onclick=alert(1)>" + "a-name-that-is-longer-than-a-narrow-screen" * 3 + "\u202e运行記रन"
# The interactive elements; a group of radio buttons is one stop.
STOPS = """() => {
    const found = document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']");
    const groups = new Set();
    return [...found].filter((item) => {
        if (item.disabled || item.type === "hidden" || item.tabIndex < 0 || !item.checkVisibility()) return false;
        if (item.type !== "radio") return true;
        const group = `${item.form?.id} ${item.name}`;
        return !groups.has(group) && groups.add(group);
    }).length;
}"""
FOCUSED = """() => {
    const item = document.activeElement;
    if (item === document.body || item.dataset.reached) return null;
    item.dataset.reached = "yes";
    const style = getComputedStyle(item);
    return `${item.outerHTML.slice(0, 200)}|${style.outlineStyle}`;
}"""


@pytest.fixture
def addresses(runs, make_run, page):
    """Every page: those of the navigation, one of a run with all that a run may have, one that is not there."""
    folder = make_run("all", rows=20, code=1, **{"<i>metric</i>": 2})
    (folder / "train.log").write_text("a line of the log " * 30 + "\n" + "x" * 500 + "\n")
    (folder / "run.json").write_text(
        '{"family": "wan", "blocks": [{"student": "block 8 of 28", "teacher": "block 16"}]}'
    )
    (folder / "samples").mkdir()
    for step in (10, 20):
        (folder / "samples" / f"step-{step}.png").write_bytes(png(64, [bytes(65)] * 64))
    make_run(HOSTILE, rows=5, code=None)
    names = [*(item.path for item in PAGES), f"/runs/{id_of(runs, folder)}", f"/runs/{id_of(runs, runs / HOSTILE)}"]
    return names


def visit(page, path, name="en", scheme="light"):
    page.emulate_media(color_scheme=scheme)
    origin = page.evaluate("location.origin")
    page.context.add_cookies([{"name": "layersync-language", "value": name, "url": origin}])
    page.goto(origin + path)
    page.wait_for_selector("h1")
    if path.startswith("/runs"):
        page.wait_for_selector("#charts canvas")
    if path == "/training":  # with all that it may show: blocks, the map, an error with its original, the advanced ones
        page.select_option("#family", "dit")
        page.check("#layersync_enabled-on", force=True)
        page.fill("#layersync_student_block", "99")
        page.wait_for_selector("#map table")
        page.wait_for_selector("#error-layersync_student_block p")
        page.eval_on_selector_all("details", "all => all.forEach((item) => { item.open = true; })")
    assert page.get_attribute("html", "lang") == LANGUAGES[name].tag


def test_axe_finds_nothing_serious_on_any_page_in_light_and_dark_in_any_language(page, addresses):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python").Axe()
    found = []
    for path in addresses:
        for name, scheme in (("en", "light"), ("en", "dark"), ("zh", "dark"), ("hi", "light")):
            visit(page, path, name, scheme)
            for fault in axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]:
                if fault["impact"] in ("serious", "critical"):
                    nodes = [node["html"][:200] for node in fault["nodes"][:5]]
                    found.append(f"{path} {name} {scheme}: {fault['id']}: {fault['help']}: {nodes}")
    assert found == []


def test_no_page_scrolls_sideways_on_a_narrow_screen_in_any_language(page, addresses):
    page.set_viewport_size({"width": 360, "height": 700})
    wide = []
    for path in addresses:
        for name in LANGUAGES:
            visit(page, path, name)
            if (width := page.evaluate("document.documentElement.scrollWidth")) > 360:
                wide.append(f"{path} {name}: {width}")
    assert wide == []


def test_the_keyboard_reaches_everything_and_shows_where_it_is(page, addresses):
    for path in addresses:
        visit(page, path)
        page.evaluate("document.body.tabIndex = -1; document.body.focus()")  # Tab begins at the top
        stops, reached = page.evaluate(STOPS), []
        while len(reached) < 500:
            page.keyboard.press("Tab")
            if (stop := page.evaluate(FOCUSED)) is None:
                break
            reached.append(stop)
        assert len(reached) >= stops > 5, (path, reached)
        assert [stop for stop in reached if stop.endswith("|none")] == []


def test_the_language_is_switched_by_keyboard_and_stays_when_the_page_renews_itself(page, make_run):
    make_run("mine", rows=5)
    page.wait_for_selector("#list a")
    page.focus("button[value=zh]")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('运行记录')")
    assert "已完成" in page.inner_text("#table")
    make_run("later", rows=5)
    page.wait_for_selector("text=later", timeout=60_000)
    assert "Finished" not in page.inner_text("#table")
    page.click("#list a")
    page.wait_for_selector("nav >> text=运行记录")
    address = page.url
    page.click("button[value=hi]")
    page.wait_for_selector("html[lang=hi]")
    assert page.url == address, "the reader stays where they were"
    page.wait_for_timeout(2500)
    assert "पूरा हुआ" in page.inner_text("#live")


def test_what_the_browser_prefers_counts_until_something_is_chosen(chromium, address):
    context = chromium.new_context(locale="hi-IN")
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("html[lang=hi]")
    page.click("button[value=en]")
    page.wait_for_selector("html[lang=en]")
    context.close()
