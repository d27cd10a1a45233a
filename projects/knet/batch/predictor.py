"""A model for engines that hand on tables in batches: Ray Data, Spark, a loop.

    pictures = ray.data.read_binary_files("photos", include_paths=True)  # columns bytes and path
    found = pictures.map_batches(
        BatchPredictor, fn_constructor_kwargs={"model": "FOLDER"}, batch_size=16,
        num_gpus=1, compute=ray.data.ActorPoolStrategy(size=4),
    )

    def predict(frames):  # table.mapInPandas(predict, schema)
        yield from BatchPredictor("FOLDER").map_pandas(frames)

    table = BatchPredictor("FOLDER")({"path": ["a.jpg", "b.jpg"]})

Results do not depend on the batches: the network sees one picture at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Union

from knet.data.images import read_picture
from knet.data.tar_shards import read_member
from knet.errors import is_out_of_memory
from knet.predict.describe import describe_problem
from knet.predictor import KNetPredictor
from knet.results.encode import ResultEncoder
from knet.results.parquet import encode_row, error_row, pa, result_schema

__all__ = ["BatchPredictor", "Model"]

# a name or folder of `KNetPredictor.from_pretrained`, a model, or a function that loads one
Model = Union[str, "os.PathLike[str]", KNetPredictor, Callable[[], KNetPredictor]]


class BatchPredictor:
    """Pictures in, a table of results out.

    Args:
        model: loaded here, so once for each actor or process that makes such an object.
        opts: config keys and values of a model that is given by its name or folder.

    Attributes:
        predictor: the model.
        schema: of the tables, a ``pyarrow.Schema``: ``image_id``, ``path``, ``file_name``;
            ``height`` and ``width`` in pixels; ``error``, null where there are results; as the
            model gives them

            - ``panoptic_png`` and ``segments``, COCO's panoptic PNG and ``segments_info``,
            - ``category_ids``, ``scores``, ``boxes`` (x, y, width, height in pixels) and ``rles``
              (COCO's compressed run lengths of the size (height, width)) of the instances,
            - ``label_png``, 8 bit, or 16 bit with more than 255 classes.
    """

    def __init__(self, model: Model, *, opts: tuple[Any, ...] = ()) -> None:
        if isinstance(model, (str, os.PathLike)):
            self.predictor = KNetPredictor.from_pretrained(model, opts=opts)
        else:
            self.predictor = model if isinstance(model, KNetPredictor) else model()
        categories = self.predictor.categories
        self.schema = result_schema(self.tasks, categories)
        self._encode = ResultEncoder(categories)

    @property
    def tasks(self) -> list[str]:
        """Which of ``panoptic``, ``instance`` and ``semantic`` the model gives."""
        options = self.predictor.options
        if options is None:
            return ["semantic"]
        return [task for task in ("panoptic", "instance", "semantic") if getattr(options, task)]

    def __call__(self, batch: Mapping[str, Any] | pa.Table | pa.RecordBatch) -> pa.Table:
        """Results of a batch, a row a picture in their order.

        Args:
            batch: columns, of which ``path`` is needed, the file. ``bytes`` has the content of the
                file, ``offset`` and ``size`` say where in the file the picture lies, as in a tar.
                ``image_id``, ``file_name`` (by default the name in ``path``) and ``error``, a text
                where it is known that there is no picture, are handed on.

        Raises:
            KeyError: there is no ``path``.
        """
        if isinstance(batch, (pa.Table, pa.RecordBatch)):
            columns: Mapping[str, Any] = batch.to_pydict()
        else:
            columns = batch
        if "path" not in columns:
            raise KeyError(f"a batch needs the column path; its columns are {', '.join(columns)}")
        rows = []
        for values in zip(*columns.values()):
            given = {name: value for name, value in zip(columns, values) if _is_given(value)}
            rows.append(self._row(given))
        return pa.Table.from_pylist(rows, self.schema)

    def map_pandas(self, frames: Iterable[Any]) -> Iterator[Any]:
        """Results of DataFrames, one by one: the form of Spark's ``mapInPandas``."""
        for frame in frames:
            yield self(frame.to_dict("list")).to_pandas()

    def _row(self, given: Mapping[str, Any]) -> dict[str, Any]:
        path = str(given["path"])
        name = str(given.get("file_name", os.path.basename(path)))
        number = int(given["image_id"]) if "image_id" in given else None
        image = {"image_id": number, "path": path, "file_name": name}
        if "error" in given:
            return error_row(image, str(given["error"]))
        # what is wrong is told of the member of a tar
        place = f"{path}/{name}" if "offset" in given else path
        try:
            data = given.get("bytes")
            if "offset" in given:
                data = read_member(path, int(given["offset"]), int(given["size"]))
            limit = self.predictor.cfg.INPUT.MAX_PIXELS
            record = {"file_name": place, "data": data}
            results = self.predictor(read_picture(record, image_format="RGB", max_pixels=limit))
        except Exception as error:
            # of reading, and of pictures whose results are too large; all else is no picture's
            if not isinstance(error, (OSError, ValueError)) and not is_out_of_memory(error):
                raise
            return error_row(image, describe_problem(place, error))
        return encode_row(image, self._encode(results, name))


def _is_given(value: Any) -> bool:
    return value is not None and value == value  # pandas has NaN for nothing
