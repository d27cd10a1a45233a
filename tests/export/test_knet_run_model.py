"""Graphs that resize, and odd pictures, give what the predictor gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from knet.export.metadata import describe
from knet.export.onnx_file import save_onnx, write_onnx
from knet.export.picture_graph import PictureResize, join, trace_resize
from knet_run.model import Model

from .models import scene

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.export

PICTURES = {
    "grey": np.repeat(scene(90, 120, 3)[..., :1], 3, axis=2),
    "one pixel": np.full((1, 1, 3), 90, np.uint8),
    "tall": scene(230, 60, 4),
    "small": scene(20, 31, 5),
}


@pytest.fixture(scope="module")
def resizing(panoptic, tmp_path_factory):
    """The exported graph behind one that resizes."""
    predictor, folder = panoptic.predictor, tmp_path_factory.mktemp("resizing")
    sides = {"short_side": predictor.cfg.INPUT.MIN_SIZE_TEST,
             "max_long_side": predictor.cfg.INPUT.MAX_SIZE_TEST}  # fmt: skip
    save_onnx(trace_resize(PictureResize(**sides, grey=False)), folder / "resize.onnx", {})
    both = join(onnx.load(folder / "resize.onnx"), onnx.load(panoptic.onnx))
    metadata = describe(
        predictor.cfg, predictor.metadata, size_divisibility=predictor.model.size_divisibility,
        raw=False, precision="float32", input_dtype="uint8", takes_picture=True,
    )  # fmt: skip
    write_onnx(both, folder / "model.onnx", metadata)
    return Model(str(folder / "model.onnx"))


@pytest.mark.parametrize("kind", list(PICTURES))
def test_odd_pictures(kind, panoptic, resizing):
    picture = PICTURES[kind]
    assert resizing.runtime.inputs == {"picture": [*resizing.runtime.inputs["picture"][:2], 3]}
    expected = panoptic.predictor(picture)
    for model in (resizing, Model(str(panoptic.onnx))):
        found = model(Image.fromarray(picture))
        ids, segments = expected["panoptic_seg"]
        assert (found["panoptic_ids"] == ids.numpy()).mean() >= 0.999
        assert found["segment_classes"].tolist() == [s["category_id"] for s in segments]
        np.testing.assert_allclose(
            found["instance_scores"], expected["instances"].scores, rtol=0, atol=1e-4
        )


def test_a_file_of_another_version_is_named(panoptic, tmp_path):
    graph = onnx.load(panoptic.onnx)
    info = json.loads(graph.metadata_props[0].value)
    write_onnx(graph, tmp_path / "later.onnx", {**info, "format": 2, "producer": "knet 9.0"})
    with pytest.raises(ValueError) as raised:
        Model(str(tmp_path / "later.onnx"))
    assert str(raised.value).endswith(
        "they are of format 2 (knet 9.0), this program reads format 1: take both from one version"
    )
