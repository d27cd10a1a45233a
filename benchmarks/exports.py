"""Exported files of every form beside PyTorch: time in turns, size, scores, odd pictures.

    python benchmarks/exports.py --model output/demo/model --data nuclei_val
    python benchmarks/exports.py --config-file configs/coco/panoptic/knet_r50_fpn_1x.yaml \
        --size 800 1216 --output-size 427 640     # seeded weights: no scores
    python benchmarks/exports.py --model FOLDER --what odd     # a grey one, 1x1, 20 megapixels
    python benchmarks/exports.py --model FOLDER --what layers --data NAME   # which stay in float

Files go to --output and are taken from there if they are there: time again without exporting
again. A file is timed in the same process as PyTorch and right after it; ratios are medians of the
rounds' own ratios, as the machine may do something else from one minute to the next.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from tabulate import tabulate
from workload import Workload, make_model, smooth_noise

from knet.config import get_cfg_from_file
from knet.errors import UserError, run_command
from knet.evaluation.build import build_evaluator
from knet.evaluation.of_results import evaluate_outputs
from knet.evaluation.scores import MAIN_SCORES
from knet.export import quantize
from knet.export.artefact import Artefact, feeds_of
from knet.export.compare import differences, to_detectron2
from knet.export.make import FORMS, Choices, export_model
from knet.export.openvino_file import save_openvino
from knet.export.records import Records
from knet.files import write_json
from knet.predictor import KNetPredictor

FILES = {
    "ONNX": ("onnx", "float32"),
    "ONNX int8": ("onnx", "int8"),
    "ONNX float16": ("onnx", "float16"),
    "OpenVINO": ("openvino", "float32"),
    "OpenVINO int8": ("openvino", "int8"),
    "OpenVINO float16": ("openvino", "float16"),
    "AOTInductor": ("aot_inductor", "float32"),
}
# as Detectron2 would run it, without `knet.accel.accelerate`
PLAIN = "PyTorch, plain"
PARTS = ("times", "odd", "layers")
# modules in eight bits, each set with the one before it
LAYERS = {
    "backbone": (["backbone"], []),
    "and neck, but for its two maps": (
        ["backbone", "heads.neck"], ["heads.neck.localise", "heads.neck.classify"],
    ),
    "and neck": (["backbone", "heads.neck"], []),
    "and first masks and kernels": (["backbone", "heads.neck", "heads.kernel_head"], []),
    "and rounds": (["backbone", "heads"], []),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what the command line asks for, print it, and return what `--json` writes."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    predictor = load(args)
    args.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {}
    if "times" in args.what:
        result["files"] = compare_files(predictor, args)
    if "odd" in args.what:
        result["odd"] = compare_odd(predictor, args)
    if "layers" in args.what:
        result["layers"] = compare_layers(predictor, args)
    if args.json:
        write_json(args.json, result, indent=1)
    return result


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pair = {"type": int, "nargs": 2, "metavar": ("HEIGHT", "WIDTH")}
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="a saved folder")
    which.add_argument("--config-file", help="a config")
    parser.add_argument("--weights", help="of the config; seeded ones by default")
    parser.add_argument("--data", default="", help="a registered data set, to score on")
    parser.add_argument("--pictures", nargs="+", default=[], help="for the ranges of int8")
    parser.add_argument("--files", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--what", nargs="+", choices=PARTS, default=["times"])
    parser.add_argument("--size", **pair, help="of the timed image; else the first picture's")
    parser.add_argument("--output-size", **pair, help="of its results")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="where the time of each goes")
    parser.add_argument("--output", type=Path, default=Path("output/exports"))
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    return parser.parse_args(argv)


def load(args: argparse.Namespace) -> KNetPredictor:
    """The model; seeded weights are spread as a trained model's, see `workload.spread`."""
    opts = ["MODEL.DEVICE", "cpu", *args.opts]
    if args.model:
        return KNetPredictor.from_pretrained(args.model, device="cpu", opts=tuple(args.opts))
    if args.weights:
        cfg = get_cfg_from_file(args.config_file, [*opts, "MODEL.WEIGHTS", args.weights])
        return KNetPredictor.from_config(cfg)
    work = Workload(args.config_file, tuple(args.opts), size=(256, 384))
    cfg, model = make_model(work, accelerated=False)
    cfg.defrost()
    cfg.MODEL.KNET.ACCEL.ENABLED = True
    return KNetPredictor(cfg, model, MetadataCatalog.get([*cfg.DATASETS.TEST, "exports"][0]))


def export(predictor: KNetPredictor, args: argparse.Namespace, name: str) -> Artefact:
    """The file of this name, written now if it is not there; out of the ONNX file if it can be."""
    form, precision = FILES[name]
    path = args.output / f"{name.replace(' ', '_').lower()}{FORMS[form]}"
    if not path.is_file():
        print(f"{name} …", flush=True)
        choices = Choices(form=form, precision=precision)
        if name == "ONNX" or name == "ONNX float16" or form == "aot_inductor":
            export_model(predictor, path, choices, checked=False)
        else:
            plain = export(predictor, args, "ONNX")
            info = {**plain.info, "precision": precision}
            records = Records(predictor, choices, pictures=args.pictures, data=args.data)
            int8 = precision == "int8"
            feeds = [feeds_of(info, record) for record in records.many()] if int8 else []
            if form == "onnx":
                quantize.quantize_onnx(plain.path, path, feeds, info)
            else:
                half = precision == "float16"
                save_openvino(plain.path, path, info, half=half, calibration=feeds)
    return Artefact(path, form, threads=args.threads)


def compare_files(predictor: KNetPredictor, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a file: time, size, scores, and how far the results of a picture are."""
    artefacts = {name: export(predictor, args, name) for name in args.files}
    records = Records(predictor, Choices(), pictures=args.pictures, data=args.data)
    record = next(iter(records.few()))
    if args.size:
        pixels = (255 * smooth_noise(3, args.size, 12)).to(torch.uint8)
        record = {"image": pixels, "height": args.size[0], "width": args.size[1]}
        record["feed"] = record["image"]
    if args.output_size:
        record["height"], record["width"] = args.output_size
    height, width = record["image"].shape[-2:]
    print(
        f"\nimage {height} x {width}, results {record['height']} x {record['width']}, "
        f"{args.threads} threads, {args.rounds} rounds"
    )
    seconds = time_in_turns(predictor, artefacts, record, args.rounds)
    weights = sum(p.numel() * p.element_size() for p in predictor.model.parameters())
    rows = [{"": "PyTorch", "ms": 1000 * statistics.median(seconds["PyTorch"]), "ratio": 1.0,
             "MB": weights / 1e6}]  # fmt: skip
    with torch.no_grad():
        expected = predictor.model([record])[0]
    if args.data:
        rows[0] |= score(predictor, args, records, lambda r: predictor.model([r])[0])
    for name in (PLAIN, *artefacts):
        ratios = [own / torchs for own, torchs in zip(seconds[name], seconds["PyTorch"])]
        row: dict[str, Any] = {"": name, "ms": 1000 * statistics.median(seconds[name]),
                               "ratio": statistics.median(ratios)}  # fmt: skip
        rows.append(row)
        if name == PLAIN:
            continue
        artefact = artefacts[name]
        row["MB"] = artefact.size / 1e6
        if args.data:
            row |= score(predictor, args, records, results_of(artefact))
        found = differences(artefact(feeds_of(artefact.info, record)), expected)
        row |= {measure.name: value for measure, value in found}
    show(rows)
    if args.profile:
        profile(artefacts, record)
    return rows


def results_of(artefact: Artefact) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function from record to Detectron2's results."""

    def run(record: dict[str, Any]) -> dict[str, Any]:
        found = artefact(feeds_of(artefact.info, record))
        return to_detectron2(found, record["height"], record["width"])

    return run


def time_in_turns(
    predictor: KNetPredictor,
    artefacts: Mapping[str, Artefact],
    record: dict[str, Any],
    rounds: int,
) -> dict[str, list[float]]:
    """Seconds of each, by round; the first round is not counted."""
    plain = build_model(predictor.cfg).eval()
    plain.load_state_dict(predictor.model.state_dict())
    works: dict[str, Callable[[], Any]] = {
        "PyTorch": lambda: predictor.model([record]),
        PLAIN: lambda: plain([record]),
    }
    for name, artefact in artefacts.items():
        feeds = feeds_of(artefact.info, record)
        works[name] = lambda artefact=artefact, feeds=feeds: artefact(feeds)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    with torch.no_grad():
        for i in range(rounds + 1):
            for name, work in works.items():
                time.sleep(0.05)  # threads of the one before go to sleep
                begun = time.perf_counter()
                work()
                if i:
                    seconds[name].append(time.perf_counter() - begun)
    return seconds


def score(
    predictor: KNetPredictor,
    args: argparse.Namespace,
    records: Records,
    output_of: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, float]:
    """PQ, AP and mIoU in percent, as far as model and data have them."""
    evaluator = build_evaluator(predictor.cfg, args.data, str(args.output / "inference"))
    batches = (record for batch in records.loader() for record in batch)
    with torch.no_grad():
        found = evaluate_outputs(batches, output_of, evaluator)
    pairs = (name.split("/") for name in MAIN_SCORES)
    return {name: float(found[task][name]) for task, name in pairs if name in found.get(task, {})}


def compare_odd(predictor: KNetPredictor, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Odd pictures, through files that take the resized image and through those that resize."""
    rng = np.random.default_rng(0)
    scene = next(iter(Records(predictor, Choices(), pictures=args.pictures, data=args.data).few()))
    smooth = scene["image"].numpy().transpose(1, 2, 0)
    grey = np.repeat(smooth.mean(2, keepdims=True).astype(np.uint8), 3, axis=2)
    pictures = {
        "grey": grey,
        "1x1": rng.integers(0, 256, (1, 1, 3), np.uint8),
        "another size": np.ascontiguousarray(smooth[: smooth.shape[0] * 2 // 3, ::-1]),
        "20 megapixels": np.resize(smooth, (4000, 5000, 3)),
    }
    rows = []
    for form in ("onnx", "openvino"):
        for resizes in (False, True):
            choices = Choices(form=form, takes_picture=resizes)
            artefact = export(predictor, args, {"onnx": "ONNX", "openvino": "OpenVINO"}[form])
            if resizes:
                artefact = _resizing(predictor, args, form)
            records = Records(predictor, choices, pictures=[], data="")
            for name, picture in pictures.items():
                record = records.complete(predictor.prepare(picture), picture)
                begun = time.perf_counter()
                found = artefact(feeds_of(artefact.info, record))
                taken = time.perf_counter() - begun
                with torch.no_grad():
                    expected = predictor.model([record])[0]
                values = {measure.name: value for measure, value in differences(found, expected)}
                file = f"{form}, {'the graph resizes' if resizes else 'resized by Pillow'}"
                rows.append({"": f"{name} ({file})", "s": taken, **values})
                print(rows[-1], flush=True)
    show(rows)
    return rows


def _resizing(predictor: KNetPredictor, args: argparse.Namespace, form: str) -> Artefact:
    """The file whose graph takes a whole picture; OpenVINO's out of the other one."""
    path = args.output / f"resizing{FORMS[form]}"
    if not path.is_file() and form == "onnx":
        export_model(predictor, path, Choices(takes_picture=True), checked=False)
    elif not path.is_file():
        plain = _resizing(predictor, args, "onnx")
        save_openvino(plain.path, path, plain.info)
    return Artefact(path, form, threads=args.threads)


def compare_layers(predictor: KNetPredictor, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What eight bits cost, one part of the model after the other."""
    if not args.data:
        raise UserError("--what layers scores on a data set: name it with --data")
    plain = export(predictor, args, "ONNX")
    records = Records(predictor, Choices(), pictures=args.pictures, data=args.data)
    feeds = [feeds_of(plain.info, record) for record in records.many()]
    rows = [{"in eight bits": "nothing", "convolutions": 0,
             **score(predictor, args, records, results_of(plain))}]  # fmt: skip
    for name, (integer, keep) in LAYERS.items():
        path = args.output / "layers.onnx"
        count = quantize.quantize_onnx(
            plain.path,
            path,
            feeds,
            plain.info,
            integer=integer,
            keep=keep,
            products=name == "and rounds",
        )
        found = results_of(Artefact(path, "onnx", threads=args.threads))
        rows.append({"in eight bits": name, "convolutions": count,
                     **score(predictor, args, records, found)})  # fmt: skip
        print(rows[-1], flush=True)
    show(rows)
    return rows


def profile(artefacts: Mapping[str, Artefact], record: Mapping[str, Any]) -> None:
    """Shares of the time by operator, of onnxruntime's and OpenVINO's own profiles."""
    for name, artefact in artefacts.items():
        feeds = feeds_of(artefact.info, record)
        times: collections.Counter[str] = collections.Counter()
        if artefact.form == "onnx":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.enable_profiling = True
            options.profile_file_prefix = str(artefact.path.with_suffix(""))
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(str(artefact.path), options)
            session.run(None, dict(feeds))
            trace = Path(session.end_profiling())
            for event in json.loads(trace.read_bytes()):
                if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                    times[event["args"]["op_name"]] += event["dur"]
            trace.unlink()
        elif artefact.form == "openvino":
            import openvino

            config = {"PERF_COUNT": True, "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                      "INFERENCE_PRECISION_HINT": "f32"}  # fmt: skip
            request = openvino.Core().compile_model(artefact.path, "CPU", config)
            request = request.create_infer_request()
            request.infer(dict(feeds))
            for node in request.profiling_info:
                times[node.node_type] += node.real_time.total_seconds()
        else:
            continue
        total = sum(times.values())
        shares = ", ".join(f"{kind} {100 * t / total:.0f} %" for kind, t in times.most_common(8))
        print(f"{name}: {shares}")


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """As a table of Markdown."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [
        [f"{v:.4g}" if isinstance(v := row.get(key, ""), float) else v for key in columns]
        for row in rows
    ]
    print("\n" + tabulate(cells, columns, "github", disable_numparse=True), flush=True)


if __name__ == "__main__":

    def command() -> None:
        main()

    sys.exit(run_command("exports.py", command))
