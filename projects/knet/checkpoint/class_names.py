"""The names of a model's classes, and which rows of a checkpoint they find again."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

from knet.classes import ClassIds, class_ids_from_config, class_names
from knet.modeling.build import is_semantic


@dataclass(frozen=True)
class ClassNames:
    """Names in the order of a model's rows, things first.

    Attributes:
        names: of all classes; a semantic model's are all stuff.
        num_things: how many are things; None if that is not known.
    """

    names: tuple[str, ...]
    num_things: int | None = None

    def to_dict(self) -> dict[str, list[str]]:
        """As checkpoints keep it: `{"things": [...], "stuff": [...]}`, or `{"all": [...]}`."""
        if self.num_things is None:
            return {"all": list(self.names)}
        return {
            "things": list(self.names[: self.num_things]),
            "stuff": list(self.names[self.num_things :]),
        }

    @classmethod
    def from_dict(cls, saved: Any) -> ClassNames | None:
        """The inverse of `to_dict`; None for anything else."""
        if not isinstance(saved, Mapping):
            return None
        lists = [saved.get(key, []) for key in ("things", "stuff", "all")]
        if not all(isinstance(names, (list, tuple)) for names in lists) or not any(lists):
            return None
        names = tuple(str(name) for part in lists for name in part)
        return cls(names, None if "all" in saved else len(lists[0]))

    @classmethod
    def from_openmmlab(cls, meta: Any) -> ClassNames | None:
        """The names in an OpenMMLab checkpoint's `meta`, or None."""
        for table in (meta, meta.get("dataset_meta") if isinstance(meta, Mapping) else None):
            for key in ("CLASSES", "classes"):
                names = table.get(key) if isinstance(table, Mapping) else None
                if isinstance(names, (list, tuple)) and names:
                    return cls(tuple(str(name) for name in names))
        return None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ClassNames | None:
        """Names from the metadata of the config's first data set; None without data set or names.

        Raises:
            ValueError: as `class_ids_from_config`.
        """
        datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
        if not datasets:
            return None
        ids = class_ids_from_config(cfg, semantic=is_semantic(cfg))
        return cls.from_metadata(MetadataCatalog.get(datasets[0]), ids)

    @classmethod
    def from_metadata(cls, metadata: Metadata, ids: ClassIds) -> ClassNames | None:
        """Names of the labels `ids`, None if the metadata lack some."""
        names = class_names(metadata, ids)
        return None if names is None else cls(names, len(ids.things))

    def kind(self, row: int) -> bool | None:
        """Whether a row is a thing; None if that is not known."""
        return None if self.num_things is None else row < self.num_things


def _key(name: str) -> str:
    """What spellings of one class share.

    COCO's stuff is "floor-other-merged" or "floor", ADE20K's "road, route" or "road".
    """
    first = re.split("[,;]", name.lower())[0]
    return " ".join(re.sub("-(other|merged)", "", first).replace("_", " ").split())


def match_classes(theirs: ClassNames, ours: ClassNames) -> list[int | None]:
    """For every class of ours the row of theirs that has its name, or None.

    A class that is a thing on one side and stuff on the other is found too, unless the name is
    there twice. Two lists of one length that agree in the place of every common name, and in half
    of the names, are one list in two spellings: then all rows are found.
    """
    rows = defaultdict(list)
    for row, name in enumerate(theirs.names):
        rows[_key(name)].append(row)
    matched: list[int | None] = []
    for i, name in enumerate(ours.names):
        found = rows[_key(name)]
        same_kind = [row for row in found if theirs.kind(row) in (None, ours.kind(i))]
        matched.append(next((some[0] for some in (same_kind, found) if len(some) == 1), None))
    known = [(i, row) for i, row in enumerate(matched) if row is not None]
    one_list = (
        len(theirs.names) == len(ours.names)
        and theirs.num_things in (None, ours.num_things)
        and all(i == row for i, row in known)
        and 2 * len(known) >= len(matched)
    )
    return list(range(len(matched))) if one_list else matched
