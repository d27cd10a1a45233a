"""Config keys of the data side."""

from __future__ import annotations

from detectron2.config import CfgNode

from knet.data.images import MAX_PIXELS


def add_data_config(cfg: CfgNode) -> None:
    """Adds the keys that :class:`knet.data.KNetDatasetMapper` reads to a config, in place.

    Keys that Detectron2 has already (``INPUT.FORMAT``, ``MIN_SIZE_TRAIN``, ``RANDOM_FLIP``,
    ``CROP.TYPE`` …) keep their meaning, but a crop is taken *after* the resize, so that
    ``CROP.TYPE: absolute`` gives training pictures of one size.
    """
    # Data sets of one's own, registered without a line of Python: a list of dicts with NAME, FORMAT
    # and the arguments of that format, see knet.data.register_custom and datasets/README.md.
    cfg.DATASETS.CUSTOM = []
    # What training does with a record that has a defect (a broken picture, an unknown category, …;
    # `knet check` lists them): "raise" stops with its name, "skip" takes another record
    # and reports the number once an epoch. Data sets in DATASETS.TEST always stop.
    cfg.DATASETS.ON_ERROR = "raise"
    # The folder in which the records of large data sets (32 MiB of annotations and more) are kept
    # once they were read and checked. All processes look into one file: they start in seconds and
    # share its memory. Trainings may share the folder. Empty: `records` in OUTPUT_DIR.
    cfg.DATASETS.RECORDS_FOLDER = ""
    # Pictures of more pixels (width times height) are refused by their header, before they take
    # memory, and so are arrays; a decoded picture takes 3 bytes a pixel, results at its size more.
    cfg.INPUT.MAX_PIXELS = MAX_PIXELS
    # Which targets a record must give: "instances", "sem_seg". Empty: those that it offers.
    # A named target that a record cannot give stops the training with the record's name.
    cfg.INPUT.KNET_TARGETS = []
    # In training and inference, brightness is spread over 0 to 255, so that this percentage of the
    # darkest and of the brightest pixels becomes 0 and 255 (0.5 is usual); 0 leaves pictures as
    # they are. For microscopy and other pictures whose brightness differs widely.
    cfg.INPUT.CONTRAST_CUTOFF = 0.0
    # Colour augmentations by name, in this order: "photometric" (brightness, contrast, saturation
    # and hue, as in the published ADE20K recipe), "permute_channels", "invert". The last two suit
    # training from scratch on toy data, not photographs.
    cfg.INPUT.KNET_COLOR_AUG = []
    # Large-scale jitter (Simple Copy-Paste, CVPR 2021): (least, largest) factor, (0.1, 2.0) there.
    # In place of MIN_SIZE_TRAIN's sizes a training picture gets the one that fits INPUT.CROP.SIZE,
    # times a factor drawn between them, and is cropped or padded to CROP.SIZE, which is of TYPE
    # "absolute". Padding is background, for semantic models unlabelled. (): off.
    cfg.INPUT.SCALE_JITTER = ()
    # Copy-paste of objects (the same paper): the probability that a training picture receives a
    # random part of the objects of another one, both augmented by themselves. What they hide is
    # gone. Needs labels of objects; a picture may then hold more of them than any of the data set,
    # and costs reading another one.
    cfg.INPUT.COPY_PASTE = 0.0
    # A crop in which one class covers more than this share is drawn again (10 times at most);
    # 1.0 takes the first. Needs semantic labels.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # A folder in which pictures that are at least 1.5 times as large as INPUT.MIN_SIZE_TRAIN and
    # MAX_SIZE_TRAIN, or SCALE_JITTER, ask for are kept at that size, with their labels, once they
    # were read: 3 to 5 bytes a pixel, on a disk that is faster than decoding. Empty: none. With a
    # single size the training is the same bit by bit.
    cfg.INPUT.REDUCED_FOLDER = ""
