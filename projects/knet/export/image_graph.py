"""What all graphs begin with: images in, the last round of logits out; and maps at output size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knet.data.images import FORMATS
from knet.export.lowering import exportable_copy
from knet.modeling.outputs import RoundOutput
from knet.modeling.predictions import Frame
from knet.modeling.resize import composed_matrix

# maps held at output size at a time: a bound on memory, unrolled in the graph
_CHUNK = 16


class ImageGraph(nn.Module):
    """What all graphs begin with: images in, the last round out.

    Args:
        model: `KNet`, of which the parts that inference needs are copied.
        onnx: whether every operator must exist in ONNX.
        channel_order: the model's INPUT.FORMAT; the graph takes RGB, of a model for "L" one grey
            channel: grey after resizing would not be the model's input to the last bit.
        half: compute in float16 under autocast; sums over pixels and results stay float32.
        least_output: sides of the results are this or more.

    Raises:
        ValueError: see `exportable_copy`; an unknown format.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        model: Any,
        *,
        onnx: bool,
        channel_order: str,
        half: bool = False,
        least_output: int = 1,
    ) -> None:
        super().__init__()
        if channel_order not in FORMATS:
            raise ValueError(
                f"INPUT.FORMAT is {channel_order!r}; {', '.join(FORMATS)} can be exported"
            )
        self.backbone = exportable_copy(model.backbone, "backbone", onnx=onnx)
        self.heads = exportable_copy(model.heads, "heads", onnx=onnx)
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())
        self.in_features = list(model.in_features)
        self.size_divisibility = max(model.size_divisibility, 1)
        self.task = model.task
        self.reverse_channels = channel_order == "BGR"
        self.half_precision = half
        self.least_output = least_output

    def last_round(self, images: Tensor) -> tuple[RoundOutput, Frame]:
        """(B, C, H, W), 0 to 255 -> the last round and the sizes."""
        if self.reverse_channels:
            images = images.flip(1)
        x = (images - self.pixel_mean) / self.pixel_std
        height, width = images.shape[-2:]
        divisor = self.size_divisibility
        padded = tuple((size + divisor - 1) // divisor * divisor for size in (height, width))
        x = F.pad(x, (0, padded[1] - width, 0, padded[0] - height))
        if self.half_precision:
            with torch.autocast(x.device.type, dtype=torch.float16):
                last = self._rounds(x)
        else:
            last = self._rounds(x)
        return last, Frame(padded, (height, width))

    def _rounds(self, x: Tensor) -> RoundOutput:
        features = self.backbone(x)
        return self.heads([features[name] for name in self.in_features])[1][-1]


class RawGraph(ImageGraph):
    """Images in, the last round's logits out; arguments as of `ImageGraph`."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits of a batch.

        Args:
            image: (B, C, H, W), RGB or grey, 0 to 255, any real type.

        Returns:
            `mask_logits` (B, M, h, w) over the padded batch and, but for semantic models,
            `class_logits` (B, M, K), both float32.
        """
        last, _ = self.last_round(image)
        outputs = {"mask_logits": last.masks.float()}
        if last.class_logits is not None:
            outputs["class_logits"] = last.class_logits.float()
        return outputs


def requested_size(output_size: Tensor, least: int = 1) -> tuple[int, int]:
    """Height and width, `least` or more, out of the tensor that is fed."""
    height, width = (cast(int, side.item()) for side in (output_size[0], output_size[1]))
    for side in (height, width):
        torch._check(side >= least)
    return height, width


def resized(
    maps: Any, kernels: range, frame: Frame, size: Sequence[int], grid_size: Sequence[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """As `MaskResizer.stream`, in chunks of a fixed number and for sizes that are not known."""
    rows, columns = (
        composed_matrix(*axis) for axis in zip(grid_size, frame.padded_size, frame.image_size, size)
    )
    for start in range(kernels.start, kernels.stop, _CHUNK):
        chunk = list(range(start, min(start + _CHUNK, kernels.stop)))
        part = maps(chunk)
        yield chunk, rows.to(part.device) @ (part @ columns.T.to(part.device))
