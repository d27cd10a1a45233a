"""Checkpoints between OpenMMLab's layout and Detectron2's, and configs against published models.

convert_checkpoint("published.pth", "knet.safetensors")
equal, text = compare_with_list("shapes.json", "configs/coco/panoptic/knet_r50_fpn_1x.yaml")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.modeling import build_model
from torch import nn

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.published_names import export_published
from knet.checkpoint.read_file import read_file
from knet.checkpoint.recognise import recognise
from knet.checkpoint.shape_list import Shapes, compare, read_shapes, with_classes_of
from knet.checkpoint.write_file import write_openmmlab, write_weights
from knet.config import get_cfg_from_file


def convert_checkpoint(
    source: str,
    output: str | Path,
    *,
    config_file: str | None = None,
    opts: Sequence[Any] = (),
    to_openmmlab: bool = False,
    trust: bool = False,
) -> str:
    """Write the weights of a checkpoint into another file.

    Args:
        source: OpenMMLab's, or any other weights that MODEL.WEIGHTS takes.
        output: .pth or .safetensors.
        config_file: the weights must fit its model entirely.
        opts: config keys and values.
        to_openmmlab: write OpenMMLab's names.
        trust: read the source even if that runs code that it holds.

    Returns:
        What was written, in words.

    Raises:
        OSError, ValueError: the source cannot be read, is not of K-Net or does not fit, or the
            output cannot be written.
    """
    weights = recognise(read_file(source, trust=trust), {}, name=source)
    if weights.heuristics:
        raise ValueError(
            f"{source}: {weights.kind}, which are matched with a model by Detectron2's "
            "heuristics: name the file in MODEL.WEIGHTS"
        )
    state = weights.state
    if config_file:
        model = _build(config_file, opts, {name: value.shape for name, value in state.items()})
        KNetCheckpointer(model, strict=True, trust=trust).load(source)  # refuses misfits
    if to_openmmlab:
        write_openmmlab(str(output), export_published(state), classes=weights.classes)
    else:
        write_weights(output, state, classes=weights.classes)
    return f"{output}: {len(state)} weights of {source} ({weights.kind})"


def compare_with_list(
    shapes_file: str, config_file: str, opts: Sequence[Any] = ()
) -> tuple[bool, str]:
    """Whether a config builds the model of a list of names and shapes, and the differences.

    Raises:
        OSError, ValueError: the list or the config cannot be read.
    """
    shapes = read_shapes(shapes_file)
    return compare(_build(config_file, opts, shapes), shapes)


def _build(config_file: str, opts: Sequence[Any], shapes: Shapes) -> nn.Module:
    cfg = get_cfg_from_file(config_file, ["MODEL.DEVICE", "cpu", *opts])
    return build_model(with_classes_of(cfg, shapes))
