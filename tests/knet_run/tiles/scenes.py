"""Maps of segments that a perfect model would see tile by tile."""

import numpy as np
from scipy import ndimage

from knet_run.tiles.segments import SegmentClass, Segmenter, TileSegments

CLASSES = [
    SegmentClass(7, "disc", True, (255, 0, 0)),
    SegmentClass(3, "sky", False, (0, 0, 255)),
    SegmentClass(9, "ring", True, (0, 255, 0)),
]


def by_colour(pixels):
    """Red regions are discs, blue is the sky, green regions are rings, black is void."""
    ids, classes, scores = np.zeros(pixels.shape[:2], np.int32), [], []
    for place in range(len(CLASSES)):
        mask = pixels.argmax(axis=2) == (0, 2, 1)[place]
        mask &= pixels.any(axis=2)
        regions, count = ndimage.label(mask) if CLASSES[place].is_thing else (mask, mask.any())
        for region in range(1, int(count) + 1):
            inside = regions == region
            classes.append(place)
            scores.append(float(pixels[inside].max()) / 255)
            ids[inside] = len(classes)
    return TileSegments(ids, np.array(classes, np.int64), np.array(scores, np.float64))


SEGMENTER = Segmenter(CLASSES, by_colour)


def disc(size, centre, radius):
    y, x = np.mgrid[: size[0], : size[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
