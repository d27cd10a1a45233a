"""What is remembered of a video's objects, and which object of a new frame is which of them.

As in MinVIS (Huang et al., NeurIPS 2022), objects are known again by the kernels that found them:
nothing is trained on videos. Video K-Net (Li et al., CVPR 2022) links kernels too, and trains it.
An object that is not seen stays in the memory for a while, so that it has its id when it is back.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

__all__ = ["Found", "KnownObject", "LinkOptions", "ObjectMemory", "mask_overlaps"]


@dataclass(frozen=True)
class LinkOptions:
    """How objects are linked; the defaults are chosen on clips of *shapes*.

    The affinity of an object found and one known is `similarity` times the cosine of their kernels,
    of the known one that which is most alike, plus `overlap` times the intersection over union of
    their masks, less `other_class` if their classes differ. Pairs are made so that the sum of
    affinities is largest, and kept from `least` on.

    Attributes:
        similarity, overlap, other_class, least: see above.
        kernels: how many of the last ones that found an object are remembered.
        patience: frames after which an object that is not seen is forgotten.
    """

    similarity: float = 1.0
    overlap: float = 0.2
    other_class: float = 0.05
    least: float = 0.7
    kernels: int = 4
    patience: int = 100


@dataclass(frozen=True)
class Found:
    """The n objects found in a frame.

    Attributes:
        kernels: (n, C) that found them.
        labels: (n,) classes.
        scores: (n,) of them.
        masks: (n, h, w) boolean, on a grid that is coarse, and the same in all frames.
    """

    kernels: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray


@dataclass
class KnownObject:
    """An object that was seen.

    Attributes:
        id: of it, never used again.
        kernels: (C,) of length 1 each, the last ones that found it.
        mask: (h, w) boolean, where it was last.
        frame: when that was.
        votes: for each class the sum of its scores.
    """

    id: int
    kernels: deque[np.ndarray]
    mask: np.ndarray
    frame: int
    votes: dict[int, float] = field(default_factory=dict)

    @property
    def label(self) -> int:
        """The class that it had most."""
        return max(self.votes, key=self.votes.__getitem__)


class ObjectMemory:
    """Links the objects of frame after frame.

    Args:
        options: how.

    Attributes:
        known: those that may come back, in the order of their ids.
    """

    def __init__(self, options: LinkOptions | None = None) -> None:
        self.options = options or LinkOptions()
        self.known: list[KnownObject] = []
        self._last_id = 0

    def new_id(self) -> int:
        """The next id, from 1 on."""
        self._last_id += 1
        return self._last_id

    def link(self, found: Found, frame: int) -> list[KnownObject]:
        """Which objects those of a frame are; those that nothing is linked to are new.

        Args:
            found: in the frame.
            frame: its number, higher than those before; numbers that are left out count as frames
                in which nothing is seen.

        Returns:
            One for each of `found`, renewed by it.
        """
        options = self.options
        self.known = [k for k in self.known if frame - k.frame <= options.patience]
        kernels = _unit(found.kernels)
        affinity = self._affinity(found, kernels)
        pairs = dict(zip(*(x.tolist() for x in linear_sum_assignment(affinity, maximize=True))))
        linked = []
        for row in range(len(kernels)):
            column = pairs.get(row)
            if column is not None and affinity[row, column] >= options.least:
                known = self.known[column]
            else:
                remembered: deque[np.ndarray] = deque(maxlen=options.kernels)
                known = KnownObject(self.new_id(), remembered, found.masks[row], frame)
            known.kernels.append(kernels[row])
            known.mask, known.frame = found.masks[row], frame
            label, score = int(found.labels[row]), float(found.scores[row])
            known.votes[label] = known.votes.get(label, 0.0) + score
            linked.append(known)
        old = {known.id for known in self.known}
        self.known += [known for known in linked if known.id not in old]
        return linked

    def _affinity(self, found: Found, kernels: np.ndarray) -> np.ndarray:
        """(n, known) of the objects found and those known."""
        if not self.known or not len(kernels):
            return np.zeros((len(kernels), len(self.known)))
        options = self.options
        cosines = [(kernels @ np.stack(known.kernels).T).max(axis=1) for known in self.known]
        labels = np.array([known.label for known in self.known])
        affinity = options.similarity * np.stack(cosines, axis=1)
        masks = np.stack([known.mask for known in self.known])
        affinity += options.overlap * mask_overlaps(found.masks, masks)
        return affinity - options.other_class * (found.labels[:, None] != labels)


def mask_overlaps(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) intersection over union of boolean masks (n, h, w) and (m, h, w); 0 of empty ones."""
    a, b = (x.reshape(len(x), math.prod(x.shape[1:])).astype(np.float32) for x in (masks, others))
    common = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1) - common
    return common / np.maximum(union, 1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (…, C) as float64 of length 1."""
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
