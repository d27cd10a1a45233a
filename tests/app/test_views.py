"""What the page shows, without the page."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="no gradio: pip install -e '.[app]'")

from knet.app.views import Thresholds, look, show, shrunk, views_of, write_zip
from knet.data.panoptic_png import read_panoptic_png
from knet.modeling.knet import KNet

ALL = Thresholds(score=0.0, mask=0.5, thing=0.0, overlap=0.0)


@pytest.fixture
def runs(monkeypatch):
    """A list that grows whenever a batch goes into a network."""
    sizes, plain = [], KNet._images
    monkeypatch.setattr(
        KNet, "_images", lambda self, batch: (sizes.append(len(batch)), plain(self, batch))[1]
    )
    return sizes


@pytest.fixture
def undrawn(monkeypatch):
    """Random masks take seconds to draw."""
    monkeypatch.setattr("knet.app.views.draw_result", lambda image, *_, **__: image)


def test_thresholds_act_without_the_network_and_leave_the_model_alone(
    predictor, scene, runs, undrawn
):
    before = predictor.options
    photo = look(predictor, scene)
    assert runs == [1] and views_of(predictor) == ["panoptic", "instance", "semantic", "kernels"]
    many = show(predictor, photo, "instance", ALL).found
    scores = [found.score for found in many]
    cut = scores[len(scores) // 2]
    few = show(predictor, photo, "instance", replace(ALL, score=cut)).found
    assert [f.score for f in few] == [s for s in scores if s >= cut]
    assert 0 < len(few) < len(many)
    # the higher the mask threshold, the smaller the masks
    small = show(predictor, photo, "instance", replace(ALL, mask=0.9)).found
    assert sum(f.pixels for f in small) < sum(f.pixels for f in many)
    segments = show(predictor, photo, "panoptic", ALL).found
    highest = max(f.score for f in segments)
    none = show(predictor, photo, "panoptic", replace(ALL, thing=1.0, overlap=1.0)).found
    assert len(none) < len(segments) and highest < 1
    assert runs == [1] and predictor.options == before


def test_what_is_found_is_what_the_model_says(predictor, scene, undrawn):
    photo = look(predictor, scene)
    predictor.model.task.options = replace(
        predictor.options, score_threshold=0.0, thing_threshold=0.0, overlap_threshold=0.0
    )
    results = predictor(scene)
    ids, segments = results["panoptic_seg"]
    names = {(c.is_thing, c.label): c.name for c in predictor.categories}
    expected = [
        (names[s["isthing"], s["category_id"]], s["score"], s["area"] / ids.numel(), s["area"])
        for s in segments
    ]
    found = show(predictor, photo, "panoptic", ALL).found
    assert [(f.name, f.score, f.share, f.pixels) for f in found] == expected
    masks = results["instances"].pred_masks
    found = show(predictor, photo, "instance", ALL).found
    assert [f.pixels for f in found] == masks.sum(dim=(1, 2)).tolist()
    labels = results["sem_seg"].argmax(0)
    found = show(predictor, photo, "semantic", ALL).found
    assert sum(f.share for f in found) == pytest.approx(1.0)
    assert [f.pixels for f in found] == sorted(np.unique(labels, return_counts=True)[1])[::-1]


@pytest.mark.slow
def test_rounds_of_the_kernels_are_traced_once(predictor, scene, runs):
    photo = look(predictor, scene)
    shown = show(predictor, photo, "kernels", ALL)
    assert shown.before is None and shown.found == [] and shown.after.std() > 10
    assert photo.trace.masks.shape == (4, 6, 96, 96)
    again = show(predictor, photo, "kernels", ALL)
    assert len(runs) == 2 and (again.after == shown.after).all()


def test_semantic_models_have_no_thresholds(semantic, scene, tmp_path):
    assert views_of(semantic) == ["semantic", "kernels"] and Thresholds.of(semantic) is None
    photo = look(semantic, scene)
    found = show(semantic, photo, "semantic", None).found
    labels = semantic(scene)["sem_seg"].argmax(0)
    assert {f.name: f.pixels for f in found} == {
        c.name: int((labels == c.label).sum())
        for c in semantic.categories
        if (labels == c.label).any()
    }
    with zipfile.ZipFile(write_zip(semantic, photo, "semantic", None, tmp_path)) as packed:
        name = f"{scene.stem}_semantic.png"
        assert set(packed.namelist()) == {
            name, "images.json", f"semantic/{scene.stem}.png", "settings.json"
        }  # fmt: skip
        with packed.open(f"semantic/{scene.stem}.png") as file:
            assert (np.asarray(Image.open(file)) == labels.numpy()).all()
        assert json.loads(packed.read("settings.json")) == {
            "view": "semantic",
            "results": "semantic",
        }


def test_several_looks_at_a_photo(tiny_cfg, semantic_cfg, make, scene, runs, undrawn):
    """With TEST.AUG the network runs for every look, and thresholds act without it."""
    for cfg in (tiny_cfg, semantic_cfg):
        cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES = True, (64, 96)
    predictor = make(tiny_cfg)
    assert views_of(predictor) == ["panoptic", "instance", "semantic"]
    photo = look(predictor, scene)
    assert len(runs) == 4
    found = show(predictor, photo, "panoptic", Thresholds.of(predictor)).found
    assert [f.score for f in found] == [s["score"] for s in predictor(scene)["panoptic_seg"][1]]
    assert len(runs) == 8
    semantic = make(semantic_cfg)
    photo = look(semantic, scene)
    assert show(semantic, photo, "semantic", None).found
    assert len(runs) == 12 and views_of(semantic) == ["semantic"]


def test_large_photos_are_shown_small_and_packed_large(predictor, tmp_path, undrawn):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((2000, 1200)).save(tmp_path / "large.png")
    predictor.model.task.options = replace(predictor.options, min_area=60000)
    photo = look(predictor, tmp_path / "large.png")
    shown = show(predictor, photo, "panoptic", ALL)
    assert shown.before.shape == shown.after.shape == (768, 1280, 3)
    with zipfile.ZipFile(write_zip(predictor, photo, "panoptic", ALL, tmp_path)) as packed:
        packed.extractall(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "panoptic.json").read_text("utf-8"))["annotations"][0]
    ids = read_panoptic_png(str(tmp_path / "out" / "panoptic" / "large.png"), size=(1200, 2000))
    areas = [s["area"] for s in record["segments_info"]]
    assert areas == [(ids == s["id"]).sum() for s in record["segments_info"]]
    assert min(areas) >= 60000 and len(areas) == len(shown.found)
    # areas on the page are those of the photo, as well as 1280 pixels can tell
    assert [f.pixels for f in shown.found] == pytest.approx(areas, rel=0.01)
    assert (tmp_path / "out" / "large_panoptic.png").is_file()
    settings = json.loads((tmp_path / "out" / "settings.json").read_text("utf-8"))
    assert settings["thresholds"] == {"score": 0.0, "mask": 0.5, "thing": 0.0, "overlap": 0.0}


def test_packed_instances_are_those_above_the_threshold(predictor, scene, tmp_path, undrawn):
    photo = look(predictor, scene)
    scores = [f.score for f in show(predictor, photo, "instance", ALL).found]
    cut = replace(ALL, score=scores[5])
    with zipfile.ZipFile(write_zip(predictor, photo, "instance", cut, tmp_path)) as packed:
        records = json.loads(packed.read("instances.json"))
        assert "panoptic.json" not in packed.namelist()
    assert [r["score"] for r in records] == pytest.approx(scores[: len(records)])
    assert 6 <= len(records) < len(scores)


def test_odd_pictures(predictor, tmp_path):
    rgb = Image.effect_noise((60, 40), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(tmp_path / "turned.jpg", exif=exif)
    rgb.convert("CMYK").save(tmp_path / "print.jpg")
    rgb.convert("RGBA").save(tmp_path / "opaque.png")
    clear = rgb.convert("RGBA")
    clear.putalpha(100)
    clear.save(tmp_path / "clear.png")
    rgb.save(
        tmp_path / "moving.gif", save_all=True, append_images=[rgb.rotate(90), rgb.rotate(180)]
    )
    expected = {
        "turned.jpg": [],
        "opaque.png": [],
        "print.jpg": ["print.jpg is in mode CMYK"],
        "clear.png": ["clear.png has transparent pixels"],
        "moving.gif": ["moving.gif holds 3 pictures, of which the first is read"],
    }
    for name, starts in expected.items():
        photo = look(predictor, tmp_path / name)
        assert len(photo.notes) == len(starts), photo.notes
        assert all(map(str.startswith, photo.notes, starts)), photo.notes
        assert photo.prediction.size == ((60, 40) if name == "turned.jpg" else (40, 60))


def test_files_that_are_no_pictures_are_named_without_their_folder(predictor, tmp_path):
    (tmp_path / "notes.jpg").write_text("dear diary", encoding="utf-8")
    deep = np.arange(2400, dtype=np.uint16).reshape(40, 60)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.effect_noise((300, 200), 80).save(tmp_path / "half.jpg")
    half = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(half[: len(half) // 2])
    messages = {
        "notes.jpg": "notes.jpg cannot be read as a picture: it is of no known format",
        "deep.png": "deep.png: has more than 8 bit a channel",
        "half.jpg": "half.jpg cannot be read as a picture: image file is truncated",
        "gone.jpg": "no picture at gone.jpg",
    }
    for name, message in messages.items():
        with pytest.raises(ValueError, match=message) as caught:
            look(predictor, tmp_path / name)
        assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)


def test_no_memory_for_the_files_is_said(predictor, scene, tmp_path, monkeypatch):
    photo = look(predictor, scene)
    monkeypatch.setattr("knet.predictor.free_memory", lambda: 1000)
    with pytest.raises(ValueError, match="of memory are free"):
        write_zip(predictor, photo, "panoptic", ALL, tmp_path)
    assert list(tmp_path.glob("*.zip")) == []


def test_drawings(predictor, scene):
    photo = look(predictor, scene)
    best = Thresholds(score=1.0, mask=0.5, thing=0.0, overlap=0.6)
    drawn = {v: show(predictor, photo, v, best) for v in ("panoptic", "semantic", "instance")}
    for shown in drawn.values():  # small pictures are enlarged, both alike
        assert shown.before.shape == shown.after.shape == (384, 384, 3)
    assert drawn["instance"].found == [] and (drawn["semantic"].before != 0).any()
    plain, semantic = drawn["instance"].after.astype(int), drawn["semantic"].after.astype(int)
    assert abs(plain - drawn["instance"].before).mean() < 2 < abs(semantic - plain).mean()


def test_shrunk():
    assert shrunk(np.zeros((10, 4000, 3), np.uint8), 100).shape == (1, 100, 3)
    pixels = np.zeros((30, 40, 3), np.uint8)
    assert shrunk(pixels, 40) is pixels
