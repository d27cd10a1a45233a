"""How many images fit into memory at a time, found by trying.

    choice = largest_batch(cfg)
    cfg.SOLVER.ACCUMULATION_STEPS = choice.passes
    print(choice.reason)

The batch of a step stays what the config says; where its images do not fit at once, they pass in
parts. Tried are steps of rising size, see `knet.training.memory_trial`, with the worst that the
data can bring: the largest training size, and as many objects as the fullest image has.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Instances

from knet.classes import class_ids_from_config
from knet.data.chosen_records import read_training_records
from knet.data.loader import seed_everything
from knet.data.mapper import KNetDatasetMapper
from knet.errors import UserError
from knet.free_memory import address_hint
from knet.modeling.build import is_semantic
from knet.training import memory_trial
from knet.training.memory_trial import Sample, Trial

__all__ = ["Choice", "largest_batch", "worst_sample"]

_FULLEST = 8  # images with the most objects that are looked at, and as many of extreme shapes


class Choice(NamedTuple):
    """How the images of a step pass.

    Attributes:
        images: a pass, in each process.
        passes: a step: SOLVER.ACCUMULATION_STEPS. Times `images` and the number of processes they
            are SOLVER.IMS_PER_BATCH.
        reason: a sentence.
    """

    images: int
    passes: int
    reason: str


def largest_batch(cfg: CfgNode, *, processes: int = 1) -> Choice:
    """The fewest passes whose images fit into memory, for the batch that the config wants.

    It takes the time of some steps, on a CPU also that of the start of a process.

    Args:
        cfg: of a training; SOLVER.IMS_PER_BATCH is the wanted batch of all processes together, the
            data sets in DATASETS.TRAIN are registered. Not changed.
        processes: that will train on this machine, each with its GPU, or all on the CPU.

    Raises:
        UserError: not even the smallest pass fits, the processes cannot share the batch, or the
            model does not train with one so small.
        ValueError: the latter on a GPU.
        RuntimeError: a step fails for another reason.
    """
    wanted = cfg.SOLVER.IMS_PER_BATCH
    if wanted % processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {wanted}, which {processes} processes cannot share evenly"
        )
    share = wanted // processes
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    sample = worst_sample(cfg)
    on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
    attempts = _in_child if on_cpu else memory_trial.attempts
    best, failure = None, ""
    for trial in attempts(_without_data(cfg), sample, sizes, processes if on_cpu else 1):
        if trial.failure:
            failure = f"{trial.images} {trial.failure}"
        else:
            best = trial
    if not on_cpu:
        gc.collect()  # the model goes
        torch.cuda.empty_cache()
    height, width = sample["image"].shape[-2:]
    what = f"{height}x{width} pixels with {len(sample.get('instances', ()))} objects"
    if best is None:
        raise UserError(
            f"no training step fits into memory: of images of {what}, {failure}. {address_hint()}"
            "Lower INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN, crop (INPUT.CROP), or take a smaller "
            "model"
        )
    passes = share // best.images
    reason = (
        f"{best.images} image{'s' * (best.images > 1)} a pass and {passes} "
        f"pass{'es' * (passes > 1)} a step: with images of {what} training holds up to "
        f"{best.peak / 2**30:.1f} GB"
    )
    return Choice(best.images, passes, f"{reason}; {failure}" if failure else reason)


def worst_sample(cfg: CfgNode) -> Sample:
    """A training image as large, and with as many objects, as the data and the config can bring.

    Args:
        cfg: with DATASETS.TRAIN and INPUT.

    Returns:
        As of the mapper: `image` (C, H, W), `instances` and `sem_seg`, what there is.

    Raises:
        DataError, ValueError, OSError: the data cannot be read.
    """
    largest = cfg.clone()
    largest.defrost()
    largest.INPUT.MIN_SIZE_TRAIN = (max(cfg.INPUT.MIN_SIZE_TRAIN),)
    largest.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    if cfg.INPUT.SCALE_JITTER:  # the largest picture that keeps all of its objects
        least, most = cfg.INPUT.SCALE_JITTER
        largest.INPUT.SCALE_JITTER = (min(max(1.0, least), most),) * 2
    records = read_training_records(cfg)
    # a data set may be large: only what is chosen is kept
    facts = [(_objects(r), r.get("height", 1) / max(r.get("width", 1), 1)) for r in records]
    by_count, by_shape = (sorted(range(len(facts)), key=lambda k: facts[k][f]) for f in range(2))
    chosen = [*by_count[-_FULLEST:], *by_shape[: _FULLEST // 2], *by_shape[-_FULLEST // 2 :]]
    mapper = KNetDatasetMapper(largest, is_train=True)
    height = width = 0
    fullest: Sample = {}
    for position, index in enumerate(chosen):
        seed_everything(0, position)  # for crops
        sample = mapper(records[index])
        height = max(height, sample["image"].shape[1])
        width = max(width, sample["image"].shape[2])
        if not fullest or _count(sample) > _count(fullest):
            fullest = sample
    if cfg.INPUT.COPY_PASTE and "instances" in fullest:  # it may meet another like itself
        fullest["instances"] = Instances.cat([fullest["instances"]] * 2)
    return _resized(fullest, (height, width))


def _objects(record: Mapping[str, Any]) -> int:
    return len(record.get("annotations", record.get("segments_info", ())))


def _count(sample: Sample) -> int:
    return len(sample.get("instances", ()))


def _resized(sample: Sample, size: tuple[int, int]) -> Sample:
    height, width = sample["image"].shape[-2:]
    rows = (torch.arange(size[0]) * height // size[0])[:, None]
    columns = torch.arange(size[1]) * width // size[1]
    result = {**sample, "image": sample["image"][:, rows, columns]}
    if "sem_seg" in sample:
        result["sem_seg"] = sample["sem_seg"][rows, columns]
    if "instances" in sample:
        result["instances"] = instances = Instances(size)
        instances.gt_classes = sample["instances"].gt_classes
        instances.gt_masks = BitMasks(sample["instances"].gt_masks.tensor[:, rows, columns])
    return result


def _without_data(cfg: CfgNode) -> CfgNode:
    """A config that stands by itself: another process does not know the data sets of this one."""
    ids = class_ids_from_config(cfg, semantic=is_semantic(cfg))
    plain = cfg.clone()
    plain.defrost()
    plain.DATASETS.TRAIN = plain.DATASETS.TEST = ()
    plain.DATASETS.CUSTOM = []
    plain.MODEL.WEIGHTS, plain.MODEL.TIMM.PRETRAINED = "", False
    plain.MODEL.KNET.NUM_THING_CLASSES = len(ids.things)
    plain.MODEL.KNET.NUM_STUFF_CLASSES = len(ids.stuff)
    plain.MODEL.KNET.THING_IDS = list(ids.things)
    plain.MODEL.KNET.TEST.CLASSES = []
    return plain


def _in_child(
    cfg: CfgNode, sample: Sample, sizes: Sequence[int], processes: int
) -> Iterator[Trial]:
    """`attempts` in a process of its own, whose early end is a failure too."""
    command = [sys.executable, "-W", "ignore", "-m", memory_trial.__name__]
    # where the package is may have been found out by this program alone
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = 0
    with tempfile.TemporaryFile() as errors, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
    ) as child:  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        try:
            try:
                pickle.dump((cfg, sample, list(sizes), processes), child.stdin)
                child.stdin.close()
            except BrokenPipeError:
                pass  # it has ended, which is told below
            for line in child.stdout:
                message = json.loads(line)
                if "error" in message:
                    kind = UserError if message["meant"] else RuntimeError
                    raise kind(f"a training step cannot be tried: {message['error']}")
                trial = Trial(**message)
                done = trial.images
                yield trial
                if trial.failure:
                    return
        finally:
            child.kill()  # if this process is interrupted, say
        status = child.wait()
        if done != sizes[-1]:
            errors.seek(0)
            last = errors.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
            tried = next(size for size in sizes if size > done)
            why = f" ({last[:200]})" if last else ""
            yield Trial(tried, failure=f"ended the process that tried, with status {status}{why}")
