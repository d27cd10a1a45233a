"""Exported graphs give what the model gives, at any size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from knet.export.lowering import RegionAverage
from knet.export.onnx_file import save_onnx
from knet.export.program import build_graph, output_names, trace

from .models import scene, small_cfg, small_predictor

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

PHOTOGRAPHS = Path(__file__).parents[2] / "datasets/coco_photos/images"
# of the image, and of the results
SIZES = [((96, 96), (96, 96)), ((64, 131), (150, 300)), ((130, 75), (61, 40))]


def run_onnx(session, **feeds):
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds)))


def assert_same(results, expected, *, scores=1e-4, pixels=0.999, covered=0.01):
    """Compare a graph's results with Detectron2's dict of the model."""
    compared = 0
    if "panoptic_seg" in expected:
        ids, segments = expected["panoptic_seg"]
        assert len(segments) > 1
        assert results["segment_classes"].tolist() == [s["category_id"] for s in segments]
        assert results["segment_isthing"].tolist() == [s["isthing"] for s in segments]
        assert results["segment_ids"].tolist() == [s["id"] for s in segments]
        np.testing.assert_allclose(
            results["segment_scores"], [s["score"] for s in segments], rtol=0, atol=scores
        )
        assert (results["panoptic_ids"] == ids.numpy()).mean() >= pixels
        areas = [(results["panoptic_ids"] == s["id"]).sum() for s in segments]
        assert results["segment_areas"].tolist() == areas
        compared += 1
    if "instances" in expected:
        found = expected["instances"]
        assert len(found) > 5
        assert covered < found.pred_masks.float().mean() < 0.98
        np.testing.assert_allclose(results["instance_scores"], found.scores, rtol=0, atol=scores)
        assert results["instance_classes"].tolist() == found.pred_classes.tolist()
        assert (results["instance_masks"] == found.pred_masks.numpy()).mean() >= pixels
        boxes = found.pred_boxes.tensor.numpy()
        assert (np.abs(results["instance_boxes"] - boxes) <= 1).mean() >= 0.95
        compared += 1
    if "sem_seg" in expected:
        best, classes = expected["sem_seg"].max(dim=0)
        assert len(classes.unique()) > 2
        assert (results["semantic_classes"] == classes.numpy()).mean() >= pixels
        np.testing.assert_allclose(results["semantic_scores"], best, rtol=0, atol=scores)
        compared += 1
    assert compared == len(expected) > 0


def assert_onnx_equals_pytorch(exported, session, image, output_size, **limits):
    """Compare the results for an RGB image (H, W, 3)."""
    image = image.transpose(2, 0, 1).copy()
    results = run_onnx(session, image=image[None], output_size=np.array(output_size))
    # the graph takes RGB, the model INPUT.FORMAT
    if exported.predictor.cfg.INPUT.FORMAT == "BGR":
        image = image[::-1].copy()
    height, width = output_size
    with torch.no_grad():
        expected = exported.predictor.model(
            [{"image": torch.from_numpy(image), "height": height, "width": width}]
        )[0]
    assert_same(results, expected, **limits)


def test_onnx_equals_pytorch_at_three_sizes(exported):
    session = onnxruntime.InferenceSession(exported.onnx)
    for seed, (size, output_size) in enumerate(SIZES):
        assert_onnx_equals_pytorch(exported, session, scene(*size, seed), output_size)


@pytest.mark.parametrize("name", ["train/000000000030", "train/000000000073", "val/000000007574"])
def test_onnx_equals_pytorch_on_photographs(exported, name):
    session = onnxruntime.InferenceSession(exported.onnx)
    with Image.open(PHOTOGRAPHS / f"{name}.jpg") as photograph:
        image = np.asarray(photograph.convert("RGB"))
    size = (image.shape[0] * 2, image.shape[1] * 2)
    # the random model's masks are small on photographs
    assert_onnx_equals_pytorch(exported, session, image, size, covered=0.001)


# every runtime has them; GridSample and deformable attention, for one, are not among them
_OPERATORS = {
    *("Add", "And", "ArgMax", "AveragePool", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape"),
    *("Conv", "Cos", "CumSum", "Div", "Equal", "Exp", "Expand", "EyeLike", "Floor", "Gather"),
    *("GatherElements", "GatherND", "Gemm", "Greater", "GreaterOrEqual", "InstanceNormalization"),
    *("LayerNormalization", "Less", "LessOrEqual", "LogSoftmax", "MatMul", "Max", "MaxPool", "Min"),
    *("Mod", "Mul", "Neg", "NonZero", "Not", "Or", "Pad", "Pow", "Range", "Reciprocal"),
    *(
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Resize",
        "ScatterND",
    ),
    *("ScatterElements", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Squeeze"),
    *("Sub", "Sum", "Tile", "TopK", "Transpose", "Unsqueeze", "Where"),
}


def test_every_operator_is_a_usual_one(exported):
    model = onnx.load(exported.onnx)
    assert [(opset.domain, opset.version) for opset in model.opset_import if not opset.domain] == [
        ("", 18)
    ]
    assert not model.functions  # and nothing is hidden in one
    assert {node.domain for node in model.graph.node} == {""}
    used = {node.op_type for node in model.graph.node}
    assert used <= _OPERATORS and "Conv" in used


def test_saved_program_equals_onnx(exported):
    program, metadata = exported.loaded
    session = onnxruntime.InferenceSession(exported.onnx)
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["knet"]) == metadata
    for seed, (size, output_size) in enumerate(SIZES):
        image = scene(*size, seed).transpose(2, 0, 1)[None].copy()
        results = program(image=torch.from_numpy(image), output_size=torch.tensor(output_size))
        others = run_onnx(session, image=image, output_size=np.array(output_size))
        assert list(results) == list(others)
        for name, values in results.items():
            assert tuple(values.shape) == others[name].shape
            assert str(values.dtype).split(".")[1] == str(others[name].dtype)
            # a pixel on the border of two segments counts for either
            rtol = 5e-3 if name.endswith("areas") else 1e-5
            ours, theirs = values.numpy().astype(float), others[name].astype(float)
            same = np.isclose(ours, theirs, rtol=rtol, atol=1e-4)
            assert same.mean() >= 0.999, name


def test_metadata_describes_input_and_classes(panoptic):
    _, metadata = panoptic.loaded
    assert metadata["results"] == ["panoptic", "instance", "semantic"]
    assert metadata["input"]["pixel_mean"] == [127.5, 127.5, 127.5]
    assert metadata["input"]["resize"]["short_side"] == 96
    assert metadata["thresholds"]["panoptic_thing_score"] == 0.2
    assert metadata["thresholds"]["mask_scores"] is False
    assert metadata["thresholds"]["panoptic_mask_scores"] == 2.0
    classes = {c["id"]: c for c in metadata["classes"]}
    assert [c for c in classes if classes[c]["isthing"]] == [0, 1, 3, 5]
    assert (classes[3]["name"], classes[4]["name"]) == ("ring", "grass")
    assert (classes[3]["dataset_id"], classes[4]["dataset_id"]) == (14, 15)
    assert len({tuple(c["color"]) for c in metadata["classes"]}) == 7


def test_chosen_classes_thresholds_and_probabilities():
    """Options that cut results short, in a graph that is not saved: tracing keeps them."""
    cfg = small_cfg(
        "panoptic", "MODEL.KNET.TEST.CLASSES", "[1, 3, 4]", "MODEL.KNET.TEST.MIN_AREA", "30",
        "MODEL.KNET.TEST.SCORE_THRESH", "0.3", "MODEL.KNET.TEST.PANOPTIC_MASK_SCORES", "0.0",
    )  # fmt: skip
    predictor = small_predictor(cfg, "panoptic")
    graph = build_graph(predictor.model, channel_order="RGB", onnx=True, probabilities=True)
    image = torch.from_numpy(scene(80, 120, 7).transpose(2, 0, 1).copy())
    with torch.no_grad():
        results = graph(image[None], torch.tensor([70, 101]))
        expected = predictor.model([{"image": image, "height": 70, "width": 101}])[0]
    assert {1, 3, 4} >= set(results["segment_classes"].tolist())
    torch.testing.assert_close(
        results["semantic_probabilities"], expected["sem_seg"], rtol=0, atol=1e-5
    )
    found = expected["instances"]
    assert results["instance_classes"].tolist() == found.pred_classes.tolist()
    assert (results["instance_masks"] == found.pred_masks).float().mean() > 0.999
    ids, segments = expected["panoptic_seg"]
    assert results["segment_areas"].tolist() == [s["area"] for s in segments]
    assert (results["panoptic_ids"] == ids).float().mean() > 0.999


def test_probabilities_of_a_semantic_model():
    predictor = small_predictor(small_cfg("semantic"), "semantic")
    image = torch.from_numpy(scene(80, 120, 7).transpose(2, 0, 1).copy())
    outputs = []
    for probabilities in (False, True):
        graph = build_graph(
            predictor.model, channel_order="RGB", onnx=True, probabilities=probabilities
        )
        with torch.no_grad():
            outputs.append(graph(image[None], torch.tensor([70, 101])))
    running, full = outputs
    assert torch.equal(running["semantic_classes"], full["semantic_classes"])
    torch.testing.assert_close(running["semantic_scores"], full["semantic_scores"])
    expected = predictor.model([{"image": image, "height": 70, "width": 101}])[0]["sem_seg"]
    torch.testing.assert_close(full["semantic_probabilities"], expected, rtol=0, atol=1e-5)


def test_raw_logits_of_all_options_together(tmp_path):
    cfg = small_cfg(
        "panoptic", "MODEL.KNET.GROUPING", "exclusive", "MODEL.KNET.ROUND_REPEATS", 2,
        "MODEL.KNET.NUM_ROUNDS", 1,
        "MODEL.KNET.ROUND_LEVELS", "['res5', 'res3']", "MODEL.KNET.RESIDUAL_MASKS", True,
        "MODEL.KNET.NECK", "build_bifpn_neck", "MODEL.KNET.NECK_LAYERS", 1,
        "MODEL.KNET.KERNEL_PEAKS", True,
        "MODEL.KNET.MASK_LEVEL", 0, "MODEL.KNET.MASK_UPSAMPLE", 1,
        "MODEL.KNET.MASK_PILOTS", 2, "MODEL.KNET.ONE_TO_MANY", 2,
    )  # fmt: skip
    model = small_predictor(cfg, "panoptic").model
    for update in model.heads.rounds:  # residual masks start without effect
        torch.nn.init.normal_(update.mask_predictor.weight, std=0.2)
    graph = build_graph(model, channel_order="RGB", onnx=True, raw=True)
    program = trace(graph, example_size=(61, 83), dynamic=("batch", "height", "width"))
    assert output_names(program) == ["mask_logits", "class_logits"]
    save_onnx(program, tmp_path / "all.onnx", {})
    raw = onnx.load(tmp_path / "all.onnx").graph
    weights = raw.initializer
    # for TensorRT: usual operators, and no float64
    assert {node.op_type for node in raw.node} <= _OPERATORS
    casts = {node.attribute[0].i for node in raw.node if node.op_type == "Cast"}
    kinds = casts | {weight.data_type for weight in weights}
    assert onnx.TensorProto.DOUBLE not in kinds and onnx.TensorProto.FLOAT in kinds
    assert weights and not any("training_kernels" in weight.name for weight in weights)
    session = onnxruntime.InferenceSession(tmp_path / "all.onnx")
    for seed, (size, _) in enumerate(SIZES):
        images = np.stack([scene(*size, seed + i).transpose(2, 0, 1) for i in range(1 + seed)])
        results = run_onnx(session, image=images)
        with torch.no_grad():
            expected = graph(torch.from_numpy(images))
            initial, rounds = model._rounds(model._images([{"image": torch.from_numpy(images[0])}]))
        assert len(rounds) == len(initial.levels) == 2
        assert (rounds[-1].masks - initial.masks).abs().mean() > 0.1
        np.testing.assert_allclose(expected["mask_logits"][:1], rounds[-1].masks, atol=1e-3)
        for name, values in expected.items():
            assert values.std() > 0.1
            np.testing.assert_allclose(results[name], values, rtol=0, atol=1e-3)


def test_half_precision_stays_near(panoptic, tmp_path):
    predictor = panoptic.predictor
    graph = build_graph(predictor.model, channel_order="RGB", onnx=True, half=True)
    save_onnx(trace(graph, example_size=(61, 83)), tmp_path / "half.onnx", {}, half=True)
    weights = onnx.load(tmp_path / "half.onnx").graph.initializer
    narrow = [w for w in weights if w.data_type == onnx.TensorProto.FLOAT16]
    assert sum(math.prod(w.dims) for w in narrow) > 0.5 * sum(math.prod(w.dims) for w in weights)
    image = scene(96, 96, 0).transpose(2, 0, 1)[None].copy()
    full, half = (
        run_onnx(onnxruntime.InferenceSession(path), image=image, output_size=np.array([96, 96]))
        for path in (panoptic.onnx, tmp_path / "half.onnx")
    )
    assert half["instance_scores"].dtype == np.float32
    np.testing.assert_allclose(half["instance_scores"], full["instance_scores"], atol=0.05)
    assert (half["semantic_classes"] == full["semantic_classes"]).mean() > 0.9


@pytest.mark.parametrize("size, regions", [((13, 7), 6), ((6, 20), 3), ((4, 5), 1), ((5, 9), 2)])
def test_region_average_is_adaptive_pooling(size, regions):
    x = torch.randn(2, 5, *size)
    torch.testing.assert_close(
        RegionAverage(regions)(x), torch.nn.functional.adaptive_avg_pool2d(x, regions)
    )


def test_what_cannot_be_exported_is_named():
    predictor = small_predictor(small_cfg("instance"), "instance")
    with pytest.raises(ValueError, match="--raw"):
        build_graph(predictor.model, channel_order="RGB", onnx=True, raw=True, probabilities=True)
    graph = build_graph(predictor.model, channel_order="RGB", onnx=True)
    with pytest.raises(ValueError, match="batch with --raw only"):
        trace(graph, example_size=(61, 83), dynamic=("batch",))
    with pytest.raises(ValueError, match="17 or more"):
        trace(graph, example_size=(61, 16))
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT"):
        build_graph(predictor.model, channel_order="YUV-BT.601", onnx=True)
    windows = small_cfg("semantic", "MODEL.KNET.TEST.WINDOW.SIZE", "(64, 64)")
    with pytest.raises(ValueError, match=r"WINDOW\.SIZE"):
        build_graph(small_predictor(windows, "semantic").model, channel_order="RGB", onnx=True)


def test_deformable_convolutions_are_named():
    class DeformConv(torch.nn.Module):
        pass

    predictor = small_predictor(small_cfg("instance"), "instance")
    predictor.model.backbone.res5[0].conv2 = DeformConv()
    with pytest.raises(ValueError, match=r"backbone\.res5\.0\.conv2 is a deformable"):
        build_graph(predictor.model, channel_order="RGB", onnx=True)
