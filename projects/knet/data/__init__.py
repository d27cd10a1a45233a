"""Data sets, in the order in which data flow.

register  ``custom`` (what a config names) → ``register`` (names, metadata with ``categories``) →
          ``catalog``
read      ``coco_panoptic``, ``coco_instances`` (with ``coco_file``) or ``semantic_folders``:
          records, and every defect of the annotations, found once; ``on_error``: what becomes of
          these; ``record_cache``: records of large data sets (``records``), kept in a file;
          ``tar_shards``, ``shard_set``: pictures and annotations in tar shards
map       ``mapper``: record → picture and targets (with ``augmentation`` and ``jitter``);
          ``copy_paste``: objects of another one in it; what a picture, a label PNG or a mask is:
          ``images``, ``label_png``, ``panoptic_png``, ``masks``
load      ``chosen_records``: those of a training; ``loader``: its batches, which can be continued
check     ``check/``: what ``knet check`` reports of a whole data set
make      ``formats/``: entries of ``DATASETS.CUSTOM`` from a folder of any known format; ``fix``:
          mechanical mends of a COCO JSON; ``write_shards``: tar shards of any data set

``defects`` are the kinds and messages of all that can be wrong, ``derive`` makes instance and
semantic annotations from panoptic ones, ``shapes/`` draws the toy data set.
"""

from knet.data.augmentation import InvertColors, PermuteChannels, build_knet_augmentation
from knet.data.check.data_set import check_dataset
from knet.data.config import add_data_config
from knet.data.custom import register_custom, register_shapes
from knet.data.defects import DataError, Defect
from knet.data.derive import panoptic_to_instances, panoptic_to_semantic
from knet.data.mapper import KNetDatasetMapper
from knet.data.panoptic_png import read_panoptic_png, write_panoptic_png
from knet.data.register import (
    datasets_root,
    register_coco_instances,
    register_coco_panoptic,
    register_sem_seg,
)
from knet.data.shapes.drawing import STUFF_NAMES, THING_NAMES
from knet.data.shapes.scene import Scene, draw_scene
from knet.data.shapes.writer import SHAPES_CATEGORIES, write_shapes
from knet.data.shard_set import register_shards

__all__ = [
    "SHAPES_CATEGORIES",
    "STUFF_NAMES",
    "THING_NAMES",
    "DataError",
    "Defect",
    "InvertColors",
    "KNetDatasetMapper",
    "PermuteChannels",
    "Scene",
    "add_data_config",
    "build_knet_augmentation",
    "check_dataset",
    "datasets_root",
    "draw_scene",
    "panoptic_to_instances",
    "panoptic_to_semantic",
    "read_panoptic_png",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_custom",
    "register_sem_seg",
    "register_shapes",
    "register_shards",
    "write_panoptic_png",
    "write_shapes",
]
