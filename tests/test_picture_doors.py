"""One picture is one input of the model, whatever reads it and whatever INPUT.FORMAT is."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.config import get_cfg_from_file
from knet.data import KNetDatasetMapper
from knet.data.images import FORMATS
from knet.export.metadata import describe
from knet.export.program import build_graph
from knet.modeling.knet import KNet
from knet.predictor import KNetPredictor
from knet_command import main

pytestmark = pytest.mark.slow

CONFIG = "configs/shapes/panoptic.yaml"


def write_pictures(folder):
    """Pictures of all kinds that 8 bit a channel come in; no two channels are alike."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 56, 3), np.uint8)
    rgb, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    clear = rgb.convert("P")
    clear.info["transparency"] = 3
    made = {
        "turned.jpg": (rgb, {"exif": exif}),
        "palette.png": (rgb.convert("P"), {}),
        "clear.png": (clear, {}),
        "alpha.png": (rgb.convert("RGBA"), {}),
        "grey.png": (rgb.convert("L"), {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "one bit.png": (rgb.convert("1"), {}),
        "moving.gif": (rgb.convert("P"), {"save_all": True, "append_images": [clear]}),
        "thin.png": (rgb.resize((3000, 1)), {}),
        "dot.png": (rgb.resize((1, 1)), {}),
    }
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    return [folder / name for name in made]


def options_of(image_format):
    values = {"RGB": "[90, 110, 130]", "BGR": "[130, 110, 90]", "L": "[110]"}[image_format]
    return ["INPUT.FORMAT", image_format, "MODEL.PIXEL_MEAN", values, "MODEL.PIXEL_STD", values]


@pytest.fixture(params=list(FORMATS))
def opts(request, tiny_opts, tiny_shapes):
    data = ["DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)"]
    return [*tiny_opts, *data, *options_of(request.param), "INPUT.MIN_SIZE_TEST", "48"]


def build(opts):
    cfg = get_cfg_from_file(CONFIG, opts)
    predictor = KNetPredictor(cfg, build_model(cfg), MetadataCatalog.get("tiny_val"))
    return cfg, predictor, KNetDatasetMapper(cfg, is_train=False)


def test_loader_and_predictor_read_the_same(opts, tmp_path):
    cfg, predictor, mapper = build(opts)
    for path in write_pictures(tmp_path):
        expected = mapper({"file_name": str(path)})
        with Image.open(path) as opened:
            found = [predictor.prepare(path), predictor.prepare(opened)]
        for one in found:
            assert torch.equal(one["image"], expected["image"]), path.name
            assert (one["height"], one["width"]) == (expected["height"], expected["width"])
        assert expected["image"].shape[0] == len(cfg.MODEL.PIXEL_MEAN)
        assert expected["image"].dtype == torch.uint8
        assert min(expected["image"].shape) > 0
    # arrays are RGB
    array = np.asarray(Image.open(tmp_path / "alpha.png").convert("RGB"))
    alpha = mapper({"file_name": str(tmp_path / "alpha.png")})["image"]
    assert torch.equal(predictor.prepare(array)["image"], alpha)


def test_every_door_feeds_what_evaluation_feeds(opts, tmp_path, monkeypatch):
    cfg, predictor, mapper = build(opts)
    record = DatasetCatalog.get("tiny_val")[0]
    expected = mapper(record)["image"]
    KNetCheckpointer(predictor.model, str(tmp_path)).save("model")
    keys = [*opts, "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    fed = []

    def watch(function):
        def watched(self, batched_inputs, *rest):
            fed.append(batched_inputs[0]["image"])
            return function(self, batched_inputs, *rest)

        return watched

    monkeypatch.setattr(KNet, "forward", watch(KNet.forward))
    monkeypatch.setattr(KNet, "trace", watch(KNet.trace))
    out, picture = str(tmp_path / "out"), record["file_name"]
    for words in (
        ["predict", picture, "--output", out],
        ["report", "--output", f"{out}/report.html"],
        ["predict", "--dataset", "tiny_val", "--images", "0", "--output", out],
        ["kernels", picture, "--kernels", "1", "--output", out],
    ):
        fed.clear()
        assert main([*words, "--config-file", CONFIG, *keys]) == 0
        assert torch.equal(fed[0], expected)

    # exported: the picture in the channel order that the metadata name, resized by Pillow
    order = describe(
        cfg,
        predictor.metadata,
        size_divisibility=32,
        raw=True,
        precision="float32",
        input_dtype="uint8",
    )["input"]["channel_order"]
    size = expected.shape[:0:-1]
    pixels = np.array(Image.open(picture).convert(order).resize(size, Image.Resampling.BILINEAR))
    graph = build_graph(predictor.model, channel_order=cfg.INPUT.FORMAT, onnx=False, raw=True)
    graph.backbone.register_forward_pre_hook(lambda _, args: fed.append(args[0]))
    with torch.no_grad():
        graph(torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)[None])
        normalised = (expected - predictor.model.pixel_mean) / predictor.model.pixel_std
    assert torch.equal(fed[-1][0, :, : size[1], : size[0]], normalised)


def test_formats_that_cannot_work_are_refused_on_reading_the_config(tiny_opts):
    for keys, message in (
        (["INPUT.FORMAT", "YUV-BT.601"], r"INPUT\.FORMAT is 'YUV-BT\.601'; .*'RGB', 'BGR', 'L'"),
        (["INPUT.FORMAT", "HSV"], r"INPUT\.FORMAT is 'HSV'"),
        (["INPUT.FORMAT", "L"], r"PIXEL_MEAN is .*; with INPUT\.FORMAT L it must have 1 value,"),
        (
            ["MODEL.PIXEL_STD", "[1.0]"],
            r"PIXEL_STD is \[1\.0\]; with INPUT\.FORMAT RGB .* 3 values",
        ),
        (["INPUT.MAX_PIXELS", "0"], r"INPUT\.MAX_PIXELS is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            get_cfg_from_file(CONFIG, [*tiny_opts, *keys])
