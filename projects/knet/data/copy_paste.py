"""Copy-paste: objects of another training picture are pasted into a training picture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Instances

from knet.data.defects import DataError
from knet.data.on_error import SKIPPED

Record = dict[str, Any]


class CopyPaste:
    """A mapper that now and then pastes objects of another record into a record's picture.

    Ghiasi et al., Simple Copy-Paste, CVPR 2021, section 3: both pictures are augmented by
    themselves, a random subset of the objects of the second is pasted where it lies, without
    blending (which makes no difference there), and objects that it hides are gone. Crowds are no
    instances, and stay. All draws are from NumPy's generator, those of the record itself first:
    what it is without pasting does not depend on this.

    Args:
        mapper: record -> sample with `image`, `instances` and perhaps `sem_seg`.
        records: from which the other one is drawn, all alike. They are not copied.
        probability: that a picture gets objects.
        on_error: what is done when the other record has a defect: "raise", or "skip", after which
            nothing is pasted, and the record is named under `SKIPPED`.

    Raises:
        ValueError: a record has no instances.
    """

    def __init__(
        self,
        mapper: Callable[[Record], Record],
        records: Sequence[Record],
        *,
        probability: float,
        on_error: str = "raise",
    ) -> None:
        for record in records:
            if "annotations" not in record and "segments_info" not in record:
                raise ValueError(
                    f"{record['file_name']}: the record has semantic labels only, and "
                    "INPUT.COPY_PASTE pastes objects: set it to 0.0"
                )
        self.mapper = mapper
        self.records = records
        self.probability = probability
        self.on_error = on_error

    def __call__(self, record: Record) -> Record:
        """The record's sample, with objects of another one or without.

        Raises:
            DataError: of the mapper, for a defect of the record; under "raise" of the other, too.
        """
        sample = self.mapper(record)
        if np.random.random() >= self.probability:
            return sample
        other = self.records[np.random.randint(len(self.records))]
        try:
            source = self.mapper(copy.deepcopy(other))
        except DataError as error:
            if self.on_error == "raise":
                raise
            return {**sample, SKIPPED: [str(error)]}
        count = len(source["instances"])
        if not count:
            return sample
        chosen = np.random.permutation(count)[: np.random.randint(1, count + 1)]
        return paste(sample, source, chosen)


def paste(target: Record, source: Record, chosen: Sequence[int] | np.ndarray) -> Record:
    """A sample with objects of another one, both with their upper left corner at one place.

    Args:
        target, source: samples of :class:`knet.data.KNetDatasetMapper`, left unchanged. Where the
            sizes differ, objects are cut to the part that both have.
        chosen: positions of the source's instances.

    Returns:
        The target, whose `image` shows the objects, with their masks and classes after those
        `instances` that keep a pixel; their pixels in `sem_seg`, if it has one, are of their class.
    """
    size = target["image"].shape[1:]
    both = (..., *(slice(min(sides)) for sides in zip(size, source["image"].shape[1:])))
    order = torch.as_tensor(np.sort(np.asarray(chosen, np.int64)))
    masks = source["instances"].gt_masks.tensor[order][both]
    there = masks.flatten(1).any(1)
    masks, classes = masks[there], source["instances"].gt_classes[order][there]
    covered = masks.any(0)

    image = target["image"].clone()
    image[both] = torch.where(covered, source["image"][both], image[both])
    result = {**target, "image": image}
    if "sem_seg" in target:
        result["sem_seg"] = labels = target["sem_seg"].clone()
        for mask, label in zip(masks, classes):
            labels[both][mask] = label
    before = target["instances"]
    left = before.gt_masks.tensor.clone()
    left[both] &= ~covered
    kept = left.flatten(1).any(1)
    pasted = masks.new_zeros((len(masks), *size))
    pasted[both] = masks
    result["instances"] = instances = Instances(tuple(size))
    instances.gt_classes = torch.cat([before.gt_classes[kept], classes])
    instances.gt_masks = BitMasks(torch.cat([left[kept], pasted]))
    return result
