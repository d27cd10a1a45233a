"""The README.md of a saved model: what it finds, how well, what it was made of, how to use it.

Its head is that of model cards on the Hugging Face Hub, which shows and sorts models by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

import knet
from knet.checkpoint.class_names import ClassNames
from knet.config_file import inference_kernels
from knet.modeling.build import is_semantic

# what evaluations call their results, in words
_EVALUATIONS = {"panoptic_seg": "panoptic", "segm": "instances (masks)", "sem_seg": "semantic"}

_CARD = """\
---
{head}---

# K-Net: {tasks} segmentation{of_classes}

A model of [K-Net](https://arxiv.org/abs/2106.14855) (Zhang et al., NeurIPS 2021) for Detectron2.

```python
from knet.predictor import KNetPredictor

predictor = KNetPredictor.from_pretrained("folder or owner/name of this model")
results = predictor("photo.jpg")  # {results}
```

## Scores

{scores}

## Training

{training}

## Model

| | |
|---|---|
{model}

`config.yaml` has all of it.

## Classes

{classes}

## Licence

{license}
"""


def model_card(
    cfg: CfgNode,
    classes: ClassNames | None,
    *,
    parameters: int,
    scores: Mapping[str, Any] | None = None,
    license: str = "",
    base: str = "",
) -> str:
    """The text of a model's card.

    Args:
        cfg: the model's config; DATASETS.TRAIN names the training data, if any, TEST those that
            the scores are of.
        classes: names of the model's classes; None if they have none.
        parameters: their number.
        scores: in percent by names such as "segm/AP", as the last line of `metrics.json` has them;
            of its keys those of evaluations are taken, without those of single classes.
        license: of the weights, best an identifier of the Hub ("cc-by-4.0"); empty: not known.
        base: MODEL.WEIGHTS that the training began with; of a path only the last names are told.
    """
    semantic = is_semantic(cfg)
    test = cfg.MODEL.KNET.TEST
    on = {
        "panoptic": (test.PANOPTIC_ON and not semantic, "panoptic_seg"),
        "instance": (test.INSTANCE_ON and not semantic, "instances"),
        "semantic": (test.SEMANTIC_ON or semantic, "sem_seg"),
    }
    tasks = [task for task, (is_on, _) in on.items() if is_on] or list(on)
    data = ", ".join(map(_plain, cfg.DATASETS.TRAIN))
    training = f"Trained on {data}." if data else "The training data were not recorded."
    if base:
        name = base if "://" in base else "/".join(Path(base).parts[-2:])
        training += f" It began with the weights {_plain(name)}."
    return _CARD.format(
        head=yaml.safe_dump(_head(tasks, license), sort_keys=False, allow_unicode=True),
        tasks=" and ".join(filter(None, [", ".join(tasks[:-1]), tasks[-1]])),
        of_classes="" if classes is None else _count_classes(len(classes.names)),
        results=", ".join(f'results["{on[task][1]}"]' for task in tasks),
        scores="\n".join(_scores(scores or {}, cfg)) or "None were given when the model was saved.",
        training=training,
        model="\n".join(f"| {key} | {value} |" for key, value in _model(cfg, parameters)),
        classes="\n\n".join(_classes(classes)),
        license=f"Weights: {_plain(license)}."
        if license
        else "The licence of the weights is not "
        "known: ask who trained them, and mind the terms of the training data.",
    )


def _head(tasks: Sequence[str], license: str) -> dict[str, Any]:
    known = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license)
    head: dict[str, Any] = {"license": license if known else "other" if license else "unknown"}
    if license and not known:
        head["license_name"] = license
    tags = ["k-net", "detectron2", *(f"{task}-segmentation" for task in tasks)]
    return {**head, "library_name": "knet", "pipeline_tag": "image-segmentation", "tags": tags}


def _count_classes(number: int) -> str:
    return f" of {number} class{'es' * (number != 1)}"


def _scores(scores: Mapping[str, Any], cfg: CfgNode) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    for key, value in scores.items():
        task, _, metric = key.partition("/")
        if task in _EVALUATIONS and "-" not in metric:
            found.setdefault(_EVALUATIONS[task], []).append(f"{_plain(metric)} {value:.1f}")
    if found and cfg.DATASETS.TEST:
        yield from (f"On {', '.join(map(_plain, cfg.DATASETS.TEST))}:", "")
    if found:
        yield from ("| results | percent |", "|---|---|")
        yield from (f"| {task} | {', '.join(values)} |" for task, values in found.items())


def _model(cfg: CfgNode, parameters: int) -> Iterator[tuple[str, str]]:
    backbone, keys = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.KNET
    if "timm" in backbone:
        backbone += f" ({cfg.MODEL.TIMM.NAME})"
    elif "resnet" in backbone and "small" not in backbone:
        backbone += f" (depth {cfg.MODEL.RESNETS.DEPTH})"
    yield "backbone", _plain(backbone)
    kind = keys.KERNEL_HEAD
    if kind == "learned":
        _, number = inference_kernels(cfg)
        kind = f"found in the image, up to {number}" if keys.KERNEL_PEAKS else f"{number} learned"
    rounds = keys.NUM_ROUNDS * keys.ROUND_REPEATS
    yield "kernels", f"{_plain(kind)}, updated in {rounds} rounds"
    yield "parameters", f"{parameters:,}"
    sizes = f"short side {cfg.INPUT.MIN_SIZE_TEST}, long side up to {cfg.INPUT.MAX_SIZE_TEST}"
    yield "images", f"{sizes}, {_plain(cfg.INPUT.FORMAT)}"
    yield "written by", f"knet {knet.__version__}"


def _classes(classes: ClassNames | None) -> Iterator[str]:
    if classes is None:
        yield "The data set gave them no names."
        return
    for kind, names in classes.to_dict().items():
        if names:
            yield f"{kind.capitalize()} ({len(names)}): {', '.join(map(_plain, names))}."


def _plain(text: str) -> str:
    """A text in one line, without meaning to Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|&])", r"\\\1", " ".join(str(text).split()))
