"""The data sets that this package registered, and their records, kept or read anew."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from knet.data.on_error import Scan, check_on_error, usable_records
from knet.data.record_cache import Source, kept_scan


class DataSet:
    """Reads the records of a data set that this package registered.

    Args:
        name: of the data set.
        arguments: that it was registered with, so that registering twice is told from a name clash.
        scan: reads every record and every defect of its annotations.
        source: what the scan depends on.
        on_error: the policy of what is read next.
    """

    def __init__(
        self,
        name: str,
        arguments: dict[str, Any],
        scan: Callable[[], Scan],
        source: Source,
        on_error: str,
    ) -> None:
        self.name = name
        self.arguments = arguments
        self.scan = scan
        self.source = source
        self.on_error = on_error
        self.folder = ""  # of records that are kept; empty: they are read each time
        self.left_out = 0  # images that were lost to errors when the records were last read

    def __call__(self) -> Sequence[dict[str, Any]]:
        """The records under the policy, those of a large data set in a file of the folder.

        Raises as `usable_records` and `kept_scan`.
        """
        if self.folder and self.source.is_large:
            scan = kept_scan(self.name, self.source, self.folder, self.scan)
        else:
            scan = self.scan()
        records = usable_records(scan, self.on_error, self.name)
        self.left_out = scan.left_out
        return records


def own_data_set(name: str) -> DataSet | None:
    """The data set of this name, if this package registered it."""
    found = DatasetCatalog.data.get(name)  # its own `get` reads the records
    return found if isinstance(found, DataSet) else None


def keep_records(cfg: CfgNode) -> None:
    """From now on, records of large data sets in DATASETS.{TRAIN,TEST} are read once a machine.

    They are kept in DATASETS.RECORDS_FOLDER, by default `records` in OUTPUT_DIR.
    """
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        own = own_data_set(name)
        if own is not None:
            own.folder = records_folder(cfg)


def records_folder(cfg: CfgNode) -> str:
    """The folder of the records that are kept."""
    return cfg.DATASETS.RECORDS_FOLDER or os.path.join(cfg.OUTPUT_DIR, "records")


def read_records(name: str, folder: str) -> Sequence[dict[str, Any]]:
    """The records of a data set, whoever registered it, those of a large one kept in the folder.

    Of a data set that this package did not register, the annotations that its metadata name and the
    code of its own reader tell whether it is the same; it is taken as that gives it, its metadata
    too.
    """
    reader = _code_of(DatasetCatalog.data.get(name))
    if own_data_set(name) is not None or reader is None:
        return DatasetCatalog.get(name)
    meta = MetadataCatalog.get(name)
    paths = [meta.get(key) for key in ("json_file", "panoptic_json") if meta.get(key)]
    files = [PathManager.get_local_path(path) for path in paths]
    roots = [meta.get("image_root"), meta.get("panoptic_root")]
    source = Source(files, listed=[reader], settings=[name, *roots])
    if not source.is_large:
        return DatasetCatalog.get(name)

    def scan() -> Scan:
        before = meta.as_dict()
        records = DatasetCatalog.get(name)
        added = {key: value for key, value in meta.as_dict().items() if key not in before}
        return Scan(records, metadata=added)

    kept = kept_scan(name, source, folder, scan)
    meta.set(**kept.metadata)
    return kept.records


def _code_of(reader: Any) -> str | None:
    """A reader's name, code and what it was given, as a text; None if that cannot be told."""
    if isinstance(reader, functools.partial):
        inner = _code_of(reader.func)
        return inner and f"{inner} {reader.args!r} {sorted(reader.keywords.items())!r}"
    try:
        if not os.path.isfile(inspect.getsourcefile(reader) or ""):
            return None  # code of a string, for which Python 3.13 finds lines of something else
        given = inspect.getclosurevars(reader).nonlocals
        text = f"{reader.__module__}.{reader.__qualname__} {inspect.getsource(reader)} {given!r}"
    except (AttributeError, OSError, TypeError, ValueError):  # no function, or typed at a prompt
        return None
    return None if " at 0x" in text else text  # an object that tells its address, not its content


def is_registered(name: str, arguments: dict[str, Any], on_error: str) -> bool:
    """Whether the data set of this name was registered with these very arguments.

    Its policy is no part of what a data set is: it may change.

    Raises:
        ValueError: if another data set has the name, or there is no such policy.
    """
    check_on_error(on_error, f"data set {name!r}: on_error")
    if name not in DatasetCatalog:
        return False
    found = own_data_set(name)
    if found is None:
        raise ValueError(f"the name {name!r} is taken by a data set registered elsewhere")
    before = found.arguments
    if before == arguments:
        found.on_error = on_error
        return True
    changed = [
        f"{key}: {before.get(key)} → {arguments.get(key)}"
        for key in {**before, **arguments}
        if before.get(key) != arguments.get(key)
    ]
    raise ValueError(f"{name!r} is registered already, with other arguments ({'; '.join(changed)})")


def register(
    name: str,
    arguments: dict[str, Any],
    scan: Callable[[], Scan],
    source: Source,
    on_error: str,
    meta: dict[str, Any],
) -> None:
    """Adds a data set and its metadata to the catalogs; arguments as of :class:`DataSet`."""
    # A name that somebody took out of the catalog may leave metadata that would contradict ours.
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, DataSet(name, arguments, scan, source, on_error))
    MetadataCatalog.get(name).set(**meta)
