"""The graph that resizes gives the pixels that Pillow gives, and joins with the one behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image

from knet.export.onnx_file import save_onnx
from knet.export.picture_graph import PictureResize, trace_resize

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZES = [(61, 83), (240, 320), (1, 1), (100, 100), (3, 350), (501, 400), (75, 45)]


def picture_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized(picture: np.ndarray, mode: str) -> np.ndarray:
    """As a predictor does: (C, h, w)."""
    height, width = ResizeShortestEdge.get_output_shape(*picture.shape[:2], 100, 166)
    image = Image.fromarray(picture).convert(mode).resize((width, height), Image.BILINEAR)
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_pillows(mode):
    module = PictureResize(short_side=100, max_long_side=166, grey=mode == "L")
    for size in SIZES:
        picture = picture_of(*size)
        found = module(torch.from_numpy(picture))
        np.testing.assert_array_equal(found["image"][0].numpy(), resized(picture, mode))
        assert found["output_size"].tolist() == list(size)


def test_without_a_short_side_the_size_is_kept():
    picture = torch.from_numpy(picture_of(40, 30))
    found = PictureResize(short_side=0, max_long_side=20, grey=False)(picture)
    assert torch.equal(found["image"][0], picture.permute(2, 0, 1))


class Behind(torch.nn.Module):
    """A graph in the place of a model's."""

    def forward(self, image: torch.Tensor, output_size: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sums": image.double().sum((2, 3)), "size": output_size * 1}


@pytest.mark.export
def test_both_become_one_file(tmp_path):
    dims = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    behind = torch.export.export(
        Behind(),
        (),
        {"image": torch.zeros(1, 3, 9, 8, dtype=torch.uint8), "output_size": torch.tensor([3, 4])},
        dynamic_shapes={"image": dims, "output_size": None},
    )
    resize = trace_resize(PictureResize(short_side=100, max_long_side=166, grey=False))
    save_onnx(behind, tmp_path / "both.onnx", {"a": 1}, before=resize)
    session = onnxruntime.InferenceSession(tmp_path / "both.onnx")
    assert [(v.name, len(v.shape)) for v in session.get_inputs()] == [("picture", 3)]
    assert session.get_modelmeta().custom_metadata_map == {"knet": '{"a": 1}'}
    # a side of one graph is never taken for one of the other
    assert all(side.startswith("resize_") for side in session.get_inputs()[0].shape[:2])
    for size in SIZES:
        picture = picture_of(*size)
        sums, found = session.run(["sums", "size"], {"picture": picture})
        assert sums[0].tolist() == resized(picture, "RGB").sum((1, 2), dtype=float).tolist()
        assert found.tolist() == list(size)
