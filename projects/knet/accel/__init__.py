"""What makes K-Net faster or leaner. Without it, a slower K-Net gives the same results.

`accelerate` is the door, through which the trainer and the predictor go; only an export looks
behind it, to undo the convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from torch import nn

from knet.accel.convolutions import use_fast_convolutions
from knet.accel.forward import InferenceForward
from knet.accel.recompute import recompute_rounds, recompute_stages
from knet.accel.streamed_fusion import StreamedFusion
from knet.accel.streamed_losses import StreamedPixels
from knet.modeling.kernels import KernelRounds
from knet.modeling.knet import KNet
from knet.modeling.losses import AllPixels, RecomputedPixels, SampledPoints
from knet.modeling.postprocess import Streaming
from knet.modeling.task import MaskTask

__all__ = ["accelerate", "accelerate_as_configured"]


def accelerate(
    model: KNet,
    *,
    dtype: torch.dtype = torch.float32,
    graphs: int = 16,
    recompute: Sequence[str] = (),
) -> KNet:
    """Make a model faster or leaner where it is, in place; weights and their names stay.

    Call it once, when the model is on its device. Everywhere, batch norms are folded into
    convolutions for inference. On a CPU convolutions take faster ways, and losses and fusion are
    computed in parts that fit into caches. On a GPU inference replays CUDA graphs.

    Args:
        model: a `KNet`.
        dtype: of backbone, neck and masks in inference; all but float32 change results by their
            rounding.
        graphs: sizes of images for which a GPU keeps a graph; 0 for none.
        recompute: "backbone" (a ResNet's stages), "rounds" and "losses" (enlarged masks) drop
            activations in training and compute them again for the gradients. On a CPU losses keep
            none in the first place.

    Returns:
        The same model.

    Raises:
        ValueError: a backbone whose stages cannot be recomputed.
    """
    on_cpu = model.device.type == "cpu"
    if on_cpu:
        use_fast_convolutions(model)
        if isinstance(model.task, MaskTask):
            chunk = min(32 << 20, model.task.streaming.chunk_bytes)
            model.task.streaming = Streaming(StreamedFusion, band=64, chunk_bytes=chunk)
    criterion: Any = model.criterion
    places = getattr(criterion, "places", None)  # a criterion of one's own may have none
    pixels = StreamedPixels() if on_cpu else RecomputedPixels() if "losses" in recompute else None
    if pixels is not None and isinstance(places, SampledPoints):
        places.dense = pixels
    elif pixels is not None and type(places) is AllPixels:
        criterion.places = pixels
    if "backbone" in recompute:
        recompute_stages(model.backbone)
    if "rounds" in recompute:
        recompute_rounds(cast(KernelRounds, model.heads.rounds))
    on_gpu = model.device.type == "cuda"
    model.inference = InferenceForward(model, dtype=dtype, graphs=graphs if on_gpu else 0)
    return model


def accelerate_as_configured(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """`accelerate` with the values of MODEL.KNET.ACCEL, if they ask for it.

    A model of another MODEL.META_ARCHITECTURE stays as it is.
    """
    accel = cfg.MODEL.KNET.ACCEL
    if not accel.ENABLED or not isinstance(model, KNet):
        return model
    return accelerate(
        model,
        dtype=getattr(torch, accel.DTYPE),
        graphs=accel.GRAPHS,
        recompute=accel.RECOMPUTE,
    )
