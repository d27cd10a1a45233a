"""The page as it is used: in a real Chromium, driven by Playwright."""

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from knet.config import get_cfg_from_file
from knet.predictor import KNetPredictor

pytest.importorskip("gradio", reason="no gradio: pip install -e '.[app]'")

DECODED_SIZE = "async i => { await i.decode(); return [i.naturalWidth, i.naturalHeight]; }"


@pytest.fixture(scope="module")
def model(tiny_shapes):
    """A small model with random weights, whose scores are far apart."""
    torch.manual_seed(0)
    data = ["DATASETS.TRAIN", ("tiny_train",), "DATASETS.TEST", ("tiny_val",)]
    cfg = get_cfg_from_file("configs/shapes/panoptic.yaml", ["MODEL.DEVICE", "cpu", *data])
    predictor = KNetPredictor(cfg, build_model(cfg), MetadataCatalog.get("tiny_val"))
    with torch.no_grad():
        for name, weight in predictor.model.named_parameters():
            if name.endswith("class_predictor.weight"):
                weight.mul_(3)
    return predictor


@pytest.fixture(scope="module")
def scenes(tiny_shapes):
    return sorted((tiny_shapes / "val" / "images").iterdir())


@pytest.fixture(scope="module")
def hold(tmp_path_factory):
    """A file that is there while the model looks at a picture of one colour; removing ends it."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def server(model, scenes, hold, tmp_path_factory):
    """The address of a running page; at its end nothing may have left the machine or gone wrong."""
    root = tmp_path_factory.mktemp("server")
    model.save_pretrained(root / "model")
    (root / "tmp").mkdir()
    driver = Path(__file__).with_name("serve_driver.py")
    with open(root / "log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, driver, root / "model", *scenes[:3]],
            env={**os.environ, "TMPDIR": str(root / "tmp"), "HOLD": str(hold)},
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        line = process.stdout.readline()
        found = re.fullmatch(r"The page is at (http://127\.0\.0\.1:\d+/) .*\n", line)
        assert found, line + Path(log.name).read_text("utf-8")
        try:
            yield found[1]
            hold.unlink(missing_ok=True)
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=120)
        finally:
            process.kill()
        assert rest == ""  # no connection to the outside was tried
        said = Path(log.name).read_text("utf-8")
        assert (process.returncode, said) == (130, "driver: interrupted\n")
        assert list((root / "tmp").glob("knet-app-*")) == []  # nobody's photo stays


@pytest.fixture
def open_page(new_page, server):
    """Opens the page as one more user; nothing may be asked from outside or end in an error."""
    problems, requests = [], []

    def opened(**options):
        page = new_page(**options)
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(server)
        page.locator("#status .empty").wait_for()
        return page

    yield opened
    assert problems == []
    outside = [u for u in requests if not u.startswith((server, "data:", f"blob:{server}"))]
    assert requests and outside == []


def drop(page, path):
    page.locator("#photo input[type=file]").set_input_files(path)


def wait_for_status(page, text):
    page.locator("#status").get_by_text(text).wait_for()


def found(page):
    """The first rows of the table (more are drawn once they are scrolled to), texts each."""
    rows = page.locator("#found .virtual-body [role=row]")
    return [row.locator("[role=gridcell]").all_inner_texts() for row in rows.all()]


def set_slider(page, label, value):
    page.get_by_label(f"number input for {label}", exact=True).fill(str(value))
    page.keyboard.press("Enter")


def test_a_photo_from_drop_to_download(open_page, model, scenes, tmp_path):
    page = open_page(accept_downloads=True)
    assert page.get_by_role("heading", level=1).inner_text() == "tiny <model>"
    page.get_by_text("8 classes").click()
    assert "4 things" in page.locator("#head").inner_text()
    drop(page, scenes[0])
    size = f"{scenes[0].name}, 96x96 pixels: "
    prediction = model.predict(scenes[0])
    segments = model.results(prediction)["panoptic_seg"][1]
    plural = "" if len(segments) == 1 else "s"
    nothing = "nothing found. Lower thresholds may show more."
    said = f"{len(segments)} segment{plural} found." if segments else nothing
    wait_for_status(page, size + said)
    page.locator("#pair img").nth(1).wait_for(state="attached")  # `all` itself does not wait
    before, after = page.locator("#pair img").all()
    for picture in (before, after):
        assert picture.evaluate(DECODED_SIZE) == [384, 384]

    # another view, another threshold
    page.get_by_label("Instance").check()
    scores = model.results(prediction)["instances"].scores
    for threshold in (0.3, 0.6):
        set_slider(page, "Score", threshold)
        count = int((scores >= threshold).sum())
        assert 1 < count < 30
        wait_for_status(page, f"{size}{count} objects found.")
    expected = scores[scores >= 0.6].tolist()
    rows = found(page)
    assert [float(row[1]) for row in rows] == pytest.approx(expected[: len(rows)], abs=6e-4)
    assert len(rows) >= min(len(expected), 6)
    assert {row[0] for row in rows} <= {c.name for c in model.categories if c.is_thing}
    assert page.locator("#overlap").count() == 0 or not page.locator("#overlap").is_visible()

    # the files are those of what is seen
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == f"{scenes[0].stem}_instance.zip"
    download.value.save_as(tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as packed:
        records = json.loads(packed.read("instances.json"))
        with packed.open(f"{scenes[0].stem}_instance.png") as file:
            assert Image.open(file).size == (384, 384)
    assert [r["score"] for r in records] == pytest.approx(expected)

    page.get_by_label("Semantic").check()
    labels = model.results(prediction)["sem_seg"].argmax(0)
    count = len(labels.unique())
    wait_for_status(page, f"{size}{count} class{'' if count == 1 else 'es'} found.")
    assert sum(int(row[1]) for row in found(page)) == 96 * 96
    page.get_by_label("Kernels").check()
    page.locator("#sheet img").wait_for()
    assert not page.locator("#pair").is_visible() and not page.locator("#found").is_visible()
    page.get_by_label("Panoptic").check()
    wait_for_status(page, size + said)
    page.locator("#photo").get_by_label("Clear").click()
    page.locator("#status .empty").wait_for()
    assert not page.locator("#pair").is_visible() and not page.locator("#pack").is_visible()


def test_files_that_cannot_be_shown_are_named(open_page, scenes, tmp_path):
    page = open_page()
    (tmp_path / "notes.txt").write_text("dear diary", encoding="utf-8")
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(tmp_path / "deep.png")
    whole = scenes[0].read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    texts = {
        "notes.txt": "notes.txt cannot be read as a picture: it is of no known format; choose",
        "deep.png": "deep.png: has more than 8 bit a channel",
        "half.png": "half.png cannot be read as a picture: image file is truncated",
    }
    for name, text in texts.items():
        drop(page, tmp_path / name)
        alert = page.get_by_role("alert").filter(has_text=text)
        alert.wait_for()
        assert str(tmp_path) not in alert.inner_text() and "/" not in alert.inner_text()
        assert not page.locator("#pair").is_visible() and not page.locator("#pack").is_visible()
        page.locator("#photo").get_by_label("Clear").click()
        page.locator("#status .empty").wait_for()
    page.locator("#samples button").nth(2).click()
    wait_for_status(page, f"{scenes[2].name}, 96x96 pixels")
    assert page.get_by_role("alert").count() == 0
    Image.open(scenes[1]).convert("CMYK").save(tmp_path / "print.jpg")
    drop(page, tmp_path / "print.jpg")
    wait_for_status(page, "print.jpg is in mode CMYK")


def test_a_photo_of_20_megapixels(open_page, scenes, tmp_path):
    Image.open(scenes[0]).convert("RGB").resize((5472, 3648)).save(tmp_path / "large.jpg")
    page = open_page()
    page.get_by_label("Semantic").check()
    drop(page, tmp_path / "large.jpg")
    wait_for_status(page, "large.jpg, 5472x3648 pixels")
    picture = page.locator("#pair img").first
    picture.wait_for()
    assert picture.evaluate(DECODED_SIZE) == [1280, 853]
    total = sum(int(row[1]) for row in found(page))
    assert total == pytest.approx(5472 * 3648, abs=10)


def test_users_wait_for_each_other_and_share_nothing(open_page, model, scenes, hold, tmp_path):
    def count(path, threshold):
        scores = model.results(model.predict(path))["instances"].scores
        return int((scores >= threshold).sum())

    first, second, slow = open_page(), open_page(), tmp_path / "slow.png"
    Image.new("RGB", (96, 96), "gray").save(slow)
    assert count(slow, 0.3) > count(slow, 0.8) > 1
    first.get_by_label("Instance").check()
    set_slider(first, "Score", 0.8)
    drop(first, slow)
    for _ in range(2400):
        if hold.exists():
            break
        first.wait_for_timeout(50)
    second.get_by_label("Instance").check()
    drop(second, scenes[0])
    second.locator("#status").get_by_text("queue").wait_for()
    hold.unlink()
    wait_for_status(first, f"slow.png, 96x96 pixels: {count(slow, 0.8)} objects found.")
    wait_for_status(second, f"{count(scenes[0], 0.3)} objects found.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_windows(open_page, scenes, scheme):
    page = open_page(color_scheme=scheme, viewport={"width": 375, "height": 700})
    page.locator("#samples button").first.click()
    wait_for_status(page, scenes[0].name)
    page.locator("#found [role=gridcell]").first.wait_for()
    page.locator("#pair img").first.evaluate(DECODED_SIZE)
    page.wait_for_timeout(300)  # it has been laid out
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    background = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(background) > 128) == (scheme == "light")
