"""What makes K-Net faster or leaner without changing a result."""

from __future__ import annotations

from typing import Any

import torch

from knet.accel.fusion import StreamedFusion
from knet.accel.streamed import StreamedPixels
from knet.inference.postprocess import Streaming
from knet.modeling.losses import AllPixels, SampledPoints
from knet.modeling.task import MaskTask

__all__ = ["accelerate"]


def accelerate(model: Any) -> Any:
    """Make a `KNet` faster or leaner where it is, in place; results and losses stay the same.

    Call it once the model is on its device. On a CPU losses are computed and masks are fused in
    parts that fit into caches.
    """
    if model.device != torch.device("cpu"):
        return model
    places = model.criterion.places
    if type(places) is AllPixels:
        model.criterion.places = StreamedPixels()
    elif isinstance(places, SampledPoints):
        places.dense = StreamedPixels()
    if isinstance(model.task, MaskTask):
        model.task.streaming = Streaming(StreamedFusion, band=64, chunk_bytes=32 << 20)
    return model
