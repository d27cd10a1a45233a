"""Which images of a data set a report keeps."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from knet.classes import Category, categories_of
from knet.evaluation.of_results import evaluate_outputs
from knet.report.collect import ReportCollector

from . import results


def test_best_and_worst_are_kept(tiny_shapes):
    records = DatasetCatalog.get("tiny_val")
    categories = categories_of(MetadataCatalog.get("tiny_val"), results.IDS)

    class Nothing:
        def reset(self):
            pass

        def process(self, inputs, outputs):
            pass

        def evaluate(self):
            return {}

    every = ReportCollector(task="panoptic", categories=categories, num_images=99)
    evaluate_outputs(records * 5, results.output_of, Nothing(), every.add)
    few = ReportCollector(task="panoptic", categories=categories, num_images=3)
    evaluate_outputs(records * 5, results.output_of, Nothing(), few.add)
    ranked = [(image.quality, image.number) for image in every.images]
    assert ranked == sorted(ranked) and len(ranked) == 20 == few.num_seen
    assert [(i.quality, i.number) for i in few.images] == [*ranked[:2], ranked[-1]]


def test_more_classes_than_a_label_map_holds_are_refused():
    categories = [Category(k, k, f"class {k}", False) for k in range(256)]
    with pytest.raises(ValueError, match="at most 255 classes"):
        ReportCollector(task="semantic", categories=categories)
    ReportCollector(task="semantic", categories=categories[:255])
