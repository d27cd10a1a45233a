"""The data sets of a config, or registered ones, checked one after the other.

reports = check_data(cfg)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from knet.data.check.data_set import add_config_defects, check_dataset
from knet.data.check.report import DatasetReport
from knet.data.custom import register_builtin, register_custom
from knet.data.defects import DataError
from knet.data.images import MAX_PIXELS, save_image
from knet.data.progress import Progress
from knet.errors import UserError
from knet.side_by_side import draw_annotations

__all__ = ["check_data"]


def check_data(
    cfg: CfgNode | None = None,
    *,
    names: Sequence[str] | None = None,
    part: str = "all",
    model: bool = True,
    workers: int = 0,
    progress: Callable[[str], Progress] | None = None,
) -> list[DatasetReport]:
    """Read every picture and label of data sets once.

    Args:
        cfg: names the data sets.
        names: of registered data sets, in place of the config's.
        part: "train", "test" or "all" of the config's.
        model: whether the data are held against the config's model, too.
        workers: processes; 0 for this one only.
        progress: makes, of a data set's name, what is told the records done and all of them.

    Raises:
        UserError: there is no such data set.
        OSError, ValueError: what the config says of a data set cannot be right.
    """
    logger = logging.getLogger("knet")
    level = logger.level
    logger.setLevel(logging.ERROR)  # the report says what the log would
    try:
        chosen = list(names or (_names(cfg, part) if cfg is not None else ()))
        if not chosen:
            raise UserError(f"the config names no data set for --part {part}")
        reports = [
            _check(name, cfg, workers, progress(name) if progress else None) for name in chosen
        ]
        if cfg is not None:
            add_config_defects(reports, cfg, model=model)
    finally:
        logger.setLevel(level)
    return reports


def draw_records(
    report: DatasetReport,
    number: int,
    folder: str | os.PathLike[str],
    *,
    max_pixels: int = MAX_PIXELS,
) -> list[Path]:
    """Draw usable records with their annotations, evenly spread over the data set.

    Args:
        report: of the data set.
        number: of the records.
        folder: for a PNG each; made if missing.
        max_pixels: a larger picture is refused.

    Returns:
        The files' paths.
    """
    out = Path(folder)
    records = report.usable
    number = min(number, len(records))
    out.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for index in (k * len(records) // number for k in range(number)):
        metadata = MetadataCatalog.get(report.name)
        sheet = draw_annotations(records[index], metadata, max_pixels=max_pixels)
        stem = f"{report.name}_{index:06d}_{Path(records[index]['file_name']).stem}"
        paths.append(out / f"{stem}.png")
        save_image(paths[-1], sheet)
    return paths


def _names(cfg: CfgNode, part: str) -> list[str]:
    """The config's data sets of a part, each once."""
    train = cfg.DATASETS.TRAIN if part in ("train", "all") else ()
    test = cfg.DATASETS.TEST if part in ("test", "all") else ()
    return list(dict.fromkeys([*train, *test]))


def _check(
    name: str, cfg: CfgNode | None, workers: int, progress: Progress | None
) -> DatasetReport:
    """Registers one data set and checks it; a file that cannot be read at all is a report too."""
    try:
        if cfg is not None:
            only = cfg.clone()
            only.defrost()
            only.DATASETS.CUSTOM = [e for e in cfg.DATASETS.CUSTOM if _name(e) in (name, None)]
            only.DATASETS.TEST = ()
            only.DATASETS.ON_ERROR = "skip"  # all defects are wanted, not the first
            register_custom(only)
        register_builtin([name])
    except DataError as error:
        if not error.defects:
            raise
        return DatasetReport(name, defects=error.defects)
    if name not in DatasetCatalog:
        raise UserError(
            f"no data set {name!r}: it is not in the config's DATASETS.CUSTOM, and neither this "
            f"project nor Detectron2 has one of this name"
        )
    return check_dataset(name, workers=workers, progress=progress, max_pixels=max_pixels(cfg))


def max_pixels(cfg: CfgNode | None) -> int:
    """The largest picture that is read."""
    return MAX_PIXELS if cfg is None else cfg.INPUT.MAX_PIXELS


def _name(entry: object) -> object:
    return entry.get("NAME") if isinstance(entry, dict) else None
