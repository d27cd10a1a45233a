"""What is pasted, what it hides, and that a training with it is the same however it is run."""

import itertools
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from knet.config import get_cfg_from_file
from knet.data import KNetDatasetMapper
from knet.data.copy_paste import CopyPaste, paste
from knet.data.defects import DataError
from knet.data.loader import SeededDataset, build_train_loader, seed_everything
from knet.training.trainer import Trainer


def make(value, boxes, classes, size=(4, 6), sem_seg=None):
    """A sample of one value whose objects are boxes (y0, y1, x0, x1)."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (y0, y1, x0, x1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = True
    instances = Instances(size)
    instances.gt_classes, instances.gt_masks = torch.tensor(classes).long(), BitMasks(masks)
    image = torch.full((3, *size), value, dtype=torch.uint8)
    sample = {"image": image, "instances": instances, "file_name": f"{value}.png", "height": 99}
    return sample if sem_seg is None else {**sample, "sem_seg": torch.full(size, sem_seg)}


def masks_of(sample):
    return sample["instances"].gt_masks.tensor


def test_by_hand():
    target = make(10, [(0, 2, 0, 2), (0, 4, 0, 6), (3, 4, 5, 6)], [7, 8, 9], sem_seg=255)
    source = make(200, [(0, 2, 0, 3), (1, 4, 2, 4), (2, 3, 0, 1)], [1, 2, 3], sem_seg=5)
    before = [x["image"].clone() for x in (target, source)], masks_of(target).clone()
    result = paste(target, source, [1, 0])
    covered = torch.tensor([
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0],
    ]).bool()  # fmt: skip
    assert torch.equal(result["image"][1], torch.where(covered, 200, 10))
    # object 7 is hidden, 8 lost pixels, 9 is whole; then those of the source in its order
    assert result["instances"].gt_classes.tolist() == [8, 9, 1, 2]
    masks = masks_of(result)
    assert masks.dtype == torch.bool and result["instances"].image_size == (4, 6)
    assert torch.equal(masks[0], ~covered) and torch.equal(masks[1], masks_of(target)[2])
    assert torch.equal(masks[2:], masks_of(source)[:2])
    labels = torch.tensor([
        [1, 1, 1, 0, 0, 0],
        [1, 1, 2, 2, 0, 0],
        [0, 0, 2, 2, 0, 0],
        [0, 0, 2, 2, 0, 0],
    ])  # fmt: skip
    assert torch.equal(result["sem_seg"], torch.where(covered, labels, 255))
    assert (result["file_name"], result["height"]) == ("10.png", 99)
    # the samples are left as they were
    assert torch.equal(target["image"], before[0][0]) and torch.equal(masks_of(target), before[1])
    assert (target["sem_seg"] == 255).all() and torch.equal(source["image"], before[0][1])


@pytest.mark.parametrize("size", [(3, 9), (6, 4), (2, 2), (9, 9)])
def test_sizes_that_differ(size):
    """The common part of the upper left corner; an object outside of it is not pasted."""
    target = make(10, [(0, 1, 5, 6)], [7], sem_seg=4)
    source = make(200, [(1, size[0], 1, size[1]), (0, 1, 0, 1)], [1, 2], size=size)
    both = min(size[0], 4), min(size[1], 6)
    result = paste(target, source, [0, 1])
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[1 : both[0], 1 : both[1]] = True
    assert result["instances"].gt_classes.tolist() == [7, 1, 2]
    assert torch.equal(masks_of(result)[1], expected)
    assert torch.equal(result["sem_seg"] == 1, expected)
    expected[0, 0] = True
    assert torch.equal(result["image"][0] == 200, expected)
    tall = make(200, [(5, 9, 0, 9), (0, 9, 7, 9)], [1, 2], size=(9, 9))
    nothing = paste(target, tall, [0, 1])
    assert torch.equal(nothing["image"], target["image"])
    assert nothing["instances"].gt_classes.tolist() == [7]


def test_pictures_without_objects():
    source = make(200, [(0, 1, 0, 1)], [1])
    result = paste(make(10, [], []), source, [0])
    assert torch.equal(masks_of(result), masks_of(source))
    assert "sem_seg" not in result
    records = [{"annotations": []}]
    target = make(10, [(0, 1, 0, 1)], [1])
    samples = iter([target, make(200, [], [])])
    assert CopyPaste(lambda _: next(samples), records, probability=1.0)({}) is target


@pytest.mark.parametrize("probability, low, high", [(0.0, 0, 0), (0.3, 60, 120), (1.0, 300, 300)])
def test_how_often_and_how_many(probability, low, high):
    boxes = [(0, 1, x, x + 1) for x in range(6)]

    def mapper(record):
        return make(record["value"], boxes if record["value"] else [], list(range(6))[: len(boxes)]
                    if record["value"] else [])  # fmt: skip

    records = [{"value": value, "annotations": []} for value in (100, 200)]
    pasting = CopyPaste(mapper, records, probability=probability)
    np.random.seed(0)
    counts, values = [], set()
    for _ in range(300):
        result = pasting({"value": 0})
        counts.append(len(result["instances"]))
        values |= set(result["image"].unique().tolist())
        assert sorted(result["instances"].gt_classes.tolist()) == sorted(
            torch.nonzero(result["image"][0, 0]).flatten().tolist()
        )
    pasted = [count for count in counts if count]
    assert low <= len(pasted) <= high
    if probability:
        assert set(pasted) == set(range(1, 7)) and values == {0, 100, 200}
        assert 3 < np.mean(pasted) < 4  # 3.5


def test_labels_of_other_classes_are_not_painted_over():
    semantic = {"file_name": "a.png", "annotations": [], "sem_seg_file_name": "a_labels.png"}
    panoptic = {**semantic, "segments_info": [], "pan_seg_file_name": "a_panoptic.png"}
    CopyPaste(dict, [panoptic], probability=0.5)
    with pytest.raises(ValueError, match=r"^a\.png: .*beside its instances.*COPY_PASTE.*0\.0"):
        CopyPaste(dict, [panoptic, semantic], probability=0.5)


def test_semantic_records_have_nothing_to_paste(tiny_cfg):
    records = [{"file_name": "a.png", "annotations": []}, {"file_name": "b.png"}]
    with pytest.raises(ValueError, match=r"^b\.png: .*semantic labels only.*COPY_PASTE.*0\.0"):
        CopyPaste(lambda record: record, records, probability=0.5)
    options = ["INPUT.COPY_PASTE", 0.5, "INPUT.KNET_TARGETS", ["sem_seg"]]
    with pytest.raises(ValueError, match=r"COPY_PASTE is 0\.5; there are no objects to paste in"):
        get_cfg_from_file("configs/shapes/panoptic.yaml", options)
    with pytest.raises(ValueError, match=r"COPY_PASTE is 1\.5; it must be .*at most 1"):
        get_cfg_from_file("configs/shapes/panoptic.yaml", ["INPUT.COPY_PASTE", 1.5])


@pytest.mark.parametrize("kind", ["panoptic", "instances"])
def test_masks_and_labels_agree_with_the_picture(tiny_cfg, tiny_shapes, kind):
    """Every picture in its own grey: a pixel's value says where it comes from."""
    cfg = tiny_cfg
    cfg.INPUT.KNET_COLOR_AUG = []
    cfg.INPUT.KNET_TARGETS = ["instances"] if kind == "instances" else []
    plain = KNetDatasetMapper(cfg, True)
    records = DatasetCatalog.get("tiny_train")
    numbers = {record["file_name"]: number for number, record in enumerate(records)}

    def mapper(record):
        sample = plain(record)
        return {**sample, "image": torch.full_like(sample["image"], numbers[record["file_name"]])}

    pasting = CopyPaste(mapper, records, probability=1.0)
    several = 0
    for number, record in enumerate(records):
        seed_everything(1, number)
        result = pasting(record)
        seed_everything(1, number)
        alone = plain(record)  # the draws of the record itself come first
        new = result["image"][0] != number
        masks, classes = masks_of(result), result["instances"].gt_classes
        count = sum(bool((mask & new).any()) for mask in masks)
        if not new.any():  # itself, or nothing
            continue
        several += count > 1
        old = len(masks) - count
        assert not (masks[:old] & new).any()
        assert torch.equal(masks[old:].any(0), new) and masks.flatten(1).any(1).all()
        still = [m & ~new for m in masks_of(alone) if (m & ~new).any()]
        assert len(still) == old and all(map(torch.equal, still, masks[:old]))
        if kind == "panoptic":
            assert torch.equal(result["sem_seg"][~new], alone["sem_seg"][~new])
            assert all((result["sem_seg"][m] == c).all() for m, c in zip(masks, classes))
    assert several > 3


def batches(cfg, *, start=0, count=3, workers=0, prepare=None):
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = Trainer.build_train_loader(cfg, seed=3, start_step=start, prepare=prepare)
    return [x for batch in itertools.islice(loader, count) for x in batch]


def assert_equal(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others):
        assert one["file_name"] == other["file_name"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["sem_seg"], other["sem_seg"])
        assert torch.equal(masks_of(one), masks_of(other))


def test_it_goes_on_where_it_stopped_with_any_number_of_workers(tiny_cfg):
    tiny_cfg.INPUT.COPY_PASTE = 0.0
    plain = batches(tiny_cfg)
    tiny_cfg.INPUT.COPY_PASTE = 0.5
    whole = batches(tiny_cfg)
    assert_equal(whole[4:], batches(tiny_cfg, start=1, count=2, workers=2))
    changed = [not torch.equal(a["image"], b["image"]) for a, b in zip(plain, whole)]
    assert 2 < sum(changed) < 10
    untouched = [k for k, is_changed in enumerate(changed) if not is_changed]
    assert_equal([plain[k] for k in untouched], [whole[k] for k in untouched])


def test_targets_are_made_of_what_was_pasted(tiny_cfg):
    tiny_cfg.INPUT.COPY_PASTE = 1.0
    raw = batches(tiny_cfg, count=1)
    ready = batches(tiny_cfg, count=1, prepare=lambda x: {"found": len(x["instances"])})
    assert [x["found"] for x in ready] == [len(x["instances"]) for x in raw]


def test_other_records_may_be_of_any_data_set_of_the_training(tiny_cfg):
    """And of those only."""
    for name in ("train", "val"):
        meta = MetadataCatalog.get(f"tiny_{name}").as_dict()
        copies = [{**r, "source": name} for r in DatasetCatalog.get(f"tiny_{name}")]
        DatasetCatalog.register(f"{name}_again", lambda copies=copies: copies)
        MetadataCatalog.get(f"{name}_again").set(**{k: meta[k] for k in meta if k != "name"})
    tiny_cfg.DATASETS.TRAIN = ("train_again", "val_again")
    tiny_cfg.INPUT.COPY_PASTE, tiny_cfg.DATALOADER.NUM_WORKERS = 1.0, 0
    seen = []

    def mapper(record):
        seen.append(record["source"])
        return make(10, [(0, 1, 0, 1)], [1])

    list(itertools.islice(build_train_loader(tiny_cfg, mapper, seed=0, start_step=0), 30))
    targets, others = seen[::2], seen[1::2]
    assert len(targets) == len(others) == 120
    assert 0.6 < np.mean(np.array(others) == "train") < 0.9  # of 12 and 4


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_other_records_with_a_defect(on_error):
    def mapper(record):
        if record["x"] == 1:
            raise DataError("1.jpg: it is broken")
        return make(record["x"], [(0, 1, 0, 1)], [1])

    records = [{"x": 1, "annotations": []}, {"x": 2, "annotations": []}]
    pasting = CopyPaste(mapper, records, probability=1.0, on_error=on_error)
    dataset = SeededDataset(records, pasting, seed=0, on_error=on_error)
    if on_error == "raise":
        with pytest.raises(DataError, match=r"1\.jpg: it is broken"):
            [dataset[(position, 1)] for position in range(9)]
        return
    skipped = [dataset[(position, 1)].get("skipped_records", []) for position in range(30)]
    assert {len(messages) for messages in skipped} == {0, 1}
    # a broken record in place of which another one comes, which then meets a broken one
    both = [dataset[(position, 0)]["skipped_records"] for position in range(30)]
    assert {len(messages) for messages in both} == {1, 2}
    again = [dataset[(position, 1)].get("skipped_records", []) for position in range(30)]
    assert again == skipped


def test_broken_records_are_counted_on_the_way(tiny_cfg, caplog):
    mapper = KNetDatasetMapper(tiny_cfg, is_train=True)
    lost = {r["file_name"] for r in DatasetCatalog.get("tiny_train")[::3]}

    def partly_broken(record):
        if record["file_name"] in lost:
            record["file_name"] += ".gone"
        return mapper(record)

    tiny_cfg.INPUT.COPY_PASTE, tiny_cfg.DATASETS.ON_ERROR = 1.0, "skip"
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    loader = build_train_loader(tiny_cfg, partly_broken, seed=3, start_step=0)
    with caplog.at_level(logging.WARNING):
        found = [x for batch in itertools.islice(loader, 6) for x in batch]
    assert len(found) == 24 and not any("skipped_records" in x for x in found)
    # a third of the records themselves, and of the others
    assert 10 < loader.total < 24 and ".gone" in caplog.text


def test_it_trains_with_jitter(tiny_cfg):
    tiny_cfg.INPUT.COPY_PASTE = 1.0
    tiny_cfg.INPUT.CROP.ENABLED, tiny_cfg.INPUT.CROP.TYPE = True, "absolute"
    tiny_cfg.INPUT.CROP.SIZE, tiny_cfg.INPUT.SCALE_JITTER = (64, 64), (0.1, 2.0)
    losses = build_model(tiny_cfg).train()(batches(tiny_cfg, count=1))
    assert losses and all(torch.isfinite(loss) for loss in losses.values())
