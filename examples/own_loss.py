"""A loss of one's own beside those of K-Net: masks with short outlines.

python examples/own_loss.py configs/shapes/panoptic.yaml [KEY VALUE ...]
"""

import sys

from knet.training.run import train
from knet.training.trainer import Trainer


class WithShortOutlines:
    """Adds the mean change of a mask from pixel to pixel; everything else stays as it is."""

    def __init__(self, criterion, weight=0.5):
        self.criterion, self.weight = criterion, weight

    def __call__(self, initial, rounds, targets):
        """Losses by name, weighted; their sum is trained. `rounds[-1].masks` are (B, N, H, W)."""
        masks = rounds[-1].masks.float().sigmoid()
        change = masks.diff(dim=2).abs().mean() + masks.diff(dim=3).abs().mean()
        losses = self.criterion(initial, rounds, targets)
        return {**losses, "loss_outline": self.weight * change}


class OutlineTrainer(Trainer):
    """The trainer, with another criterion in its model."""

    @classmethod
    def build_model(cls, cfg):
        """The model of the config with one more loss."""
        model = super().build_model(cfg)
        model.criterion = WithShortOutlines(model.criterion)
        return model


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2:], trainer=OutlineTrainer)
