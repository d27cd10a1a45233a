"""demo/demo.py, as a user calls it."""

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from knet.data.panoptic_png import read_panoptic_png
from knet.evaluation import build_evaluator
from knet.evaluation.panoptic_quality import pq_compute
from knet.predict.video import VideoReader, VideoWriter
from knet.visualization import draw_result

pytestmark = pytest.mark.slow

_SPEC = importlib.util.spec_from_file_location(
    "demo_script", Path(__file__).parents[2] / "demo" / "demo.py"
)
demo = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = demo  # dataclasses look there
_SPEC.loader.exec_module(demo)


def run(*words):
    return demo.main(list(map(str, words)))


def read(path):
    return json.loads(Path(path).read_text())


@pytest.fixture
def scenes(tiny_shapes):
    return tiny_shapes / "val"


@pytest.fixture
def video(scenes, tmp_path):
    """Five frames: the four scenes, and the first again."""
    frames = [np.array(Image.open(p)) for p in sorted((scenes / "images").iterdir())]
    with VideoWriter(tmp_path / "in.mp4", frames_a_second=7.0) as writer:
        for frame in [*frames, frames[0]]:
            writer.add(frame)
    return tmp_path / "in.mp4"


def test_pictures_become_drawings_and_files_that_evaluators_read(
    scenes, model_folder, predictor, tmp_path, capsys
):
    out, found = tmp_path / "drawn", tmp_path / "found"
    (tmp_path / "broken.png").write_text("no picture")
    inputs = [tmp_path / "broken.png", scenes / "images", tmp_path / "gone.png"]
    status = run("--predictor", model_folder, "--input", *inputs, "--output", out,
                 "--results", found, "--confidence-threshold", 0)  # fmt: skip
    printed = capsys.readouterr()
    # the two files that cannot be read are named, the others are done
    assert status == 1 and "4 of 5 pictures" in printed.out and "2 errors" in printed.out
    assert "broken.png cannot be read as a picture" in printed.err
    assert f"{tmp_path}/gone.png: there is no such file" in printed.err
    names = [f"{k:06d}.png" for k in range(1, 5)]
    assert sorted(p.name for p in out.iterdir()) == names

    # panoptic: what the model says, in the ids of the data set
    predictor.model.task.options = demo_options(predictor)
    metadata = MetadataCatalog.get("tiny_val")
    category_of = {v: k for k, v in metadata.stuff_dataset_id_to_contiguous_id.items()}
    panoptic = read(found / "panoptic.json")
    results = {}
    for record in panoptic["annotations"]:
        results[record["image_id"]] = predictor(scenes / "images" / record["file_name"])
        id_map, segments = results[record["image_id"]]["panoptic_seg"]
        assert (read_panoptic_png(found / "panoptic" / record["file_name"]) == id_map.numpy()).all()
        wanted = {s["id"]: (category_of[s["category_id"]], s["area"]) for s in segments}
        infos = record["segments_info"]
        assert {s["id"]: (s["category_id"], s["area"]) for s in infos} == wanted and wanted
        x, y, w, h = infos[0]["bbox"]
        rows, columns = np.nonzero(id_map.numpy() == infos[0]["id"])
        assert (x, y, x + w, y + h) == (
            columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        )  # fmt: skip
    assert sorted(results) == [1, 2, 3, 4]  # ids from the names
    quality = pq_compute(
        scenes / "panoptic.json", found / "panoptic.json", scenes / "panoptic", found / "panoptic"
    )
    evaluator = build_evaluator(predictor.cfg, "tiny_val", str(tmp_path / "evaluator"))
    evaluator.reset()
    for record in DatasetCatalog.get("tiny_val"):
        evaluator.process([record], [results[record["image_id"]]])
    scores = evaluator.evaluate()["panoptic_seg"]
    for key in ("pq", "sq", "rq"):
        assert 100 * quality["All"][key] == pytest.approx(scores[key.upper()])

    # instances: COCO's own tools read them, against our table of images and against the truth
    instances = read(found / "instances.json")
    assert len(instances) == sum(len(r["instances"]) for r in results.values()) > 0
    assert {r["category_id"] for r in instances} <= set(metadata.thing_dataset_id_to_contiguous_id)
    mask = COCO(found / "images.json").loadRes(str(found / "instances.json")).anns[1]
    assert mask["segmentation"]["size"] == [96, 96]
    truth = COCO(scenes / "instances.json")
    evaluation = COCOeval(truth, truth.loadRes(str(found / "instances.json")), "segm")
    evaluation.evaluate()
    assert any(evaluation.evalImgs)

    for k, name in enumerate(names, start=1):
        labels = np.array(Image.open(found / "semantic" / name))
        assert labels.dtype == np.uint8
        assert (labels == results[k]["sem_seg"].argmax(0).numpy()).all()
    categories = read(found / "images.json")["categories"]
    assert [c["label"] for c in categories] == list(range(8))
    assert [c["name"] for c in categories] == metadata.stuff_classes
    # the drawing is the panoptic result
    image = np.array(Image.open(scenes / "images" / names[0]))
    drawn = draw_result(image, results[1]["panoptic_seg"], metadata)
    assert (np.array(Image.open(out / names[0])) == drawn).all()


def demo_options(predictor):
    return replace(predictor.model.task.options, thing_threshold=0.0, score_threshold=0.0)


def test_the_threshold_and_the_task_act(scenes, model_folder, tmp_path):
    picture = scenes / "images" / "000001.png"
    common = ("--predictor", model_folder, "--input", picture)
    assert run(*common, "--results", tmp_path / "a", "--confidence-threshold", 0) == 0
    scores = sorted(r["score"] for r in read(tmp_path / "a" / "instances.json"))
    middle = scores[len(scores) // 2]
    assert run(*common, "--task", "instance", "--results", tmp_path / "b",
               "--confidence-threshold", middle) == 0  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["images.json", "instances.json"]
    left = sorted(r["score"] for r in read(tmp_path / "b" / "instances.json"))
    assert left == [s for s in scores if s >= middle] and 0 < len(left) < len(scores)

    def things(folder):
        (record,) = read(folder / "panoptic.json")["annotations"]
        ids = MetadataCatalog.get("tiny_val").thing_dataset_id_to_contiguous_id
        found = record["segments_info"]
        return [s["score"] for s in found if s["category_id"] in ids], len(found)

    with_things, everything = things(tmp_path / "a")
    highest = max(with_things)
    assert run(*common, "--task", "panoptic", "--results", tmp_path / "c",
               "--confidence-threshold", min(1, highest + 1e-3)) == 0  # fmt: skip
    assert things(tmp_path / "c")[0] == [] and things(tmp_path / "c")[1] < everything
    # drawings obey it, too: without instances the picture stays as it is
    plain = tmp_path / "plain.png"
    assert run(*common, "--task", "instance", "--output", plain, "--confidence-threshold", 1) == 0
    drawn = np.array(Image.open(plain))
    assert drawn.shape == (384, 384, 3)
    enlarged = Image.open(picture).resize((384, 384), Image.Resampling.BICUBIC)
    assert (drawn == np.array(enlarged)).all()


def test_a_video_comes_out_with_its_frames_and_segments(
    video, model_folder, predictor, tmp_path, capsys
):
    out, found = tmp_path / "out.mp4", tmp_path / "found"
    words = ("--predictor", model_folder, "--video-input", video, "--output", out,
             "--results", found, "--task", "panoptic", "--confidence-threshold", 0)  # fmt: skip
    assert run(*words) == 0
    assert "5 frames (codec mp4v, no audio)" in capsys.readouterr().out
    predictor.model.task.options = demo_options(predictor)
    with VideoReader(str(video)) as reader, VideoReader(str(out)) as written:
        assert written.frames_a_second == pytest.approx(7)
        sources, frames = list(reader), list(written)
    assert [f.shape for f in frames] == [(96, 96, 3)] * 5
    for k, (source, frame) in enumerate(zip(sources, frames)):
        result = predictor(source)["panoptic_seg"]
        drawn = draw_result(source, result, predictor.metadata, min_side=1)
        to_drawn, to_source = (np.abs(frame.astype(int) - x).mean() for x in (drawn, source))
        assert to_drawn < 12 < to_source
        ids = read_panoptic_png(found / "panoptic" / f"in_{k + 1:06d}.png")
        assert (ids == result[0].numpy()).all()
    assert [r["image_id"] for r in read(found / "panoptic.json")["annotations"]] == [1, 2, 3, 4, 5]
    # as in Detectron2's demo a video is not replaced
    assert run(*words) == 2
    assert f"{out} exists" in capsys.readouterr().err


def test_what_cannot_be_done_is_said(scenes, video, model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    picture = scenes / "images" / "000001.png"
    (tmp_path / "empty").mkdir()
    blocked = picture / "drawn.png"
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:200])
    model = ("--predictor", model_folder)
    for words, message in (
        ((*model, "--input", tmp_path / "empty"), "no picture in this folder"),
        ((*model, "--input", f"{scenes}/*.gif"), "no file matches"),
        ((*model, "--input", picture, "--output", blocked), "cannot be written"),
        ((*model, "--input", picture, "--results", blocked), "cannot be written"),
        ((*model, "--input", picture), "no screen to open a window on"),
        ((*model, "--video-input", tmp_path / "gone.mp4"), "no such video file"),
        ((*model, "--video-input", broken, "--output", tmp_path), "cannot be read as a video"),
        ((*model, "--video-input", video), "no screen to open a window on"),
        ((*model, "--webcam", "--output", tmp_path), "leave --output and --results out"),
        (
            ("--predictor", tmp_path / "no", "--input", picture, "--output", tmp_path),
            "no is no folder",
        ),
        (
            ("--config-file", "configs/shapes/panoptic.yaml", "--input", picture, "--output",
             tmp_path, "--opts", "DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "()"),
            "MODEL.WEIGHTS is empty",
        ),
        (
            (*model, "--input", picture, "--output", tmp_path, "--opts", "MODEL.NO", "1"),
            "MODEL.NO",
        ),
        (
            (*model, "--input", picture, "--opts", "SEED", "1", "--output", tmp_path),
            "--output stands behind the config keys",
        ),
        (
            (*model, "--input", picture, "--output", tmp_path, "--opts", "MODEL.WEIGHTS"),
            "MODEL.WEIGHTS has no value",
        ),
    ):  # fmt: skip
        assert run(*words) == 2, words
        assert re.search(f"demo.py: error: .*{message}", capsys.readouterr().err), words
    monkeypatch.setenv("KNET_TRACEBACK", "1")
    assert run(*model, "--input", picture) == 2
    assert "Traceback" in capsys.readouterr().err
    for words in (("--input", picture), model, (*model, "--input", picture, "--webcam")):
        with pytest.raises(SystemExit) as stop:
            run(*words)
        assert stop.value.code == 2
    with pytest.raises(SystemExit):
        run(*model, "--input", picture, "--confidence-threshold", 30)


def test_a_failure_in_the_middle_keeps_what_was_finished(
    scenes, model_folder, tmp_path, capsys, monkeypatch
):
    save, saved = Image.Image.save, []

    def full_disk(self, path, **options):
        saved.append(path)
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        save(self, path, **options)

    out, found = tmp_path / "drawn", tmp_path / "found"
    monkeypatch.setattr(Image.Image, "save", full_disk)
    assert run("--predictor", model_folder, "--task", "instance", "--input", scenes / "images",
               "--output", out, "--results", found) == 2  # fmt: skip
    assert "000003.png cannot be written: No space left on device" in capsys.readouterr().err
    assert sorted(p.name for p in out.iterdir()) == ["000001.png", "000002.png"]
    assert [image["id"] for image in read(found / "images.json")["images"]] == [1, 2, 3]

    def ctrl_c(self, path, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", ctrl_c)
    assert run("--predictor", model_folder, "--input", scenes / "images", "--output", out) == 130
    assert "demo.py: interrupted" in capsys.readouterr().err


def test_a_video_that_breaks_off_is_an_error(video, model_folder, tmp_path, capsys, monkeypatch):
    frames = VideoReader.__iter__
    monkeypatch.setattr(
        VideoReader, "__iter__", lambda self: (f for _, f in zip(range(2), frames(self)))
    )
    words = ("--predictor", model_folder, "--task", "semantic", "--video-input", video)
    assert run(*words, "--output", tmp_path / "out.avi") == 1
    assert "its header tells of 5 frames, 2 were read" in capsys.readouterr().err
    monkeypatch.undo()
    with VideoReader(str(tmp_path / "out.avi")) as reader:
        assert len(list(reader)) == 2


def test_without_output_a_window_shows_every_picture(scenes, model_folder, monkeypatch):
    shown = []

    class Window:
        def __init__(self, title):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            shown.append("closed")

        def show(self, image, *, milliseconds):
            shown.append((image.shape, milliseconds))
            return len(shown) < 2  # the user ends it at the second

    monkeypatch.setattr("knet.predict.run.Window", Window)
    words = ("--predictor", model_folder, "--task", "semantic", "--input", scenes / "images")
    assert run(*words) == 0
    assert shown == [((384, 384, 3), 0)] * 2 + ["closed"]
