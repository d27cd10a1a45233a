"""A neck of one's own, chosen by a key: here the finest maps alone, which suits small objects.

python examples/own_neck.py configs/shapes/panoptic.yaml [KEY VALUE ...]
"""

import sys

from torch import nn

from knet.modeling.build_neck import KNET_NECK_REGISTRY
from knet.training.run import train


class FinestNeck(nn.Module):
    """The level of the masks through two blocks of its own: one says where, the other what."""

    def __init__(self, in_channels, width, level):
        super().__init__()
        self.level = level
        self.where = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU())
        self.what = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU())

    def forward(self, features):
        """Maps (B, C_i, H_i, W_i), finest first -> two maps (B, width, H, W)."""
        x = features[self.level]
        return self.where(x), self.what(x)


@KNET_NECK_REGISTRY.register()
def build_finest_neck(cfg, input_shape):
    """What MODEL.KNET.NECK names; `input_shape` has channels and stride of each feature."""
    knet = cfg.MODEL.KNET
    name = knet.IN_FEATURES[knet.MASK_LEVEL]
    return FinestNeck(input_shape[name].channels, knet.HIDDEN_DIM, knet.MASK_LEVEL)


if __name__ == "__main__":
    train(sys.argv[1], ["MODEL.KNET.NECK", "build_finest_neck", *sys.argv[2:]])
