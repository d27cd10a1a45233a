"""From a folder to data sets: recognises the format, and makes entries of ``DATASETS.CUSTOM``.

recognise  ``recognise`` asks each format in turn: ``coco``, ``yolo``, ``labelme``, ``voc``,
           ``cityscapes``, ``label_pngs`` (with ``pairs``, ``label_values``, ``class_list``)
prepare    ``found``: divides (``split``) and has the entries made, from objects (``objects``),
           a class for each pixel (``maps``) or both (``segments``)
"""

from knet.data.formats.found import Found, Prepared
from knet.data.formats.recognise import recognise

__all__ = ["Found", "Prepared", "recognise"]
