"""The sheet of validation images: which ones, of which weights, and that nothing else changes."""

import numpy as np
import torch
from detectron2.data import DatasetCatalog

from knet.training import pictures
from knet.training.pictures import ValidationPictures
from knet.training.trainer import Trainer


def test_the_same_images_spread_over_the_data_set(tiny_cfg, monkeypatch):
    tiny_cfg.TEST.PICTURES = 2
    drawn = []

    def sheet(record, output, metadata, *, task, max_pixels):
        assert set(output) == {"panoptic_seg"} and task == "panoptic"
        drawn.append(record["file_name"])
        return np.full((10, 2000, 3), len(drawn), np.uint8)

    monkeypatch.setattr(pictures, "draw_sheet", sheet)
    model = Trainer.build_model(tiny_cfg).train()
    sheets = ValidationPictures(tiny_cfg)
    first = sheets.draw(model)
    assert model.training
    names = [record["file_name"] for record in DatasetCatalog.get("tiny_val")]
    assert len(names) == 4 and drawn == [names[0], names[2]]
    assert first.shape == (16, 1600, 3)  # two rows, reduced
    assert (first[:8] == 1).all() and (first[8:] == 2).all()
    sheets.draw(model)
    assert drawn[2:] == drawn[:2]


def test_no_more_images_than_there_are(semantic_cfg, monkeypatch):
    semantic_cfg.TEST.PICTURES = 100
    monkeypatch.setattr(pictures, "draw_sheet", lambda *_, **__: np.zeros((5, 7, 3), np.uint8))
    sheet = ValidationPictures(semantic_cfg).draw(Trainer.build_model(semantic_cfg))
    assert sheet.shape == (4 * 5, 7, 3)


def test_what_is_drawn_is_what_the_weights_predict(semantic_cfg):
    semantic_cfg.TEST.PICTURES = 1
    model = Trainer.build_model(semantic_cfg)
    sheets = ValidationPictures(semantic_cfg)
    before = sheets.draw(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)
    after = sheets.draw(model)
    # three columns: a scene of 96 pixels, enlarged to 384
    assert before.shape == after.shape == (384 + 40, 3 * 392 + 8, 3)
    assert np.array_equal(before[:, : 2 * 392], after[:, : 2 * 392])  # photo and truth
    assert not np.array_equal(before, after)
