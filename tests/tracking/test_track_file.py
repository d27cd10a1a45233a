"""Tracks as files: YouTube-VIS' records, whose masks can be read back."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from knet.classes import Category
from knet.tracking.track_file import FollowedFiles, TrackFile

CATEGORIES = [
    Category(0, 3, "disc", True),
    Category(1, 5, "star", True),
    Category(0, 2, "sky", False),
]


def thing(key, label=0, score=0.5):
    return {"id": key, "isthing": True, "category_id": label, "score": score, "area": 1}


SKY = {"id": 1, "isthing": False, "category_id": 0, "score": 0.9, "area": 1}


def test_masks_stand_at_their_frames(tmp_path):
    maps = [np.array([[2, 2, 1, 7]]), np.array([[1, 2, 1, 1]]), np.array([[1, 1, 7, 7]])]
    lists = [
        [SKY, thing(2, 1, 0.4), thing(7)],
        [SKY, thing(2, 0, 0.6)],
        [SKY, thing(7)],
    ]
    with TrackFile(tmp_path / "tracks.json", categories=CATEGORIES, name="street") as file:
        for k, (id_map, segments) in enumerate(zip(maps, lists)):
            file.add(id_map, [*segments], file_name=f"{k}.png")
        file.add(maps[1], lists[1], file_name="3.png")
    content = json.loads((tmp_path / "tracks.json").read_text())
    assert content["videos"] == [
        {"id": 1, "name": "street", "width": 4, "height": 1, "length": 4,
         "file_names": ["0.png", "1.png", "2.png", "3.png"]}
    ]  # fmt: skip
    assert [c["id"] for c in content["categories"]] == [3, 5, 2]
    first, second = content["annotations"]
    assert (first["id"], first["category_id"], second["id"]) == (2, 3, 7)  # the class it had most
    assert first["score"] == pytest.approx((0.4 + 0.6 + 0.6) / 3)
    for track in (first, second):
        assert track["length"] == 4 and (track["height"], track["width"]) == (1, 4)
        for frame, rle in enumerate(track["segmentations"]):
            expected = [*maps, maps[1]][frame] == track["id"]
            assert (rle is not None) == expected.any()
            if rle is None:
                assert track["bboxes"][frame] is None and track["areas"][frame] is None
                continue
            assert (mask_util.decode(rle) == expected).all()
            columns = np.flatnonzero(expected[0])
            assert track["bboxes"][frame] == [columns[0], 0, len(columns), 1]
            assert track["areas"][frame] == len(columns)


def test_a_video_without_objects(tmp_path):
    with TrackFile(tmp_path / "tracks.json", categories=CATEGORIES, name="v") as file:
        file.add(np.ones((2, 3), int), [SKY], file_name="1.png")
    content = json.loads((tmp_path / "tracks.json").read_text())
    assert content["annotations"] == [] and content["videos"][0]["length"] == 1


def test_files_of_a_video_are_finished_after_an_error_and_not_mixed(tmp_path):
    results = {"panoptic_seg": (torch.tensor([[1, 4]], dtype=torch.int32), [SKY, thing(4)])}
    with (
        pytest.raises(RuntimeError, match="stop"),
        FollowedFiles(str(tmp_path), categories=CATEGORIES, video="v") as files,
    ):
        files.add(results, image_id=1, file_name="v_1.png")
        raise RuntimeError("stop")
    names = ["images.json", "panoptic", "panoptic.json", "tracks.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    (record,) = json.loads((tmp_path / "panoptic.json").read_text())["annotations"]
    assert [segment["id"] for segment in record["segments_info"]] == [1, 4]
    (track,) = json.loads((tmp_path / "tracks.json").read_text())["annotations"]
    assert track["id"] == 4 and track["areas"] == [1]
    with pytest.raises(FileExistsError, match=r"tracks\.json"):
        FollowedFiles(str(tmp_path), categories=CATEGORIES, video="v")
