"""`knet predict`, as a user calls it; what drawings and files hold is tested with demo/demo.py."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from knet.data import read_panoptic_png
from knet.predict.video import VideoReader, VideoWriter
from knet_command import main

pytestmark = pytest.mark.slow


@pytest.fixture
def run(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")

    def call(*words):
        return main(["predict", "--model", *map(str, (model_folder, *words))])

    return call


@pytest.fixture
def pictures(tiny_shapes):
    return tiny_shapes / "val" / "images"


def test_pictures_are_drawn_and_their_contents_told(run, pictures, tmp_path, capsys):
    assert run(pictures / "000001.png", pictures, "--task", "semantic") == 0
    said = capsys.readouterr()
    names = [f"00000{k}.png" for k in range(1, 5)]
    assert sorted(p.name for p in (tmp_path / "predictions").iterdir()) == names
    lines = said.out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == names and "%" in lines[0]
    assert lines[4] == "4 of 4 pictures -> predictions"
    assert "4/4" in said.err  # a bar for many, and none for one
    assert run(pictures / "000002.png", "--output", "out", "SEED", "3") == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "1 of 1 picture -> out/000002.png"
    assert "picture/s" not in said.err


def test_what_cannot_be_read_is_told_and_counted(run, pictures, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    assert run("text.png", pictures / "000001.png", "--results", "found") == 1
    said = capsys.readouterr()
    assert "knet predict: error: text.png cannot be read as a picture" in said.err
    assert "1 of 2 pictures -> predictions/000001.png and found; 1 could not be read" in said.out
    assert (tmp_path / "found" / "panoptic.json").is_file()


def test_a_video_is_known_by_its_name(run, pictures, tmp_path, capsys):
    with VideoWriter(tmp_path / "in.mp4", frames_a_second=5) as video:
        for path in sorted(pictures.iterdir())[:2]:
            video.add(np.array(Image.open(path)))
    assert run("in.mp4", "--task", "instance") == 0
    assert "2 frames (codec mp4v, no audio) -> predictions" in capsys.readouterr().out
    with VideoReader(str(tmp_path / "predictions" / "in.mp4")) as reader:
        assert len(list(reader)) == 2
    assert run("in.mp4", "a.png") == 2
    assert "in.mp4 is a video: it is an input by itself" in capsys.readouterr().err


def test_objects_of_a_video_keep_their_ids(run, pictures, tmp_path, capsys):
    with VideoWriter(tmp_path / "in.avi", frames_a_second=5) as video:
        for path in 3 * sorted(pictures.iterdir())[:1]:
            video.add(np.array(Image.open(path)))
    assert run("in.avi", "--video", "--results", "found", "--confidence-threshold", "0") == 0
    assert "3 frames (codec mp4v, no audio) -> predictions and found" in capsys.readouterr().out
    maps = [read_panoptic_png(f"found/panoptic/in_00000{k}.png") for k in (1, 2, 3)]
    tracks = json.loads((tmp_path / "found" / "tracks.json").read_text())
    assert tracks["videos"][0]["length"] == 3 and tracks["annotations"]
    for track in tracks["annotations"]:
        for id_map, rle in zip(maps, track["segmentations"]):
            mask = id_map == track["id"]
            assert mask.any() if rle else not mask.any()
            assert rle is None or (mask_util.decode(rle) == mask).all()
    # most of a standing picture is the same all the time
    assert (maps[0] == maps[2]).mean() > 0.8
    with VideoReader(str(tmp_path / "predictions" / "in.mp4")) as reader:
        assert len(list(reader)) == 3


def test_frames_that_cannot_be_decoded_are_named(run, pictures, break_frames, tmp_path, capsys):
    with VideoWriter(tmp_path / "in.avi", frames_a_second=5) as video:
        for path in 3 * sorted(pictures.iterdir())[:2]:
            video.add(np.array(Image.open(path)))
    break_frames(tmp_path / "in.avi", (2, 3))
    assert run("in.avi", "--video", "--results", "found") == 1
    said = capsys.readouterr()
    assert "in.avi: frames 2 to 3 cannot be decoded, and are left out" in said.err
    assert "4 frames (codec mp4v, no audio)" in said.out and "2 could not be read" in said.out
    names = sorted(path.name for path in (tmp_path / "found" / "panoptic").iterdir())
    assert names == [f"in_00000{k}.png" for k in (1, 4, 5, 6)]


def test_pictures_in_tiles(run, pictures, tmp_path, capsys):
    pytest.importorskip("rasterio", reason="no rasterio: pip install -e '.[tiles]'")
    words = ("--tiles", "64", "--overlap", "16", "--output", "found")
    assert run(pictures / "000001.png", *words) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "1 of 1 picture -> found/000001_labels.tif"
    assert "4/4" in said.err  # tiles
    names = ["labels.tif", "overview.jpg", "segments.csv", "segments.json"]
    assert sorted(p.name for p in (tmp_path / "found").iterdir()) == [f"000001_{n}" for n in names]


def test_pictures_of_a_data_set_beside_their_truth(run, tmp_path, capsys):
    assert run("--dataset", "tiny_val", "--images", "0", "2", "MODEL.DEVICE", "cpu") == 0
    paths = capsys.readouterr().out.splitlines()
    assert paths == ["predictions/000001_1_panoptic.png", "predictions/000002_2_panoptic.png"]
    assert Image.open(tmp_path / paths[0]).width > 3 * 320


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name pictures or a video, --webcam, --dataset or --input, one of them"),
        (["a.png", "--engine", "ray"], "--engine goes with --input"),
        (["a.png", "--retry-errors"], "--retry-errors goes with --input"),
        (["a.png", "--gpus-per-worker", "0"], "--gpus-per-worker goes with --input"),
        (["a.png", "--overlap", "9"], "--overlap goes with --tiles"),
        (["a.mp4", "--tiles", "64"], "--tiles are of pictures, not of videos"),
        (["a.png", "--tiles", "64", "--results", "x"], "with --tiles all results go to --output"),
        (["a.png", "--tiles", "9"], "--tiles 9: tiles have 32 pixels a side at least"),
        (["--input", "x", "--tiles", "64"], "--tiles of single pictures"),
        (["--input", "x", "--workers", "2"], "--workers and --gpus-per-worker go with --engine"),
        (["a.png", "--webcam"], "one of them"),
        (["a.png", "--images", "1"], "--images and --num are of a --dataset"),
        (["--dataset", "nowhere"], "the data set 'nowhere' is not registered"),
        (["--dataset", "tiny_val", "--results", "x"], "--results are of pictures"),
        (["--webcam", "--results", "x"], "--webcam is for a window"),
        (["a.png", "--task", "instance", "MODEL.KNET.TEST", "1"], "it is a section"),
        (["nothing/*.png"], "nothing/*.png: no file matches"),
        (["gone.png"], "gone.png: there is no such file"),
        (["gone.mov", "--video"], "gone.mov: no such video file"),
        (["a.png", "b.png", "--video"], "a.png is a video: it is an input by itself"),
        (["a.png", "--carry-kernels"], "--carry-kernels goes with --video"),
        (["--dataset", "tiny_val", "--video"], "--video goes with the name of a video"),
        (["a.png", "--video", "--task", "semantic"], "semantic maps have no objects"),
        (
            ["gone.png", "--model", "no/model"],
            "gone.png: there is no such file",
        ),  # before the model
    ],
)
def test_wrong_calls(run, words, message, capsys):
    assert run(*words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_score_is_a_number_from_0_to_1(run, capsys):
    for value in ("30", "half", "nan"):
        with pytest.raises(SystemExit) as end:
            run("a.png", "--confidence-threshold", value)
        assert end.value.code == 2
        assert f"{value}: scores are 0 to 1" in capsys.readouterr().err
