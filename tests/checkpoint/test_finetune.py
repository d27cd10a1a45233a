"""From a checkpoint with other classes or another number of kernels."""

import logging

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.class_names import ClassNames, match_classes
from knet.checkpoint.finetune import JITTER
from knet.checkpoint.published_names import export_published

KERNELS = "heads.kernel_head.init_kernels.weight"
BRANCH = "heads.kernel_head.seg_predictor.{}"
PREDICTOR = "heads.rounds.{}.class_predictor.{}"


def model_of(cfg, names, **keys):
    """A model of these classes without a data set."""
    cfg = cfg.clone()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    cfg.MODEL.KNET.NUM_THING_CLASSES = names.num_things
    cfg.MODEL.KNET.NUM_STUFF_CLASSES = len(names.names) - names.num_things
    for key, value in keys.items():
        cfg.MODEL.KNET[key] = value
    model = build_model(cfg)
    for name, value in model.state_dict().items():
        if "predictor" in name or "classifier" in name:
            torch.nn.init.normal_(value)
    return model


def adapt(model, names, path, caplog, finetune="adapt"):
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    with caplog.at_level(logging.INFO, "knet"):
        KNetCheckpointer(model, finetune=finetune, classes=names).load(str(path))
    return fresh, "\n".join(r.getMessage() for r in caplog.records)


OLD = ClassNames(("disk", "box", "kite", "sky", "sand"), 3)
NEW = ClassNames(("kite", "star", "disk", "box", "ring", "snow", "sky"), 5)


@pytest.mark.parametrize("kernels", [5, 12, 30])
def test_rows_go_by_name_and_kernels_are_kept_or_repeated(tiny_cfg, tmp_path, caplog, kernels):
    old = model_of(tiny_cfg, OLD)
    KNetCheckpointer(old, str(tmp_path), classes=OLD).save("old")
    new = model_of(tiny_cfg, NEW, NUM_KERNELS=kernels)
    fresh, said = adapt(new, NEW, tmp_path / "old.pth", caplog)
    before, after = old.state_dict(), new.state_dict()

    rows = [2, None, 0, 1, None, None, 3]
    parts = [BRANCH.format(part) for part in ("weight", "bias")]
    parts += [PREDICTOR.format(r, part) for r in range(3) for part in ("weight", "bias")]
    for part in parts:
        for i, row in enumerate(rows):
            expected = fresh[part][i] if row is None else before[part][row]
            assert torch.equal(after[part][i], expected), (part, i)
    n = min(kernels, 12)
    assert torch.equal(after[KERNELS][:n], before[KERNELS][:n])
    repeated = after[KERNELS][12:] - before[KERNELS].repeat(3, 1, 1, 1)[12:kernels]
    if kernels > 12:
        scale = repeated.std() / before[KERNELS].std()
        assert 0.8 * JITTER < scale < 1.2 * JITTER
    untouched = set(after) - {*parts, KERNELS}
    assert all(torch.equal(after[k], before[k]) for k in untouched)

    table = said.split("FINETUNE adapt)\n")[1].split("\nEND")[0].splitlines()
    assert len(said.splitlines()) <= 15
    assert table[0].split() == ["part", "checkpoint", "model", "what", "was", "done"]
    assert (
        "semantic branch            5      7  4 rows by class name, 3 new: star, ring, snow" in said
    )
    if kernels != 12:
        words = {5: "the first 5 kept", 30: "12 kept, 18 repeated with 1% noise"}
        assert f"learned kernels           12  {kernels:>5}  {words[kernels]}" in said
    assert ("learned kernels" in said) == (kernels != 12)


def test_every_process_repeats_alike(tiny_cfg, tmp_path, caplog):
    KNetCheckpointer(model_of(tiny_cfg, OLD), str(tmp_path), classes=OLD).save("old")
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = model_of(tiny_cfg, OLD, NUM_KERNELS=20)
        adapt(model, OLD, tmp_path / "old.pth", caplog)
        found.append(model.state_dict()[KERNELS])
    assert torch.equal(*found)


def test_strict_names_the_key(tiny_cfg, tmp_path, caplog):
    KNetCheckpointer(model_of(tiny_cfg, OLD), str(tmp_path), classes=OLD).save("old")
    with pytest.raises(
        ValueError, match=r"seg_predictor\.\w+ \(is \(5,.*MODEL\.KNET\.FINETUNE adapt.*DATASETS"
    ):
        adapt(model_of(tiny_cfg, NEW), NEW, tmp_path / "old.pth", caplog, finetune="strict")
    with pytest.raises(ValueError, match=r"MODEL\.KNET\.FINETUNE is 'some'"):
        KNetCheckpointer(model_of(tiny_cfg, NEW), finetune="some")


def test_another_width_cannot_be_adapted(tiny_cfg, tmp_path, caplog):
    KNetCheckpointer(model_of(tiny_cfg, OLD), str(tmp_path), classes=OLD).save("old")
    wider = model_of(tiny_cfg, OLD, HIDDEN_DIM=32)
    with pytest.raises(ValueError, match=r"another model.*MODEL\.KNET\.HIDDEN_DIM"):
        adapt(wider, OLD, tmp_path / "old.pth", caplog)


def test_without_names_rows_of_other_classes_are_new(tiny_cfg, tmp_path, caplog):
    KNetCheckpointer(model_of(tiny_cfg, OLD), str(tmp_path)).save("old")
    new = model_of(tiny_cfg, NEW)
    fresh, said = adapt(new, NEW, tmp_path / "old.pth", caplog)
    part = BRANCH.format("weight")
    assert torch.equal(new.state_dict()[part], fresh[part])
    assert "0 rows by class name, 7 new: the checkpoint has no class names" in said


def test_one_order_for_another(tiny_cfg, tmp_path, caplog):
    """Rows of the same shape but other classes are no match either."""
    old = model_of(tiny_cfg, OLD)
    KNetCheckpointer(old, str(tmp_path), classes=OLD).save("old")
    turned = ClassNames(("kite", "box", "disk", "sky", "sand"), 3)
    for arguments in ({}, {"strict": True}):
        checkpointer = KNetCheckpointer(model_of(tiny_cfg, OLD), classes=turned, **arguments)
        with pytest.raises(ValueError, match="'kite' is class 2 there and class 0 here"):
            checkpointer.load(str(tmp_path / "old.pth"))
    new = model_of(tiny_cfg, turned)
    adapt(new, turned, tmp_path / "old.pth", caplog)
    part = BRANCH.format("weight")
    assert torch.equal(new.state_dict()[part], old.state_dict()[part][[2, 1, 0, 3, 4]])


def test_published_names_of_classes(tiny_cfg, tmp_path, caplog):
    tiny_cfg.merge_from_list(
        ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.STEM_OUT_CHANNELS", 16,
         "MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.KNET.IN_FEATURES", ["p2", "p3", "p4", "p5"]]
    )  # fmt: skip
    old = model_of(tiny_cfg, OLD)
    saved = {"meta": {"CLASSES": OLD.names}, "state_dict": export_published(old.state_dict())}
    torch.save(saved, tmp_path / "old.pth")
    new = model_of(tiny_cfg, NEW)
    adapt(new, NEW, tmp_path / "old.pth", caplog)
    part = BRANCH.format("bias")
    assert torch.equal(new.state_dict()[part][[0, 6]], old.state_dict()[part][[2, 3]])


def test_semantic_models(semantic_cfg, tmp_path, caplog):
    old_names = ClassNames(("sky", "sand", "snow"), 0)
    new_names = ClassNames(("snow", "sea", "sky", "sand"), 0)
    old = model_of(semantic_cfg, old_names)
    KNetCheckpointer(old, str(tmp_path), classes=old_names).save("old")
    new = model_of(semantic_cfg, new_names)
    fresh, said = adapt(new, new_names, tmp_path / "old.pth", caplog)
    for part in ("kernel_head", "auxiliary"):
        for kind in ("weight", "bias"):
            name = f"heads.{part}.classifier.{kind}"
            assert torch.equal(new.state_dict()[name][[0, 2, 3]], old.state_dict()[name][[2, 0, 1]])
            assert torch.equal(new.state_dict()[name][1], fresh[name][1])
    assert "classifier, the kernels" in said and "1 new: sea" in said


def test_resuming_never_adapts(tiny_cfg, tmp_path):
    KNetCheckpointer(model_of(tiny_cfg, OLD), str(tmp_path), classes=OLD).save("old")
    checkpointer = KNetCheckpointer(
        model_of(tiny_cfg, NEW), str(tmp_path), finetune="adapt", classes=NEW
    )
    with pytest.raises(ValueError, match="another model"):
        checkpointer.resume_or_load("", resume=True)


TRAINING = "heads.training_kernels."
PILOTS, MANY = f"{TRAINING}pilots.classes.weight", f"{TRAINING}many.kernels.weight"


def test_kernels_of_training_are_adapted(tiny_cfg, tmp_path, caplog):
    old = model_of(tiny_cfg, OLD, MASK_PILOTS=2, ONE_TO_MANY=2)
    KNetCheckpointer(old, str(tmp_path), classes=OLD).save("old")
    new = model_of(tiny_cfg, NEW, MASK_PILOTS=1, ONE_TO_MANY=3)
    fresh, said = adapt(new, NEW, tmp_path / "old.pth", caplog)
    before, after = old.state_dict(), new.state_dict()
    for i, row in enumerate([2, None, 0, 1, None]):
        assert torch.equal(
            after[PILOTS][i], fresh[PILOTS][i] if row is None else before[PILOTS][row]
        )
    assert torch.equal(after[MANY][:24], before[MANY]) and after[MANY].shape[0] == 36
    assert "classes of pilots" in said and "3 rows by class name, 2 new: star, ring" in said
    assert "24 kept, 12 repeated with 1% noise" in said
    with pytest.raises(ValueError, match=r"MODEL\.KNET\.FINETUNE adapt"):
        adapt(new, NEW, tmp_path / "old.pth", caplog, finetune="strict")


@pytest.mark.parametrize("finetune", ["adapt", "strict"])
def test_kernels_of_training_come_and_go(tiny_cfg, tmp_path, caplog, finetune):
    keys = {"MASK_PILOTS": 2, "ONE_TO_MANY": 2}
    plain, helped = model_of(tiny_cfg, OLD), model_of(tiny_cfg, OLD, **keys)
    for name, model in (("plain", plain), ("helped", helped)):
        KNetCheckpointer(model, str(tmp_path), classes=OLD).save(name)
    new = model_of(tiny_cfg, OLD, **keys)
    fresh, said = adapt(new, OLD, tmp_path / "plain.pth", caplog, finetune)
    for name, value in new.state_dict().items():
        theirs = fresh if name in (PILOTS, MANY) else plain.state_dict()
        assert torch.equal(value, theirs[name]), name
    assert "freshly initialised: 2 (heads.training_kernels)" in said
    new = model_of(tiny_cfg, OLD)
    _, said = adapt(new, OLD, tmp_path / "helped.pth", caplog, finetune)
    assert all(torch.equal(v, helped.state_dict()[k]) for k, v in new.state_dict().items())
    assert "2 that the model lacks (heads.training_kernels)" in said
    # what is evaluated or resumed has to fit entirely
    for key in keys:
        other = model_of(tiny_cfg, OLD, **{key: 2})
        with pytest.raises(
            ValueError, match=f"differs is MODEL.KNET.({'|'.join(set(keys) - {key})})"
        ):
            KNetCheckpointer(other, strict=True).load(str(tmp_path / "helped.pth"))
        with pytest.raises(ValueError, match=f"differs is MODEL.KNET.{key}"):
            KNetCheckpointer(other, strict=True).load(str(tmp_path / "plain.pth"))


def test_names_come_from_the_config(tiny_cfg, semantic_cfg, tmp_path):
    names = ClassNames.from_config(tiny_cfg)
    metadata = MetadataCatalog.get("tiny_train")
    assert (names.num_things, len(names.names)) == (4, 8)
    assert set(names.names) == {*metadata.thing_classes, *metadata.stuff_classes}
    assert ClassNames.from_config(semantic_cfg).num_things == 0
    tiny_cfg.MODEL.KNET.FINETUNE, tiny_cfg.MODEL.KNET.UNSAFE_WEIGHTS = "adapt", True
    model = build_model(tiny_cfg)
    checkpointer = KNetCheckpointer.from_config(tiny_cfg, model, str(tmp_path), strict=True)
    assert (checkpointer.finetune, checkpointer.trust, checkpointer.classes) == (
        "adapt",
        True,
        names,
    )
    checkpointer.save("model")
    saved = torch.load(tmp_path / "model.pth", weights_only=True)["classes"]
    assert ClassNames.from_dict(saved) == names
    tiny_cfg.DATASETS.TRAIN = tiny_cfg.DATASETS.TEST = ()
    assert ClassNames.from_config(tiny_cfg) is None


def test_matching_of_spellings():
    theirs = ClassNames(("Person", "dining table", "window-other", "floor-other-merged", "road"))
    ours = ClassNames(("dining_table", "road, route", "floor", "person", "sky"), 1)
    assert match_classes(theirs, ours) == [1, 4, 3, 0, None]
    # the same order, half of the names: one list in two spellings
    assert match_classes(ClassNames(("a", "b", "c", "d")), ClassNames(("a", "x", "c", "y"), 2)) == [
        0, 1, 2, 3,
    ]  # fmt: skip
    # twice the same name: things with things, stuff with stuff
    double = ClassNames(("sand", "sky", "sand"), 1)
    assert match_classes(double, ClassNames(("sky", "sand", "sand", "sea"), 2)) == [1, 0, 2, None]
    assert match_classes(ClassNames(double.names), ClassNames(("sand",), 1)) == [None]


def test_published_coco_and_ade20k_names_are_those_of_detectron2():
    import detectron2.data.datasets  # noqa: F401

    coco = MetadataCatalog.get("coco_2017_train_panoptic")
    ours = ClassNames((*coco.thing_classes[:80], *coco.stuff_classes[80:]), 80)
    assert match_classes(ClassNames(ours.names), ours) == list(range(133))
