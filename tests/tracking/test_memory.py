"""Objects of frame after frame, linked by drawn kernels and masks."""

import numpy as np
import pytest

from knet.tracking.memory import Found, LinkOptions, ObjectMemory, mask_overlaps

AXES = np.eye(6)


def found(*objects):
    """Objects of (kernel, label, column of a 4 x 12 grid where a 2 wide mask begins)."""
    masks = np.zeros((len(objects), 4, 12), bool)
    for row, (_, _, column) in enumerate(objects):
        masks[row, :, column : column + 2] = True
    kernels = np.array([kernel for kernel, _, _ in objects]).reshape(-1, 6)
    labels = np.array([label for _, label, _ in objects], np.int64)
    return Found(kernels, labels, np.full(len(objects), 0.8), masks)


def ids(memory, frame, *objects):
    return [known.id for known in memory.link(found(*objects), frame)]


def test_objects_keep_their_ids_in_any_order():
    memory = ObjectMemory()
    assert ids(memory, 1, (AXES[0], 0, 0), (AXES[1], 0, 4)) == [1, 2]
    # the lengths of kernels do not matter
    assert ids(memory, 2, (3 * AXES[1], 0, 5), (0.1 * AXES[0], 0, 1)) == [2, 1]
    assert ids(memory, 3, (AXES[1], 0, 6), (AXES[2], 0, 10), (AXES[0], 0, 2)) == [2, 3, 1]


def test_kernels_decide_where_objects_change_places():
    swapped = ((AXES[0], 0, 4), (AXES[1], 0, 0))
    memory = ObjectMemory()
    ids(memory, 1, (AXES[0], 0, 0), (AXES[1], 0, 4))
    assert ids(memory, 2, *swapped) == [1, 2]
    by_overlap = ObjectMemory(LinkOptions(similarity=0, overlap=1, other_class=0, least=0.05))
    ids(by_overlap, 1, (AXES[0], 0, 0), (AXES[1], 0, 4))
    assert ids(by_overlap, 2, *swapped) == [2, 1]


def test_overlap_decides_between_equal_kernels():
    memory = ObjectMemory()
    ids(memory, 1, (AXES[0], 0, 0), (AXES[0], 0, 6))
    assert ids(memory, 2, (AXES[0], 0, 7), (AXES[0], 0, 1)) == [2, 1]


def test_an_object_that_comes_back_elsewhere_has_its_id():
    memory = ObjectMemory(LinkOptions(patience=20))
    ids(memory, 1, (AXES[0], 0, 0))
    ids(memory, 2, (AXES[0], 0, 0))
    assert ids(memory, 3) == ids(memory, 4) == []
    # frames that were left out count
    assert ids(memory, 22, (AXES[0], 0, 8)) == [1]
    assert ids(memory, 43, (AXES[0], 0, 8)) == [2]  # 21 frames later it is forgotten
    assert [known.id for known in memory.known] == [2]


def test_other_objects_are_new():
    memory = ObjectMemory()
    ids(memory, 1, (AXES[0], 0, 0))
    # similar, but too little so
    unlike = AXES[0] * 0.3 + AXES[1]
    assert ids(memory, 2, (unlike, 0, 6)) == [2]
    assert memory.new_id() == 3  # ids are never used again


def test_the_class_is_what_it_was_most_and_speaks_against_others():
    memory = ObjectMemory()
    for frame, label in enumerate((0, 0, 1), start=1):
        (known,) = memory.link(found((AXES[0], label, 0)), frame)
    assert known.id == 1 and known.label == 0
    # of two that are alike, the one of its class
    assert ids(memory, 4, (AXES[0], 1, 6), (AXES[0], 0, 6)) == [2, 1]
    strict = ObjectMemory(LinkOptions(other_class=10))
    assert ids(strict, 1, (AXES[0], 0, 0)) + ids(strict, 2, (AXES[0], 1, 0)) == [1, 2]


def test_the_last_kernels_are_remembered():
    memory = ObjectMemory(LinkOptions(kernels=2))
    way = [AXES[0] + share * AXES[1] for share in (0, 0.5, 1, 2)]
    for frame, kernel in enumerate(way, start=1):
        assert ids(memory, frame, (kernel, 0, 0)) == [1]
    (known,) = memory.known
    assert np.stack(known.kernels) == pytest.approx(
        np.stack([kernel / np.linalg.norm(kernel) for kernel in way[2:]])
    )
    # elsewhere the nearest of the two decides
    assert ids(memory, 5, (AXES[0] + 0.9 * AXES[1], 0, 8)) == [1]
    assert ids(memory, 6, (AXES[0] - 2 * AXES[1], 0, 3)) == [2]


def test_overlaps():
    masks = found((AXES[0], 0, 0), (AXES[0], 0, 1), (AXES[0], 0, 6)).masks
    expected = [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]]
    assert mask_overlaps(masks, masks) == pytest.approx(np.array(expected))
    assert mask_overlaps(masks[:0], masks).shape == (0, 3)
    assert mask_overlaps(np.zeros_like(masks), masks).max() == 0
