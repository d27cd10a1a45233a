"""A graph in front of the exported one, which takes a picture as a decoder gives it.

It resizes as Pillow does: bilinear, and with wider triangles where it reduces; columns first, then
rows, with whole numbers in between.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

# of Pillow's convert("L"), in 1/65536
_GREY = (19595, 38470, 7471)


class PictureResize(nn.Module):
    """From a picture of any size to the two inputs of a graph with results.

    Args:
        short_side, max_long_side: INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST; 0 keeps the size.
        grey: whether the model takes one grey channel (INPUT.FORMAT L).
    """

    def __init__(self, *, short_side: int, max_long_side: int, grey: bool) -> None:
        super().__init__()
        self.short_side, self.max_long_side = short_side, max_long_side
        self.grey = grey

    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        """(H, W, 3) uint8 RGB -> `image` (1, C, h, w) uint8 and `output_size` (2,), its H and W."""
        sides = [torch.tensor(side, dtype=torch.float64) for side in picture.shape[:2]]
        maps = picture.permute(2, 0, 1).double()
        if self.grey:
            weights = torch.tensor(_GREY, dtype=torch.float64)[:, None, None]
            maps = ((maps * weights).sum(0, keepdim=True) / 65536 + 0.5).floor()
        height, width = self._new_size(*sides)
        maps = _whole(maps @ _resizing(sides[1], picture.shape[1], width).T)
        maps = _whole(_resizing(sides[0], picture.shape[0], height) @ maps)
        return {
            "image": maps.to(torch.uint8)[None],
            "output_size": torch.stack(sides).long(),
        }

    def _new_size(self, height: Tensor, width: Tensor) -> tuple[int, int]:
        """As Detectron2's `ResizeShortestEdge`."""
        if self.short_side > 0:
            least = torch.minimum(height, width)
            scale = self.short_side / least
            # the shorter side exactly; a product may differ from it in the last bit
            height, width = (
                torch.where(side == least, float(self.short_side), side * scale)
                for side in (height, width)
            )
            reduce = (self.max_long_side / torch.maximum(height, width)).clamp(max=1.0)
            height, width = height * reduce, width * reduce
        found = []
        for side in (height, width):
            size = cast(int, (side + 0.5).floor().long().item())
            torch._check(size >= 1)
            found.append(size)
        return found[0], found[1]


def trace_resize(module: PictureResize) -> ExportedProgram:
    """The traced graph, for pictures of any size."""
    picture = torch.zeros(61, 83, 3, dtype=torch.uint8)
    dims: dict[int, Any] = {0: Dim.AUTO, 1: Dim.AUTO}
    return torch.export.export(
        module,
        (),
        {"picture": picture},
        dynamic_shapes={"picture": dims},
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def join(resize: Any, graph: Any) -> Any:
    """One ONNX model of both: the outputs of the first are the inputs of the second.

    Args:
        resize, graph: ONNX models (`onnx.ModelProto`) of one opset; their properties go.
    """
    import onnx

    resize = onnx.compose.add_prefix(resize, "resize_", rename_inputs=False, rename_outputs=False)
    del resize.metadata_props[:], graph.metadata_props[:]
    version = max(resize.ir_version, graph.ir_version)
    resize.ir_version = graph.ir_version = version
    pairs = [("image", "image"), ("output_size", "output_size")]
    taken = {value.name for value in graph.graph.input}
    return onnx.compose.merge_models(resize, graph, [p for p in pairs if p[1] in taken])


def _whole(values: Tensor) -> Tensor:
    """Pillow rounds each pass, halves up."""
    return (values + 0.5).floor().clamp(0, 255)


def _resizing(side: Tensor, size_in: int, size_out: int) -> Tensor:
    """(size_out, size_in) float64 weights of Pillow's bilinear resize, whole parts of 2**22."""
    scale = side / size_out
    width = scale.clamp(min=1.0)
    center = (torch.arange(size_out, dtype=torch.float64) + 0.5) * scale
    first = (center - width + 0.5).floor()[:, None]
    last = (center + width + 0.5).floor()[:, None]
    cell = torch.arange(size_in, dtype=torch.float64)
    weights = (1 - ((cell - center[:, None] + 0.5) / width).abs()).clamp(min=0)
    weights = weights * ((cell >= first) & (cell < last))
    return (weights / weights.sum(1, keepdim=True) * 2**22 + 0.5).floor() / 2**22
