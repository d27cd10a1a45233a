"""Reads golden numbers, and collects errors against them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from knet.checkpoint.published_names import import_published, to_published_name

# "half": golden numbers that were stored in float16
TOLERANCE = {"value": 1e-4, "loss": 1e-4, "gradient norm": 1e-3, "half": 1e-3, "exact": 0.0}


@dataclass
class Report:
    """Worst error of every quantity seen; prints as it goes.

    Attributes:
        errors: (error, name, kind) of each.
        quiet: print nothing.
        prefix: of all names.
    """

    errors: list[tuple[float, str, str]] = field(default_factory=list)
    quiet: bool = False
    prefix: str = ""

    def within(self, part: str) -> Report:
        """The same report for the quantities of a part."""
        return replace(self, prefix=f"{self.prefix}{part}/")

    def compare(self, name: str, ours: object, golden: object, kind: str = "value") -> None:
        """Compare one array.

        `exact` counts differing elements; the other kinds take the largest difference relative to
        the largest golden magnitude.
        """
        a, b = _array(ours), _array(golden)
        if a.shape != b.shape:
            self.add(name, float("inf"), kind, f"shape {a.shape} instead of {b.shape}")
        elif kind == "exact":
            self.add(name, float((a != b).sum()), kind, f"{a.size} elements")
        elif a.size == 0:
            self.add(name, 0.0, kind, "empty")
        else:
            difference = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
            scale = max(float(np.abs(b.astype(np.float64)).max()), 1e-12)
            error = float(difference / scale)
            self.add(name, error if np.isfinite(error) else float("inf"), kind, "")

    def add(self, name: str, error: float, kind: str, note: str = "") -> None:
        """Record an error under a name."""
        name = self.prefix + name
        self.errors.append((error, name, kind))
        if not self.quiet:
            verdict = "ok  " if error <= TOLERANCE[kind] else "FAIL"
            shown = (
                f"{int(error)} differ" if kind == "exact" and np.isfinite(error) else f"{error:.2e}"
            )
            print(f"{verdict} {kind:13s} {shown:>12s}  {name}  {note}".rstrip())

    @property
    def failures(self) -> list[tuple[float, str, str]]:
        """Everything beyond its tolerance."""
        return [e for e in self.errors if not e[0] <= TOLERANCE[e[2]]]

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing failed."""
        return bool(self.errors) and not self.failures

    def summary(self) -> str:
        """The last line: the worst error of each kind and the number of failures."""
        parts = []
        for kind in TOLERANCE:
            of_kind = [e for e in self.errors if e[2] == kind]
            if of_kind:
                error, name, _ = max(of_kind)
                parts.append(f"{kind} {error:.1e} ({name})")
        return (
            f"worst: {', '.join(parts) or 'nothing compared'}; "
            f"{len(self.failures)} of {len(self.errors)} quantities failed"
        )


def _array(x: object) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def load_npz(path: Path) -> dict[str, Tensor]:
    """Every array of a file as a tensor."""
    with np.load(path) as file:
        return {name: torch.from_numpy(np.array(file[name])) for name in file.files}


def read_case(folder: Path) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """`meta.json` of a case; its weights, inputs, and golden numbers of training and inference."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return meta, [load_npz(folder / f"{n}.npz") for n in ("weights", "inputs", "train", "test")]


def load_weights(module: nn.Module, published: Mapping[str, Tensor], ours: str = "heads.") -> None:
    """Load published weights; `ours` comes before the module's own names."""
    renamed = import_published(published)
    module.load_state_dict({name.removeprefix(ours): value for name, value in renamed.items()})


def gradient_norms(
    module: nn.Module, ours: str = "heads.", *, semantic: bool = False
) -> dict[str, float]:
    """Norm of the gradient of each parameter, by published names; 0 where there is none."""
    return {
        str(to_published_name(ours + name, semantic=semantic)): (
            0.0 if p.grad is None else float(p.grad.norm())
        )
        for name, p in module.named_parameters()
    }


def compare_panoptic(
    report: Report, name: str, ours: tuple, num_classes: int, golden: Tensor
) -> None:
    """Compare an id map with the published one, whose ids are label + 1000 * running index."""
    id_map, segments = ours
    lookup = [num_classes] + [s.label + 1000 * (s.id - 1) for s in segments]
    published = torch.tensor(lookup, dtype=torch.int32)[id_map.long()]
    report.compare(f"{name} panoptic id map", published, golden, "exact")
