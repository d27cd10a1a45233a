#!/usr/bin/env python3
"""Build a TensorRT engine of an exported K-Net, and time it. Needs tensorrt, torch and a GPU.

    knet export --model FOLDER --raw --input-dtype float32 --dynamic batch height width \
        --precision float16 --output raw.onnx
    python tools/build_tensorrt.py raw.onnx --output raw.engine --size 800 1216 --batch 1 4

The network is strongly typed: its precision is that of the ONNX file, float16 where the export
says so and float32 in sums, and not TensorRT's choice. Graphs with final results compose their
resizes in float64, which TensorRT lacks: the engine is of `--raw`, its logits become results as
docs/DEPLOY.md says.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# multiples of the timed size that the engine takes, too
_LEAST, _MOST = 0.5, 1.25


def main(argv: Sequence[str] | None = None) -> int:
    """Build, time, tell; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="ONNX file of knet export --raw")
    parser.add_argument("--output", type=Path, required=True, help="the engine")
    parser.add_argument(
        "--size", type=int, nargs=2, default=[800, 1216], metavar=("HEIGHT", "WIDTH"),
        help="that the engine is made for; it takes half of it to a quarter more",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=int, nargs=2, default=[1, 1], metavar=("BEST", "MOST"), help="images a call"
    )
    parser.add_argument("--repeats", type=int, default=50)
    args = parser.parse_args(argv)
    try:
        import tensorrt
        import torch
    except ImportError as error:
        return _fail(f"{error.name} is not installed: pip install {error.name}")
    if not torch.cuda.is_available():
        return _fail("torch finds no GPU, without which TensorRT builds nothing")
    if not args.model.is_file():
        return _fail(f"{args.model}: no such file")
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    plan = build(tensorrt, logger, args)
    if isinstance(plan, str):
        return _fail(plan)
    unfinished = args.output.with_name(f".{args.output.name}.{os.getpid()}")
    unfinished.write_bytes(plan)
    unfinished.replace(args.output)
    engine = tensorrt.Runtime(logger).deserialize_cuda_engine(plan)
    times = time_engine(torch, tensorrt, engine, args)
    print(
        f"{args.output}: {len(plan) / 1e6:.1f} MB, {args.batch[0]} x {args.size[0]} x "
        f"{args.size[1]} pixels in {statistics.median(times):.2f} ms (median of {len(times)}) on "
        f"{torch.cuda.get_device_name()}, TensorRT {tensorrt.__version__}"
    )
    return 0


def build(tensorrt: Any, logger: Any, args: argparse.Namespace) -> bytes | str:
    """The serialised engine, or what is wrong."""
    builder = tensorrt.Builder(logger)
    typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(args.model)):
        problems = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        return f"{args.model}: TensorRT does not read it: {problems}"
    if [network.get_input(i).name for i in range(network.num_inputs)] != ["image"]:
        return f"{args.model} gives final results: export it with --raw"
    profile = builder.create_optimization_profile()
    channels = network.get_input(0).shape[1]
    ranges = []
    for batch, scale in ((1, _LEAST), (args.batch[0], 1.0), (args.batch[1], _MOST)):
        # sides divide by 32, to which the graph pads
        sides = [max(int(side * scale) // 32 * 32, 64) for side in args.size]
        ranges.append((batch, channels, *(args.size if scale == 1.0 else sides)))
    profile.set_shape("image", *ranges)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return bytes(plan) if plan is not None else f"{args.model}: TensorRT could not build it"


def time_engine(torch: Any, tensorrt: Any, engine: Any, args: argparse.Namespace) -> list[float]:
    """Milliseconds of each call, by the GPU's own clock."""
    context = engine.create_execution_context()
    context.set_input_shape("image", (args.batch[0], engine.get_tensor_shape("image")[1],
                                      *args.size))  # fmt: skip
    kinds = {tensorrt.float32: torch.float32, tensorrt.float16: torch.float16,
             tensorrt.uint8: torch.uint8}  # fmt: skip
    tensors = {}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        shape = tuple(context.get_tensor_shape(name))
        kind = kinds[engine.get_tensor_dtype(name)]
        tensors[name] = torch.zeros(shape, dtype=kind, device="cuda")
        context.set_tensor_address(name, tensors[name].data_ptr())
    tensors["image"].random_(0, 256)
    stream = torch.cuda.Stream()
    times = []
    for i in range(args.repeats + 5):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record(stream)
        context.execute_async_v3(stream.cuda_stream)
        ended.record(stream)
        stream.synchronize()
        if i >= 5:  # the first are slower
            times.append(begun.elapsed_time(ended))
    return times


def _fail(problem: str) -> int:
    print(f"build_tensorrt.py: error: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
