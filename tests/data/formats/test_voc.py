"""What is particular to Pascal VOC's tree."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from knet.data.defects import DataError
from knet.data.formats import recognise

from .makers import CLASSES, COLORS, STEMS, labels, numbers, picture, png, voc, voc_semantic
from .scoring import defects, register, score


def test_semantic_maps_alone_with_vocs_own_classes(tmp_path):
    voc_semantic(tmp_path / "data")
    found = recognise(tmp_path / "data")
    assert (found.format, found.task) == ("Pascal VOC", "semantic")
    assert "the 20 classes of Pascal VOC, as no file lists others" in found.notes[0]
    data = found.prepare(tmp_path / "out")
    assert data.classes[:3] == ["background", "aeroplane", "bicycle"] and len(data.classes) == 21
    assert any("no label shows bird, boat, bottle" in note for note in data.notes)
    with pytest.raises(DataError, match="for semantic segmentation, not for panoptic"):
        recognise(tmp_path / "data", task="panoptic")


@pytest.mark.parametrize("task", ["instance", "panoptic", "semantic"])
def test_masks_in_colours_as_cvat_writes_them(task, tmp_path):
    root = tmp_path / "data"
    for stem in STEMS:
        picture(root / "JPEGImages" / f"{stem}.jpg", stem)
        png(root / "SegmentationClass" / f"{stem}.png", np.array(COLORS, np.uint8)[labels(stem)])
        ids = numbers(stem)
        png(root / "SegmentationObject" / f"{stem}.png", np.stack([ids, ids * 7, ids * 0], -1))
    lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(["background", *CLASSES], COLORS)]
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]))
    data = recognise(root, task=task).prepare(tmp_path / "out")
    assert data.classes == (CLASSES if task == "instance" else ["background", *CLASSES])
    cfg = register(data)
    assert defects(data) == []
    assert score(cfg, "data_val", task, tmp_path / "scores") == pytest.approx(100)


def test_pictures_without_masks_are_counted_or_refused(tmp_path):
    voc(tmp_path)
    assert "pictures without a PNG in SegmentationClass: 1, not used" in recognise(tmp_path).notes
    for path in tmp_path.rglob("SegmentationClass/*.png"):
        path.rename(path.with_name(f"other_{path.name}"))
    with pytest.raises(DataError, match=r"no picture of JPEGImages .7. has a PNG of its name"):
        recognise(tmp_path)


def test_a_map_of_objects_that_lacks_or_does_not_fit(tmp_path):
    voc(tmp_path / "data")
    path = next((tmp_path / "data").rglob(f"SegmentationObject/{STEMS[1]}.png"))
    Image.new("L", (3, 3)).save(path)
    with pytest.raises(DataError, match=f"{STEMS[1]}.png has another size than its"):
        recognise(tmp_path / "data").prepare(tmp_path / "out")
    path.unlink()
    with pytest.raises(DataError, match="has no counterpart in SegmentationObject; add it"):
        recognise(tmp_path / "data").prepare(tmp_path / "out")
