import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from knet.config import get_cfg_from_file
from knet.data import KNetDatasetMapper, register_sem_seg

NAMES = ["background", "leaf", "stem"]


def write_pair(root: Path, stem: str, suffix=".jpg", size=(6, 8), label=1, **save) -> None:
    for folder in ("images", "labels"):
        (root / folder / stem).parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*size, 3), 90, np.uint8)
    Image.fromarray(image).save(root / "images" / f"{stem}{suffix}", **save)
    Image.fromarray(np.full(size, label, np.uint8)).save(root / "labels" / f"{stem}.png")


@pytest.fixture
def own(tmp_path):
    for number, suffix in enumerate((".jpg", ".JPEG", ".png", ".webp", ".bmp", ".TIF")):
        write_pair(tmp_path, f"{'ab'[number % 2]}/im.{number}", suffix, label=number % 3)
    (tmp_path / "images" / ".hidden.jpg").write_bytes(b"macOS")
    (tmp_path / "images" / "notes.txt").write_text("no picture")
    return {
        "image_root": tmp_path / "images",
        "sem_seg_root": tmp_path / "labels",
        "classes": NAMES,
    }


def test_records_and_metadata(own):
    register_sem_seg("own", **own)
    records = DatasetCatalog.get("own")
    ids = ["a/im.0", "a/im.2", "a/im.4", "b/im.1", "b/im.3", "b/im.5"]
    assert [r["image_id"] for r in records] == ids
    for record in records:
        assert set(record) == {"file_name", "image_id", "height", "width", "sem_seg_file_name"}
        assert (record["height"], record["width"]) == (6, 8)
        assert Path(record["file_name"]).is_file() and Path(record["sem_seg_file_name"]).is_file()
    meta = MetadataCatalog.get("own")
    assert meta.stuff_classes == NAMES and meta.evaluator_type == "sem_seg"
    assert meta.ignore_label == 255
    assert len({tuple(color) for color in meta.stuff_colors}) == 3
    assert (meta.image_root, meta.sem_seg_root) == (
        str(own["image_root"]),
        str(own["sem_seg_root"]),
    )


def test_pictures_of_every_kind_are_taken_or_named(own, tmp_path, caplog, monkeypatch):
    for suffix in (".gif", ".jp2", ".PPM"):
        write_pair(tmp_path, f"c/{suffix[1:]}", suffix, label=0)
    (tmp_path / "images" / "drawing.svg").write_text("<svg/>")
    register_sem_seg("own", **own)
    assert len(DatasetCatalog.get("own")) == 9
    assert f"'own': {tmp_path / 'images'}: 1 .svg left out: not taken from folders" in caplog.text
    monkeypatch.delitem(Image.OPEN, "GIF")
    with pytest.raises(ValueError, match=r"1 label PNGs without .*1 \.gif left out: this build of"):
        register_sem_seg("other", **own)


def test_mapper_and_evaluator_take_it(own, tmp_path):
    register_sem_seg("own", **own)
    mapper = KNetDatasetMapper(
        True,
        augmentations=[],
        image_format="RGB",
        targets=["sem_seg"],
        num_classes=3,
    )
    results = [mapper(record) for record in DatasetCatalog.get("own")]
    assert [int(r["sem_seg"][0, 0]) for r in results] == [0, 2, 1, 1, 0, 2]
    evaluator = SemSegEvaluator("own", distributed=False, output_dir=str(tmp_path))
    evaluator.reset()
    for result in results:
        scores = torch.nn.functional.one_hot(result["sem_seg"], 3).permute(2, 0, 1).float()
        evaluator.process([result], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)


def test_turned_picture_has_the_size_that_it_is_read_with(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_pair(tmp_path, "a", size=(4, 9), exif=exif)
    Image.fromarray(np.zeros((9, 4), np.uint8)).save(tmp_path / "labels" / "a.png")
    register_sem_seg(
        "own", image_root=tmp_path / "images", sem_seg_root=tmp_path / "labels", classes=NAMES
    )
    (record,) = DatasetCatalog.get("own")
    assert (record["height"], record["width"]) == (9, 4)
    mapper = KNetDatasetMapper(True, augmentations=[], image_format="RGB", num_classes=3)
    assert mapper(record)["sem_seg"].shape == (9, 4)


def test_sizes_are_read_when_records_are_asked_for(own):
    broken = own["image_root"] / "a" / "im.0.jpg"
    broken.write_bytes(b"no picture")
    register_sem_seg("own", **own)
    with pytest.raises(ValueError, match=r"im\.0\.jpg cannot be read as a picture"):
        DatasetCatalog.get("own")


def test_max_images(own):
    register_sem_seg("few", **own, max_images=2)
    assert [r["image_id"] for r in DatasetCatalog.get("few")] == ["a/im.0", "a/im.2"]
    register_sem_seg("all", **own, max_images=100)
    assert len(DatasetCatalog.get("all")) == 6
    with pytest.raises(ValueError, match="max_images is 0"):
        register_sem_seg("none", **own, max_images=0)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.txt", "background\n leaf \nstem\n"),
        ("names.json", json.dumps(NAMES)),
        ("names.json", json.dumps([{"name": n, "color": [i, 2, 3]} for i, n in enumerate(NAMES)])),
    ],
)
def test_class_files(own, tmp_path, file, text):
    (tmp_path / file).write_text(text)
    register_sem_seg("own", **{**own, "classes": tmp_path / file})
    meta = MetadataCatalog.get("own")
    assert meta.stuff_classes == NAMES
    if "color" in text:
        assert meta.stuff_colors == [[0, 2, 3], [1, 2, 3], [2, 2, 3]]


def test_given_colours(own):
    colors = [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    register_sem_seg("own", **own, colors=colors)
    assert MetadataCatalog.get("own").stuff_colors == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    with pytest.raises(ValueError, match="2 colours for 3 classes"):
        register_sem_seg("other", **own, colors=colors[:2])
    with pytest.raises(ValueError, match=r"colour of 'stem' must be three numbers"):
        register_sem_seg("other", **own, colors=[*colors[:2], (0, 0, 256)])


def test_twice_the_same_is_fine_and_other_arguments_are_not(own):
    register_sem_seg("own", **own)
    register_sem_seg("own", **own)
    with pytest.raises(ValueError, match=r"'own' is registered already.*max_images: None → 1"):
        register_sem_seg("own", **own, max_images=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["leaf"]}, r"'own' has 1 classes \(leaf\).*background and foreground"),
        ({"classes": [str(i) for i in range(256)]}, "256 classes.*at most 255"),
        ({"classes": ["a", "b", "a"]}, "class name 'a' comes 2 times"),
        ({"classes": ["a", ""]}, "class 1 needs a name; it is ''"),
        ({"classes": ["a", 7]}, "class 1 needs a name; it is 7"),
        ({"ignore_label": 2}, "ignore_label 2 is also the index of class 'stem'.* 3 to 255"),
        ({"ignore_label": 256}, "ignore_label is 256"),
    ],
)
def test_unusable_classes(own, change, message):
    with pytest.raises(ValueError, match=message):
        register_sem_seg("own", **{**own, **change})
    assert "own" not in DatasetCatalog


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", r"names\.json is not JSON"), ('{"a": 1}', r"names\.json: class names must be a list")],
)
def test_unusable_class_file(own, tmp_path, text, message):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        register_sem_seg("own", **{**own, "classes": tmp_path / "names.json"})


@pytest.mark.parametrize("key", ["image_root", "sem_seg_root", "classes"])
def test_missing_paths(own, tmp_path, key):
    with pytest.raises(FileNotFoundError, match=r"'own'.*nowhere.*correct the path"):
        register_sem_seg("own", **{**own, key: tmp_path / "nowhere"})


def test_no_pictures(own, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"'own': no picture below .*empty; put .*\.jpg"):
        register_sem_seg("own", **{**own, "image_root": tmp_path / "empty"})


def test_files_without_counterpart(own):
    for number in (0, 2, 4):
        (own["sem_seg_root"] / "a" / f"im.{number}.png").unlink()
    (own["sem_seg_root"] / "b" / "im.1.png").rename(own["sem_seg_root"] / "b" / "extra.png")
    with pytest.raises(ValueError) as caught:
        register_sem_seg("own", **own)
    message = str(caught.value)
    assert "of 6 pictures and 3 label PNGs, 4 without a label PNG" in message
    assert "im.0.jpg" in message and "im.4.bmp, …" in message and "im.1.JPEG" not in message
    assert "1 label PNGs without a picture" in message and "extra.png" in message


def test_ambiguous_files(own, tmp_path):
    write_pair(tmp_path, "a/im.0", ".png")
    with pytest.raises(ValueError, match=r"im\.0\.png: .*im\.0\.jpg in its suffix only"):
        register_sem_seg("own", **own)


def test_training_sets_must_ignore_the_same_label(own):
    register_sem_seg("one", **own, ignore_label=200)
    register_sem_seg("two", **own)
    register_sem_seg("three", **own, ignore_label=200)
    MetadataCatalog.get("objects").set(thing_classes=["cell"])
    cfg = get_cfg_from_file("configs/shapes/semantic.yaml", [])
    cfg.DATASETS.TRAIN = ("objects", "one", "three")
    assert KNetDatasetMapper.from_config(cfg)["ignore_label"] == 200
    cfg.DATASETS.TRAIN = ("one", "two")
    with pytest.raises(ValueError, match=r"\(200 in 'one', 255 in 'two'\)"):
        KNetDatasetMapper.from_config(cfg)
    MetadataCatalog.remove("objects")


def test_one_folder_for_both(own, tmp_path):
    for root in (own["image_root"], own["image_root"] / "a", tmp_path):
        with pytest.raises(ValueError, match="must be in two folders"):
            register_sem_seg("own", **{**own, "sem_seg_root": root})


def pairs_file(own, text):
    path = own["image_root"].parent / "pairs.txt"
    path.write_text(text, encoding="utf-8")
    return {**own, "pairs_file": path}


def test_a_file_of_pairs_names_a_part(own):
    register_sem_seg(
        "own", **pairs_file(own, "b/im.1.JPEG\tb/im.3.png\n\na/im.0.jpg\ta/im.0.png\n")
    )
    found = [(r["image_id"], r["sem_seg_file_name"]) for r in DatasetCatalog.get("own")]
    root = own["sem_seg_root"]
    assert found == [("a/im.0", str(root / "a/im.0.png")), ("b/im.1", str(root / "b/im.3.png"))]
    with pytest.raises(ValueError, match=r"registered already, with other arguments .pairs_file"):
        register_sem_seg("own", **own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/im.0.jpg a/im.0.png", r"pairs.txt: line 1: 'a/im.0.jpg a/im.0.png' is no pair"),
        ("a.jpg\tb.png\na.png\tb.png", "line 2: a is also that of .*: a picture's name"),
        ("\n", "it lists no pair; list one a line"),
    ],
)
def test_a_broken_file_of_pairs_is_named(text, message, own):
    with pytest.raises(ValueError, match=message):
        register_sem_seg("own", **pairs_file(own, text))


def test_a_pair_that_is_missing_is_named(own):
    register_sem_seg("own", **pairs_file(own, "a/none.jpg\ta/im.0.png\n"))
    with pytest.raises(FileNotFoundError, match=r"no picture at .*none.jpg"):
        DatasetCatalog.get("own")
