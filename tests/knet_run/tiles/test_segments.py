import numpy as np

from knet_run.tiles.segments import SegmentClass, describe_segments, from_classes, from_instances


def test_instances_are_painted_with_the_best_on_top():
    masks = np.zeros((4, 4, 10), bool)
    masks[0, :, 2:6] = True
    masks[1, :, 3:6] = True  # behind the first one: the same object again
    masks[2, :, 4:8] = True  # half of it is seen
    # the last one is empty
    found = from_instances(
        masks, np.array([3, 1, 2, 0]), np.array([0.9, 0.8, 0.7, 0.6]), size=(4, 10)
    )
    assert found.ids[0].tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 0, 0]
    assert found.classes.tolist() == [3, 2] and found.scores.tolist() == [0.9, 0.7]


def test_a_map_of_labels_is_a_segment_a_class():
    labels = np.array([[5, 5, 2], [2, 2, 2]])
    scores = np.array([[1.0, 0.5, 0.1], [0.2, 0.3, 0.4]])
    found = from_classes(labels, scores, {2: 0, 5: 1})
    assert found.ids.tolist() == [[2, 2, 1], [1, 1, 1]] and found.ids.dtype == np.int32
    assert found.classes.tolist() == [0, 1]
    assert np.allclose(found.scores, [0.25, 0.75])


def test_a_picture_in_words():
    kinds = [SegmentClass(k, name, k < 2, (0, 0, 0)) for k, name in enumerate(
        ["disc", "star", "sky", "sand"]
    )]  # fmt: skip
    classes, areas = np.array([1, 2, 1, 0, 3]), np.array([5, 600, 5, 5, 3])
    assert describe_segments(classes, areas, kinds, 1000) == "2 star, 1 disc; sky 60%"
    assert describe_segments(classes[:0], areas[:0], kinds, 1000) == "nothing"
