"""A neck of one's own, chosen by a key: here a plain sum of all levels.

python examples/own_neck.py train --config-file CONFIG MODEL.KNET.NECK build_sum_neck
python examples/own_neck.py predict photo.jpg --config-file OUTPUT/config.yaml --weights FILE

This file is `knet`, which now knows the neck: every command takes a model that has it.
"""

import sys

import torch.nn.functional as F
from torch import nn

from knet.modeling.build_neck import KNET_NECK_REGISTRY
from knet_command import main


class SumNeck(nn.Module):
    """All levels at the width and the size of one of them, summed: one map says where, one what."""

    def __init__(self, in_channels, width, level):
        super().__init__()
        self.level = level
        self.levels = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in in_channels)
        self.where = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.what = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())

    def forward(self, features):
        """Maps (B, C_i, H_i, W_i), finest first -> two (B, width, H, W) of one level's size."""
        size = features[self.level].shape[-2:]
        maps = [conv(x) for conv, x in zip(self.levels, features)]
        x = sum(F.interpolate(x, size, mode="bilinear") for x in maps)
        return self.where(x), self.what(x)


@KNET_NECK_REGISTRY.register()
def build_sum_neck(cfg, input_shape):
    """What MODEL.KNET.NECK names; `input_shape` has channels and stride of each feature."""
    knet = cfg.MODEL.KNET
    channels = [input_shape[name].channels for name in knet.IN_FEATURES]
    return SumNeck(channels, knet.HIDDEN_DIM, knet.MASK_LEVEL)


if __name__ == "__main__":
    sys.exit(main())
