import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data.datasets import load_sem_seg
from PIL import Image

from knet.data import KNetDatasetMapper, add_data_config

SCRIPT = "prepare_ade20k_sem_seg"


@pytest.fixture
def root(tmp_path):
    """Two pictures of training, one of validation."""
    base = tmp_path / "ADEChallengeData2016"
    for split, count in (("training", 2), ("validation", 1)):
        for number in range(count):
            labels = np.array([[0, 1, 150], [number, 2, 3]], np.uint8)
            name = f"ADE_{split[:5]}_{number}"
            for folder in ("images", "annotations"):
                (base / folder / split).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (3, 2)).save(base / "images" / split / f"{name}.jpg")
            Image.fromarray(labels).save(base / "annotations" / split / f"{name}.png")
    return tmp_path


def test_labels_and_second_call(script, root, capsys):
    script.main(["--root", str(root)])
    assert "3 label PNGs written, 0 were there" in capsys.readouterr().out
    out = root / "ADEChallengeData2016" / "annotations_detectron2"
    labels = np.array(Image.open(out / "training" / "ADE_train_1.png"))
    assert labels.tolist() == [[255, 0, 149], [0, 1, 2]] and labels.dtype == np.uint8
    (out / "training" / "ADE_train_1.png").unlink()
    assert script.prepare(root) == (1, 2)
    assert not list(out.rglob("*.partial"))


def test_detectron2s_loader_and_the_mapper_take_them(script, root):
    script.prepare(root)
    base = root / "ADEChallengeData2016"
    records = load_sem_seg(
        str(base / "annotations_detectron2" / "training"), str(base / "images" / "training")
    )
    cfg = get_cfg()
    add_data_config(cfg)
    cfg.DATASETS.TRAIN = ("ade20k_sem_seg_train",)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (2,), "none"
    cfg.INPUT.KNET_TARGETS = ["sem_seg"]
    mapper = KNetDatasetMapper(cfg, True)
    assert mapper.num_classes == 150
    results = [mapper(record) for record in records]
    assert results[0]["sem_seg"].tolist() == [[255, 0, 149], [255, 1, 2]]
    assert (results[0]["height"], results[0]["width"]) == (2, 3)


def test_what_is_missing_or_foreign(script, root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*images.training; .*ADEChall.*\.zip"):
        script.prepare(tmp_path / "nowhere")
    labels = root / "ADEChallengeData2016" / "annotations" / "validation" / "ADE_valid_0.png"
    Image.fromarray(np.full((2, 3), 151, np.uint8)).save(labels)
    with pytest.raises(ValueError, match=r"ADE_valid_0\.png \(mode L, largest value 151\)"):
        script.prepare(root)
    labels.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"ADE_valid_0\.png cannot be read"):
        script.prepare(root)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=r"no label PNG in .*validation"):
        script.prepare(root)
