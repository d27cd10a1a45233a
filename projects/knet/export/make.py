"""From a model to one file with its graph: pixels in, final results out; and its check.

path, report = export_model(predictor, "model.onnx")
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from knet.errors import UserError
from knet.export.artefact import Artefact, feeds_of
from knet.export.check import Report, check
from knet.export.compiled import require_compiler, save_compiled
from knet.export.image_graph import ImageGraph
from knet.export.metadata import describe
from knet.export.onnx_file import require_onnx, save_onnx
from knet.export.openvino_file import require_openvino, save_openvino
from knet.export.picture_graph import PictureResize, trace_resize
from knet.export.program import build_graph, output_names, save_program, trace
from knet.export.quantize import quantize_onnx
from knet.export.records import Records
from knet.predict.files import writable_folder
from knet.predictor import KNetPredictor

__all__ = ["export_model"]

# form: how its file ends
FORMS = {"onnx": ".onnx", "openvino": ".xml", "torch_export": ".pt2", "aot_inductor": ".pt2"}
PRECISIONS = ("float32", "float16", "int8")
_OF_ONNX = ("onnx", "openvino")


@dataclass(frozen=True)
class Choices:
    """What is exported.

    Attributes:
        form: of `FORMS`.
        precision: of `PRECISIONS`. In float16 sums over pixels and results stay float32; in int8
            (ONNX and OpenVINO) the convolutions of backbone and neck are integers.
        size: height and width of the image to trace with, kept for sides that are not dynamic.
        dynamic: sides that may differ from call to call, of `knet.export.program.DYNAMIC`.
        input_dtype: "uint8" or "float32".
        raw: class and mask logits in place of results.
        probabilities: with semantic maps, the scores of all classes.
        takes_picture: the graph resizes a whole picture; ONNX and OpenVINO.
    """

    form: str = "onnx"
    precision: str = "float32"
    size: Sequence[int] = (320, 416)
    dynamic: Sequence[str] = ("height", "width")
    input_dtype: str = "uint8"
    raw: bool = False
    probabilities: bool = False
    takes_picture: bool = False

    def require(self, output: Path, cfg: Any) -> None:
        """Raise what keeps this from being exported, before minutes of work."""
        if output.suffix != FORMS[self.form]:
            raise UserError(
                f"--output {output}: a file of {self.form} ends with {FORMS[self.form]}"
            )
        if self.form not in _OF_ONNX and (self.precision == "int8" or self.takes_picture):
            what = "int8" if self.precision == "int8" else "with the resize"
            raise UserError(f"--format {self.form} cannot be {what}: choose onnx or openvino")
        if self.takes_picture:
            self._require_resize(cfg)
        if cfg.TEST.AUG.ENABLED:
            raise UserError("test-time augmentation is no part of a graph: set TEST.AUG.ENABLED "
                            "False")  # fmt: skip
        if self.form == "openvino":  # first: its extra has ONNX, too
            require_openvino(int8=self.precision == "int8")
        if self.form in _OF_ONNX:
            require_onnx()
        if self.form == "aot_inductor":
            require_compiler()

    def _require_resize(self, cfg: Any) -> None:
        if self.raw or set(self.dynamic) != {"height", "width"} or self.input_dtype != "uint8":
            raise UserError("--resize goes without --raw, --dynamic and --input-dtype")
        if cfg.INPUT.CONTRAST_CUTOFF > 0:
            raise UserError("INPUT.CONTRAST_CUTOFF stretches a picture's contrast before it is "
                            "resized, which is no part of a graph: leave out --resize")  # fmt: skip


def export_model(
    predictor: KNetPredictor,
    output: str | os.PathLike[str],
    choices: Choices = Choices(),
    *,
    pictures: Sequence[str] = (),
    data: str = "",
    checked: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Path, Report | None]:
    """Trace a model, write its file and compare both; docs/DEPLOY.md has inputs, outputs, limits.

    Args:
        predictor: the model; for ONNX and OpenVINO it should be on the CPU, where a file for any
            runtime is traced.
        output: the file.
        choices: what is exported.
        pictures: files, folders and globs, to find the ranges of int8 by and to check with.
        data: a registered data set, for the same, and to score both on.
        checked: whether the file is compared with the model.
        say: told of each step, with the seconds since the begin.

    Returns:
        The file's path, and what the check found, None without one.

    Raises:
        UserError, OSError, ImportError, KeyError, ValueError: what cannot be exported or written.
    """
    out = Path(output)
    # known to be writable before minutes of work
    writable_folder(out.parent, "--output")
    if out.is_dir():
        raise UserError(f"--output {out} is a folder: name a file in it")
    choices.require(out, predictor.cfg)
    begun = time.monotonic()

    def progress(step: str) -> None:
        say(f"{time.monotonic() - begun:4.0f} s  {step}")

    records = Records(predictor, choices, pictures=pictures, data=data)
    if choices.precision == "int8":
        records.require_given()
    cfg = predictor.cfg
    model: Any = predictor.model
    progress(
        f"tracing with {choices.size[0]} x {choices.size[1]} pixels, "
        f"for any {', '.join(choices.dynamic) or 'picture of this size'}"
    )
    graph = build_graph(
        model,
        channel_order=cfg.INPUT.FORMAT,
        onnx=choices.form in _OF_ONNX,
        raw=choices.raw,
        # OpenVINO narrows weights and sums by itself
        half=choices.precision == "float16" and choices.form != "openvino",
        probabilities=choices.probabilities,
        # a compiler needs to know that no side of the results is one
        least_output=2 if choices.form == "aot_inductor" else 1,
    )
    program = trace(
        graph,
        example_size=choices.size,
        dynamic=choices.dynamic,
        input_dtype=getattr(torch, choices.input_dtype),
    )
    metadata = describe(
        cfg,
        predictor.metadata,
        size_divisibility=model.size_divisibility,
        raw=choices.raw,
        precision=choices.precision,
        input_dtype=choices.input_dtype,
        takes_picture=choices.takes_picture,
    )
    _write(program, out, metadata, choices, records, progress)
    artefact = Artefact(out, choices.form) if checked else None
    size = artefact.size if artefact else out.stat().st_size
    progress(f"finished, {size / 1e6:.1f} MB")
    say(f"outputs: {', '.join(output_names(program))}")
    if artefact is None:
        return out, None
    chosen = list(records.few())
    progress(f"checking on {records.described}" + (f", scoring on {data}" if data else ""))
    report = check(
        predictor, artefact, chosen, reference=_reference(predictor, graph, choices), data=data,
        loader=records.loader if data else None,
    )  # fmt: skip
    return out, report


def _write(
    program: Any,
    out: Path,
    metadata: dict[str, Any],
    choices: Choices,
    records: Records,
    progress: Callable[[str], None],
) -> None:
    half, int8 = (choices.precision == kind for kind in ("float16", "int8"))
    if choices.form == "torch_export":
        progress(f"writing {out}")
        save_program(program, out, metadata)
        return
    if choices.form == "aot_inductor":
        progress("compiling, which takes minutes")
        save_compiled(program, out, metadata)
        return
    resize = None
    if choices.takes_picture:
        test = metadata["input"]["resize"]
        grey = records.predictor.cfg.INPUT.FORMAT == "L"
        sides = {"short_side": test["short_side"], "max_long_side": test["max_long_side"]}
        resize = trace_resize(PictureResize(**sides, grey=grey))
    if choices.form == "onnx" and not int8:
        save_onnx(program, out, metadata, half=half, before=resize, progress=progress)
        return
    feeds = [feeds_of(metadata, record) for record in records.many()] if int8 else []
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}.") as folder:
        plain = Path(folder, "float32.onnx")
        progress("translating to ONNX")
        save_onnx(program, plain, metadata, before=resize)
        if choices.form == "openvino":
            save_openvino(plain, out, metadata, half=half, calibration=feeds, progress=progress)
            return
        progress(f"eight bits, by {len(feeds)} pictures")
        count = quantize_onnx(plain, out, feeds, metadata)
        progress(f"{count} convolutions are in eight bits")


def _reference(
    predictor: KNetPredictor, graph: ImageGraph, choices: Choices
) -> Callable[[Any], Any]:
    """The model's results of a record; of raw logits those of the graph, before it was traced."""

    info = {"input": {"name": "image", "dtype": choices.input_dtype}, "results": ["raw"]}

    def logits(record: dict[str, Any]) -> Any:
        with torch.no_grad():
            image = torch.from_numpy(feeds_of(info, record)["image"])
            return graph(image.to(graph.pixel_mean.device))

    def results(record: dict[str, Any]) -> Any:
        with torch.no_grad():
            return predictor.model([record])[0]

    return logits if choices.raw else results
