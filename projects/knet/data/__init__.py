"""Data sets: registration, derived annotations, the mapper, and the toy data set *shapes*."""

from knet.data.annotations.derive import panoptic_to_instances, panoptic_to_semantic
from knet.data.annotations.panoptic_png import read_panoptic_png, write_panoptic_png
from knet.data.augmentation import (
    InvertColors,
    PermuteChannels,
    build_knet_augmentation,
)
from knet.data.check.data_set import check_dataset
from knet.data.config import add_data_config
from knet.data.defects import DataError, Defect
from knet.data.mapper import KNetDatasetMapper
from knet.data.registration.catalog import datasets_root
from knet.data.registration.custom import register_custom
from knet.data.registration.register import (
    load_coco_panoptic,
    register_coco_instances,
    register_coco_panoptic,
    register_shapes,
)
from knet.data.registration.register_semantic import register_sem_seg
from knet.data.shapes.scene import STUFF_NAMES, THING_NAMES, Scene, draw_scene
from knet.data.shapes.writer import SHAPES_CATEGORIES, write_shapes

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
    "load_coco_panoptic",
    "panoptic_to_instances",
    "panoptic_to_semantic",
    "read_panoptic_png",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_custom",
    "register_sem_seg",
    "register_shapes",
    "write_panoptic_png",
    "write_shapes",
]
