"""Semantic models as a whole; their pixel decoders and the classifier behind them."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from knet.modeling.semantic import (
    PIXEL_DECODERS,
    FCNDecoder,
    PixelClassifier,
    PyramidPooling,
    UPerDecoder,
)


def example(rows=48, columns=64, seed=0, **extra):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, rows, columns), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 8, (rows, columns), generator=generator)
    labels[:3] = 255
    return {"image": image, "sem_seg": labels, **extra}


NAMES = {"loss_init_seg", "loss_auxiliary_seg", *(f"loss_round{s}_seg" for s in (1, 2, 3))}
HEADS = ["fcn", "psp", "aspp", "uper"]


@pytest.fixture(params=HEADS)
def cfg_of_each_head(request, semantic_cfg):
    semantic_cfg.MODEL.KNET.KERNEL_HEAD = request.param
    return semantic_cfg


def test_training_step_of_each_head(cfg_of_each_head):
    model = build_model(cfg_of_each_head).train()
    losses = model([example(48, 64), example(64, 50, 1)])
    assert set(losses) == NAMES
    assert all(0 < v.item() < 20 for v in losses.values())
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing  # else DistributedDataParallel would wait for ever


def test_results_of_each_head(cfg_of_each_head):
    model = build_model(cfg_of_each_head).eval()
    inputs = [example(48, 64, height=70, width=91), example(33, 47, 1), example(64, 40, 2)]
    with torch.no_grad():
        for count in (1, 2, 3):
            outputs = model(inputs[:count])
            assert [set(out) for out in outputs] == [{"sem_seg"}] * count
            for out, size in zip(outputs, [(70, 91), (33, 47), (64, 40)]):
                assert out["sem_seg"].shape == (8, *size)
                torch.testing.assert_close(out["sem_seg"].sum(0), torch.ones(size))


def test_batch_of_one_trains_without_pooling(semantic_cfg):
    semantic_cfg.MODEL.KNET.KERNEL_HEAD = "fcn"
    assert set(build_model(semantic_cfg).train()([example()])) == NAMES


@pytest.mark.parametrize("updater_dim, dropout", [(8, 0.1), (-1, 0.5)])
def test_narrow_updater_and_dropout(semantic_cfg, updater_dim, dropout):
    semantic_cfg.MODEL.KNET.UPDATER_DIM = updater_dim
    semantic_cfg.MODEL.KNET.SEMANTIC.DROPOUT = dropout
    model = build_model(semantic_cfg)
    assert model.heads.rounds[0].parts == (2 if updater_dim == 8 else 1)
    assert model.heads.kernel_head.dropout.p == dropout
    sum(model.train()([example(), example(seed=1)]).values()).backward()
    semantic_cfg.MODEL.KNET.UPDATER_DIM = 12
    with pytest.raises(ValueError, match="UPDATER_DIM is 12; it must divide"):
        build_model(semantic_cfg)


def test_rounds_share_pixels_softly_and_have_no_class_branch(semantic_cfg):
    model = build_model(semantic_cfg).train()
    losses = model([example(), example(seed=1)])
    bias = model.heads.kernel_head.classifier.bias
    # the bias is in no kernel: it reaches a round only through the groups that it shifts
    (gradient,) = torch.autograd.grad(losses["loss_round1_seg"], bias)
    assert gradient.abs().max() > 0
    for update in model.heads.rounds:
        assert update.class_predictor is None
        # PyTorch's default is bounded by 1 / sqrt(16), Xavier by sqrt(6 / 32)
        assert update.mask_predictor.weight.abs().max() <= 0.25


def test_several_steps_learn_two_halves(semantic_cfg):
    model = build_model(semantic_cfg).double().train()  # so that rounding decides nothing
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    image[:, :, 32:] = 255
    labels = torch.full((48, 64), 2)
    labels[:, 32:] = 5
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        loss = sum(model([{"image": image, "sem_seg": labels}] * 2).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        (out,) = model.eval()([{"image": image}])
    assert (out["sem_seg"].argmax(0) == labels).float().mean() > 0.95


def test_auxiliary_head_is_optional_and_for_training_only(semantic_cfg):
    semantic_cfg.MODEL.KNET.LOSS.AUX_WEIGHT = 0.0
    semantic_cfg.MODEL.KNET.SEMANTIC.AUX_FEATURE = "none"
    model = build_model(semantic_cfg).train()
    assert model.heads.auxiliary is None
    assert set(model([example(), example()])) == NAMES - {"loss_auxiliary_seg"}


def test_other_feature_for_the_auxiliary_head(semantic_cfg):
    semantic_cfg.MODEL.KNET.SEMANTIC.AUX_FEATURE = "res3"
    model = build_model(semantic_cfg)
    assert model.heads.auxiliary.decoder.convs[0].conv.in_channels == 32
    assert model.heads.auxiliary_index == 1


def test_training_batches_are_padded_to_the_least_size(semantic_cfg):
    semantic_cfg.MODEL.KNET.MIN_TRAIN_SIZE = (80, 50)
    model = build_model(semantic_cfg)
    sizes = []
    model.backbone.register_forward_pre_hook(
        lambda module, inputs: sizes.append(tuple(inputs[0].shape[-2:]))
    )
    losses = model.train()([example(33, 60), example(40, 50)])
    assert all(v.isfinite() for v in losses.values())
    with torch.no_grad():
        model.eval()([example(33, 60)])
    assert sizes == [(80, 64), (48, 64)]


def test_padding_does_not_teach(semantic_cfg):
    """Padded pixels have no class: only the divisor of the loss sees them."""
    semantic_cfg.MODEL.KNET.SIZE_DIVISIBILITY = 1
    model = build_model(semantic_cfg)
    x = example(48, 64)
    target = model.task.targets([x], (96, 64), model.device)[0]
    assert (target[48:] == 255).all() and torch.equal(target[:48], x["sem_seg"])


@pytest.mark.parametrize("output_stride", [8, 32])
def test_resnet_v1c_under_each_stride(semantic_cfg, output_stride):
    semantic_cfg.merge_from_list(
        ["MODEL.BACKBONE.NAME", "build_resnet_v1c_backbone", "MODEL.RESNETS.STEM_OUT_CHANNELS", 32,
         "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "BN",
         "MODEL.RESNET_V1C.OUTPUT_STRIDE", output_stride,
         "MODEL.KNET.KERNEL_HEAD", "uper" if output_stride == 32 else "fcn"]
    )  # fmt: skip
    model = build_model(semantic_cfg)
    x = example(65, 97)
    with torch.no_grad():
        predictions = model.eval().predict([x])[0]
    # 65 x 97 is padded to 80 x 112
    side = 4 if output_stride == 32 else 8
    assert predictions.logits.shape == (8, 80 // side, 112 // side)
    sum(model.train()([x, x]).values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_pyramid_backbone(semantic_cfg):
    semantic_cfg.merge_from_list(
        ["MODEL.BACKBONE.NAME", "build_small_resnet_fpn_backbone", "MODEL.SMALL_RESNET.STEM_STRIDE",
         4, "MODEL.KNET.IN_FEATURES", "['p2', 'p3', 'p4', 'p5']",
         "MODEL.KNET.SEMANTIC.AUX_FEATURE", "p4"]
    )  # fmt: skip
    model = build_model(semantic_cfg).train()
    sum(model([example(), example(seed=1)]).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    (out,) = model.eval()([example(50, 70)])
    assert out["sem_seg"].shape == (8, 50, 70)


def test_all_classes_of_the_metadata_count(semantic_cfg):
    """Cityscapes: 19 semantic classes, of which 8 are things to panoptic models."""
    semantic_cfg.DATASETS.TRAIN = semantic_cfg.DATASETS.TEST = ("cityscapes_fine_sem_seg_val",)
    model = build_model(semantic_cfg)
    assert model.heads.kernel_head.classifier.out_channels == 19
    semantic_cfg.DATASETS.TEST = ("tiny_val",)
    with pytest.raises(ValueError, match=r"0 thing .* 19 stuff .* 8 stuff classes"):
        build_model(semantic_cfg)


def test_number_of_classes_may_be_given(semantic_cfg):
    semantic_cfg.merge_from_list(
        ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.KNET.NUM_THING_CLASSES", 0,
         "MODEL.KNET.NUM_STUFF_CLASSES", 5]
    )  # fmt: skip
    (out,) = build_model(semantic_cfg).eval()([example()])
    assert out["sem_seg"].shape[0] == 5


@pytest.mark.parametrize(
    "opts, message",
    [
        (("MODEL.KNET.TEST.INSTANCE_ON", True), r"TEST\.SEMANTIC_ON True, INSTANCE_ON and PANOPT"),
        (("MODEL.KNET.TEST.SEMANTIC_ON", False), r"TEST\.SEMANTIC_ON True"),
        (("MODEL.KNET.KERNEL_HEAD", "unet"), r"KERNEL_HEAD is 'unet'; .* one of 'learned'.*'uper'"),
        (("MODEL.KNET.SEMANTIC.AUX_FEATURE", "p4"), r"AUX_FEATURE is 'p4'.*LOSS\.AUX_WEIGHT to 0"),
        (("MODEL.KNET.IN_FEATURES", "['res2', 'p9']"), r"IN_FEATURES names \['p9'\]"),
        (("MODEL.KNET.IN_FEATURES", "['res4']"), r"at least two maps, got 1.*IN_FEATURES"),
        (("DATASETS.TRAIN", "('coco_2017_val',)"), r"'coco_2017_val'.*no semantic classes"),
        (("DATASETS.TRAIN", "('nowhere',)"), r"'nowhere'.*not registered"),
        (("MODEL.KNET.NUM_STUFF_CLASSES", 150), r"150, but 'tiny_train' .* has 0 thing .* 8 stuff"),
        (("DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.KNET.NUM_THING_CLASSES", 0,
          "MODEL.KNET.NUM_STUFF_CLASSES", 1), r"at least two others.*NUM_STUFF_CLASSES 1"),
        (("DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.KNET.NUM_THING_CLASSES", 3,
          "MODEL.KNET.NUM_STUFF_CLASSES", 4), r"NUM_THING_CLASSES is 3"),
        (("MODEL.KNET.TEST.WINDOW.SIZE", "(64,)"), r"WINDOW\.SIZE is \[64\]; it must be 2"),
        (("MODEL.KNET.TEST.WINDOW.SIZE", "(32, 32)", "MODEL.KNET.TEST.WINDOW.STRIDE", "(33, 8)"),
         r"WINDOW\.STRIDE is \[33, 8\]; beyond"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_named(semantic_cfg, opts, message):
    semantic_cfg.merge_from_list(list(opts))
    with pytest.raises(ValueError, match=message):
        build_model(semantic_cfg)


def test_batches_of_padding_are_told_once(semantic_cfg, caplog):
    from detectron2.utils import logger

    logger._LOG_COUNTER.clear()
    height, width = example()["image"].shape[-2:]
    for side, told in ((2 * height, 0), (4 * width, 1)):
        semantic_cfg.MODEL.KNET.MIN_TRAIN_SIZE = (side, side)
        model = build_model(semantic_cfg).train()
        for _ in range(2):
            model([example(), example()])
        assert caplog.text.count(f"{height}x{width} are padded to MODEL.KNET.MIN_TRAIN_S") == told


@pytest.mark.parametrize("fpn", [True, False])
def test_the_backbone_that_fits_is_named(semantic_cfg, tiny_cfg, fpn):
    given, fits = "build_small_resnet_fpn_backbone", "build_small_resnet_backbone"
    cfg = semantic_cfg
    if not fpn:
        cfg, given, fits = tiny_cfg, fits, given
        cfg.MODEL.KNET.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.BACKBONE.NAME = given
    with pytest.raises(ValueError, match=f"{given} gives .*: set MODEL.BACKBONE.NAME to {fits}$"):
        build_model(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_smal_resnet_backbone"
    with pytest.raises(ValueError, match=r"MODEL\.BACKBONE\.NAME is .*build_small_resnet_backbone"):
        build_model(cfg)


def test_windows_are_for_semantic_models(tiny_cfg):
    tiny_cfg.MODEL.KNET.TEST.WINDOW.SIZE = (64, 64)
    with pytest.raises(ValueError, match=r"MODEL\.KNET\.TEST\.WINDOW is for semantic models"):
        build_model(tiny_cfg)


def test_missing_labels_are_named(semantic_cfg):
    x = {"image": example()["image"], "file_name": "street.jpg"}
    with pytest.raises(ValueError, match=r"street\.jpg.*'sem_seg'"):
        build_model(semantic_cfg).train()([x])


def with_window(cfg, model, size, stride=(), batch_size=1):
    """The same model, predicting in windows."""
    cfg = cfg.clone()
    window = cfg.MODEL.KNET.TEST.WINDOW
    window.SIZE, window.STRIDE, window.BATCH_SIZE = size, stride, batch_size
    other = build_model(cfg)
    other.load_state_dict(model.state_dict())
    return other.eval()


@torch.no_grad()
def test_window_of_the_whole_image_changes_nothing(semantic_cfg):
    model = build_model(semantic_cfg).eval()
    inputs = [example(48, 64), example(33, 47, 1, height=50, width=60)]
    for size in ((48, 64), (200, 300)):
        for x, windowed in zip(inputs, with_window(semantic_cfg, model, size)(inputs)):
            (whole,) = model([x])  # not padded to the size of the other
            a, b = windowed["sem_seg"], whole["sem_seg"]
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
            assert torch.equal(a.argmax(0), b.argmax(0))


@torch.no_grad()
def test_windows_at_a_time_do_not_matter(semantic_cfg):
    model = build_model(semantic_cfg).eval()
    x = example(70, 90)
    one, three = (
        with_window(semantic_cfg, model, (32, 40), (20, 30), n).predict([x])[0].logits
        for n in (1, 3)
    )
    assert one.shape == (8, 70, 90)
    torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-5)
    whole = with_window(semantic_cfg, model, (70, 90)).predict([x])[0].logits
    assert not torch.allclose(one, whole, atol=1e-2)  # each window sees its own pixels only


@torch.no_grad()
def test_window_sees_its_own_pixels_only(semantic_cfg):
    model = build_model(semantic_cfg).eval()
    windowed = with_window(semantic_cfg, model, (32, 32), (32, 32))
    x = example(64, 64)
    corner = {"image": x["image"][:, 32:, :32]}
    logits = windowed.predict([x])[0].logits[:, 32:, :32]
    torch.testing.assert_close(logits, windowed.predict([corner])[0].logits, rtol=1e-4, atol=1e-5)


def test_data_sets_with_their_classes_in_another_order_do_not_mix(semantic_cfg):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    orders = {"leaves_a": ["background", "leaf"], "leaves_b": ["leaf", "background"]}
    for name, classes in orders.items():
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(stuff_classes=classes)
    try:
        semantic_cfg.DATASETS.TRAIN, semantic_cfg.DATASETS.TEST = ("leaves_a",), ("leaves_b",)
        with pytest.raises(
            ValueError, match="label 0 'background' of 'leaves_a' stands where label 0 'leaf'"
        ):
            build_model(semantic_cfg)
    finally:
        for name in orders:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


WIDTHS = [16, 32, 48, 64]


def make(kind, channels=16):
    return PIXEL_DECODERS[kind](in_channels=WIDTHS, channels=channels, norm=nn.BatchNorm2d).eval()


def maps(height, width):
    """Four maps of an input of this size, strides 4 to 32, rounded up."""
    return [
        torch.randn(2, c, -(-height // s), -(-width // s)) for c, s in zip(WIDTHS, (4, 8, 16, 32))
    ]


@pytest.mark.parametrize("kind, stride", [("fcn", 32), ("psp", 32), ("aspp", 32), ("uper", 4)])
def test_size_of_the_output(kind, stride):
    out = make(kind, channels=32)(maps(128, 192))
    assert out.shape == (2, 32, 128 // stride, 192 // stride)
    assert out.min() >= 0 and out.max() > 0  # all end in a ReLU


@pytest.mark.parametrize("kind, used", [("fcn", [3]), ("psp", [3]), ("aspp", [3]),
                                        ("uper", [0, 1, 2, 3])])  # fmt: skip
def test_which_maps_count(kind, used):
    features = [x.requires_grad_() for x in maps(64, 96)]
    make(kind)(features).sum().backward()
    assert [i for i, x in enumerate(features) if x.grad is not None and x.grad.any()] == used


def test_uper_takes_any_sizes():
    features = [torch.randn(1, c, *size) for c, size in zip(WIDTHS, [(33, 47), (17, 24), (9, 12),
                                                                     (5, 6)])]  # fmt: skip
    assert make("uper")(features).shape == (1, 16, 33, 47)


def test_uper_needs_two_maps():
    with pytest.raises(ValueError, match=r"at least two maps, got 1.*IN_FEATURES"):
        UPerDecoder(in_channels=[16], channels=16, norm=nn.BatchNorm2d)


def test_pooling_averages_over_regions():
    pooling = PyramidPooling(16, 16, norm=nn.Identity, scales=(1, 2))
    for level in pooling.levels:
        level[1].conv.weight.data = torch.eye(16)[:, :, None, None]
    constant = torch.rand(1, 16, 1, 1).expand(1, 16, 7, 9)
    torch.testing.assert_close(pooling(constant), constant.repeat(1, 3, 1, 1))
    x = torch.rand(1, 16, 8, 8)
    out = pooling(x)
    assert torch.equal(out[:, :16], x)
    torch.testing.assert_close(out[0, 16:32, 3, 5], x.mean((0, 2, 3)))
    # a corner lies beyond the centres of the regions: the mean of its own
    torch.testing.assert_close(out[0, 32:, 0, 7], x[0, :, :4, 4:].mean((1, 2)))


def test_aspp_sees_as_far_as_its_dilations():
    decoder = make("aspp")
    nn.init.zeros_(decoder.image_pool[1].conv.weight)  # sees everything
    x = torch.randn(1, 64, 9, 101)
    x.requires_grad_()
    decoder([x])[0, :, 4, 50].sum().backward()
    columns = x.grad.abs().sum((0, 1, 2)).nonzero()[:, 0] - 50
    centres = {d * side for d in (0, 12, 24, 36) for side in (-1, 1)}
    # the last convolution looks one pixel further
    assert set(columns.tolist()) == {c + i for c in centres for i in (-1, 0, 1)}


def test_classifier_drops_channels_for_its_logits_only():
    body = FCNDecoder(in_channels=[16], channels=16, norm=nn.BatchNorm2d)
    model = PixelClassifier(body, channels=16, num_classes=5, dropout=1.0)
    nn.init.normal_(model.classifier.bias)
    x = [torch.randn(2, 16, 6, 7)]
    pixels, logits = model.train()(x)
    assert pixels.abs().sum() > 0
    assert torch.equal(logits, model.classifier.bias.view(-1, 1, 1).expand(2, 5, 6, 7))
    pixels, logits = model.eval()(x)
    torch.testing.assert_close(logits, model.classifier(pixels))


def test_published_initialisation():
    body = FCNDecoder(in_channels=[64], channels=64, norm=nn.BatchNorm2d)
    model = PixelClassifier(body, channels=64, num_classes=150, dropout=0.1)
    # Kaiming normal over the outputs of a 3x3 convolution
    expected = (2 / (64 * 9)) ** 0.5
    for conv in (body.convs[0].conv, body.concat.conv):
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.03)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.classifier.bias.any()
