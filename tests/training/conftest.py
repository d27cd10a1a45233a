"""For all tests of training."""

import pytest


@pytest.fixture
def cfg(tiny_cfg):
    tiny_cfg.DATASETS.TEST = ()
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    tiny_cfg.SOLVER.IMS_PER_BATCH = 1
    tiny_cfg.SEED = 5
    return tiny_cfg
