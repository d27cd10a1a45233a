"""A report as it is used: in a real Chromium, driven by Playwright."""

from contextlib import contextmanager

import pytest


@pytest.fixture
def page(new_page, report_file):
    """The report, and a check that nothing was reported or asked from outside."""
    page = new_page(offline=True)
    problems, requests = [], []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else 0)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report_file.as_uri())
    yield page
    assert problems == []
    assert [url for url in requests if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in requests if url.startswith("file:")]) == 1


DASH = "\u2013"


def column(page, number):
    return page.locator(f"#class-table tbody tr > :nth-child({number})").all_inner_texts()


def go_to_images(page):
    page.locator("#cards").scroll_into_view_if_needed()
    page.locator(".card .stack").last.wait_for()


@contextmanager
def filtering(page):
    """Ends when what was changed in it has acted, which is said a moment later."""
    page.locator("#said").evaluate("element => { element.textContent = ''; }")
    yield
    page.locator("#said").filter(has_text="predicted segments").wait_for(state="attached")


def shown(page):
    return page.locator(".card:not([hidden])").count()


def test_tables_sort(page):
    before = column(page, 1)
    page.get_by_role("button", name="PQ", exact=True).click()
    head = page.locator("#class-table th", has=page.get_by_role("button", name="PQ", exact=True))
    assert head.get_attribute("aria-sort") == "descending"
    values = [float(text) for text in column(page, 3) if text != DASH]
    assert values == sorted(values, reverse=True) and len(values) > 4
    assert column(page, 3)[len(values) :] == [DASH] * (len(before) - len(values))
    page.get_by_role("button", name="PQ", exact=True).press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in column(page, 3)[: len(values)]] == sorted(values)
    page.get_by_role("button", name="Class", exact=True).press("Space")
    assert column(page, 1) == sorted(before) and head.get_attribute("aria-sort") == "none"
    assert "Sorted by Class, ascending" in page.locator("#said").inner_text()


def test_confusion_shows_shares_or_counts(page):
    cell = page.locator("#confusion .heat td.right").first
    assert cell.locator(".share").is_visible() and not cell.locator(".count").is_visible()
    page.get_by_label("number of segments").check()
    assert cell.locator(".count").is_visible() and not cell.locator(".share").is_visible()


def test_filters_act_on_images_and_segments(page):
    assert shown(page) == 4
    go_to_images(page)
    shapes = page.locator(".card .prediction .shape:visible")
    every = shapes.count()
    assert every > 10
    with filtering(page):
        page.get_by_label("Score at least").fill("0.65")
    assert page.locator("#shown").inner_text().startswith("4 of 4")
    strong = shapes.evaluate_all("shapes => shapes.map(s => Number(s.dataset.score))")
    assert 0 < len(strong) < every and min(strong) >= 0.65
    assert f"{len(strong)} of {every} predicted segments" in page.locator("#shown").inner_text()
    with filtering(page):
        page.get_by_label("Score at least").fill("0")
    with filtering(page):
        page.get_by_role("button", name="none", exact=True).click()
    assert page.locator("#nothing").is_visible() and shown(page) == 0
    with filtering(page):
        page.locator(".classes").get_by_label("star").check()
    labels = page.locator(".card:not([hidden]) template").evaluate_all(
        "found => found.map(t => !!t.content.querySelector('[data-name=star]'))"
    )
    assert 0 < len(labels) <= 4 and all(labels)
    assert set(shapes.evaluate_all("s => s.map(x => x.dataset.name)")) <= {"star"}
    with filtering(page):
        page.get_by_role("button", name="Reset").click()
    assert shown(page) == 4 and shapes.count() == every
    with filtering(page):
        page.get_by_label("Outcome").select_option("errors")
    statuses = set(shapes.evaluate_all("s => s.map(x => x.dataset.status)"))
    assert statuses and "match" not in statuses


def test_the_score_with_the_best_f1(page):
    button = page.locator("#best-score")
    score = button.get_attribute("data-score")
    assert button.inner_text() == f"Best F1: {score}"
    assert page.get_by_label("Score at least").input_value() != score
    with filtering(page):
        button.click()
    assert page.locator("#score-value").inner_text() == score
    assert page.get_by_label("Score at least").input_value() == score
    go_to_images(page)
    shapes = page.locator(".card .prediction .shape:not([hidden])")
    scores = shapes.evaluate_all("shapes => shapes.map(s => s.dataset.score).filter(Boolean)")
    assert scores and min(map(float, scores)) >= float(score)
    page.get_by_role("button", name="Reset").click()
    assert page.get_by_label("Score at least").input_value() != score


def test_order_of_images(page):
    def qualities():
        cards = page.locator(".card")
        return cards.evaluate_all("cards => cards.map(c => Number(c.dataset.quality))")

    assert qualities() == sorted(qualities())
    page.get_by_label("Order").select_option("best")
    assert qualities() == sorted(qualities(), reverse=True)
    page.get_by_label("Order").select_option("name")
    names = page.locator(".card h3").all_inner_texts()
    assert names == sorted(names) and len(names) == 4


def test_views_switch(page):
    go_to_images(page)
    card = page.locator(".card").first
    assert card.locator(".prediction").is_visible() and not card.locator(".truth").is_visible()
    page.locator("#views").get_by_label("prediction").press("ArrowLeft")  # as radio buttons do
    assert card.locator(".truth").is_visible() and not card.locator(".prediction").is_visible()
    page.locator("#views").get_by_label("truth").press("ArrowLeft")
    assert not card.locator(".truth").is_visible() and card.locator("img").is_visible()
    assert card.locator("img").evaluate("img => img.complete && img.naturalWidth") == 96


def test_viewer_by_keyboard(page):
    first = page.locator(".shot").first
    first.focus()
    page.keyboard.press("Enter")
    viewer = page.get_by_role("dialog")
    viewer.wait_for()
    assert page.evaluate("document.activeElement.id") == "stage"
    stack = viewer.locator(".stack")
    assert viewer.locator(".prediction").is_visible()
    page.keyboard.press("2")
    assert viewer.get_by_role("radio", name="truth").is_checked()
    assert viewer.locator(".truth").is_visible() and not viewer.locator(".prediction").is_visible()
    rows = viewer.locator("#segments tr")
    assert rows.count() == viewer.locator(".truth .shape").count() >= 2
    assert f"{rows.count()} true segments" in viewer.inner_text()
    page.keyboard.press("3")
    assert f"{rows.count()} predicted segments" in viewer.inner_text()
    width = stack.bounding_box()["width"]
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert stack.bounding_box()["width"] == pytest.approx(2.25 * width, rel=0.01)
    assert "225 %" in viewer.inner_text()
    left = stack.bounding_box()["x"]
    page.keyboard.press("ArrowRight")
    assert stack.bounding_box()["x"] == pytest.approx(left - 60, abs=1)
    page.keyboard.press("0")
    assert stack.bounding_box()["width"] == pytest.approx(width)
    name = viewer.get_by_role("heading").inner_text()
    page.keyboard.press("n")
    assert viewer.get_by_role("heading").inner_text() != name
    page.keyboard.press("p")
    assert viewer.get_by_role("heading").inner_text() == name
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert first.evaluate("button => button === document.activeElement")


def test_viewer_speaks_and_its_rows_take_focus(page):
    page.locator(".shot").first.click()
    viewer = page.get_by_role("dialog")
    page.keyboard.press("n")
    said = viewer.get_by_role("status").filter(has_text="PQ").inner_text()
    assert viewer.get_by_role("heading").inner_text() in said
    page.mouse.move(0, 0)  # no shape is under it
    page.locator("#viewer .segments").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.parentNode.id") == "segments"
    assert viewer.locator(".shape.lit").count() == 1
    page.keyboard.press("Tab")
    assert viewer.locator("#segments tr.lit").count() == 1


def test_a_raised_score_hides_images_without_segments(page):
    with filtering(page):
        page.get_by_label("Score at least").fill("1")
    assert page.locator("#nothing").is_visible()
    assert page.locator("#shown").inner_text().startswith("0 of 4 images")
    assert shown(page) == 0


def test_viewer_by_mouse(page):
    page.locator(".shot").nth(1).click()
    viewer = page.get_by_role("dialog")
    stack, stage = viewer.locator(".stack"), page.locator("#stage").bounding_box()
    middle = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
    before = stack.bounding_box()
    page.mouse.move(*middle)
    page.mouse.wheel(0, -500)
    page.locator("#zoom").filter(has_not_text="100 %").wait_for()
    after = stack.bounding_box()
    assert after["width"] > 2 * before["width"]
    page.mouse.down()
    page.mouse.move(middle[0] + 50, middle[1] + 30)
    page.mouse.up()
    moved = stack.bounding_box()
    assert moved["x"] - after["x"] == pytest.approx(50, abs=1)
    assert moved["y"] - after["y"] == pytest.approx(30, abs=1)
    viewer.get_by_role("button", name="fit").click()
    viewer.locator("#segments tr").first.hover()
    assert viewer.locator(".shape.lit").count() == 1
    viewer.get_by_role("button", name="Close").click()
    assert not viewer.is_visible()


def test_pictures_are_decoded_when_they_come_near(new_page, report_file):
    page = new_page(viewport={"width": 400, "height": 300})
    page.goto(report_file.as_uri())
    assert page.locator(".card img").count() == 0
    page.locator(".card").last.scroll_into_view_if_needed()
    page.locator(".card").last.locator("img").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_and_narrow_windows(new_page, report_file, scheme):
    page = new_page(viewport={"width": 375, "height": 700}, color_scheme=scheme)
    page.goto(report_file.as_uri())
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] > 128")
    assert light == (scheme == "light")
    # nothing but tables is wider than the window, and these scroll by themselves
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    contrast = page.evaluate(CONTRAST)
    assert len(contrast) > 100
    assert min(ratio for _, ratio in contrast) >= 4.5, min(contrast, key=lambda pair: pair[1])


# Text and its contrast to what is behind it (WCAG 2), of all elements with text of their own.
CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      layers.push(color);
      if (color.length < 4) break;
    }
    return layers.reverse().reduce((below, c) => {
      const a = c.length < 4 ? 1 : c[3];
      return c.slice(0, 3).map((v, k) => a * v + (1 - a) * below[k]);
    }, [255, 255, 255]);
  };
  const found = [];
  for (const e of document.querySelectorAll("main *, header *, footer")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest("svg, noscript, .hidden") || !e.checkVisibility()) continue;
    const [x, y] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    found.push([e.className + " " + e.textContent.trim().slice(0, 30),
                (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05)]);
  }
  return found;
}"""
