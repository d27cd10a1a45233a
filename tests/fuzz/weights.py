"""Weight files of all kinds, and ways to damage them or to fill them with something odd."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from mutations import ODD, damage_bytes, damage_file, damage_json, pick
from numpy.random import Generator
from torch import nn

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.write_file import write_weights

__all__ = ["WeightFiles"]

_ITERATION = 5


class WeightFiles:
    """Files of a model's weights.

    Args:
        model: whose weights they are.
        other: its twin, into which they are read.
        folder: for the files.
        bombs: the module of small files that claim to be large.
    """

    def __init__(self, model: nn.Module, other: nn.Module, folder: Path, bombs: ModuleType) -> None:
        self.other = other
        self.bombs = {kind: _read_bomb(bombs, kind, folder) for kind in bombs.KINDS}
        self.state = copy.deepcopy(model.state_dict())
        self.optimizer = _optimizer(model)
        for parameter in model.parameters():
            self.optimizer.state[parameter]["momentum_buffer"] = torch.rand_like(parameter)
        for name in ("weights.pth", "weights.safetensors"):
            write_weights(folder / name, self.state)
        KNetCheckpointer(model, str(folder), optimizer=self.optimizer).save(
            "checkpoint", iteration=_ITERATION
        )
        arrays = {key: value.numpy() for key, value in self.state.items()}
        foreign = pickle.dumps({"model": arrays, "__author__": "others"}, protocol=2)
        (folder / "weights.pkl").write_bytes(foreign)
        names = ("weights.pth", "weights.safetensors", "checkpoint.pth", "weights.pkl")
        self.files = {name: (folder / name).read_bytes() for name in names}
        self.saved = torch.load(folder / "checkpoint.pth", map_location="cpu", weights_only=False)

    def damage(self, rng: Generator, folder: Path) -> tuple[str, Path, Callable[[], str | None]]:
        """Write a damaged file: what it is, where, and a reader that returns "silent" if the file
        was ours, only its bytes are damaged, and other values are read."""
        if rng.random() < 0.4:
            what, path = self._odd(rng, folder)
            return what, path, lambda: self._read(path, resume=bool(rng.integers(2)))
        if rng.random() < 0.1:
            kind = pick(rng, list(self.bombs))
            path = folder / self.bombs[kind][0]
            path.write_bytes(self.bombs[kind][1])
            return f"bomb, {kind}", path, lambda: self._read(path, resume=False)
        name = pick(rng, list(self.files))
        path = folder / name
        path.write_bytes(self.files[name])
        if rng.random() < 0.1:
            return f"{name} {damage_file(rng, path)}", path, lambda: self._read(path, resume=False)
        path.write_bytes(damage_bytes(rng, self.files[name]))
        # nobody's pickles but those of others have no checksum
        ours = name != "weights.pkl"
        resume = name == "checkpoint.pth"
        return name, path, lambda: self._read(path, resume=resume, compare=ours)

    def _read(self, path: Path, *, resume: bool, compare: bool = False) -> str | None:
        for value in self.other.state_dict().values():
            value.zero_()
        optimizer = _optimizer(self.other)
        others = {"optimizer": optimizer} if resume else {}
        rest = KNetCheckpointer(self.other, strict=True, **others).load(str(path))
        if not compare:
            return None
        found = self.other.state_dict()
        same = all(torch.equal(value, found[key]) for key, value in self.state.items())
        if resume:
            same = same and rest.get("iteration") == _ITERATION
            same = same and _equal(optimizer.state_dict(), self.optimizer.state_dict())
        return None if same else "silent"

    def _odd(self, rng: Generator, folder: Path) -> tuple[str, Path]:
        """Content that nobody of ours writes, in a whole file."""
        form = pick(rng, ["pth", "pkl", "safetensors"])
        path = folder / f"odd.{form}"
        if form == "safetensors":
            return f"safetensors, {self._odd_safetensors(rng, path)}", path
        saved = copy.deepcopy(self.saved)
        name = pick(rng, list(_ODD_CONTENT))
        saved = _ODD_CONTENT[name](rng, saved)
        if form == "pth":
            torch.save(saved, path)
        else:
            path.write_bytes(pickle.dumps(_arrays(saved), protocol=2))
        return f"{form}, {name}", path

    def _odd_safetensors(self, rng: Generator, path: Path) -> str:
        content = self.files["weights.safetensors"]
        length = int.from_bytes(content[:8], "little")
        header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
        what = pick(rng, ["classes", "header", "entry"])
        if what == "classes":
            classes = damage_json(rng, {"things": ["a", "b"], "stuff": ["c"]})
            header["__metadata__"] = {"classes": classes.decode("utf-8", errors="replace")}
            text = json.dumps(header).encode()
        elif what == "header":
            text = damage_json(rng, header)
        else:
            entry = header[pick(rng, [key for key in header if key != "__metadata__"])]
            entry[pick(rng, list(entry))] = pick(rng, [*ODD, "F16", "I64", [0, 4], [4, 0]])
            text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
        return what


def _read_bomb(bombs: ModuleType, kind: str, folder: Path) -> tuple[str, bytes]:
    path = bombs.write_bomb(folder, kind, "heads.x", megabytes=3072)
    return path.name, path.read_bytes()


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def _arrays(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _arrays(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map(_arrays, tree))
    if isinstance(tree, torch.Tensor) and tree.layout == torch.strided and not tree.is_meta:
        return tree.detach().resolve_conj().numpy() if not tree.is_quantized else tree
    return tree


def _entry(change: Callable[[torch.Tensor], Any]) -> Callable[[Generator, Any], Any]:
    """One of the weights becomes something else."""

    def make(rng: Generator, saved: Any) -> Any:
        key = pick(rng, [key for key, value in saved["model"].items() if value.dim() > 0])
        saved["model"][key] = change(saved["model"][key])
        return saved

    return make


def _with(part: str, values: list[Any]) -> Callable[[Generator, Any], Any]:
    def make(rng: Generator, saved: Any) -> Any:
        saved[part] = copy.deepcopy(pick(rng, values))
        return saved

    return make


def _key(key: Any) -> Callable[[Generator, Any], Any]:
    return lambda rng, saved: {**saved, "model": {**saved["model"], key: torch.zeros(2)}}


def _missing(rng: Generator, saved: Any) -> Any:
    del saved["model"][pick(rng, list(saved["model"]))]
    return saved


def _optimizer_part(rng: Generator, saved: Any) -> Any:
    groups = saved["optimizer"]["param_groups"]
    part = pick(rng, ["state", "param_groups", "group", "params"])
    if part == "group":
        groups[0] = pick(rng, ODD)
    elif part == "params":
        groups[0]["params"] = pick(rng, ODD)
    else:
        saved["optimizer"][part] = copy.deepcopy(pick(rng, ODD))
    return saved


_ODD_CONTENT: dict[str, Callable[[Generator, Any], Any]] = {
    "tuple key": _key((1, 2)),
    "number key": _key(5),
    "bytes key": _key(b"x"),
    "empty key": _key(""),
    "no key": _key(None),
    "long key": _key("x" * 100_000),
    "sparse": _entry(lambda value: value.to_sparse()),
    "meta": _entry(lambda value: value.to("meta")),
    "complex": _entry(lambda value: value.to(torch.complex64)),
    "boolean": _entry(lambda value: value > 0),
    "whole numbers": _entry(lambda value: value.to(torch.int64)),
    "half": _entry(lambda value: value.half()),
    "quantised": _entry(lambda v: torch.quantize_per_tensor(v.float(), 0.1, 0, torch.qint8)),
    "not finite": _entry(lambda value: value.float() * float("nan")),
    "other shape": _entry(lambda value: value[None]),
    "turned": _entry(lambda value: value.transpose(0, -1)),
    "empty": _entry(lambda value: value[:0]),
    "repeated": _entry(lambda value: value.flatten()[:1].expand(value.shape)),
    "array": _entry(lambda value: np.asarray(value)),
    "objects": _entry(lambda value: [None, object]),
    "text": _entry(lambda value: "x"),
    "list": _entry(lambda value: value.tolist()),
    "nothing": _entry(lambda value: None),
    "table": _entry(lambda value: {"value": value}),
    "missing": _missing,
    "model": _with("model", ODD),
    "optimizer": _with("optimizer", ODD),
    "part of the optimizer": _optimizer_part,
    "iteration": _with("iteration", ODD),
    "classes": _with("classes", [*ODD, {"things": 5}, {"things": [1], "stuff": None}]),
    "root": lambda rng, saved: copy.deepcopy(pick(rng, [*ODD, [saved], torch.ones(3)])),
    "nested": lambda rng, saved: {"state_dict": {"model": {"state_dict": saved}}},
}  # fmt: skip
