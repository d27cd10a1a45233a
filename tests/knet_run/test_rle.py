import numpy as np
import pycocotools.mask as mask_util
import pytest

from knet_run.rle import encode_rle


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 7), (1500, 1001)])
def test_run_lengths_of_any_length_are_cocos(size):
    rng = np.random.default_rng(1)
    for mask in (np.ones(size, bool), np.zeros(size, bool), rng.random(size) < 1e-3):
        expected = mask_util.encode(np.asfortranarray(mask, np.uint8))
        found = encode_rle(mask)
        assert found == {"size": list(size), "counts": expected["counts"].decode()}
