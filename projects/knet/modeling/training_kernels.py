"""Kernels that only training has: noised objects, and learned ones that share objects.

Not part of the published model. Each group goes through the same update rounds as the model's own
kernels, but separately: no kernel sees one of another group. So the model's own masks and classes
are the same with and without them, and inference leaves them out. Several kernels of a group may be
after the same object, and none is after stuff: they share pixels whatever the rounds' grouping.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knet.modeling.grouping import gather_features, hard_groups
from knet.modeling.kernels import KernelRounds
from knet.modeling.layers import at_least_float32, to_device
from knet.modeling.outputs import InitialKernels, KernelGroup
from knet.modeling.positions import PlaceEncoding, spread_places
from knet.modeling.targets import BatchTargets, Rows

# of a pilot's class: probability that it is drawn anew
_WRONG_CLASS = 0.2
# of its masks: how far they move at most, as a share of the object's height and width; by how much
# more or less high and wide they are at most; wrong pixels, as a share of the object's area
_SHIFT, _STRETCH, _WRONG_PIXELS = 0.1, 0.2, 0.2
# logit of a pixel inside, and minus that of one outside
_SURE = 3.0

# learned kernels at most, if the model has not more itself: every pair of them meets in attention,
# and each has masks in every round. The published model has 100
_MOST = 300


class MaskPilots(nn.Module):
    """Kernels that begin at objects (MP-Former: Zhang et al., CVPR 2023, arXiv 2303.07336).

    A mask of a wrong object sends its kernel astray, and every further round with it. A pilot
    gathers from its own object in every round, whatever the round before has found: from the true
    mask, moved, stretched and with some wrong pixels, each time differently. What it has to find is
    known without matching, so that rounds learn to read features of an object from the first step.

    A pilot starts from a learned embedding of its class, which is wrong at times, and the features
    of its mask. Masks are given as logits that are sure, inside and outside. So with residual masks
    a round learns to mend what is wrong with the mask that it gathers from, as it does with the
    model's own.

    Effect on short trainings (docs/ABLATION.md): scenes -4.9 PQ, nuclei -4.4 AP, photos -3.9 PQ.

    Args:
        num_thing_classes: T.
        hidden_dim: width C.
        copies: pilots of each object.
        most: pilots of an image at most; of more a random subset is trained.
    """

    def __init__(self, *, num_thing_classes: int, hidden_dim: int, copies: int, most: int) -> None:
        super().__init__()
        self.copies = copies
        self.most = most
        self.classes = nn.Embedding(num_thing_classes, hidden_dim)

    def forward(
        self, initial: InitialKernels, rounds: KernelRounds, targets: BatchTargets
    ) -> KernelGroup:
        """Pilots of a batch, as many in every image.

        Where an image has fewer objects, further copies of these fill up, or of an empty mask.
        They are not trained.
        """
        index, labels, rows = self._draw(targets)
        features = initial.features
        with torch.no_grad():
            masks = reduced(targets.masks, (features.shape[2], features.shape[3]))[index]
            wrong = torch.rand(labels.shape, device=labels.device) < _WRONG_CLASS
            other = torch.randint_like(labels, self.classes.num_embeddings)
            labels = torch.where(wrong, other, labels)
        sure = features.new_tensor(_SURE)
        logits = (torch.where(m, sure, -sure) for m in noised(masks))
        first = next(logits)
        kernels = self.classes(labels) + gather_features(features, hard_groups(first))[0]
        given = itertools.chain([first], logits)
        outputs = rounds(features, kernels, first, initial.levels, given, hard_groups)
        return KernelGroup("pilot", None, outputs, rows=rows)

    def _draw(self, targets: BatchTargets) -> tuple[Tensor, Tensor, Rows]:
        """Index of each pilot's mask (B, P), of which -1 is empty, its class (B, P), and rows."""
        chosen = []
        for things in targets.things:
            crowded = len(things) * self.copies > self.most
            order = torch.randperm(len(things)).numpy() if crowded else np.arange(len(things))
            # all objects once before one of them twice
            chosen.append(np.tile(order, self.copies)[: self.most])
        count = max(1, *map(len, chosen))
        index = np.full((len(chosen), count), -1, dtype=np.int64)
        labels, parts = np.zeros_like(index), []
        for b, (objects, things) in enumerate(zip(chosen, targets.things)):
            own = np.arange(len(objects))
            if len(objects):
                filled = np.resize(objects, count)
                index[b], labels[b] = targets.firsts[b] + filled, things[filled]
            parts.append([np.full_like(own, b), own, index[b, own], labels[b, own]])
        rows = np.concatenate(parts, axis=1)
        flat = np.concatenate([index.ravel(), labels.ravel(), rows.ravel()])
        # in one copy
        table = to_device(torch.from_numpy(flat), targets.masks.device)
        places, classes, table = table.split([index.size, labels.size, rows.size])
        return (
            places.view(index.shape), classes.view(labels.shape), Rows(*table.view(4, -1).unbind())
        )  # fmt: skip


class ManyKernels(nn.Module):
    """Learned kernels of which several find each object (H-DETR: Jia et al., CVPR 2023, §3.2).

    One kernel for each object, as K-Net matches, means few kernels with a target in an image of few
    objects. Here a second set of kernels is matched with every object several times, in the same
    rounds: more masks to learn from, while the model's own kernels still learn to be the only one.

    Effect on short trainings (docs/ABLATION.md): scenes -12.2 PQ, nuclei -5.7 AP, photos -4.6 PQ.

    Args:
        hidden_dim: width C.
        num_kernels: N of the model.
        repeats: k, kernels for each object. There are k * N kernels, but 300 or N at most, and
            where these are not enough fewer of them for each object.
        places: the kernels start on places of their own; None: they are drawn at random.
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_kernels: int,
        repeats: int,
        places: PlaceEncoding | None = None,
    ) -> None:
        super().__init__()
        self.repeats = repeats
        count = min(repeats * num_kernels, max(_MOST, num_kernels))
        self.kernels = nn.Conv2d(hidden_dim, count, 1, bias=False)
        nn.init.normal_(self.kernels.weight)
        if places is not None:
            self.kernels.weight.data[..., 0, 0] = places.kernels(spread_places(count))

    def forward(
        self, initial: InitialKernels, rounds: KernelRounds, targets: BatchTargets
    ) -> KernelGroup:
        """These kernels before and after every round; they are matched by the criterion."""
        assert initial.localising is not None
        masks = self.kernels(initial.localising)
        groups, _ = gather_features(initial.features, hard_groups(masks))
        kernels = self.kernels.weight.flatten(1) + groups
        outputs = rounds(initial.features, kernels, masks, initial.levels, grouping=hard_groups)
        return KernelGroup("many", masks, outputs, repeats=self.repeats)


def reduced(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Boolean masks (M + 1, h, w) of soft ones (M, H, W), and an empty one.

    A pixel is inside where the mask's mean over it exceeds half of that at the mask's best pixel,
    so that nothing is too small to remain.
    """
    shares = F.adaptive_avg_pool2d(at_least_float32(masks)[:, None], size)[:, 0]
    return F.pad(2 * shares > shares.amax((1, 2), keepdim=True), (0, 0, 0, 0, 0, 1))


@torch.no_grad()
def noised(masks: Tensor) -> Iterator[Tensor]:
    """Without end: the masks with errors, each time differently.

    They are moved and stretched along both axes, as predicted masks err at their borders, and then
    pixels anywhere in the image change sides, in number a share of the object's area (the point
    noise of MP-Former). What a mask has at the border of the image goes on beyond it.

    Args:
        masks: (B, P, H, W) boolean.

    Yields:
        (B, P, H, W) boolean.
    """
    shape, masks = masks.shape, masks.flatten(0, 1)
    boxes = []
    for axis, length in ((1, shape[2]), (2, shape[3])):
        cells = torch.arange(length, device=masks.device) + 0.5
        inside = masks.any(3 - axis)
        low = torch.where(inside, cells, length).amin(1, keepdim=True)
        high = torch.where(inside, cells, 0).amax(1, keepdim=True)
        boxes.append((axis, cells, (low + high) / 2, high - low + 1))
    flips = _WRONG_PIXELS * masks.sum((1, 2), keepdim=True) / (shape[2] * shape[3])
    while True:
        moved = masks
        for axis, cells, centre, size in boxes:
            shift, stretch = torch.rand(2, len(masks), 1, device=masks.device) * 2 - 1
            read = cells - centre - _SHIFT * size * shift
            read = centre + read / (1 + _STRETCH) ** stretch
            index = read.long().clamp(0, len(cells) - 1)
            moved = moved.gather(axis, index.unsqueeze(3 - axis).expand_as(moved))
        moved = moved | (masks & ~moved.any(2).any(1)[:, None, None])  # of few pixels none is left
        flipped = torch.rand(moved.shape, device=masks.device) < flips
        yield (moved ^ flipped).view(shape)
