"""The meta-architecture."""

import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.structures import BitMasks, Instances

from knet.checkpoint.published_names import to_published_name
from knet.classes import ClassIds
from knet.config import get_cfg_from_file
from knet.modeling.build_neck import KNET_NECK_REGISTRY
from knet.modeling.task import MaskTask

SHAPES = Path(__file__).parents[1] / "golden" / "published_shapes.json"


def example(height=48, width=64, objects=2, seed=0, sem_seg=True):
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    masks = torch.zeros(objects, height, width, dtype=torch.bool)
    for i in range(objects):
        masks[i, 4 * i : 4 * i + 12, 8 : 8 + 10 + i] = True
    instances.gt_masks = BitMasks(masks)
    instances.gt_classes = torch.arange(objects) % 4
    labels = torch.full((height, width), 4)
    labels[:, width // 2 :] = 6
    for i in range(objects):
        labels[masks[i]] = int(instances.gt_classes[i])
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    x = {"image": image, "height": height * 2, "width": width + 5, "instances": instances}
    if sem_seg:
        x["sem_seg"] = labels
    return x


NAMES = {
    *(f"loss_init_{t}" for t in ("mask", "dice", "rank", "seg")),
    *(f"loss_round{s}_{t}" for s in (1, 2, 3) for t in ("cls", "mask", "dice", "rank")),
}


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("objects", [0, 2, 20])
def test_training_step_of_any_batch(tiny_cfg, batch, objects):
    model = build_model(tiny_cfg).train()
    inputs = [example(48, 48 + 16 * i, objects, i) for i in range(batch)]
    losses = model(inputs)
    assert set(losses) == NAMES
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing  # else DistributedDataParallel would wait for ever
    assert all(v.isfinite() for v in losses.values())


def test_instance_model_has_no_rank_loss_and_no_stuff(tiny_cfg):
    tiny_cfg.merge_from_list(
        ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.KNET.NUM_THING_CLASSES", 4,
         "MODEL.KNET.NUM_STUFF_CLASSES", 0, "MODEL.KNET.LOSS.RANK_WEIGHT", 0.0,
         "MODEL.KNET.TEST.PANOPTIC_ON", False, "MODEL.KNET.TEST.SEMANTIC_ON", False]
    )  # fmt: skip
    model = build_model(tiny_cfg).train()
    for objects in (2, 0):
        losses = model([example(objects=objects, sem_seg=False)])
        assert set(losses) == {n for n in NAMES if not n.endswith("rank")}
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in model.parameters())
    (out,) = model.eval()([example()])
    assert set(out) == {"instances"}


def test_results_follow_detectron2(tiny_cfg):
    tiny_cfg.MODEL.KNET.TEST.THING_THRESH = 0.0
    tiny_cfg.MODEL.KNET.TEST.OVERLAP_THRESH = 0.0
    model = build_model(tiny_cfg).eval()
    inputs = [example(48, 64), example(32, 40)]
    with torch.no_grad():
        outputs = model(inputs)
    for x, out in zip(inputs, outputs):
        size = (x["height"], x["width"])
        instances = out["instances"]
        assert instances.image_size == size
        assert instances.pred_masks.shape == (12 * 4, *size)  # 12 kernels, 4 classes, top k 100
        assert instances.pred_boxes.tensor.shape == (48, 4)
        assert instances.scores.tolist() == sorted(instances.scores.tolist(), reverse=True)
        id_map, segments = out["panoptic_seg"]
        assert id_map.shape == size and id_map.dtype == torch.int32
        assert segments
        assert {s["id"] for s in segments} == set(id_map.unique().tolist()) - {0}
        for s in segments:
            assert s["isthing"] == (s["category_id"] < 4)
            assert s["area"] == int((id_map == s["id"]).sum())
        assert out["sem_seg"].shape == (8, *size)


def test_batching_does_not_change_results(tiny_cfg):
    model = build_model(tiny_cfg).eval()
    inputs = [example(48, 64, seed=i) for i in range(2)]
    with torch.no_grad():
        together = model(inputs)
        apart = [model([x])[0] for x in inputs]
    for a, b in zip(together, apart):
        torch.testing.assert_close(a["sem_seg"], b["sem_seg"], rtol=1e-4, atol=1e-5)


def test_results_can_be_chosen(tiny_cfg):
    tiny_cfg.merge_from_list(
        ["MODEL.KNET.TEST.PANOPTIC_ON", False, "MODEL.KNET.TEST.SEMANTIC_ON", False,
         "TEST.DETECTIONS_PER_IMAGE", 5, "MODEL.KNET.TEST.SCORE_THRESH", 0.0]
    )  # fmt: skip
    (out,) = build_model(tiny_cfg).eval()([example()])
    assert set(out) == {"instances"} and len(out["instances"]) == 5


def test_labels_of_the_data_set_are_translated(tiny_cfg):
    model = build_model(tiny_cfg)
    model.task = MaskTask(
        class_ids=ClassIds((5, 6, 8, 9), (0, 2, 3, 7)),
        options=model.task.options,
        mask_upsample=model.task.mask_upsample,
        loss_stride=model.task.loss_stride,
    )
    x = example()
    x["instances"].gt_classes = torch.tensor([8, 5])
    x["sem_seg"] = torch.full((48, 64), 3)
    targets = model.task.targets([x], (48, 64), model.device)
    assert targets.things[0].tolist() == [2, 0] and targets.stuff[0].tolist() == [2]
    (out,) = model.eval()([example()])
    assert set(out["instances"].pred_classes.tolist()) <= {5, 6, 8, 9}
    assert out["sem_seg"].shape[0] == 10 and out["sem_seg"][4].abs().sum() == 0
    for s in out["panoptic_seg"][1]:
        assert s["category_id"] in ((5, 6, 8, 9) if s["isthing"] else (0, 2, 3, 7))


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_mixed_precision_losses_are_float32_and_close(tiny_cfg, dtype):
    model = build_model(tiny_cfg).train()
    inputs = [example()]
    exact = model(inputs)
    with torch.autocast("cpu", dtype=dtype):
        mixed = model(inputs)
    for name, value in mixed.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), rel=0.15, abs=0.05), name


def test_norm_statistics_freeze_while_their_affine_trains(tiny_cfg):
    for frozen in (True, False):
        tiny_cfg.MODEL.KNET.FREEZE_NORM_STATS = frozen
        model = build_model(tiny_cfg).train()
        norm = next(m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
        before = norm.running_mean.clone()
        sum(model([example()]).values()).backward()
        assert torch.equal(norm.running_mean, before) == frozen
        assert norm.weight.grad is not None


@pytest.mark.parametrize("kind, given, found", [("THING", 80, 4), ("STUFF", 53, 4)])
def test_wrong_class_count_names_both(tiny_cfg, kind, given, found):
    tiny_cfg.MODEL.KNET[f"NUM_{kind}_CLASSES"] = given
    with pytest.raises(ValueError, match=rf"{given}, but 'tiny_train' \(.*\) has {found} thing"):
        build_model(tiny_cfg)


def test_data_sets_with_other_classes_do_not_mix(tiny_cfg):
    tiny_cfg.DATASETS.TEST = ("coco_2017_val_panoptic",)
    with pytest.raises(
        ValueError, match=r"'tiny_train' .* has 4 thing classes .* but 'coco_2017_val_panoptic'"
    ):
        build_model(tiny_cfg)
    tiny_cfg.DATASETS.TRAIN = tiny_cfg.DATASETS.TEST = ("coco_2017_val_panoptic_separated",)
    with pytest.raises(ValueError, match="without '_separated'"):
        build_model(tiny_cfg)


def test_unregistered_data_set_and_missing_counts(tiny_cfg):
    tiny_cfg.DATASETS.TRAIN = ("nowhere_train",)
    with pytest.raises(ValueError, match=r"'nowhere_train'.*not registered"):
        build_model(tiny_cfg)
    tiny_cfg.DATASETS.TRAIN = tiny_cfg.DATASETS.TEST = ()
    with pytest.raises(ValueError, match="must be given; they are -1 and -1"):
        build_model(tiny_cfg)


def test_missing_labels_are_named(tiny_cfg):
    model = build_model(tiny_cfg).train()
    x = {**example(sem_seg=False), "file_name": "street.jpg"}
    with pytest.raises(ValueError, match=r"street\.jpg.*'sem_seg'"):
        model([x])


def test_unfit_features_and_strides(tiny_cfg):
    tiny_cfg.MODEL.KNET.IN_FEATURES = ["res2", "p9"]
    with pytest.raises(ValueError, match=r"\['p9'\].*res2.*res5"):
        build_model(tiny_cfg)
    tiny_cfg.MODEL.KNET.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    tiny_cfg.MODEL.KNET.MASK_UPSAMPLE = 3
    with pytest.raises(ValueError, match="MASK_UPSAMPLE"):
        build_model(tiny_cfg)


def test_more_objects_than_kernels_train_on_with_a_warning(tiny_cfg, caplog):
    with caplog.at_level(logging.WARNING):
        losses = build_model(tiny_cfg).train()([example(96, 96, objects=20)])
    assert "20 objects" in caplog.text and "12 kernels" in caplog.text
    assert all(v.isfinite() for v in losses.values())


def test_foreign_necks_plug_in(tiny_cfg):
    class Narrow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(32, 16, 1)

        def forward(self, features):
            return self.conv(features[1]), self.conv(features[1])

    def build_narrow_neck(cfg, input_shape):
        return Narrow()

    if "build_narrow_neck" not in KNET_NECK_REGISTRY:
        KNET_NECK_REGISTRY.register(build_narrow_neck)
    tiny_cfg.MODEL.KNET.NECK = "build_narrow_neck"
    tiny_cfg.MODEL.SMALL_RESNET.CHANNELS = [16, 32, 48, 50]  # only the published neck minds
    model = build_model(tiny_cfg).train()
    assert set(model([example()])) == NAMES


def test_a_neck_of_another_stride_or_width_is_refused(tiny_cfg):
    class Fine(torch.nn.Module):
        def forward(self, features):
            return features[0][:, :16], features[0][:, :16]

    def build_fine_neck(cfg, input_shape):
        return Fine()

    if "build_fine_neck" not in KNET_NECK_REGISTRY:
        KNET_NECK_REGISTRY.register(build_fine_neck)
    tiny_cfg.MODEL.KNET.NECK = "build_fine_neck"
    message = (
        r"build_fine_neck gives .* \(1, 16, 16, 16\) where \(1, 16, 8, 8\) is .* of res3, which"
    )
    with pytest.raises(ValueError, match=message):
        build_model(tiny_cfg)
    tiny_cfg.MODEL.KNET.MASK_LEVEL, tiny_cfg.MODEL.KNET.HIDDEN_DIM = 0, 32
    with pytest.raises(ValueError, match=r"\(1, 16, 16, 16\) where \(1, 32, 16, 16\)"):
        build_model(tiny_cfg)


def full_size(task, data):
    things, stuff = data
    return get_cfg_from_file(
        f"configs/coco/{task}/knet_r50_fpn_1x.yaml",
        ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.DEVICE", "cpu",
         "MODEL.KNET.NUM_THING_CLASSES", things, "MODEL.KNET.NUM_STUFF_CLASSES", stuff],
    )  # fmt: skip


@pytest.mark.parametrize("task, data", [("instance", (80, 0)), ("panoptic", (80, 53))])
def test_full_size_parameters_are_the_published_ones(task, data):
    model = build_model(full_size(task, data))
    published = json.loads(SHAPES.read_text())[task]
    bottom_up = {id(p) for p in model.backbone.bottom_up.parameters()}
    ours = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in bottom_up:
            shape = list(parameter.shape)
            if name.endswith("feature_transform.weight"):
                shape += [1, 1]
            ours[to_published_name(name)] = shape
    assert ours == {k: v for k, v in published["parameters"].items() if k[:8] != "backbone"}
    # frozen batch norms keep scale and shift in buffers
    state = model.backbone.bottom_up.state_dict()
    count = sum(v.numel() for k, v in state.items() if "running" not in k and "num_b" not in k)
    heads = sum(p.numel() for p in model.parameters() if id(p) not in bottom_up)
    assert count + heads == published["num_params"]


@pytest.mark.parametrize("head", ["fcn", "pspnet", "deeplabv3", "upernet"])
def test_full_size_semantic_parameters_are_the_published_ones(head):
    cfg = get_cfg_from_file(
        f"configs/ade20k/semantic/knet_{head}_r50.yaml",
        ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.DEVICE", "cpu",
         "MODEL.KNET.NUM_THING_CLASSES", 0, "MODEL.KNET.NUM_STUFF_CLASSES", 150],
    )  # fmt: skip
    published = json.loads(SHAPES.read_text())[f"semantic_{head}"]
    ours, count = {}, 0
    for name, parameter in build_model(cfg).named_parameters():
        shape = list(parameter.shape)
        if name.endswith("feature_transform.weight"):
            shape += [1, 1]
        ours[to_published_name(name, semantic=True)] = shape
        count += parameter.numel()
    assert ours == published["parameters"]
    assert count == published["num_params"]


def test_pyramid_sums_nearest_enlargements(tiny_cfg):
    """What the published FPN computes; golden numbers of it are too large to keep."""
    tiny_cfg.MODEL.BACKBONE.NAME = "build_small_resnet_fpn_backbone"
    tiny_cfg.MODEL.KNET.IN_FEATURES = ["p1", "p2", "p3", "p4"]
    fpn = build_model(tiny_cfg).eval().backbone
    image = torch.randn(1, 3, 64, 96)
    bottom_up, pyramid = fpn.bottom_up(image), fpn(image)
    above = 0
    for level in (4, 3, 2, 1):
        inner = getattr(fpn, f"fpn_lateral{level}")(bottom_up[f"res{level + 1}"]) + above
        expected = getattr(fpn, f"fpn_output{level}")(inner)
        torch.testing.assert_close(pyramid[f"p{level}"], expected, rtol=1e-4, atol=1e-5)
        above = inner.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_any_registered_backbone(tiny_cfg):
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import Backbone

    class Pooling(Backbone):
        def forward(self, x):
            mean = torch.nn.functional.avg_pool2d
            return {f"f{i}": mean(x, 2**i).repeat(1, 2, 1, 1) for i in (1, 2, 3)}

        def output_shape(self):
            return {f"f{i}": ShapeSpec(channels=6, stride=2**i) for i in (1, 2, 3)}

    if "build_pooling" not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY._do_register("build_pooling", lambda cfg, shape: Pooling())
    tiny_cfg.MODEL.BACKBONE.NAME = "build_pooling"
    tiny_cfg.MODEL.KNET.IN_FEATURES = ["f1", "f2", "f3"]
    with pytest.raises(ValueError, match=r"has 6 channels .* multiple of 4"):
        build_model(tiny_cfg)
    Pooling.forward = lambda self, x: {
        f"f{i}": torch.nn.functional.avg_pool2d(x, 2**i).repeat(1, 4, 1, 1) for i in (1, 2, 3)
    }
    Pooling.output_shape = lambda self: {
        f"f{i}": ShapeSpec(channels=12, stride=2**i) for i in (1, 2, 3)
    }
    assert set(build_model(tiny_cfg).train()([example()])) == NAMES


def test_unknown_key_is_refused():
    with pytest.raises(
        ValueError,
        match=r"MODEL\.KNET\.NUM_KERNEL: no such key; did you mean MODEL\.KNET\.NUM_KERNELS",
    ):
        get_cfg_from_file("configs/shapes/panoptic.yaml", ["MODEL.KNET.NUM_KERNEL", "5"])
    assert isinstance(get_cfg_from_file("configs/shapes/panoptic.yaml"), CfgNode)
