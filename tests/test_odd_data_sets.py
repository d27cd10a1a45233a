"""Data sets that lack what most have: trained, evaluated and drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.config import get_cfg_from_file
from knet.data import register_custom
from knet.data.derive import panoptic_to_instances
from knet.data.panoptic_png import write_panoptic_png
from knet.evaluation import build_evaluator
from knet.predict.sheets import write_sheets
from knet.predictor import KNetPredictor
from knet.training.run import evaluate, train
from knet.training.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("blank_curves")]

ROOT = Path(__file__).parents[1]
H, W = 48, 64
# ids neither contiguous nor in order; PANOPTIC mixes the kinds
PANOPTIC = [(70, "kite", 1), (3, "sky", 0), (41, "disc", 1), (12, "sand", 0)]
KINDS = {
    "mixed": PANOPTIC,
    "things": [c for c in PANOPTIC if c[2]],
    "stuff": [c for c in PANOPTIC if not c[2]],
    "void": PANOPTIC,
}


def scene(index: int, categories) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Segment ids (H, W) and pairs (segment id, category id); the image 1 is void altogether."""
    ids = np.zeros((H, W), np.uint32)
    segments = []
    if index == 1:
        return ids, segments
    stuff = [c[0] for c in categories if not c[2]]
    things = [c[0] for c in categories if c[2]]
    for k, category in enumerate(stuff):
        ids[k * H // 2 : (k + 1) * H // 2] = 500 + k
        segments.append((500 + k, category))
    for k, category in enumerate(things):
        ids[6 + index : 24 + index, 5 + 28 * k : 25 + 28 * k] = 9000 + k
        segments.append((9000 + k, category))
    return ids, segments


def write_data(root: Path, kind: str) -> None:
    categories = KINDS[kind]
    for folder in ("images", "panoptic"):
        (root / folder).mkdir(parents=True)
    content: dict = {"images": [], "annotations": [], "categories": []}
    for category, name, isthing in categories:
        content["categories"].append({"id": category, "name": name, "isthing": isthing})
    rng = np.random.default_rng(0)
    for index in range(4):
        ids, pairs = scene(1 if kind == "void" else index, categories)
        picture = rng.integers(0, 90, (H, W, 3)) + 40 * (ids % 4)[..., None]
        Image.fromarray(picture.astype(np.uint8)).save(root / "images" / f"{index}.png")
        write_panoptic_png(str(root / "panoptic" / f"{index}.png"), ids)
        segments = [
            {"id": i, "category_id": c, "iscrowd": 0, "area": int((ids == i).sum())}
            for i, c in pairs
        ]
        image = {"id": 30 - index, "file_name": f"{index}.png", "height": H, "width": W}
        content["images"].append(image)
        content["annotations"].append(
            {"image_id": image["id"], "file_name": f"{index}.png", "segments_info": segments}
        )
    (root / "panoptic.json").write_text(json.dumps(content))


@pytest.fixture
def config(tmp_path, tiny_opts):
    """Write a data set and a YAML that registers it, trains on it and tests on it."""

    def make(kind: str, form: str = "coco_panoptic", **keys) -> tuple[str, list]:
        data, name = tmp_path / "data" / kind, f"odd_{kind}_{form}"
        write_data(data, kind)
        entry = {"NAME": name, "FORMAT": form, "IMAGE_ROOT": str(data / "images")}
        base = "panoptic"
        if form == "coco_panoptic":
            entry["PANOPTIC_ROOT"] = str(data / "panoptic")
            entry["PANOPTIC_JSON"] = str(data / "panoptic.json")
        else:
            base = "instance"
            entry["JSON_FILE"] = str(data / "instances.json")
            panoptic_to_instances(
                str(data / "panoptic.json"), str(data / "panoptic"), entry["JSON_FILE"]
            )
        path = tmp_path / "own.yaml"
        datasets = {"CUSTOM": [entry], "TRAIN": [name], "TEST": [name]}
        text = {"_BASE_": str(ROOT / f"configs/shapes/{base}.yaml"), "DATASETS": datasets, **keys}
        path.write_text(yaml.safe_dump(text))
        size = ["INPUT.MIN_SIZE_TRAIN", (H,), "INPUT.MIN_SIZE_TEST", H]
        steps = ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 3]
        return str(path), [*tiny_opts, *size, *steps]

    yield make
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in [n for n in catalog.list() if n.startswith("odd_")]:
            catalog.remove(name)


def logged(out: Path) -> dict:
    """The last value of everything that was logged; all numbers must be finite."""
    values: dict = {}
    for line in (out / "metrics.json").read_text().splitlines():
        values.update(json.loads(line))
    assert all(math.isfinite(v) for v in values.values() if isinstance(v, float))
    return values


def flat(results: dict) -> dict:
    return {f"{task}/{name}": v for task, scores in results.items() for name, v in scores.items()}


def draw(path: str, opts: list, task: str, folder: Path) -> None:
    cfg = get_cfg_from_file(path, opts)
    predictor = KNetPredictor.from_config(cfg)
    sheets = write_sheets(predictor, cfg.DATASETS.TEST[0], str(folder), [30, 29], task=task)
    assert [Path(sheet).name for sheet in sheets] == [f"0_30_{task}.png", f"1_29_{task}.png"]
    for sheet in sheets:
        drawn = np.asarray(Image.open(sheet)).astype(int)
        assert drawn.shape[1] > 3 * 6 * W and drawn.std() > 5  # photo, ground truth, prediction


LOSSES = {
    *(f"loss_init_{t}" for t in ("mask", "dice", "rank", "seg")),
    *(f"loss_round{s}_{t}" for s in (1, 2, 3) for t in ("cls", "mask", "dice", "rank")),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_train_evaluate_and_draw(config, tmp_path, kind):
    path, opts = config(kind)
    out = tmp_path / "out"
    train(path, opts)
    values = logged(out)
    assert {name for name in values if name.startswith("loss_")} == LOSSES

    opts += ["MODEL.WEIGHTS", str(out / "model_final.pth")]
    results = evaluate(path, opts)
    assert set(results) == {"panoptic_seg", "sem_seg", *(["segm"] if kind != "stuff" else [])}
    assert flat(results) == pytest.approx({k: v for k, v in values.items() if k in flat(results)})
    quality = results["panoptic_seg"]
    assert ("PQ_th" in quality) == (kind != "stuff")
    assert ("PQ_st" in quality) == (kind != "things")
    if kind == "void":
        assert not results["segm"] and not results["sem_seg"] and quality["PQ"] == 0
    for task in ("panoptic", "instance", "semantic"):
        draw(path, opts, task, tmp_path / task)


@pytest.mark.parametrize("kind", list(KINDS))
def test_perfect_results_score_100(config, tmp_path, kind):
    path, opts = config(kind)
    cfg = get_cfg_from_file(path, opts)
    register_custom(cfg)
    (name,) = cfg.DATASETS.TEST
    metadata = MetadataCatalog.get(name)
    evaluator = build_evaluator(cfg, name, str(tmp_path / "out"))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [perfect(record, len(metadata.stuff_classes))])
    results = flat(evaluator.evaluate())
    expected = {
        "mixed": {"panoptic_seg/PQ_th", "panoptic_seg/PQ_st", "segm/AP", "sem_seg/mIoU"},
        "things": {"panoptic_seg/PQ_th", "segm/AP-kite", "segm/AP-disc", "sem_seg/IoU-disc"},
        "stuff": {"panoptic_seg/PQ_st", "sem_seg/mIoU", "sem_seg/IoU-sand"},
        "void": set(),
    }[kind]
    assert {key: results[key] for key in expected} == pytest.approx(dict.fromkeys(expected, 100))
    if kind == "mixed":  # the ids of the file come back
        saved = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
        assert {r["category_id"] for r in saved} == {70, 41}


def perfect(record: dict, num_classes: int) -> dict:
    """The output that finds every segment of a record."""
    kind = Path(record["file_name"]).parts[-3]
    ids, _ = scene(1 if kind == "void" else 30 - record["image_id"], KINDS[kind])
    ids = torch.as_tensor(ids.astype(np.int64))
    segments = record["segments_info"]
    things = [s for s in segments if s["isthing"]]
    instances = Instances((H, W))
    masks = [ids == s["id"] for s in things]
    instances.pred_masks = torch.stack(masks) if masks else torch.zeros(0, H, W, dtype=torch.bool)
    instances.pred_classes = torch.tensor([s["category_id"] for s in things], dtype=torch.int64)
    instances.scores = torch.linspace(0.9, 0.8, len(things))
    instances.pred_boxes = Boxes(torch.zeros(len(things), 4))
    semantic = torch.zeros(num_classes, H, W)
    for s in segments:
        semantic[s["category_id"]][ids == s["id"]] = 1
    info = [{key: s[key] for key in ("id", "category_id", "isthing")} for s in segments]
    return {"panoptic_seg": (ids.int(), info), "instances": instances, "sem_seg": semantic}


@pytest.mark.parametrize("filtered", [True, False])
def test_instances_and_images_without_any(config, tmp_path, filtered):
    path, opts = config("mixed", "coco_instances")
    opts += ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", filtered]
    train(path, opts)
    values = logged(tmp_path / "out")
    assert {n for n in values if n.startswith("loss_")} == {n for n in LOSSES if "rank" not in n}
    assert {"segm/AP", "segm/AP-kite", "segm/AP-disc"} <= set(values)
    assert "segm/APl" not in values  # no object is large
    draw(path, [*opts, "MODEL.WEIGHTS", f"{tmp_path}/out/model_final.pth"], "instance", tmp_path)


def test_no_instance_in_any_image(config, tmp_path):
    path, opts = config("void", "coco_instances")
    train(path, [*opts, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False])
    values = logged(tmp_path / "out")
    assert values["loss_round3_mask"] == 0 < values["loss_round3_cls"]
    assert not {name for name in values if name.startswith("segm/")}


def test_model_of_stuff_alone(config, tmp_path):
    path, opts = config("stuff")
    cfg = get_cfg_from_file(path, [*opts, "MODEL.KNET.TEST.OVERLAP_THRESH", 0.0])
    register_custom(cfg)
    model = build_model(cfg)
    assert model.heads.kernel_head.init_kernels is None
    batch = next(iter(Trainer.build_train_loader(cfg)))
    losses = model.train()(batch)
    assert {n for n, v in losses.items() if v.item() == 0} == {
        "loss_init_mask", "loss_init_dice", "loss_init_rank"
    }  # fmt: skip
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())

    predictor = KNetPredictor(cfg, model, MetadataCatalog.get(cfg.DATASETS.TEST[0]))
    predictor.save_pretrained(tmp_path / "saved")
    picture = str(tmp_path / "data/stuff/images/0.png")
    first = predictor(picture)
    assert len(first["instances"]) == 0 and first["instances"].pred_masks.shape == (0, H, W)
    assert first["sem_seg"].shape == (2, H, W)
    again = KNetPredictor.from_pretrained(tmp_path / "saved", device="cpu")
    assert torch.equal(again(picture)["sem_seg"], first["sem_seg"])
    views = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (H, 64))
    merged = KNetPredictor.from_pretrained(tmp_path / "saved", device="cpu", opts=views)(picture)
    assert len(merged["instances"]) == 0
    assert {s["category_id"] for s in merged["panoptic_seg"][1]} <= {0, 1}


@pytest.mark.parametrize("old, new", [("mixed", "stuff"), ("stuff", "mixed")])
def test_weights_go_from_one_to_the_other(config, tmp_path, old, new):
    path, opts = config(old)
    cfg = get_cfg_from_file(path, opts)
    register_custom(cfg)
    (tmp_path / "out").mkdir()
    first = build_model(cfg)
    KNetCheckpointer.from_config(cfg, first, str(tmp_path / "out")).save("model")

    path, opts = config(new)
    cfg = get_cfg_from_file(path, [*opts, "MODEL.KNET.FINETUNE", "adapt"])
    register_custom(cfg)
    second = build_model(cfg)
    KNetCheckpointer.from_config(cfg, second).load(str(tmp_path / "out/model.pth"))
    rows = [model.heads.kernel_head.seg_predictor.weight for model in (first, second)]
    assert torch.equal(rows[0][-2:], rows[1][-2:])  # sky and sand


def test_semantic_data_need_a_semantic_model(config, tmp_path):
    path, opts = config("stuff")
    cfg = get_cfg_from_file(path, [*opts, "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"])
    cfg.MODEL.KNET.NUM_THING_CLASSES = cfg.MODEL.KNET.NUM_STUFF_CLASSES = 0
    with pytest.raises(ValueError, match="neither instance nor panoptic classes"):
        build_model(cfg)
    cfg.MODEL.KNET.NUM_THING_CLASSES, cfg.MODEL.KNET.NUM_KERNELS = 2, 0
    with pytest.raises(ValueError, match="NUM_KERNELS is 0, but 2 thing classes"):
        build_model(cfg)
