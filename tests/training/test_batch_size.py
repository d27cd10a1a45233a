"""The choice of how many images pass at a time, with trials that are made up, and a true limit."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from knet.errors import UserError
from knet.training import batch_size
from knet.training.batch_size import largest_batch, worst_sample
from knet.training.memory_trial import Trial

GB = 1 << 30


@pytest.fixture
def tried(cfg, monkeypatch):
    """What was tried; passes of up to `limit` images fit."""
    seen = {"limit": 100}

    def attempts(plain, sample, sizes, processes):
        seen.update(sizes=sizes, processes=processes, cfg=plain)
        for images in sizes:
            if images > seen["limit"]:
                yield Trial(images, failure="ran out of memory")
                return
            yield Trial(images, peak=images * GB)

    monkeypatch.setattr(batch_size, "_in_child", attempts)
    return seen


@pytest.mark.parametrize(
    ("batch", "processes", "limit", "images", "passes"),
    [(16, 1, 100, 16, 1), (16, 1, 5, 4, 4), (16, 2, 5, 4, 2), (7, 1, 5, 1, 7), (1, 1, 1, 1, 1)],
)
def test_the_batch_of_a_step_stays(cfg, tried, batch, processes, limit, images, passes):
    cfg.SOLVER.IMS_PER_BATCH = batch
    tried["limit"] = limit
    before = cfg.dump()
    choice = largest_batch(cfg, processes=processes)
    assert (choice.images, choice.passes) == (images, passes)
    assert choice.images * choice.passes * processes == batch
    assert cfg.dump() == before
    reason = choice.reason
    assert f"{images} image" in reason and f"{images}.0 GB" in reason and "96x96" in reason
    assert ("ran out of memory" in reason) == (images * processes < batch)
    plain = tried["cfg"]  # stands by itself
    assert plain.MODEL.KNET.NUM_THING_CLASSES > 0 and not plain.DATASETS.TRAIN


def test_what_cannot_work_is_told(cfg, tried):
    cfg.SOLVER.IMS_PER_BATCH = 3
    with pytest.raises(UserError, match="is 3, which 2 processes cannot share"):
        largest_batch(cfg, processes=2)
    tried["limit"] = 0
    with pytest.raises(UserError, match=r"no .* 1 ran out of memory.*INPUT\.MIN_SIZE_TRAIN"):
        largest_batch(cfg)


def test_a_process_that_ends_is_a_failure(cfg, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match=r"1 ended the process that tried, with status 1\."):
        largest_batch(cfg)


def test_a_batch_that_the_model_does_not_train_with_is_for_the_user(semantic_cfg):
    semantic_cfg.SOLVER.IMS_PER_BATCH = 1
    with pytest.raises(UserError, match=r"two images a process: raise SOLVER\.IMS_PER_BATCH"):
        largest_batch(semantic_cfg)


def test_the_worst_image(cfg):
    from detectron2.data import DatasetCatalog

    records = DatasetCatalog.get("tiny_train")
    most = max(sum(s["isthing"] for s in record["segments_info"]) for record in records)
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 160)
    sample = worst_sample(cfg)
    assert sample["image"].shape == (3, 160, 160)
    assert sample["instances"].gt_masks.tensor.shape[1:] == sample["sem_seg"].shape == (160, 160)
    assert most - 1 <= len(sample["instances"]) <= most  # one may be hidden behind others
    plain = len(sample["instances"])
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE, cfg.INPUT.CROP.ENABLED = "absolute", (96, 128), True
    cfg.INPUT.SCALE_JITTER = (0.1, 5.0)
    sample = worst_sample(cfg)
    assert sample["image"].shape == (3, 96, 128) and len(sample["instances"]) == plain
    cfg.INPUT.COPY_PASTE = 0.1
    assert len(worst_sample(cfg)["instances"]) == 2 * plain


def test_maps_keep_their_objects():
    import torch
    from detectron2.structures import BitMasks, Instances

    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 2:] = True, True
    instances = Instances((4, 4), gt_classes=torch.tensor([3, 5]), gt_masks=BitMasks(masks))
    image = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    larger = batch_size._resized({"image": image, "instances": instances}, (8, 6))
    assert larger["image"].shape == (1, 8, 6) and larger["image"].dtype == torch.uint8
    kept = larger["instances"]
    assert kept.gt_classes.tolist() == [3, 5]
    assert kept.gt_masks.tensor.sum((1, 2)).tolist() == [24, 24]


LIMITED = """
import resource, sys
import knet
from pathlib import Path
from knet.config import get_cfg_from_file
from knet.data import register_coco_panoptic
from knet.errors import UserError
from knet.training.batch_size import largest_batch

folder = Path(sys.argv[1])
register_coco_panoptic("tiny_train", image_root=folder / "images",
                       panoptic_root=folder / "panoptic", panoptic_json=folder / "panoptic.json")
cfg = get_cfg_from_file("configs/shapes/panoptic.yaml", sys.argv[2:])
with open("/proc/self/statm") as file:
    held = int(file.read().split()[0]) * resource.getpagesize()
for mebibytes in (60, 450):
    limit = held + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        print(*largest_batch(cfg), sep="; ")
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no such limit")
def test_a_limit_of_the_address_space(tiny_opts, tiny_shapes):
    """The process that tries runs out of memory; this one chooses less."""
    opts = [*tiny_opts, "DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "()",
            "SOLVER.IMS_PER_BATCH", "64", "INPUT.MIN_SIZE_TRAIN", "(160,)"]  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, str(Path(tiny_shapes) / "train")]
    done = subprocess.run([*command, *opts], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    error, fits = done.stdout.splitlines()
    assert error.startswith("no training step fits into memory")
    told = re.search(r"address space, ([\d.]+) GB \(ulimit -v\), of which ([\d.]+) GB are", error)
    assert told and 0 <= float(told[1]) - float(told[2]) < 0.2

    images, passes, reason = fits.split("; ", 2)
    assert int(images) * int(passes) == 64 and 1 <= int(images) < 64
    assert "; " in reason  # why no more
