"""The page, built with gradio: a photo goes in, views of it come out, see `views`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from knet.app.texts import EMPTY, LABELS, SAID, header, notice, summary, table_rows
from knet.app.views import Photo, Thresholds, look, show, shrunk, views_of, write_zip
from knet.data.images import read_picture
from knet.errors import MEANT, UserError, one_line
from knet.predictor import KNetPredictor

try:
    import gradio as gr
except ModuleNotFoundError as error:
    if error.name != "gradio":
        raise
    raise ImportError(
        "the page needs gradio, on Python 3.10 or newer: run `pip install -e .[app]` in the "
        "repository root"
    ) from error

_SAMPLE_SIDE = 200  # pixels
_KEPT = 60 * 60  # seconds that a photo stays in memory, and files on the disk

# what may go wrong with a photo; of all else gradio says that there was an error, and logs it
_EXPECTED = (*MEANT, MemoryError, torch.OutOfMemoryError)

# field of `Thresholds` → its view, label and explanation
_SLIDERS = {
    "score": ("instance", "Score", "Objects with a lower score are left out."),
    "mask": ("instance", "Mask", "A pixel belongs to an object from this probability on."),
    "thing": ("panoptic", "Score of things", "Things with a lower score are left out."),
    "overlap": (
        "panoptic",
        "Overlap",
        "A segment is left out if others won more than the rest of its pixels.",
    ),
}
# asks the browser for the file once it is there
_CLICK = "() => setTimeout(() => document.querySelector('#packed').click(), 100)"


def build_app(
    predictor: KNetPredictor,
    *,
    name: str | None = None,
    examples: Sequence[str | os.PathLike[str]] = (),
) -> gr.Blocks:
    """The page of a model; `knet.app.serve` gives it its colours and an address.

    Photos go through the model one at a time; others wait, and see their place in the queue. Users
    share the model, but neither photos nor thresholds.

    Args:
        predictor: the model.
        name: of the model, in the title; that of its folder or data set by default.
        examples: picture files to try it with.

    Raises:
        ImportError: gradio is not installed.
        ValueError: an example cannot be read.
    """
    title = name or Path(str(predictor.metadata.name)).name  # it may be a folder's path
    views = views_of(predictor)
    with gr.Blocks(
        title=f"{title}: K-Net", analytics_enabled=False, delete_cache=(_KEPT, _KEPT)
    ) as page:
        gr.HTML(header(title, predictor.categories))
        photo = gr.State(None, time_to_live=_KEPT)
        with gr.Row():
            with gr.Column(scale=1, min_width=290):
                upload = gr.File(label="Photo", height=150, elem_id="photo")
                samples = _samples(predictor, examples) if examples else None
                choices = [(LABELS[view], view) for view in views]
                view = gr.Radio(
                    choices, value=views[0], label="View", info=SAID[views[0]], elem_id="view"
                )
                sliders = _sliders(Thresholds.of(predictor), views[0])
            with gr.Column(scale=3, min_width=320):
                status = gr.HTML(notice(EMPTY, kind="empty"), elem_id="status")
                pair = gr.ImageSlider(
                    label="photo and result", show_label=False, buttons=["fullscreen"],
                    max_height=640, visible=False, elem_id="pair",
                )  # fmt: skip
                sheet = gr.Image(
                    label="kernels", show_label=False, buttons=["fullscreen"], visible=False,
                    elem_id="sheet",
                )  # fmt: skip
                found = gr.Dataframe(
                    interactive=False, max_height=320, visible=False, elem_id="found"
                )
                pack = gr.Button(
                    "Download drawing and result files", variant="primary", visible=False,
                    elem_id="pack",
                )  # fmt: skip
                packed = gr.DownloadButton(visible="hidden", elem_id="packed")
        parts = (pair, sheet, found, pack)
        hidden = {part: gr.update(visible=False) for part in parts}

        def shown(seen: Photo, view: str, values: Sequence[float]) -> dict[Any, Any]:
            result = show(predictor, seen, view, _thresholds(values))
            new = {status: notice(summary(seen, view, result.found), *seen.notes)}
            if result.before is None:
                new[sheet] = gr.update(value=result.after, visible=True)
            else:
                new[pair] = gr.update(value=(result.before, result.after), visible=True)
            if result.found:
                new[found] = gr.update(value=table_rows(result.found), visible=True)
            return {**hidden, **new, pack: gr.update(visible=True)}

        def failed(error: BaseException) -> dict[Any, Any]:
            return {**hidden, status: notice(one_line(error), kind="wrong")}

        def take(path: str, view: str, *values: float) -> dict[Any, Any]:
            try:
                seen = look(predictor, path)
                return {photo: seen, **shown(seen, view, values)}
            except _EXPECTED as error:
                return {photo: None, **failed(error)}

        def take_sample(event: gr.SelectData, view: str, *values: float) -> dict[Any, Any]:
            return {upload: None, **take(os.fspath(examples[event.index]), view, *values)}

        def clear() -> dict[Any, Any]:
            return {photo: None, **hidden, status: notice(EMPTY, kind="empty")}

        def change(seen: Photo | None, view: str, *values: float) -> dict[Any, Any]:
            if seen is None:  # nothing to show yet
                return {status: gr.skip()}
            try:
                return shown(seen, view, values)
            except _EXPECTED as error:
                return failed(error)

        def explain(view: str) -> list[Any]:
            of_view = [gr.update(visible=_SLIDERS[s.elem_id][0] == view) for s in sliders]
            return [gr.update(info=SAID[view]), *of_view]

        def write(seen: Photo | None, view: str, *values: float) -> str | None:
            try:
                if seen is None:
                    raise UserError("the photo is no longer there: drop it again")
                with tempfile.TemporaryDirectory() as folder:
                    path = write_zip(predictor, seen, view, _thresholds(values), folder)
                    return packed.move_resource_to_block_cache(path)  # which deletes it in time
            except _EXPECTED as error:
                raise gr.Error(one_line(error), print_exception=False) from error

        settings = [view, *sliders]
        output = [photo, status, *parts]
        # one at a time through all of these
        queue: dict[str, Any] = {
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_visibility": "private",
        }
        at_once: dict[str, Any] = {
            "queue": False,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        waits: dict[str, Any] = {**queue, "show_progress_on": status}
        upload.upload(take, [upload, *settings], output, **waits)
        upload.clear(clear, None, output, **at_once)
        if samples is not None:
            samples.select(take_sample, settings, [upload, *output], **waits)
        view.change(explain, view, settings, **at_once)
        gr.on(
            [part.change for part in settings], change, [photo, *settings], output[1:],
            trigger_mode="always_last", **waits,
        )  # fmt: skip
        written = pack.click(write, [photo, *settings], packed, show_progress_on=pack, **queue)
        written.success(None, js=_CLICK, api_visibility="private")
    return page


def _sliders(standard: Thresholds | None, view: str) -> list[gr.Slider]:
    """One for each field of `Thresholds`, in their order; none for a semantic model."""
    return [
        gr.Slider(
            0, 1, getattr(standard, field.name), step=0.01, label=_SLIDERS[field.name][1],
            info=_SLIDERS[field.name][2], visible=_SLIDERS[field.name][0] == view,
            elem_id=field.name,
        )
        for field in (fields(standard) if standard else ())
    ]  # fmt: skip


def _thresholds(values: Sequence[float]) -> Thresholds | None:
    return Thresholds(*values) if values else None


def _samples(predictor: KNetPredictor, examples: Sequence[str | os.PathLike[str]]) -> gr.Gallery:
    """Small pictures to choose from."""
    gr.HTML("<p class='label'>or try one of these</p>")
    limit = predictor.cfg.INPUT.MAX_PIXELS
    small = []
    for path in examples:
        pixels = read_picture({"file_name": os.fspath(path)}, image_format="RGB", max_pixels=limit)
        small.append(shrunk(pixels, _SAMPLE_SIDE))
    return gr.Gallery(
        small, label="samples", show_label=False, columns=3, height="auto", allow_preview=False,
        buttons=[], interactive=False, elem_id="samples",
    )  # fmt: skip
