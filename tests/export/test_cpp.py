"""examples/cpp is built, run, and says what the program in Python says."""

from __future__ import annotations

import csv
import importlib.util
import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from knet_run.model import Model

from .models import scene

SOURCE = Path(__file__).parents[2] / "examples" / "cpp"


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The compiled program; skips where something that it is built with is missing."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}: install Debian's packages cmake and g++")
    openvino = importlib.util.find_spec("openvino")
    if openvino is None or openvino.origin is None:
        pytest.skip("no OpenVINO: pip install openvino")
    build = tmp_path_factory.mktemp("build")
    configured = subprocess.run(
        ["cmake", "-S", str(SOURCE), "-B", str(build), "-DCMAKE_CXX_FLAGS_DEBUG=-O0",
         "-DCMAKE_BUILD_TYPE=Debug", f"-DOpenVINO_DIR={Path(openvino.origin).parent / 'cmake'}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for message, package in {
        "Could NOT find JPEG": "libjpeg-dev", "Could NOT find PNG": "libpng-dev",
        'provided by "nlohmann_json"': "nlohmann-json3-dev",
    }.items():  # fmt: skip
        if configured.returncode and message in configured.stderr:
            pytest.skip(f"install Debian's package {package}")
    assert configured.returncode == 0, configured.stderr
    built = subprocess.run(
        ["cmake", "--build", str(build)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "warning" not in built.stdout + built.stderr
    return build / "knet_segment"


def run(program, *words):
    return subprocess.run(
        [str(program), *map(str, words)], capture_output=True, text=True, check=False
    )


def read_ids(path: Path) -> np.ndarray:
    rgb = np.asarray(Image.open(path)).astype(np.int64)
    return rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """Both formats, all that is turned or dropped on reading, larger and smaller than trained."""
    folder = tmp_path_factory.mktemp("pictures")
    image = Image.fromarray(scene(75, 131, 0))
    image.convert("RGBA").save(folder / "clear.png")
    image.convert("P").save(folder / "palette.png")
    image.convert("L").save(folder / "grey.jpg")
    for turn in (2, 4, 6, 8):  # rows or columns reversed, as stored or swapped
        exif = Image.Exif()
        exif[0x0112] = turn
        image.save(folder / f"turned{turn}.jpg", exif=exif, quality=90)
    Image.fromarray(scene(333, 250, 1)).save(folder / "large.jpg", progressive=True)
    return sorted(folder.iterdir())


def test_panoptic_ids_and_table_are_those_of_knet_run(program, panoptic, pictures, tmp_path):
    model = Model(str(panoptic.onnx))
    for path in pictures:
        done = run(program, panoptic.onnx, path, tmp_path / "ids.png")
        assert done.returncode == 0, done.stderr
        expected = model(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        ids = read_ids(tmp_path / "ids.png")
        assert ids.shape == expected["panoptic_ids"].shape, path.name
        # two runtimes: a hard mask may differ by a pixel, and what follows from it
        assert (ids == expected["panoptic_ids"]).mean() >= 0.995, path.name
        table = list(csv.DictReader(io.StringIO(done.stdout), delimiter="\t"))
        assert [int(line["id"]) for line in table] == expected["segment_ids"].tolist()
        names = [model.classes[label]["name"] for label in expected["segment_classes"].tolist()]
        assert [line["class"] for line in table] == names
        scores = [float(line["score"]) for line in table]
        np.testing.assert_allclose(scores, expected["segment_scores"], rtol=0, atol=1e-3)
        for line in table:
            rows, columns = np.nonzero(ids == int(line["id"]))
            assert int(line["area"]) == len(rows)
            box = [int(line[key]) for key in ("x", "y", "width", "height")]
            assert box == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_the_other_tasks_are_those_of_knet_run(task, program, export_once, pictures, tmp_path):
    model_file, least = export_once(task).onnx, 0.4
    model = Model(str(model_file))
    for path in pictures[::3]:
        done = run(program, model_file, path, tmp_path / "ids.png", least)
        assert done.returncode == 0, done.stderr
        expected = model(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        if task == "semantic":
            wanted = expected["semantic_classes"]
        else:
            kept = expected["instance_scores"] >= least
            wanted = np.zeros(expected["instance_masks"].shape[1:], np.int64)
            for k in reversed(range(kept.sum())):  # the best on top
                wanted[expected["instance_masks"][k]] = k + 1
        assert len(np.unique(wanted)) > 3
        ids = read_ids(tmp_path / "ids.png")
        assert (ids == wanted).mean() >= 0.995, path.name
        table = {int(r["id"]): r for r in csv.DictReader(io.StringIO(done.stdout), delimiter="\t")}
        assert set(table) == set(np.unique(ids)) - ({0} if task == "instance" else set())
        for number, line in table.items():
            assert int(line["area"]) == (ids == number).sum()
            if task == "instance":
                score = expected["instance_scores"][number - 1]
                name = model.classes[expected["instance_classes"][number - 1]]["name"]
            else:
                score = expected["semantic_scores"][ids == number].mean()
                name = model.classes[number]["name"]
            assert line["class"] == name
            assert float(line["score"]) == pytest.approx(float(score), abs=1e-3)


def test_the_resize_is_pillows(program, panoptic, pictures, tmp_path):
    """In the graph's own input: a picture that Pillow has resized gives the very same ids."""
    model = Model(str(panoptic.onnx))
    (large,) = (path for path in pictures if path.name == "large.jpg")
    image = Image.open(large)
    height, width = model.input_size(image.height, image.width)
    assert (height, width) != (image.height, image.width)
    image.resize((width, height), Image.Resampling.BILINEAR).save(tmp_path / "sized.png")
    found = []
    for path in (large, tmp_path / "sized.png"):
        found.append(run(program, panoptic.onnx, path, tmp_path / "ids.png").stdout.splitlines())
    scores = [[line.split("\t")[:3] for line in lines] for lines in found]
    assert len(scores[0]) > 2 and scores[0] == scores[1]


def test_what_is_wrong_is_one_sentence(program, panoptic, pictures, tmp_path):
    good, ids = pictures[0], tmp_path / "ids.png"
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.jpg").write_bytes((good.parent / "large.jpg").read_bytes()[:3000])
    (tmp_path / "cut.onnx").write_bytes(panoptic.onnx.read_bytes()[:5000])
    Image.new("RGB", (300, 2)).save(tmp_path / "thin.png")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "deep.png")
    for words, message in (
        ([], "usage: knet_segment MODEL PICTURE IDS.png"),
        (["gone.onnx", good, ids], "gone.onnx: there is no such file"),
        ([tmp_path / "cut.onnx", good, ids], "onnx"),
        ([panoptic.onnx, "gone.png", ids], "gone.png cannot be read as a picture: there is no"),
        ([panoptic.onnx, tmp_path / "text.png", ids], "it is neither JPEG nor PNG"),
        ([panoptic.onnx, tmp_path / "cut.jpg", ids], "cut.jpg cannot be read as a picture"),
        ([panoptic.onnx, tmp_path / "deep.png", ids], "it has more than 8 bit a channel"),
        ([panoptic.onnx, tmp_path / "thin.png", ids], "the picture is too narrow"),
        ([panoptic.onnx, good, tmp_path / "gone" / "ids.png"], "ids.png cannot be written"),
    ):
        done = run(program, *words)
        assert done.returncode == 2 and done.stdout == ""
        last = done.stderr.splitlines()[-1]
        assert last.startswith("knet_segment: error: ") and message in last, last
    assert not ids.exists()
