"""Collects errors against golden numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

# "half": golden numbers that were stored in float16
TOLERANCE = {"value": 1e-4, "loss": 1e-4, "gradient norm": 1e-3, "half": 1e-3, "exact": 0.0}


@dataclass
class Report:
    """Worst error of every quantity seen; prints as it goes."""

    errors: list[tuple[float, str, str]] = field(default_factory=list)
    quiet: bool = False

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
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
