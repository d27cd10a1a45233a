"""Data sets of tar shards: the same training as from folders, gone on with, shared out, scored."""

import itertools
import json
import tarfile

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from knet.config import get_cfg_from_file
from knet.data import KNetDatasetMapper, check_dataset, register_custom
from knet.data.defects import DataError
from knet.data.loader import build_train_loader
from knet.data.reduced import ReducedPictures
from knet.data.tar_shards import file_of
from knet.data.write_shards import write_shards
from knet.evaluation import build_evaluator
from knet.files import write_json
from knet.training.trainer import Trainer

from .good_sets import FORMATS, make_good
from .test_defects import make_cfg
from .test_tar_shards import write_tar

SHARD_BYTES = 12_000  # of one sample and a bit


@pytest.fixture(params=FORMATS)
def shards(request, tmp_path):
    """Folder of shards made of a good data set, and the entries of both."""
    entry = make_good(request.param, tmp_path / "set")
    register_custom(make_cfg(entry))
    folder = tmp_path / "shards"
    assert len(write_shards(entry["NAME"], folder, shard_bytes=SHARD_BYTES)) > 1
    return folder, entry, {"NAME": "shards", "FORMAT": "shards", "SHARD_ROOT": str(folder)}


def plain(value):
    """Samples as nested values that compare."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if key != "file_name"}
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if hasattr(value, "gt_masks"):
        return value.gt_masks.tensor.tolist(), value.gt_classes.tolist()
    return value


def samples(entry):
    cfg = make_cfg(entry)
    register_custom(cfg)
    mapper = KNetDatasetMapper(cfg, True)
    mapper.augmentations.augs = []
    return [plain(mapper(record)) for record in DatasetCatalog.get(entry["NAME"])]


def test_they_give_the_samples_of_the_folder(shards):
    folder, entry, of_shards = shards
    assert samples(of_shards) == samples(entry)
    ours, theirs = (MetadataCatalog.get(e["NAME"]).as_dict() for e in (of_shards, entry))
    for key in ("thing_classes", "stuff_classes", "thing_colors", "stuff_colors", "ignore_label"):
        assert ours.get(key) == theirs.get(key)
    maps = [key for key in theirs if key.endswith("contiguous_id")]
    assert [ours[key] for key in maps] == [theirs[key] for key in maps]
    report = check_dataset("shards")
    assert (report.num_images, report.num_errors) == (3, 0)
    # written once more, of the shards: the same bytes
    again = write_shards("shards", folder.with_name("again"), shard_bytes=SHARD_BYTES)
    first = sorted(folder.glob("*.tar"))
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in first]


def write_many(folder, count):
    """Shards of another program, four samples each, without a list of them."""
    good = folder.with_name("good")
    entry = make_good("coco_instances", folder.with_name("one"))
    register_custom(make_cfg(entry))
    (path,) = write_shards(entry["NAME"], good, shard_bytes=10**6)
    with tarfile.open(path) as tar:
        picture, text = (tar.extractfile(name).read() for name in ("a.png", "a.json"))
    folder.mkdir()
    samples = []
    for k in range(count):
        about = {**json.loads(text), "image_id": k}
        for number, annotation in enumerate(about["annotations"]):
            annotation["id"] = 10 * k + number + 1
        samples += [(f"{k:03d}.png", picture), (f"{k:03d}.json", json.dumps(about).encode())]
    for start in range(0, len(samples), 8):
        write_tar(folder / f"s{start // 8}.tar", samples[start : start + 8])
    about = json.loads((good / "dataset.json").read_text())
    write_json(folder / "dataset.json", {k: about[k] for k in ("format", "categories")})
    return {"NAME": "many", "FORMAT": "shards", "SHARD_ROOT": str(folder)}


def batches(cfg, count, *, start=0, rank=0, world=1, workers=0, monkeypatch):
    cfg.DATALOADER.NUM_WORKERS = workers
    monkeypatch.setattr("knet.data.loader.comm.get_rank", lambda: rank)
    monkeypatch.setattr("knet.data.loader.comm.get_world_size", lambda: world)
    loader = build_train_loader(cfg, KNetDatasetMapper(cfg, True), seed=5, start_step=start)
    return [[plain(s) for s in batch] for batch in itertools.islice(loader, count)]


def test_every_picture_once_an_epoch_and_resumed_bit_by_bit(tmp_path, monkeypatch):
    cfg = make_cfg(write_many(tmp_path / "shards", 12))
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    register_custom(cfg)
    monkeypatch.setattr("knet.data.loader.usable_workers", lambda asked: asked)
    whole = batches(cfg, 6, monkeypatch=monkeypatch)
    for epoch in (whole[:3], whole[3:]):
        assert sorted(s["image_id"] for batch in epoch for s in batch) == list(range(12))
    # two processes with two workers each have the halves of it, bit by bit
    halves = [
        batches(cfg, 6, rank=rank, world=2, workers=2, monkeypatch=monkeypatch) for rank in (0, 1)
    ]
    assert [a + b for a, b in zip(*halves)] == whole
    assert batches(cfg, 2, start=4, workers=2, monkeypatch=monkeypatch) == whole[4:]


def test_reduced_pictures_know_their_shard(tmp_path):
    entry = write_many(tmp_path / "shards", 1)
    register_custom(make_cfg(entry))
    (record,) = DatasetCatalog.get("many")
    assert file_of(record["file_name"]) == str(tmp_path / "shards" / "s0.tar")
    reduced = ReducedPictures(tmp_path / "reduced", 8, 8)
    before = reduced._key(record)
    (tmp_path / "shards" / "s0.tar").touch()
    assert reduced._key(record) != before


@pytest.mark.parametrize("shards", ["coco_panoptic"], indirect=True)
def test_they_are_scored_as_the_folder_is(shards, tmp_path):
    scores = []
    for number, entry in enumerate(shards[1:]):
        cfg = get_cfg_from_file("configs/shapes/panoptic.yaml", [])
        cfg.DATASETS.CUSTOM, cfg.DATASETS.TEST = [entry], (entry["NAME"],)
        cfg.MODEL.KNET.TEST.SEMANTIC_ON = True
        cfg.DATALOADER.NUM_WORKERS = 0
        register_custom(cfg)
        name = entry["NAME"]
        evaluators = build_evaluator(cfg, name, str(tmp_path / f"out{number}"))
        evaluators.reset()
        for batch in Trainer.build_test_loader(cfg, name):
            size = batch[0]["height"], batch[0]["width"]
            ids = torch.ones(size, dtype=torch.int32)
            ids[10:20, 10:35] = 2
            segments = [
                {"id": 1, "category_id": 2, "isthing": False},
                {"id": 2, "category_id": 1, "isthing": True, "instance_id": 0, "score": 0.9},
            ]
            found = Instances(size, pred_boxes=Boxes(torch.tensor([[10.0, 10, 35, 20]])))
            found.pred_masks, found.scores = (ids == 2)[None], torch.tensor([0.9])
            found.pred_classes = torch.tensor([1])
            semantic = torch.nn.functional.one_hot(ids.long(), 3).permute(2, 0, 1).float()
            output = {"panoptic_seg": (ids, segments), "instances": found, "sem_seg": semantic}
            evaluators.process(batch, [output])
        scores.append(evaluators.evaluate())
    assert str(scores[0]) == str(scores[1])  # to the last bit
    assert {"panoptic_seg", "segm", "sem_seg"} <= set(scores[1])
    assert 0 < scores[1]["panoptic_seg"]["PQ"] < 100


@pytest.mark.parametrize("shards", ["coco_instances"], indirect=True)
def test_a_truncated_shard_is_named_with_its_sample(shards, tmp_path):
    folder, _, entry = shards
    last = sorted(folder.glob("*.tar"))[-1]
    data = last.read_bytes()
    last.write_bytes(data[:3000])
    with pytest.raises(DataError, match=rf"{last.name}: is truncated.* sample c; write or copy"):
        register_custom(make_cfg(entry))
    last.write_bytes(data + bytes(512))
    with pytest.raises(DataError, match=rf"{last.name}: has [\d,]+ bytes, but dataset\.json says"):
        register_custom(make_cfg(entry))
    last.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"no shard at .*{last.name}, which .*dataset\.json"
    ):
        register_custom(make_cfg(entry))
    (folder / "dataset.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no dataset\.json in .*`knet convert-data` writes"
    ):
        register_custom(make_cfg(entry))


def rewrite(folder, change):
    """Every shard anew, with members that `change(name, data)` gives; None leaves one out."""
    about = json.loads((folder / "dataset.json").read_text())
    write_json(folder / "dataset.json", {k: v for k, v in about.items() if k != "shards"})
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            members = [(m.name, change(m.name, tar.extractfile(m).read())) for m in tar]
        write_tar(path, [(name, data) for name, data in members if data is not None])


BROKEN = {
    "picture": (lambda n, d: None if n == "b.png" else d, "sample b: no picture among its"),
    "json": (lambda n, d: None if n == "b.json" else d, "sample b: no .json with its annotations"),
    "text": (lambda n, d: b"{" if n == "b.json" else d, "b.json: is not JSON"),
    "list": (lambda n, d: b"{}" if n == "b.json" else d, "b.json: `annotations` is no list"),
    "bytes": (lambda n, d: d[:100] if n == "b.png" else d, "cannot be read as a picture"),
    "mask": (lambda n, d: d.replace(b'"size": [40', b'"size": [41'), "an RLE of size (41, 60)"),
}


@pytest.mark.parametrize("shards", ["coco_instances"], indirect=True)
@pytest.mark.parametrize("name", list(BROKEN))
def test_damaged_samples_are_named(shards, name):
    folder, _, entry = shards
    change, text = BROKEN[name]
    rewrite(folder, change)
    with pytest.raises(DataError) as caught:
        samples(entry)
    where = "image 5, annotation 12" if name == "mask" else ".tar"
    assert text in str(caught.value) and where in str(caught.value)


@pytest.mark.parametrize("shards", ["coco_instances"], indirect=True)
def test_the_picture_is_not_just_the_first_member(shards):
    folder, _, entry = shards
    before = samples(entry)
    photos = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            photos.update({m.name: tar.extractfile(m).read() for m in tar})
    members = [(f"{k}.depth.png", b"depth") for k in "abc"]
    members += [(f"{k}.image.png", photos[f"{k}.png"]) for k in "abc"]
    members += [(f"{k}.json", photos[f"{k}.json"]) for k in "abc"]
    about = json.loads((folder / "dataset.json").read_text())
    write_json(folder / "dataset.json", {k: v for k, v in about.items() if k != "shards"})
    for path in folder.glob("*.tar"):
        path.unlink()
    write_tar(folder / "s.tar", sorted(members))
    entry = {**entry, "NAME": "other"}
    assert samples(entry) == before
    write_tar(folder / "s.tar", sorted(members + [("b.depth2.png", b""), ("b.image.jpg", b"")]))
    with pytest.raises(DataError, match=r"sample b: any of its members .* may be the picture"):
        samples({**entry, "NAME": "odd"})
