import numpy as np
import pycocotools.mask as mask_util
import pytest

from knet_run.rle import compressed_counts
from knet_run.tiles import runs
from knet_run.tiles.runs import RunStore, bounding_box


@pytest.mark.parametrize("loaded", [1, 10**6])
def test_runs_of_a_map_that_comes_in_columns_are_cocos(tmp_path, monkeypatch, loaded):
    monkeypatch.setattr(runs, "_LOADED", loaded)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 5, (9, 11)).repeat(7, axis=0).repeat(5, axis=1).astype(np.uint32)
    ids[:, 20:30] = 2  # whole columns: a run goes on in the next ones that are added
    height, width = ids.shape
    store = RunStore(tmp_path, height=height, count=5)
    for x in range(0, width, 8):
        store.add(x, ids[:, x : x + 8])
    found = list(store)
    assert len(found) == 5 and len(found[4][0]) == 0
    for number, (starts, lengths) in enumerate(found[:4], start=1):
        mask = np.asfortranarray(ids == number, np.uint8)
        expected = mask_util.encode(mask)
        counts = compressed_counts(starts, lengths, ids.size)
        assert counts == expected["counts"].decode()
        box = bounding_box(starts, lengths, height)
        assert box == mask_util.toBbox(expected).tolist()
