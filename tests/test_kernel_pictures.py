"""What the kernels do: numbers and pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from knet.kernel_pictures import draw_class_scores, draw_kernel_rounds
from knet.kernel_trace import KernelTrace, average_masks, trace_kernels
from knet.predictor import KNetPredictor
from knet_command import main


def make(cfg):
    return KNetPredictor(cfg, build_model(cfg), MetadataCatalog.get("tiny_val"))


def picture(height=96, width=96, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_last_masks_and_scores_are_the_models(tiny_cfg):
    tiny_cfg.MODEL.KNET.ACCEL.ENABLED = False  # folded norms round
    predictor, image = make(tiny_cfg), picture(70, 90)
    trace = trace_kernels(predictor, image, num_kernels=99)
    count = tiny_cfg.MODEL.KNET.NUM_KERNELS
    assert trace.masks.shape == (4, count + 4, 70, 90) and sorted(trace.kernels) == list(range(16))
    assert trace.num_things == count and trace.num_thing_classes == 4
    assert np.isnan(trace.scores[0]).all() and (trace.labels[0] == -1).all()
    assert (np.diff(trace.scores[-1]) <= 0).all()
    instances = predictor(image)["instances"]
    assert len(instances) == count * 4  # every kernel and class
    for row in np.flatnonzero(trace.kernels < count):
        score, label = trace.scores[-1, row], trace.labels[-1, row]
        assert score == trace.class_scores[-1, row, :4].max() and label < 4
        (same,) = torch.nonzero(instances.scores == float(score))[:, 0]
        assert instances.pred_classes[same] == label
        assert (instances.pred_masks[same].numpy() == (trace.masks[-1, row] > 0.5)).all()
    for row in np.flatnonzero(trace.kernels >= count):
        label = 4 + trace.kernels[row] - count
        assert trace.labels[-1, row] == label
        assert trace.scores[-1, row] == trace.class_scores[-1, row, label]


def test_kernels_of_an_image_alone_have_no_average(tiny_cfg):
    tiny_cfg.MODEL.KNET.KERNEL_PEAKS = True
    with pytest.raises(ValueError, match=r"found anew in every image.*name pictures"):
        average_masks(make(tiny_cfg), [picture()])


def test_masks_of_every_round(tiny_cfg):
    predictor, image = make(tiny_cfg), picture()
    trace = trace_kernels(predictor, image, num_kernels=5)
    model = predictor.model
    tensor = torch.as_tensor(image.transpose(2, 0, 1).copy())[None]
    with torch.no_grad():
        initial, rounds = model._rounds((tensor - model.pixel_mean) / model.pixel_std)
    for stage, output in enumerate([initial, *rounds]):
        logits = F.interpolate(output.masks[:, trace.kernels], scale_factor=2, mode="bilinear")
        expected = F.interpolate(logits.sigmoid(), size=(96, 96), mode="bilinear")[0]
        assert trace.masks[stage] == pytest.approx(expected.numpy(), abs=1e-5)
        if stage:
            scores = output.class_logits[0, trace.kernels].sigmoid()
            assert trace.class_scores[stage - 1] == pytest.approx(scores.numpy(), abs=1e-6)


def test_semantic_kernels_are_classes(semantic_cfg):
    semantic_cfg.MODEL.KNET.ACCEL.ENABLED = False  # folded norms round
    predictor, image = make(semantic_cfg), picture(70, 90)
    trace = trace_kernels(predictor, image, num_kernels=8)
    result = predictor(image)["sem_seg"].numpy()
    assert trace.masks.shape == (4, 8, 70, 90) and trace.class_scores is None
    assert trace.masks[-1] == pytest.approx(result[trace.kernels], abs=1e-6)
    share = [(result.argmax(0) == k).mean() for k in trace.kernels]
    assert trace.scores[-1] == pytest.approx(share) and (trace.labels[0] == trace.kernels).all()
    assert trace.scores.sum(axis=1) == pytest.approx(np.ones(4))
    average = average_masks(predictor, [image, image], size=30)
    assert average.masks.shape == (8, 30, 30)
    assert average.masks.sum(axis=0) == pytest.approx(np.ones((30, 30)), abs=1e-4)


def test_averages_are_means_over_images(tiny_cfg):
    predictor = make(tiny_cfg)
    images = [picture(seed=seed) for seed in range(3)]
    averages = average_masks(predictor, iter(images), size=96, score_threshold=0.0)
    traces = [trace_kernels(predictor, image, num_kernels=99) for image in images]
    masks = [t.masks[-1][np.argsort(t.kernels)][:12] for t in traces]
    assert averages.masks.shape == (12, 96, 96) and averages.num_images == 3
    assert averages.masks == pytest.approx(np.mean(masks, axis=0), abs=1e-6)
    assert averages.masks.min() >= 0 and averages.masks.max() <= 1
    assert (averages.used == 1).all()
    for kernel in range(12):
        labels = [t.labels[-1][t.kernels == kernel][0] for t in traces]
        often = np.bincount(labels).argmax()
        assert averages.classes[kernel] == predictor.metadata.thing_classes[often]
    middle = float(np.median([t.scores[-1][t.kernels < 12] for t in traces]))
    some = average_masks(predictor, images, size=20, score_threshold=middle)
    expected = np.mean([t.scores[-1][np.argsort(t.kernels)][:12] >= middle for t in traces], axis=0)
    assert some.used == pytest.approx(expected) and 0 < expected.mean() < 1
    none = average_masks(predictor, images[:1], size=20, score_threshold=1.1)
    assert (none.used == 0).all() and set(none.classes) == {""}
    with pytest.raises(ValueError, match="no image"):
        average_masks(predictor, [])


def test_models_that_look_more_than_once_are_refused(tiny_cfg, semantic_cfg):
    tiny_cfg.TEST.AUG.ENABLED = True
    semantic_cfg.MODEL.KNET.TEST.WINDOW.SIZE = (32, 32)
    for cfg in (tiny_cfg, semantic_cfg):
        with pytest.raises(ValueError, match="one look at the whole image: set"):
            trace_kernels(make(cfg), picture())


@pytest.fixture
def trace():
    """Two kernels on 4 x 4 pixels: a left half that forms, and a mask that stays empty."""
    masks = np.zeros((3, 2, 4, 4), np.float32)
    masks[0, 0, :, :1], masks[0, 0, :, 1:3] = 0.8, 0.3
    masks[1, 0, :, :2] = 0.7
    masks[2, 0, :, :2] = 0.95
    return KernelTrace(
        kernels=np.array([5, 7]),
        num_things=7,
        num_thing_classes=1,
        masks=masks,
        scores=np.array([[np.nan] * 2, [0.5, 0.1], [0.9, 0.2]]),
        labels=np.array([[-1, -1], [0, 1], [0, 1]]),
        class_scores=np.array([[[0.5, 0.9], [0.8, 0.1]], [[0.9, 0.9], [0.8, 0.2]]]),
        class_names=("cat", "sky"),
    )


def test_overlap_and_unsure_pixels(trace):
    assert trace.iou_with_last() == pytest.approx(np.array([[0.5, 1], [1, 1], [1, 1]]))
    assert trace.unsure() == pytest.approx(np.array([[1, 0], [1, 0], [0, 0]]))


def test_drawings(trace):
    image = np.full((4, 4, 3), 128, np.uint8)
    rounds = draw_kernel_rounds(image, trace)
    classes = draw_class_scores(trace)
    for drawn in (rounds, classes):
        assert drawn.dtype == np.uint8 and drawn.ndim == 3 and drawn.shape[2] == 3
        assert drawn.std() > 20  # not blank
    assert (draw_kernel_rounds(image, trace) == rounds).all()
    wide = draw_class_scores(trace, ["sky", "cat"])
    assert draw_class_scores(trace, ["sky"]).shape[1] < wide.shape[1]
    assert wide.shape == classes.shape and (wide != classes).any()  # the other way round
    with pytest.raises(ValueError, match="the model has no class cow; it has cat, sky"):
        draw_class_scores(trace, ["cat", "cow"])
    # one more kernel, one more row
    trace.masks = trace.masks[:, :1]
    trace.kernels, trace.scores, trace.labels = trace.kernels[:1], trace.scores[:, :1], trace.labels
    assert draw_kernel_rounds(image, trace).shape[0] < rounds.shape[0]
    trace.class_scores = None
    with pytest.raises(ValueError, match="a semantic model has no class scores"):
        draw_class_scores(trace)


@pytest.mark.slow
def test_command(tiny_cfg, semantic_cfg, tmp_path, capsys):
    make(tiny_cfg).save_pretrained(tmp_path / "model")
    make(semantic_cfg).save_pretrained(tmp_path / "semantic")
    Image.fromarray(picture(40, 60)).save(tmp_path / "a.png")
    out = tmp_path / "out"

    def run(model, *words):
        words = ["kernels", *words, "--model", tmp_path / model, "--output", out]
        status = main([str(word) for word in words])
        said = capsys.readouterr()
        return said.err if status else [Path(line) for line in said.out.splitlines()]

    paths = run("model", tmp_path / "a.png", "MODEL.KNET.TEST.SEMANTIC_ON", False, "--kernels", 2,
                "--classes", "disc")  # fmt: skip
    assert paths == [out / "a_rounds.png", out / "a_classes.png"]
    assert run("semantic", tmp_path / "a.png", "--kernels", 2) == [out / "a_rounds.png"]
    named = (tmp_path / "a.png", "--classes", "disc")
    assert "a semantic model has no class scores" in run("semantic", *named)
    assert "--classes goes with" in run("model", "--dataset", "tiny_val", "--classes", "disc")
    (average,) = run("model", "--dataset", "tiny_val", "--images", 2)
    assert average == out / "tiny_val_average.png"
    assert Image.open(average).size[0] > 400
    assert "the data set 'nowhere' is not registered" in run("model", "--dataset", "nowhere")
    assert f"{tmp_path}/gone.png: there is no such file" in run("model", tmp_path / "gone.png")
    assert "name pictures or a --dataset" in run("model")
