"""Sheets of photo, ground truth and prediction."""

from __future__ import annotations

import numpy as np
import pytest

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image

from knet.evaluation.panoptic_quality import id2rgb
from knet.predict.sheets import write_sheets
from knet.predictor import KNetPredictor
from knet.side_by_side import draw_sheet
from knet.visualization import DRAWN_SCORE, TASKS, draw_objects, draw_result

RED, BLUE = (250, 20, 20), (20, 20, 250)
CLASSES = {
    "thing_classes": ["disc"],
    "thing_colors": [RED],
    "stuff_classes": ["disc", "wall"],
    "stuff_colors": [RED, BLUE],
}
METADATA = Metadata(name="two classes", **CLASSES)
H, W = 40, 60


def ring():
    """Segment ids: a square thing 1 with a hole, stuff 2 elsewhere."""
    ids = np.full((H, W), 2, dtype=np.int32)
    ids[5:35, 5:35] = 1
    ids[14:26, 14:26] = 2
    return ids


def output(score=0.9):
    ids = torch.as_tensor(ring())
    instances = Instances((H, W))
    instances.pred_masks = (ids == 1)[None]
    instances.pred_classes = torch.tensor([0])
    instances.scores = torch.tensor([score])
    segments = [
        {"id": 1, "category_id": 0, "isthing": True},
        {"id": 2, "category_id": 1, "isthing": False},
    ]
    semantic = torch.stack([ids == 1, ids == 2]).float()
    return {"panoptic_seg": (ids, segments), "instances": instances, "sem_seg": semantic}


@pytest.fixture
def records(tmp_path):
    Image.new("RGB", (W, H), (128, 128, 128)).save(tmp_path / "photo.png")
    Image.fromarray(id2rgb(ring())).save(tmp_path / "panoptic.png")
    return [
        {
            "file_name": str(tmp_path / "photo.png"),
            "image_id": image_id,
            "pan_seg_file_name": str(tmp_path / "panoptic.png"),
            "segments_info": output()["panoptic_seg"][1],
        }
        for image_id in (7, 9)
    ]


def tiles(sheet):
    """The three drawings of a sheet, without titles."""
    height, width = 8 * H, 8 * W  # enlarged until the short side has 320 pixels
    top = sheet.shape[0] - height - 12
    return [sheet[top : top + height, 8 + k * (width + 8) :][:, :width] for k in range(3)]


@pytest.mark.parametrize("task", list(TASKS))
def test_equal_results_look_equal(records, task):
    sheet = draw_sheet(records[0], output(), METADATA, task=task)
    assert sheet.dtype == np.uint8 and sheet.shape == (320 + 40, 3 * (480 + 8) + 8, 3)
    photo, truth, prediction = tiles(sheet)
    assert (photo == 128).all()
    if task == "instance":  # the prediction's label has a score
        truth, prediction = truth[:, 240:], prediction[:, 240:]
    assert (truth == prediction).all()


@pytest.mark.parametrize("task", list(TASKS))
def test_classes_have_their_colors_and_holes_stay_open(records, task):
    _, truth, prediction = tiles(draw_sheet(records[0], output(), METADATA, task=task))
    for tile in (truth, prediction):
        disc, wall, hole = tile[60, 60].astype(int), tile[60, 440].astype(int), tile[118, 118]
        assert disc[0] > disc[2] + 100
        if task == "instance":
            assert (wall == 128).all() and (hole == 128).all()
        else:
            assert wall[2] > wall[0] + 100 and hole[2] > hole[0]


def test_sheet_is_deterministic_and_leaves_outputs_alone(records):
    out = output()
    np.random.seed(1)
    first = draw_sheet(records[0], out, METADATA)
    np.random.seed(2)
    assert (draw_sheet(records[0], out, METADATA) == first).all()
    assert all(set(s) == {"id", "category_id", "isthing"} for s in out["panoptic_seg"][1])


def test_classes_without_colors_get_distinct_ones(records):
    names = {key: CLASSES[key] for key in ("thing_classes", "stuff_classes")}
    metadata = Metadata(name="plain", **names)
    tile = tiles(draw_sheet(records[0], output(), metadata))[2].astype(int)
    assert abs(tile[60, 60] - tile[60, 440]).sum() > 100


def test_a_light_colour_is_drawn(monkeypatch):
    """One that is made lighter than white for its label, as Python 3.10 makes (57, 196, 255)."""
    lighter = "detectron2.utils.visualizer.Visualizer._change_color_brightness"
    monkeypatch.setattr(lighter, lambda self, color, brightness_factor: (1 + 2e-16, 1.0, 1.0))
    metadata = Metadata(name="light", **{**CLASSES, "thing_colors": [(57, 196, 255)]})
    image = np.full((400, 400, 3), 128, np.uint8)
    instances = Instances((400, 400), scores=torch.tensor([0.9]), pred_classes=torch.tensor([0]))
    instances.pred_masks = torch.ones(1, 400, 400, dtype=torch.bool)
    assert (draw_result(image, instances, metadata=metadata, task="instance") != image).any()


def test_low_scores_are_not_drawn():
    image = np.full((400, 400, 3), 128, dtype=np.uint8)
    instances = Instances((400, 400))
    instances.pred_masks = torch.ones(1, 400, 400, dtype=torch.bool)
    instances.pred_classes, instances.scores = torch.tensor([0]), torch.tensor([0.2])
    options = {"metadata": METADATA, "task": "instance"}
    assert (draw_result(image, instances, **options) == image).all()
    assert (draw_result(image, instances[:0], **options) == image).all()
    assert (draw_result(image, instances, score_threshold=0.1, **options) != image).any()


def test_strips_are_not_enlarged_without_bound():
    metadata = Metadata(name="semantic", stuff_classes=["wall"])
    strip = np.zeros((3, 700, 3), np.uint8)
    drawn = draw_result(strip, np.zeros((3, 700), int), metadata, task="semantic")
    assert drawn.shape == (15, 3500, 3)


def test_missing_output_names_the_switch(records):
    with pytest.raises(ValueError, match=r"photo\.png.*SEMANTIC_ON"):
        draw_sheet(records[0], {}, METADATA, task="semantic")
    with pytest.raises(ValueError, match="depth"):
        draw_sheet(records[0], output(), METADATA, task="depth")


def test_all_doors_draw_from_one_score_on():
    import inspect

    from knet.kernel_trace import average_masks
    from knet.predict.describe import describe_result
    from knet.predict.run import predict_pictures, predict_video
    from knet.report.collect import ReportCollector
    from knet.report.make import make_report
    from knet_run.__main__ import get_parser

    for function in (
        *(draw_result, draw_sheet, write_sheets, average_masks, ReportCollector, make_report),
        *(describe_result, predict_pictures, predict_video),
    ):
        default = inspect.signature(function).parameters["score_threshold"].default
        assert default == DRAWN_SCORE, function
    assert get_parser().get_default("confidence_threshold") == DRAWN_SCORE


def test_write_sheets(records, tiny_cfg, tmp_path):
    tiny_cfg.MODEL.KNET.TEST.OVERLAP_THRESH = 0.0
    metadata = MetadataCatalog.get("tiny_val")
    predictor = KNetPredictor(tiny_cfg, build_model(tiny_cfg), metadata)
    DatasetCatalog.register("sheets", lambda: records)
    MetadataCatalog.get("sheets").set(**{**metadata.as_dict(), "name": "sheets"})
    try:
        folder = str(tmp_path / "sheets")
        names = ["photo_7_panoptic.png", "photo_9_panoptic.png"]
        for chosen, expected in ((1, names[:1]), ([9, 0], names[::-1]), (["7"], names[:1])):
            paths = write_sheets(predictor, "sheets", folder, chosen)
            assert paths == [f"{folder}/{name}" for name in expected]
        sheet = np.asarray(Image.open(paths[0]))
        assert sheet.shape == (360, 1472, 3)
        output = predictor(records[0]["file_name"])
        assert output["panoptic_seg"][0].shape == (H, W)  # of the picture, not of the input
        assert (sheet == draw_sheet(records[0], output, MetadataCatalog.get("sheets"))).all()
        with pytest.raises(ValueError, match="'sheets' has no image with id 5"):
            write_sheets(predictor, "sheets", folder, [5])
    finally:
        DatasetCatalog.remove("sheets")
        MetadataCatalog.remove("sheets")


def test_data_of_semantic_classes_only_are_drawn():
    metadata = Metadata(name="semantic", stuff_classes=["wall", "floor", "sky"])
    scores = torch.zeros(3, 40, 40)
    scores[0, :20], scores[2, 20:] = 1, 1
    drawn = draw_result(np.zeros((40, 40, 3), np.uint8), scores, metadata, task="semantic")
    assert len({tuple(c) for c in drawn.reshape(-1, 3)}) > 2


def test_objects_have_the_colour_of_their_id_in_every_frame():
    photo = np.full((H, W, 3), 128, np.uint8)

    def frame(left, key):
        ids = np.full((H, W), 3, np.int32)
        ids[10:30, left : left + 20] = key
        segments = [
            {"id": key, "category_id": 0, "isthing": True, "score": 0.9},
            {"id": 3, "category_id": 1, "isthing": False, "score": 0.9},
        ]
        drawn = draw_objects(photo, (ids, segments), METADATA, min_side=1)
        assert drawn.shape == photo.shape
        inside = drawn[12:28, left + 2 : left + 18].reshape(-1, 3)
        return np.median(inside, axis=0), np.median(drawn[:5].reshape(-1, 3), axis=0)

    first, wall = frame(5, 7)
    moved, same_wall = frame(30, 7)
    other, _ = frame(5, 8)
    assert np.abs(first - moved).max() < 3 < 30 < np.abs(first - other).max()
    assert (wall == same_wall).all() and wall.argmax() == 2  # stuff has its class's colour
