"""A model of a few channels, for measurements of milliseconds."""

import pytest
from workload import Workload

TINY = (
    "DATASETS.TRAIN", "()", "DATASETS.TEST", "()",
    "MODEL.KNET.NUM_THING_CLASSES", "4", "MODEL.KNET.NUM_STUFF_CLASSES", "3",
    "MODEL.SMALL_RESNET.CHANNELS", "[16, 32, 48, 64]", "MODEL.FPN.OUT_CHANNELS", "16",
    "MODEL.KNET.HIDDEN_DIM", "16", "MODEL.KNET.FFN_DIM", "32", "MODEL.KNET.NORM_GROUPS", "4",
    "MODEL.KNET.NUM_HEADS", "4",
)  # fmt: skip


@pytest.fixture
def tiny_work():
    return Workload(
        "configs/shapes/panoptic.yaml", TINY, size=(64, 96), output_size=(60, 90), objects=5
    )
