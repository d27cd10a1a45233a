"""A model for engines that hand on tables in batches: Ray Data, Spark, a loop.

    pictures = ray.data.read_binary_files("photos", include_paths=True)  # columns bytes and path
    found = pictures.map_batches(
        BatchPredictor, fn_constructor_kwargs={"model": "FOLDER"}, batch_size=16,
        num_gpus=1, compute=ray.data.ActorPoolStrategy(size=4),
    )

    def predict(frames):  # table.mapInPandas(predict, schema)
        yield from BatchPredictor("FOLDER").map_pandas(frames)

    table = BatchPredictor("FOLDER")({"path": ["a.jpg", "b.jpg"]})

Results do not depend on the batches: the network sees one picture at a time. A row without results
says why; only what is wrong with the picture is such an error, all else is raised.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Union

import torch

from knet.data.defects import DataError, data_error
from knet.data.images import read_picture, unreadable
from knet.data.tar_shards import read_member
from knet.errors import is_out_of_memory, system_fault
from knet.predict.describe import describe_problem
from knet.predictor import KNetPredictor, ResultsTooLargeError
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
            OSError: files cannot be read now, such as on a file system that has gone.
            ValueError, RuntimeError: of the model; naming the picture.
        """
        if isinstance(batch, (pa.Table, pa.RecordBatch)):
            columns: Mapping[str, Any] = batch.to_pydict()
        else:
            columns = batch
        if "path" not in columns:
            raise KeyError(f"a batch needs the column path; its columns are {', '.join(columns)}")
        rows = [self.row(dict(zip(columns, values))) for values in zip(*columns.values())]
        return pa.Table.from_pylist(rows, self.schema)

    def map_pandas(self, frames: Iterable[Any]) -> Iterator[Any]:
        """Results of DataFrames, one by one: the form of Spark's ``mapInPandas``."""
        for frame in frames:
            yield self(frame.to_dict("list")).to_pandas()

    def row(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The row of one picture; arguments and errors as above, with a value for each column."""
        given = {name: value for name, value in given.items() if _is_given(value)}
        path = str(given["path"])
        name = str(given.get("file_name", os.path.basename(path)))
        number = int(given["image_id"]) if "image_id" in given else None
        image = {"image_id": number, "path": path, "file_name": name}
        if "error" in given:
            return error_row(image, str(given["error"]))
        # what is wrong is told of the member of a tar
        place = f"{path}/{name}" if "offset" in given else path
        for again in (True, False):
            try:
                return encode_row(image, self._encode(self._results(given, place), name))
            except Exception as error:
                problem = _problem(place, error)
                if not (again and _is_for_memory(error)):
                    break
            # outside, where the error does not hold what it was raised over
            gc.collect()
            torch.cuda.empty_cache()
        return error_row(image, problem)

    def _results(self, given: Mapping[str, Any], place: str) -> dict[str, Any]:
        try:
            data = given.get("bytes")
            if "offset" in given:
                data = read_member(given["path"], int(given["offset"]), int(given["size"]))
            limit = self.predictor.cfg.INPUT.MAX_PIXELS
            record = {"file_name": place, "data": data}
            image = read_picture(record, image_format="RGB", max_pixels=limit)
        except OSError as error:
            if isinstance(error, DataError):
                raise
            raise data_error(unreadable(error, place, "")) from error
        return self.predictor(image)


def _problem(place: str, error: Exception) -> str:
    """What is wrong with a picture; errors that are none of its own end the run, and are raised."""
    fault = system_fault(error)
    if fault is not None:
        text = f"{fault.strerror} (no fault of the picture: try again when it can be read)"
        raise OSError(fault.errno, text, place) from error
    if isinstance(error, DataError) or _is_for_memory(error):
        return describe_problem(place, error)
    kind = ValueError if isinstance(error, ValueError) else RuntimeError
    raise kind(f"{place}: {error}") from error


def _is_for_memory(error: BaseException) -> bool:
    found = (error, error.__cause__)  # of reading it is the cause
    return isinstance(error, ResultsTooLargeError) or any(
        map(is_out_of_memory, filter(None, found))
    )


def _is_given(value: Any) -> bool:
    return value is not None and value == value  # pandas has NaN for nothing
