"""A loss of one's own beside those of K-Net: pixels of an object that its mask misses count more.

python examples/own_loss.py configs/shapes/panoptic.yaml [KEY VALUE ...]
"""

import sys

from knet.modeling.losses import world_mean_divisors
from knet.training.run import train
from knet.training.trainer import Trainer


class WithTversky:
    """Adds a Tversky loss of the last round's masks; everything else stays as it is.

    1 - hit / (hit + wrong * too much + missed * too little) of each mask, where the dice loss has
    one half for both (Salehi et al., 2017).
    """

    def __init__(self, criterion, weight=1.0, wrong=0.3, missed=0.7):
        self.criterion, self.weight = criterion, weight
        self.wrong, self.missed = wrong, missed

    def __call__(self, initial, rounds, targets):
        """Losses by name, weighted; their sum is trained."""
        losses = self.criterion(initial, rounds, targets)
        logits, truth = self.criterion.matched_masks(initial, rounds, targets)  # (M, H, W) both
        p, truth = logits.sigmoid().flatten(1), truth.flatten(1)
        hit = (p * truth).sum(1)
        size = hit + self.wrong * (p * (1 - truth)).sum(1) + self.missed * ((1 - p) * truth).sum(1)
        count = world_mean_divisors(p.new_tensor([len(p)]))[0]  # of all processes
        loss = (1 - hit / (size + 1e-3)).sum() / count
        return {**losses, "loss_tversky": self.weight * loss}


class TverskyTrainer(Trainer):
    """The trainer, with another criterion in its model."""

    @classmethod
    def build_model(cls, cfg):
        """The model of the config with one more loss."""
        model = super().build_model(cfg)
        model.criterion = WithTversky(model.criterion)
        return model


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2:], trainer=TverskyTrainer)
