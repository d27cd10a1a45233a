"""Which labels of a data set are K-Net's thing and stuff classes."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog


@dataclass(frozen=True)
class ClassIds:
    """Contiguous data set ids: K-Net's class c < T is `things[c]`, class T + j is `stuff[j]`."""

    things: tuple[int, ...]
    stuff: tuple[int, ...]


def class_ids_from_config(cfg: CfgNode) -> ClassIds:
    """Read the classes off the metadata of the first data set of the config.

    Raises:
        ValueError: the config gives another number of classes, or no data set and no number.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    given = (cfg.MODEL.KNET.NUM_THING_CLASSES, cfg.MODEL.KNET.NUM_STUFF_CLASSES)
    if not names:
        if min(given) < 0:
            raise ValueError(
                "without a data set, MODEL.KNET.NUM_THING_CLASSES and NUM_STUFF_CLASSES "
                f"must be given; they are {given[0]} and {given[1]}"
            )
        return ClassIds(tuple(range(given[0])), tuple(range(given[0], sum(given))))
    if names[0] not in DatasetCatalog:
        raise ValueError(
            f"the data set {names[0]!r} (DATASETS) is not registered: register it before the "
            "model is built"
        )
    metadata = MetadataCatalog.get(names[0])
    things = _ids(metadata, "thing_dataset_id_to_contiguous_id", "thing_classes")
    if metadata.get("panoptic_json") or metadata.get("panoptic_root"):
        stuff = _ids(metadata, "stuff_dataset_id_to_contiguous_id", "stuff_classes")
        stuff = tuple(i for i in stuff if i not in set(things))
    else:  # instance annotations only
        stuff = ()
    for kind, wanted, found in zip(("THING", "STUFF"), given, (len(things), len(stuff))):
        if wanted not in (-1, found):
            raise ValueError(
                f"MODEL.KNET.NUM_{kind}_CLASSES is {wanted}, but the data set {names[0]!r} has "
                f"{found} {kind.lower()} classes: set it to {found}, or to -1 to follow the data"
            )
    return ClassIds(things, stuff)


def _ids(metadata, mapping: str, names: str) -> tuple[int, ...]:
    if metadata.get(mapping):
        return tuple(sorted(set(metadata.get(mapping).values())))
    # COCO-style data sets get their id map only once their JSON is read
    return tuple(range(len(metadata.get(names, ()))))
