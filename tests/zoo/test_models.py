"""The table of the published models, their configs, and one of them from its name to a result."""

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from knet.checkpoint.published_names import export_published
from knet.checkpoint.write_file import write_openmmlab
from knet.config import get_cfg_from_file, get_cfg_of_model
from knet.predictor import KNetPredictor
from knet.zoo import models
from knet.zoo.models import MODELS, ZooModel, config_path, fetch_weights, format_models
from knet_command import main

ROOT = Path(__file__).parents[2]
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 8,
    "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.KNET.HIDDEN_DIM", 16, "MODEL.KNET.FFN_DIM", 16,
    "MODEL.KNET.NORM_GROUPS", 4, "MODEL.KNET.NUM_HEADS", 4, "MODEL.KNET.NUM_KERNELS", 5,
    "INPUT.MIN_SIZE_TEST", 64, "MODEL.KNET.TEST.THING_THRESH", 0.0,
    "MODEL.KNET.TEST.OVERLAP_THRESH", 0.0,
]  # fmt: skip


def test_the_table_is_that_of_the_page():
    page = (ROOT / "docs" / "MODEL_ZOO.md").read_text(encoding="utf-8")
    row = (
        r"^\| `(\w+)` \| \[(\S+\.yaml)\]\(\S+\) \| ([\d.]+)[^|]*\| ([\d,]+) \|[^|]*\|"
        r"(?: `?([^|`]+)`? \|)?$"
    )
    stated = {
        (name, config, float(score), int(parameters.replace(",", "")), file.strip(" \u2013"))
        for name, config, score, parameters, file in re.findall(row, page, re.MULTILINE)
    }
    known = {(m.name, m.config, m.score, m.parameters, m.file) for m in MODELS.values()}
    assert known == stated
    assert len(stated) == 16 and sum(bool(file) for *_, file in stated) == 7


@pytest.mark.parametrize("name", MODELS)
def test_config_and_task_of_every_name(name):
    model, cfg = MODELS[name], get_cfg_of_model(name, ["MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.WEIGHTS.split("://") == ["knet", name]
    assert (model.task == "semantic") == (cfg.MODEL.KNET.KERNEL_HEAD != "learned")
    assert (model.task == "panoptic") == ("panoptic" in cfg.DATASETS.TEST[0])
    assert cfg.DATASETS.TEST[0].startswith(model.data.lower())


def test_address_of_a_file(monkeypatch):
    monkeypatch.delenv("KNET_ZOO_URL")
    assert MODELS["panoptic_r50_3x"].url == (
        "https://download.openmmlab.com/mim-example/knet/det/knet/"
        "knet_s3_r50_fpn_ms-3x_coco-panoptic/"
        "knet_s3_r50_fpn_ms-3x_coco-panoptic_20211017_054613-4375b8be.pth"
    )


def test_no_weights_and_no_such_name():
    said = (
        r"train it with configs/coco/instance/knet_r50_fpn_3x\.yaml, or take one of instance_r50_1x"
    )
    with pytest.raises(ValueError, match=rf"instance_r50_3x: .*no weights; {said}, "):
        fetch_weights("instance_r50_3x")
    with pytest.raises(ValueError, match=r"no weights; train it with [\w/.]+$"):
        fetch_weights("semantic_fcn_r50")
    with pytest.raises(ValueError, match="'panoptic_r50'; there are panoptic_r50_"):
        get_cfg_of_model("panoptic_r50")
    with pytest.raises(FileNotFoundError, match="no named model; there are panoptic_r50_"):
        KNetPredictor.from_pretrained("panoptic_r50")
    with pytest.raises(FileNotFoundError, match=r"there are coco/panoptic/knet_r50_fpn_3x\.yaml"):
        config_path("coco/panoptic/knet_r50_3x.yaml")


def test_listing(cache):
    cache.mkdir(parents=True)
    MODELS["instance_r50_1x"].path.touch()
    head, *lines = format_models().splitlines()
    assert len(lines) == len(MODELS)
    assert re.split(r"  +", head) == ["name", "task", "data", "published", "parameters", "weights"]
    found = {line.split()[0]: re.split(r"  +", line)[1:] for line in lines}
    rest = ["COCO", "34.0 mask AP", "37.5 M", "in cache"]
    assert found["instance_r50_1x"] == ["instance", *rest]
    assert found["instance_r50_3x"][-1] == "-"
    assert found["panoptic_r50_3x"][-1] == "can be fetched"


@pytest.fixture
def tiny_model(tmp_path, server, monkeypatch):
    """A small model of the published kind on the server, as `panoptic_tiny`; and the model."""
    cfg = get_cfg_from_file(config_path("coco/panoptic/knet_r50_fpn_3x.yaml"), SMALL)
    model = build_model(cfg).eval()
    written = tmp_path / "written.pth"
    write_openmmlab(written, export_published(model.state_dict()))
    content = written.read_bytes()
    digits = hashlib.sha256(content).hexdigest()[:8]
    file = f"knet_tiny_20211017_054613-{digits}.pth"
    config = "coco/panoptic/knet_r50_fpn_3x.yaml"
    tiny = ZooModel("panoptic_tiny", 1.0, 1, config, file)
    monkeypatch.setitem(models.MODELS, tiny.name, tiny)
    server.files[f"/knet_tiny/{file}"] = content
    return tiny, model


def test_from_a_name_to_a_result(tiny_model, server, tmp_path, monkeypatch):
    tiny, model = tiny_model
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "none"))
    photo = str(ROOT / "datasets/coco_photos/images/val/000000001993.jpg")
    load = {"device": "cpu", "opts": tuple(SMALL)}
    predictor = KNetPredictor.from_pretrained("panoptic_tiny", **load)
    state = predictor.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    found = predictor(photo)
    assert predictor.categories[0].name == "person" and len(predictor.categories) == 133
    assert found["panoptic_seg"][1]
    # again, with the server off
    server.files.clear()
    again = KNetPredictor.from_pretrained("panoptic_tiny", **load)(photo)
    assert torch.equal(again["panoptic_seg"][0], found["panoptic_seg"][0])
    assert len(server.asked) == 1
    tiny.path.write_bytes(tiny.path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"damaged.*Remove it"):
        KNetPredictor.from_pretrained("panoptic_tiny", **load)
    tiny.path.unlink()
    with pytest.raises(OSError, match=rf"HTTP 404.*put it to {re.escape(str(tiny.path))}"):
        KNetPredictor.from_pretrained("panoptic_tiny", **load)


def test_predict_on_the_command_line(tiny_model, server, tmp_path, monkeypatch, capsys):
    tiny, _ = tiny_model
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    photo = str(ROOT / "datasets/coco_photos/images/val/000000001993.jpg")
    words = ["predict", photo, "--model", "panoptic_tiny", *map(str, SMALL)]
    for _ in range(2):  # the second time with the server off
        assert main(words) == 0
        assert "1 of 1 picture -> predictions/000000001993.jpg" in capsys.readouterr().out
        server.files.clear()
    drawn = (tmp_path / "predictions" / "000000001993.jpg").read_bytes()
    tiny.path.write_bytes(tiny.path.read_bytes()[:-100])
    assert main(words) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("knet predict: error: ") and "damaged" in line and "Remove it" in line
    tiny.path.unlink()
    assert main(words) == 2
    assert f"put it to {tiny.path}" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "predictions" / "000000001993.jpg").read_bytes() == drawn


def test_the_classes_of_ade20k_need_no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = get_cfg_of_model("semantic_upernet_swin_t", ["MODEL.DEVICE", "cpu"])
    names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).stuff_classes
    assert (names[0], names[-1], len(names)) == ("wall", "flag", 150)


@pytest.mark.slow
def test_configs_and_the_command_are_in_the_wheel(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for name in ("configs", "datasets/coco_photos", "datasets/nuclei", "projects"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.egg-info"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "-w", tmp_path, source],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("knet-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    assert (tmp_path / "installed" / "knet_command.py").is_file()
    (entries,) = (tmp_path / "installed").glob("*.dist-info/entry_points.txt")
    assert "knet = knet_command:main" in entries.read_text(encoding="utf-8")
    installed = tmp_path / "installed" / "knet" / "configs"
    files = {f.relative_to(installed) for f in installed.rglob("*.yaml")}
    assert files == {f.relative_to(ROOT / "configs") for f in (ROOT / "configs").rglob("*.yaml")}
    spec = importlib.util.spec_from_file_location(
        "of_the_wheel", installed.parent / "zoo/models.py"
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "of_the_wheel", module)
    spec.loader.exec_module(module)
    path = module.config_path(MODELS["panoptic_r50_3x"].config)
    assert path == installed / "coco/panoptic/knet_r50_fpn_3x.yaml"
    assert get_cfg_from_file(path) == get_cfg_from_file(
        ROOT / "configs" / path.relative_to(installed)
    )
