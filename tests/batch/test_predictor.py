"""Batches in, tables out: the same for any form and size of the batches."""

import errno
import io
import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

pytest.importorskip("pyarrow")

from knet.batch.predictor import BatchPredictor

from ..data.test_tar_shards import write_tar


@pytest.fixture
def pictures(tiny_shapes):
    return sorted((tiny_shapes / "val" / "images").iterdir())


def test_results_are_those_of_the_predictor(predictor, pictures):
    found = BatchPredictor(predictor)({"path": [str(pictures[0])], "image_id": np.array([9])})
    (row,) = found.to_pylist()
    results = predictor(pictures[0])
    assert row["image_id"] == 9 and row["file_name"] == "000001.png" and row["error"] is None
    size = [row["height"], row["width"]]
    instances = results["instances"]
    assert row["scores"] == instances.scores.tolist() and len(row["scores"]) > 0
    masks = [mask_util.decode({"size": size, "counts": rle}) for rle in row["rles"]]
    assert (np.array(masks, bool) == instances.pred_masks.numpy()).all()
    boxes = np.array(row["boxes"])
    assert (
        boxes[:, :2] + boxes[:, 2:] == instances.pred_boxes.tensor.double().numpy()[:, 2:]
    ).all()
    ids = np.array(Image.open(io.BytesIO(row["panoptic_png"]))).astype(int) @ [1, 256, 65536]
    id_map, segments = results["panoptic_seg"]
    assert (ids == id_map.numpy()).all()
    assert [s["score"] for s in row["segments"]] == [s["score"] for s in segments]
    labels = np.array(Image.open(io.BytesIO(row["label_png"])))
    assert (torch.as_tensor(labels) == results["sem_seg"].argmax(0)).all()


def test_files_bytes_and_members_of_tars_in_any_batch(predictor, pictures, tmp_path):
    batch = BatchPredictor(predictor)
    paths = [str(path) for path in pictures[:2]]
    (tmp_path / "text.png").write_text("no picture")
    whole = batch({"path": [*paths, str(tmp_path / "text.png"), "gone.png"]}).to_pylist()
    assert "cannot be read as a picture" in whole[2]["error"] and whole[2]["rles"] is None
    assert whole[3]["error"] == "no picture at gone.png"
    single = [batch({"path": [path]}).to_pylist()[0] for path in paths]
    assert whole[:2] == single
    data = [path.read_bytes() for path in pictures[:2]]
    given = {"path": paths, "bytes": data, "error": [None, "known"], "offset": [float("nan")] * 2}
    first, second = batch(given).to_pylist()
    assert first == single[0] and second["error"] == "known" and second["label_png"] is None
    tar = write_tar(tmp_path / "s.tar", [("a.png", data[0]), ("b.png", data[1][:99])])
    offset = 1024 + -(-len(data[0]) // 512) * 512
    places = {"offset": [512, offset], "size": [len(data[0]), 99]}
    members = {"path": [str(tar)] * 2, "file_name": ["a.png", "b.png"], **places}
    first, second = batch(members).to_pylist()
    assert {**first, "path": paths[0], "file_name": "000001.png"} == single[0]
    assert f"{tar}/b.png cannot be read as a picture" in second["error"]
    with pytest.raises(KeyError, match="needs the column path; its columns are url"):
        batch({"url": paths})


def test_frames_of_pandas(predictor, pictures):
    pandas = pytest.importorskip("pandas")
    batch = BatchPredictor(lambda: predictor)
    frames = [pandas.DataFrame({"path": [str(path)], "note": ["x"]}) for path in pictures[:2]]
    found = list(batch.map_pandas(iter(frames)))
    assert [list(frame["file_name"]) for frame in found] == [["000001.png"], ["000002.png"]]
    assert list(found[0].columns) == batch.schema.names
    assert found[1]["rles"][0].tolist() == batch(frames[1].to_dict("list"))["rles"][0].as_py()


@pytest.fixture
def failing(predictor, monkeypatch):
    """Makes the model raise errors, one a call; then it does its work. A list of the calls."""

    def fail(*errors):
        left, calls = list(errors), []

        def call(self, image):
            calls.append(image.shape)
            if left:
                raise left.pop(0)
            return original(self, image)

        monkeypatch.setattr("knet.predictor.KNetPredictor.__call__", call)
        return calls

    original = type(predictor).__call__
    return fail


def test_errors_of_the_model_end_the_run(predictor, pictures, failing):
    batch = BatchPredictor(predictor)
    for error in (RuntimeError("shapes do not fit"), ValueError("SCORE_THRESH is wrong")):
        failing(error)
        with pytest.raises(type(error), match=rf"000001\.png: {error}"):
            batch({"path": [str(pictures[0])]})


def test_want_of_memory_is_tried_once_more(predictor, pictures, failing, monkeypatch):
    batch = BatchPredictor(predictor)
    rows = {"path": [str(pictures[0])]}
    expected = batch(rows)
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
    assert len(failing(full)) == 0 and batch(rows) == expected
    calls = failing(full, full)
    assert "out of memory (3.00 GiB more were asked for)" in batch(rows)["error"][0].as_py()
    assert len(calls) == 2
    assert batch(rows) == expected  # of decoding, and what is known before, too
    monkeypatch.setattr("knet.predictor.free_memory", lambda: 1000)
    assert "and 0.0 GB of memory are free" in batch(rows)["error"][0].as_py()
    monkeypatch.undo()
    monkeypatch.setattr("knet.data.images.upright_rgb", fail_with(MemoryError()))
    assert "MemoryError" in batch(rows)["error"][0].as_py()


def fail_with(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def test_a_file_system_that_fails_is_no_broken_picture(predictor, pictures, tmp_path, monkeypatch):
    batch = BatchPredictor(predictor)
    picture, tar = str(pictures[0]), str(tmp_path / "gone.tar")
    member = {"path": [tar], "file_name": ["a.png"], "offset": [512], "size": [99]}
    assert batch(member)["error"].to_pylist() == [f"no picture at {tar}/a.png"]
    for number in (errno.ESTALE, errno.EIO, errno.EMFILE, errno.ETIMEDOUT):
        with monkeypatch.context() as patch:
            fault = OSError(number, os.strerror(number))
            patch.setattr("knet.data.images.open", fail_with(fault), raising=False)
            patch.setattr("knet.data.tar_shards.open", fail_with(fault), raising=False)
            for rows, name in (({"path": [picture]}, picture), (member, f"{tar}/a.png")):
                with pytest.raises(OSError, match="no fault of the picture") as caught:
                    batch(rows)
                assert (caught.value.errno, caught.value.filename) == (number, name)
    for number in (errno.EACCES, errno.ENAMETOOLONG):
        with monkeypatch.context() as patch:
            fault = OSError(number, os.strerror(number))
            patch.setattr("knet.data.images.open", fail_with(fault), raising=False)
            assert os.strerror(number) in batch({"path": [picture]})["error"][0].as_py()


def test_tasks_of_a_semantic_model(semantic_cfg):
    from detectron2.data import MetadataCatalog
    from detectron2.modeling import build_model

    from knet.predictor import KNetPredictor

    model = build_model(semantic_cfg)
    batch = BatchPredictor(KNetPredictor(semantic_cfg, model, MetadataCatalog.get("tiny_val")))
    assert batch.tasks == ["semantic"] and batch.schema.names[-2:] == ["error", "label_png"]
