"""Clips as files: a video, and its truth as results of videos are written."""

import json

import numpy as np
import pytest

from knet.data import read_panoptic_png
from knet.data.shapes.clip import draw_clip
from knet.data.shapes.clip_writer import SHAPES_CLASSES, write_clips
from knet.evaluation.video_quality import video_scores
from knet.predict.video import VideoReader


def test_videos_and_truth_agree(tmp_path):
    folder = write_clips(tmp_path, num_clips=2, seed=3, num_frames=24)
    names = ["0001", "0001.avi", "0002", "0002.avi"]
    assert sorted(path.name for path in folder.iterdir()) == names
    clip = draw_clip(3, 1, num_frames=24)
    with VideoReader(str(folder / "0002.avi")) as reader:
        frames = np.stack(list(reader))
    assert np.abs(frames.astype(int) - clip.images).mean() < 3  # colours are rounded
    content = json.loads((folder / "0002" / "panoptic.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    for record, rows in zip(content["annotations"], clip.segments):
        ids = read_panoptic_png(str(folder / "0002" / "panoptic" / record["file_name"]))
        np.testing.assert_array_equal(ids, rows + 1)
        for segment in record["segments_info"]:
            assert names[segment["category_id"]] == clip.names[segment["id"] - 1]
    tracks = json.loads((folder / "0002" / "tracks.json").read_text())
    assert tracks["videos"][0]["length"] == 24
    things = [c.name for c in SHAPES_CLASSES if c.is_thing]
    assert {t["id"] for t in tracks["annotations"]} == {
        k for k, name in enumerate(clip.names, start=1) if name in things
    }
    scores = video_scores([(folder / name, folder / name) for name in ("0001", "0002")])
    assert scores["VPQ"] == scores["found"] == 100 and scores["switches"] == 0
    assert scores["ids"] == scores["objects"]


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "clips").mkdir()
    with pytest.raises(FileExistsError, match="clips is there"):
        write_clips(tmp_path, num_clips=1, seed=0)
    with pytest.raises(ValueError, match="need num_clips >= 1"):
        write_clips(tmp_path, num_clips=0, seed=0)
    with pytest.raises(ValueError, match="plain split name"):
        write_clips(tmp_path, num_clips=1, seed=0, split="a/b")
