"""The classes of a model as a data set's categories: what result files name them by."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.data import Metadata

from knet.classes import ClassIds, class_names

__all__ = ["Category", "categories_of"]


@dataclass(frozen=True)
class Category:
    """One class.

    Attributes:
        label: as results have it (`pred_classes`, channels of `sem_seg`).
        id: of the data set's annotations.
        name: of the class.
        is_thing: a thing, or stuff; semantic models know stuff only.
    """

    label: int
    id: int
    name: str
    is_thing: bool


def categories_of(metadata: Metadata, ids: ClassIds) -> list[Category]:
    """Things, then stuff, each by ascending label.

    Args:
        metadata: a data set's. Where it has no ``…_dataset_id_to_contiguous_id`` (semantic data
            have none), labels are ids.
        ids: the labels of the model's classes.

    Raises:
        ValueError: if the metadata lack names.
    """
    names = class_names(metadata, ids)
    if names is None:
        raise ValueError(
            f"the metadata of {metadata.get('name')!r} name fewer classes than the model has: "
            f"{len(ids.things)} things and {len(ids.stuff)} others"
        )
    found = []
    for kind, labels in (("thing", ids.things), ("stuff", ids.stuff)):
        mapping = metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {}
        of_label = {label: category_id for category_id, label in mapping.items()}
        found += [(label, int(of_label.get(label, label)), kind == "thing") for label in labels]
    return [Category(label, key, name, thing) for (label, key, thing), name in zip(found, names)]
