"""Images in, results out."""

import json

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from knet.predictor import KNetPredictor


@pytest.fixture
def predictor(tiny_cfg):
    tiny_cfg.MODEL.KNET.TEST.THING_THRESH = 0.0
    tiny_cfg.MODEL.KNET.TEST.OVERLAP_THRESH = 0.0
    return KNetPredictor(tiny_cfg, build_model(tiny_cfg), MetadataCatalog.get("tiny_train"))


def picture(height=50, width=70):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_equal(a, b):
    assert torch.equal(a["sem_seg"], b["sem_seg"])
    assert torch.equal(a["panoptic_seg"][0], b["panoptic_seg"][0])
    assert a["panoptic_seg"][1] == b["panoptic_seg"][1]
    for field in ("scores", "pred_classes", "pred_masks"):
        assert torch.equal(a["instances"].get(field), b["instances"].get(field))


def test_saved_and_loaded_it_says_the_same(predictor, tmp_path):
    image = picture()
    predictor.cfg.INPUT.REDUCED_FOLDER = str(tmp_path / "reduced")
    before = predictor(image)
    assert before["panoptic_seg"][0].shape == (50, 70) and before["panoptic_seg"][1]
    predictor.save_pretrained(tmp_path / "model")
    assert {f.name for f in (tmp_path / "model").iterdir()} == {
        "model.safetensors",
        "config.yaml",
        "classes.json",
        "README.md",
    }
    (tmp_path / "model" / "README.md").unlink()  # which nothing reads
    assert str(tmp_path) not in (tmp_path / "model" / "config.yaml").read_text()
    loaded = KNetPredictor.from_pretrained(tmp_path / "model", device="cpu")
    assert_equal(loaded(image), before)
    assert loaded.metadata.thing_classes == MetadataCatalog.get("tiny_train").thing_classes
    loaded.save_pretrained(tmp_path / "again")
    for file in ("classes.json", "config.yaml"):
        first, second = (
            yaml.safe_load((tmp_path / d / file).read_text()) for d in ("model", "again")
        )
        assert first == second
    again = KNetPredictor.from_pretrained(tmp_path / "again", device="cpu")
    assert_equal(again(image), before)


def test_classes_are_chosen_by_name(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "all")
    opts = ("MODEL.KNET.TEST.CLASSES", ["star", "stripes"])
    some = KNetPredictor.from_pretrained(tmp_path / "all", device="cpu", opts=opts)
    some.save_pretrained(tmp_path / "some")
    assert yaml.safe_load((tmp_path / "some" / "config.yaml").read_text())["MODEL"]["KNET"]["TEST"][
        "CLASSES"
    ] == ["star", "stripes"]
    again = KNetPredictor.from_pretrained(tmp_path / "some", device="cpu")
    things, stuff = (predictor.metadata.get(f"{kind}_classes") for kind in ("thing", "stuff"))
    for chosen in (some, again):
        found = chosen(picture())
        assert {things[c] for c in found["instances"].pred_classes.tolist()} == {"star"}
        assert {stuff[s["category_id"]] for s in found["panoptic_seg"][1]} <= {"star", "stripes"}
    with pytest.raises(ValueError, match="no class 'moon'; the 8 classes are 'disc'"):
        KNetPredictor.from_pretrained(
            tmp_path / "all", device="cpu", opts=("MODEL.KNET.TEST.CLASSES", ["moon"])
        )


def test_ids_of_the_data_set_are_kept(tiny_cfg, tmp_path):
    tiny_cfg.DATASETS.TRAIN = tiny_cfg.DATASETS.TEST = ("cityscapes_fine_panoptic_val",)
    metadata = MetadataCatalog.get("cityscapes_fine_panoptic_val")
    predictor = KNetPredictor(tiny_cfg, build_model(tiny_cfg), metadata)
    predictor.save_pretrained(tmp_path)
    loaded = KNetPredictor.from_pretrained(tmp_path, device="cpu")
    assert loaded.model.task.class_ids.things == tuple(range(11, 19))
    assert_equal(loaded(picture()), predictor(picture()))


def test_kinds_of_pictures_agree(predictor, tmp_path):
    image = picture()
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = predictor(image)
    assert_equal(predictor(tmp_path / "a.png"), expected)
    assert_equal(predictor(str(tmp_path / "a.png")), expected)
    assert_equal(predictor(Image.fromarray(image)), expected)
    # a grey picture with an EXIF turn comes upright
    grey = Image.fromarray(image[..., 0])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    grey.save(tmp_path / "turned.jpg", exif=exif)
    assert predictor(tmp_path / "turned.jpg")["sem_seg"].shape[-2:] == (70, 50)


def test_channel_order_follows_the_config(predictor):
    image = picture()
    expected = predictor(image)
    predictor.cfg.INPUT.FORMAT = "BGR"
    assert_equal(predictor(np.ascontiguousarray(image[..., ::-1])), expected)


def test_what_is_no_picture_is_named(predictor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        predictor(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png cannot be read as a picture"):
        predictor(tmp_path / "text.png")
    with pytest.raises(ValueError, match="local file"):
        predictor("https://example.org/a.png")
    with pytest.raises(ValueError, match=r"not \(50, 70\) uint8"):
        predictor(picture()[..., 0])


def test_folders_that_do_not_hold_a_model(predictor, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        KNetPredictor.from_pretrained(tmp_path / "gone")
    predictor.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "classes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no classes\.json"):
        KNetPredictor.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classes.json", b"[1]", "no table of names"),
        ("classes.json", b'{"thing_classes": ["one"]}', "names 1 classes, but config.yaml"),
        ("config.yaml", b"", "holds nothing"),
        ("config.yaml", bytes(range(256)), "not UTF-8"),
        ("config.yaml", b"MODEL: [1,", "not YAML"),
        ("config.yaml", b"MODEL: {NOPE: 1}", r"MODEL\.NOPE: no such key"),
        ("model.safetensors", b"", "the file is empty"),
        ("model.safetensors", b"\x10" + bytes(7) + b'{"a": {"dtype": "F32"', "damaged"),
    ],
)
def test_damaged_folders(predictor, tmp_path, file, content, message):
    predictor.save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file}: .*{message}"):
        KNetPredictor.from_pretrained(tmp_path, device="cpu")


def test_changed_files_of_a_folder_are_told(predictor, tmp_path, caplog):
    predictor.save_pretrained(tmp_path)
    KNetPredictor.from_pretrained(tmp_path, device="cpu")
    assert "is not as it was saved" not in caplog.text
    names = tmp_path / "classes.json"
    names.write_text(names.read_text().replace(predictor.metadata.thing_classes[0], "cirkle"))
    KNetPredictor.from_pretrained(tmp_path, device="cpu")
    assert "classes.json is not as it was saved with the weights" in caplog.text
    assert "config.yaml is not" not in caplog.text


def test_files_of_a_folder_have_the_rights_of_new_files(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "model")
    (tmp_path / "plain").touch()
    rights = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert rights == {(tmp_path / "plain").stat().st_mode}


def test_hub_ids_are_downloaded(predictor, tmp_path, monkeypatch):
    import huggingface_hub

    predictor.save_pretrained(tmp_path)
    asked = {}

    def download(name, *, revision, allow_patterns):
        asked.update(name=name, revision=revision, files=set(allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = KNetPredictor.from_pretrained("owner/knet", revision="v1", device="cpu")
    assert asked["name"] == "owner/knet" and asked["revision"] == "v1"
    assert asked["files"] == {"model.safetensors", "config.yaml", "classes.json"}
    assert_equal(loaded(picture()), predictor(picture()))


def test_augmentation_and_other_options(predictor, tmp_path):
    predictor.save_pretrained(tmp_path)
    opts = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(48, 64)", "TEST.AUG.FLIP", True,
            "MODEL.KNET.TEST.PANOPTIC_ON", False)  # fmt: skip
    augmented = KNetPredictor.from_pretrained(tmp_path, device="cpu", opts=opts)
    out = augmented(picture())
    assert set(out) == {"instances", "sem_seg"} and out["sem_seg"].shape[-2:] == (50, 70)
    augmented.save_pretrained(tmp_path / "augmented")
    saved = json.loads((tmp_path / "augmented" / "classes.json").read_text())
    assert saved["thing_classes"] == predictor.metadata.thing_classes


def test_a_folder_cannot_ask_for_trust(predictor, tmp_path):
    import os
    import pickle

    predictor.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.yaml"
    text = config.read_text()
    assert "UNSAFE_WEIGHTS: false" in text
    config.write_text(text.replace("UNSAFE_WEIGHTS: false", "UNSAFE_WEIGHTS: true"))
    trace = tmp_path / "it_ran"

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    (tmp_path / "model" / "model.safetensors").write_bytes(pickle.dumps({"a": Malicious()}))
    with pytest.raises(ValueError, match="refused"):
        KNetPredictor.from_pretrained(tmp_path / "model", device="cpu")
    assert not trace.exists()


def test_a_folder_reads_nothing_but_itself(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.yaml"
    text = config.read_text()
    config.write_text(f"_BASE_: {tmp_path / 'secret'}\n{text}")
    with pytest.raises(ValueError, match=r"config\.yaml: _BASE_ is .*stand by itself"):
        KNetPredictor.from_pretrained(tmp_path / "model", device="cpu")
    content = yaml.safe_load(text)
    content["MODEL"]["BACKBONE"]["NAME"] = "build_timm_fpn_backbone"
    for key, value in (("KWARGS", {"checkpoint_path": "x"}), ("NAME", "local-dir:x")):
        timm = {**content["MODEL"]["TIMM"], key: value}
        config.write_text(yaml.safe_dump({**content, "MODEL": {**content["MODEL"], "TIMM": timm}}))
        with pytest.raises(ValueError, match=rf"MODEL\.TIMM\.{key}"):
            KNetPredictor.from_pretrained(tmp_path / "model", device="cpu")


def test_class_names_stay_with_the_weights(predictor, tmp_path):
    from knet.checkpoint.read_file import read_file

    predictor.save_pretrained(tmp_path / "a")
    loaded = KNetPredictor.from_pretrained(tmp_path / "a", device="cpu")
    loaded.save_pretrained(tmp_path / "b")
    first, second = (
        read_file(str(tmp_path / d / "model.safetensors"))["classes"] for d in ("a", "b")
    )
    assert first == second and first["things"] == predictor.metadata.thing_classes


def test_config_of_own_data(tiny_cfg, tiny_shapes, tmp_path):
    from knet.checkpoint.checkpointer import KNetCheckpointer

    folder = tiny_shapes / "val"
    tiny_cfg.DATASETS.CUSTOM = [
        {"NAME": "mine", "FORMAT": "coco_panoptic", "IMAGE_ROOT": str(folder / "images"),
         "PANOPTIC_ROOT": str(folder / "panoptic"), "PANOPTIC_JSON": str(folder / "panoptic.json")}
    ]  # fmt: skip
    KNetCheckpointer(build_model(tiny_cfg), str(tmp_path)).save("model")
    tiny_cfg.DATASETS.TRAIN, tiny_cfg.DATASETS.TEST = (), ("mine",)
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    predictor = KNetPredictor.from_config(tiny_cfg)
    assert predictor.metadata.name == "mine" and "sem_seg" in predictor(picture())


def test_failed_downloads_say_that_there_is_no_folder(monkeypatch):
    import huggingface_hub

    def download(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(FileNotFoundError, match=r"output/gone is no folder here.*no network"):
        KNetPredictor.from_pretrained("output/gone")


def test_results_that_no_memory_holds_are_refused(predictor, monkeypatch):
    import knet.predictor

    # 8 classes of 4 bytes, 20 of the panoptic map, and an instance mask a byte
    everything = predictor(picture())
    bytes_a_pixel = 32 + 20 + len(everything["instances"])
    monkeypatch.setattr(knet.predictor, "free_memory", lambda: 50 * 70 * bytes_a_pixel)
    predictor(picture())
    with pytest.raises(ValueError, match=r"70x51 pixels take .* SEMANTIC_ON 32, PANOPTIC_ON 20"):
        predictor(picture(51))
    predictor.only("panoptic")
    found = predictor(picture())
    assert set(found) == {"panoptic_seg"}
    assert torch.equal(found["panoptic_seg"][0], everything["panoptic_seg"][0])
    predictor(picture(51))


def test_results_of_a_prediction_under_options_of_one_call(predictor, semantic_cfg):
    prediction = predictor.predict(picture())
    plain, results = predictor(picture()), predictor.results(prediction)
    assert plain.keys() == results.keys() == {"instances", "panoptic_seg", "sem_seg"}
    assert torch.equal(plain["sem_seg"], results["sem_seg"])
    assert torch.equal(plain["instances"].pred_masks, results["instances"].pred_masks)
    only = predictor.results(prediction, size=(31, 47), panoptic=False, semantic=False)
    assert only.keys() == {"instances"} and only["instances"].image_size == (31, 47)
    cut = plain["instances"].scores[3]
    few = predictor.results(prediction, score_threshold=float(cut))["instances"]
    assert len(few) == (plain["instances"].scores >= cut).sum()
    assert predictor.results(prediction).keys() == plain.keys()
    semantic = KNetPredictor(
        semantic_cfg, build_model(semantic_cfg), MetadataCatalog.get("tiny_val")
    )
    with pytest.raises(ValueError, match="without options: score_threshold"):
        semantic.results(semantic.predict(picture()), score_threshold=0.5)
