"""The page's parts and what happens to events; `test_browser` uses it."""

import sys

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="no gradio: pip install -e '.[app]'")

from knet.app import build_app


def parts(page, kind):
    return [block for block in page.blocks.values() if type(block).__name__ == kind]


def test_one_picture_at_a_time_and_nothing_is_public(predictor, scene):
    page = build_app(predictor, examples=[scene])
    config = page.get_config_file()
    assert page.analytics_enabled is False and config["title"] == "tiny_val: K-Net"
    limits = {}
    for event in config["dependencies"]:
        assert event["api_visibility"] == "private"
        if event["queue"] and event["backend_fn"]:
            function = page.fns[event["id"]]
            limits[function.name] = (function.concurrency_id, function.concurrency_limit)
    assert set(limits) == {"take", "take_sample", "change", "write"}
    assert set(limits.values()) == {("model", 1)}


def test_sliders_begin_at_the_models_thresholds(tiny_cfg, semantic_cfg, make):
    test = tiny_cfg.MODEL.KNET.TEST
    test.THING_THRESH, test.OVERLAP_THRESH, test.MASK_THRESH = 0.4, 0.7, 0.45
    page = build_app(make(tiny_cfg))
    values = {slider.elem_id: (slider.value, slider.visible) for slider in parts(page, "Slider")}
    assert values == {
        "score": (0.3, False), "mask": (0.45, False), "thing": (0.4, True), "overlap": (0.7, True)
    }  # fmt: skip
    test.PANOPTIC_ON = False
    (view,) = parts(build_app(make(tiny_cfg)), "Radio")
    assert [value for _, value in view.choices] == ["instance", "semantic", "kernels"]
    page = build_app(make(semantic_cfg), name="mine")
    assert parts(page, "Slider") == parts(page, "Gallery") == []
    assert page.title == "mine: K-Net"


def test_examples_that_cannot_be_read_are_named(predictor, tmp_path):
    (tmp_path / "no.jpg").write_text("no picture", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no\.jpg cannot be read as a picture"):
        build_app(predictor, examples=[tmp_path / "no.jpg"])
    Image.new("RGB", (900, 30)).save(tmp_path / "wide.png")
    (gallery,) = parts(build_app(predictor, examples=[tmp_path / "wide.png"]), "Gallery")
    assert Image.open(gallery.value[0]["image"]["path"]).size == (200, 7)


def test_without_gradio_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith("knet.app")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"^the page needs gradio.*`pip install -e \.\[app\]`"):
        import knet.app  # noqa: F401
