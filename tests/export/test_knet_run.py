"""The runner without torch: same results as the predictor, clear errors, nothing lost."""

from __future__ import annotations

import copy
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image
from pycocotools import mask as coco_mask

pytest.importorskip("onnxruntime")

import knet_run
from knet.results.coco_files import image_ids
from knet_run import __main__ as command
from knet_run.model import Model, _read_metadata
from knet_run.results import Writer
from knet_run.rle import encode_rle

from ..data.breaking import deep_colours

_PLACE = Path(knet_run.__file__).parents[1]

# an environment with onnxruntime, numpy and Pillow alone: nothing else of ours can be imported
_ALONE = """
import runpy, sys
for name in ("torch", "torchvision", "detectron2", "knet", "cv2", "scipy", "matplotlib", "onnx",
             "onnxscript", "knet_command", "pycocotools", "fvcore", "timm", "tqdm", "yaml"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("knet_run", run_name="__main__")
"""


def run_alone(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", _ALONE, str(_PLACE), *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def read_ids(path: Path) -> np.ndarray:
    rgb = np.asarray(Image.open(path)).astype(np.int64)
    return rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]


def test_panoptic_files_equal_the_predictor(panoptic, pictures, tmp_path):
    out = tmp_path / "out"
    done = run_alone(panoptic.onnx, "--input", pictures, "--output", out)
    assert done.returncode == 0, done.stderr
    content = json.loads((out / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3]
    categories = {c["id"]: c for c in content["categories"]}
    assert (categories[14]["name"], categories[14]["isthing"]) == ("ring", 1)
    for image, annotation in zip(content["images"], content["annotations"]):
        expected, segments = panoptic.predictor(pictures / image["file_name"])["panoptic_seg"]
        ids = read_ids(out / annotation["file_name"])
        assert ids.shape == (image["height"], image["width"])
        assert (ids == expected.numpy()).mean() >= 0.999
        dataset_ids = [11 + s["category_id"] for s in segments]
        assert [s["category_id"] for s in annotation["segments_info"]] == dataset_ids
        for segment in annotation["segments_info"]:
            assert (ids == segment["id"]).sum() == segment["area"]
    assert len(list(out.glob("*_overlay.png"))) == 3
    semantic = np.asarray(Image.open(out / "001_semantic.png"))
    assert semantic.shape == (96, 96) and set(np.unique(semantic)) <= set(range(7))


def test_instances_json_holds_coco_results(export_once, pictures, tmp_path):
    exported = export_once("instance")
    out = tmp_path / "out"
    assert command.main([str(exported.onnx), "--input", str(pictures), "--output", str(out)]) == 0
    records = json.loads((out / "instances.json").read_text())
    for image_id in (1, 2, 3):
        found = exported.predictor(pictures / f"{image_id:03d}.png")["instances"]
        mine = [r for r in records if r["image_id"] == image_id]
        assert [r["category_id"] for r in mine] == found.pred_classes.tolist()
        np.testing.assert_allclose([r["score"] for r in mine], found.scores, rtol=0, atol=1e-4)
        masks = np.stack([coco_mask.decode(r["segmentation"]) for r in mine])
        assert (masks == found.pred_masks.numpy()).mean() >= 0.999
        x0, y0, width, height = mine[0]["bbox"]
        rows, columns = np.nonzero(masks[0])
        assert (x0, y0, x0 + width, y0 + height) == (
            columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        )  # fmt: skip


def test_semantic_png_holds_class_ids(export_once, pictures, tmp_path):
    exported = export_once("semantic")
    out = tmp_path / "out"
    picture = str(pictures / "002.png")
    assert command.main([str(exported.onnx), "--input", picture, "--output", str(out)]) == 0
    labels = np.asarray(Image.open(out / "002_semantic.png"))
    expected = exported.predictor(picture)["sem_seg"].argmax(dim=0).numpy()
    assert (labels == expected).mean() >= 0.999
    overlay = np.asarray(Image.open(out / "002_overlay.png"))
    assert overlay.shape == (75, 130, 3)


def test_what_is_finished_is_kept(panoptic, pictures, tmp_path, capsys):
    (pictures / "002.png").write_bytes(b"no picture")
    Image.new("RGB", (300, 2)).save(pictures / "004.png")
    out = tmp_path / "out"
    missing = pictures / "missing.png"
    status = command.main(
        [str(panoptic.onnx), "--input", str(pictures), str(missing), "--output", str(out)]
    )
    assert status == 1
    errors = capsys.readouterr().err
    for name in ("002.png", "missing.png"):
        assert f"{name}: cannot be read as a picture" in errors
    assert "300 x 2 pixels become 1333 x 9 for the model, which takes sides of 17" in errors
    content = json.loads((out / "panoptic.json").read_text())
    names = [image["file_name"] for image in content["images"]]
    assert names == ["001.png", "003.png"]
    assert all((out / a["file_name"]).is_file() for a in content["annotations"])


def test_calls_that_cannot_work_say_why(panoptic, pictures, tmp_path, capsys):
    def status(model: object, *inputs: object, output: Path = tmp_path / "out") -> int:
        return command.main([str(model), "--input", *map(str, inputs), "--output", str(output)])

    empty = tmp_path / "empty"
    empty.mkdir()
    assert status(panoptic.onnx, empty) == 2
    assert "the folder holds no picture" in capsys.readouterr().err
    assert status(panoptic.onnx, f"{empty}/*.jpg") == 2
    assert "no file matches" in capsys.readouterr().err
    assert status(tmp_path / "no.onnx", pictures) == 2
    assert "no such file" in capsys.readouterr().err
    assert status(pictures / "001.png", pictures) == 2
    assert "cannot be read as an ONNX model" in capsys.readouterr().err
    assert status(panoptic.onnx, pictures, output=pictures / "001.png") == 2
    assert "001.png" in capsys.readouterr().err


class StandIn:
    """In place of an exported model: one segment, the left half of any picture."""

    def __init__(self, *arguments, **options):
        self.path, self.max_pixels = "model", options["max_pixels"]
        self.info = {"results": ["panoptic"], "classes": []}
        self.classes = {0: {"id": 0, "dataset_id": 5, "color": [200, 0, 0]}}

    def __call__(self, image):
        ids = np.zeros((image.height, image.width), np.int32)
        ids[:, : image.width // 2] = 1
        columns = {"ids": [1], "classes": [0], "isthing": [True], "scores": [0.5],
                   "areas": [int(ids.sum())]}  # fmt: skip
        table = {f"segment_{key}": np.array(values) for key, values in columns.items()}
        return {"panoptic_ids": ids, **table}


def test_hostile_and_deep_pictures_are_named(pictures, tmp_path, capsys, monkeypatch):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    (pictures / "000.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    )
    Image.fromarray(np.full((40, 40), 60000, np.uint16)).save(pictures / "deep.png")
    Image.new("RGB", (40, 40)).save(pictures / "deep_colours.png")
    deep_colours(pictures / "deep_colours.png")
    os.mkfifo(pictures / "pipe.png")
    monkeypatch.setattr(command, "Model", StandIn)
    out = tmp_path / "out"
    assert command.main(["model", "--input", str(pictures), "--output", str(out)]) == 1
    errors = capsys.readouterr().err
    refused = "cannot be read as a picture: it"
    assert f"000.png: {refused} has 20000 x 20000 pixels, more than --max-pixels" in errors
    assert f"deep.png: {refused} has more than 8 bits a channel" in errors
    assert f"deep_colours.png: {refused} has more than 8 bits a channel" in errors
    assert f"pipe.png: {refused} is no regular file" in errors
    content = json.loads((out / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3]


def test_ids_are_numbers_and_segments_have_boxes(pictures, tmp_path, monkeypatch):
    for name in ("7.png", "007.png", "cat.png"):
        (pictures / name).write_bytes((pictures / "001.png").read_bytes())
    names = ["cat.png", "7.png", "007.png", "001.png"]
    monkeypatch.setattr(command, "Model", StandIn)
    inputs = [str(pictures / name) for name in names]
    assert command.main(["model", "--input", *inputs, "--output", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    ids = [image["id"] for image in content["images"]]
    assert ids == image_ids(names) == [8, 7, 9, 1]
    assert [record["image_id"] for record in content["annotations"]] == ids
    (segment,) = content["annotations"][0]["segments_info"]
    assert segment["bbox"] == [0, 0, 48, 96] and segment["iscrowd"] == 0


@pytest.mark.parametrize(("finished", "status"), [(0, 2), (1, 1)])
def test_a_full_disk_tells_whether_something_is_kept(
    pictures, tmp_path, capsys, monkeypatch, finished, status
):
    add, added = Writer.add, []

    def full_disk(self, path, *values, **options):
        if len(added) == finished:
            raise OSError(28, "No space left on device")
        added.append(path)
        add(self, path, *values, **options)

    monkeypatch.setattr(command, "Model", StandIn)
    monkeypatch.setattr(Writer, "add", full_disk)
    words = ["model", "--input", str(pictures), "--output", str(tmp_path / "out")]
    assert command.main(words) == status
    assert "No space left" in capsys.readouterr().err


def test_two_pictures_of_one_name_get_two_results(panoptic, pictures, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "001.png").write_bytes((pictures / "001.png").read_bytes())
    out = tmp_path / "out"
    inputs = [str(pictures / "001.png"), str(other)]
    assert command.main([str(panoptic.onnx), "--input", *inputs, "--output", str(out)]) == 0
    assert sorted(p.name for p in out.glob("*_panoptic.png")) == [
        "001_2_panoptic.png", "001_panoptic.png",
    ]  # fmt: skip


def test_input_size_is_detectron2s(panoptic):
    model = Model(str(panoptic.onnx))
    resize = model.info["input"]["resize"]
    for short, longest in ((800, 1333), (96, 1333), (640, 700)):
        resize.update(short_side=short, max_long_side=longest)
        for height, width in ((480, 640), (427, 640), (333, 333), (1200, 31), (613, 1000)):
            expected = T.ResizeShortestEdge.get_output_shape(height, width, short, longest)
            if min(expected) > 16:
                assert model.input_size(height, width) == expected


@pytest.mark.parametrize("fill", ["random", "empty", "full", "last", "first", "large"])
def test_run_lengths_are_cocos(fill):
    mask = np.zeros((37, 53), dtype=bool)
    if fill == "random":
        mask = np.random.default_rng(0).random(mask.shape) > 0.6
    elif fill == "full":
        mask[:] = True
    elif fill == "last":
        mask[-1, -1] = True
    elif fill == "first":
        mask[0, 0] = True
    elif fill == "large":
        mask = np.zeros((900, 1100), dtype=bool)
        mask[100:700, 90:1000] = True
    encoded = encode_rle(mask)
    reference = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encoded["counts"] == reference["counts"].decode()
    assert encoded["size"] == reference["size"]


def with_metadata(source: Path, target: Path, text: str) -> Path:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(source)
    onnx.helper.set_model_props(model, {"knet": text})
    onnx.save(model, target)
    return target


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        ((), [1], "all is '[1]'"),
        (("input",), None, "all.input is"),
        (("input", "channel_order"), "YUV", "all.input.channel_order is 'YUV', not L or RGB"),
        (("input", "resize", "short_side"), 9.5, "all.input.resize.short_side is '9.5'"),
        (("input", "dtype"), ["uint8"], "all.input.dtype"),
        (("results",), [], "all.results is '[]', not a list"),
        (("results",), ["raw"], "raw logits"),
        (("classes", 1, "color"), [1, 2], "all.classes[1].color is '[1, 2]', not a list of 3"),
        (("classes", 1, "color"), [1, 2, 300], "all.classes[1].color[2] is '300', not 0 to 255"),
        (("classes", 1, "id"), True, "all.classes[1].id"),
        (("classes", 1, "id"), 0, "one id twice"),
    ],
)
def test_broken_metadata_are_named(panoptic, tmp_path, capsys, keys, value, named):
    with pytest.raises(ValueError) as raised:
        _read_metadata("some.onnx", _changed(panoptic, keys, value))
    assert "some.onnx: its metadata 'knet' cannot be used, export" in str(raised.value)
    assert named in str(raised.value)


def _changed(panoptic, keys, value) -> str:
    model = Model(str(panoptic.onnx))
    info: dict = {"all": copy.deepcopy(model.info)}
    *path, last = "all", *keys
    place = info
    for key in path:
        place = place[key]
    place[last] = value
    return json.dumps(info["all"])


def test_files_that_are_no_exported_model_are_named(panoptic, pictures, tmp_path, capsys):
    cases = {
        "deep": ("[" * 100_000, "its metadata 'knet' cannot be used"),
        "cut": (_changed(panoptic, ("format",), 1)[:-9], "its metadata 'knet' cannot be used"),
        "grey": (
            _changed(panoptic, ("results",), "panoptic"),
            "its metadata 'knet' cannot be used",
        ),
    }
    for name, (text, named) in cases.items():
        path = with_metadata(panoptic.onnx, tmp_path / f"{name}.onnx", text)
        words = [str(path), "--input", str(pictures), "--output", str(tmp_path / "out")]
        assert command.main(words) == 2
        error = capsys.readouterr().err
        assert f"{name}.onnx: {named}" in error and error.count("\n") == 1


def test_a_class_without_a_description_is_named(panoptic, pictures, tmp_path, capsys):
    classes = Model(str(panoptic.onnx)).info["classes"]
    text = _changed(panoptic, ("classes",), classes[:1])
    path = with_metadata(panoptic.onnx, tmp_path / "model.onnx", text)
    words = [str(path), "--input", str(pictures), "--output", str(tmp_path / "out")]
    assert command.main(words) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all("describe no classes [" in line for line in errors)


def test_a_failing_picture_does_not_end_the_others(pictures, tmp_path, capsys, monkeypatch):
    class Failing(StandIn):
        def __call__(self, image):
            if image.width == 130:
                raise MemoryError
            return super().__call__(image)

    monkeypatch.setattr(command, "Model", Failing)
    out = tmp_path / "out"
    assert command.main(["model", "--input", str(pictures), "--output", str(out)]) == 1
    assert "002.png: not enough memory" in capsys.readouterr().err
    assert len(list(out.glob("*_overlay.png"))) == 2
    assert not list(out.glob("*unfinished*"))


def test_pictures_that_pillow_does_not_read_are_told(pictures, tmp_path, capsys, monkeypatch):
    Image.new("RGB", (40, 40)).save(pictures / "new.jp2")
    for name in ("a.heic", "b.HEIC", "film.mp4", "notes.txt"):
        (pictures / name).write_bytes(b"x")
    monkeypatch.setattr(command, "Model", StandIn)
    monkeypatch.delitem(Image.EXTENSION, ".heic", raising=False)
    assert command.main(["model", "--input", str(pictures), "--output", str(tmp_path)]) == 0
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2].partition(" left out")[0] for line in errors] == [
        f"{pictures}: 2 .heic", f"{pictures}: 1 .mp4",
    ]  # fmt: skip
    assert (tmp_path / "new_overlay.png").exists()


def test_an_interrupt_keeps_what_is_finished(pictures, tmp_path, capsys, monkeypatch):
    class Interrupted(StandIn):
        def __call__(self, image):
            if image.width == 130:
                raise KeyboardInterrupt
            return super().__call__(image)

    monkeypatch.setattr(command, "Model", Interrupted)
    assert command.main(["model", "--input", str(pictures), "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "knet run: interrupted\n"
    assert len(json.loads((tmp_path / "panoptic.json").read_text())["images"]) == 1


@pytest.mark.parametrize("wanted", ["0", "1"])
def test_the_trace_is_shown_if_it_is_wanted(tmp_path, capsys, monkeypatch, wanted):
    monkeypatch.setenv("KNET_TRACEBACK", wanted)
    missing = str(tmp_path / "no.onnx")
    assert command.main([missing, "--input", "x.png", "--output", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert ("Traceback" in errors) == (wanted == "1")
    assert errors.endswith(f"knet run: error: {missing}: no such file\n")


def test_a_grey_model_is_fed_grey_pixels(panoptic):
    class Session:
        def run(self, feeds):
            self.fed = feeds["image"]
            return {"semantic_classes": results}

    model = Model(str(panoptic.onnx))
    results = np.zeros((40, 30), np.int32)
    model.runtime = Session()
    model.info["results"] = ["semantic"]
    model.info["input"].update(channel_order="L", resize={"short_side": 0, "max_long_side": 9})
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    assert model(Image.fromarray(pixels))["semantic_classes"] is results
    expected = np.asarray(Image.fromarray(pixels).convert("L"))[None, None]
    assert model.runtime.fed.dtype == np.uint8
    np.testing.assert_array_equal(model.runtime.fed, expected)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_tiles_of_an_exported_model_are_those_of_the_model(panoptic, pictures, tmp_path, capsys):
    rasterio = pytest.importorskip("rasterio", reason="no rasterio: pip install -e '.[tiles]'")
    from knet.predict.tiles import predict_tiles

    (pictures / "004.tif").write_bytes(b"no picture")
    words = ["--input", str(pictures), "--output", str(tmp_path / "out"), "--tiles", "64"]
    assert command.main([str(panoptic.onnx), *words, "--overlap", "16"]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == f"results of 3 pictures in {tmp_path / 'out'}"
    assert f"knet run: error: {pictures / '004.tif'} cannot be read as a TIFF" in said.err
    options = {"tile": 64, "overlap": 16, "output": str(tmp_path / "expected")}
    done = predict_tiles(panoptic.predictor, [str(pictures)], say=lambda text: None, **options)
    assert len(done.files) == 3
    for labels in done.files.values():
        found = []
        for folder in ("out", "expected"):
            with rasterio.open(tmp_path / folder / labels.name) as file:
                found.append(file.read(1))
        assert (found[0] == found[1]).mean() >= 0.999 and found[0].max() > 1
    assert command.main([str(panoptic.onnx), *words, "--overlap", "40"]) == 2
    assert "knet run: error: --overlap 40: neighbours share" in capsys.readouterr().err
