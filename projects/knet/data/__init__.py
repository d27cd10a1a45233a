"""Data sets: registration, derived annotations, the mapper, and the toy data set *shapes*."""

from .augmentation import (
    InvertColors,
    PermuteChannels,
    build_knet_augmentation,
)
from .catalog import datasets_root
from .check import check_dataset
from .config import add_data_config
from .custom import register_custom
from .defects import DataError, Defect
from .derive import panoptic_to_instances, panoptic_to_semantic
from .mapper import KNetDatasetMapper
from .panoptic_png import read_panoptic_png, write_panoptic_png
from .register import (
    load_coco_panoptic,
    register_coco_instances,
    register_coco_panoptic,
    register_shapes,
)
from .register_semantic import register_sem_seg
from .shapes import SHAPES_CATEGORIES, write_shapes
from .shapes_scene import STUFF_NAMES, THING_NAMES, Scene, draw_scene

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
