"""Graphs compiled ahead of time, with their metadata."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from knet.export.compiled import load_compiled, require_compiler, save_compiled

pytestmark = pytest.mark.export


class Sums(torch.nn.Module):
    """A graph that is compiled in seconds."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sums": image.sum(0) + 1}


def test_a_compiled_graph_and_its_metadata(tmp_path):
    compilers = os.environ.get("CXX") or "g++", "clang++"
    if not any(map(shutil.which, compilers)):
        pytest.skip("no C++ compiler: install Debian's package g++")
    require_compiler()
    dims = {0: torch.export.Dim.AUTO}
    program = torch.export.export(
        Sums(), (), {"image": torch.ones(5, 3)}, dynamic_shapes={"image": dims}
    )
    path = tmp_path / "sums.pt2"
    save_compiled(program, path, {"precision": "float32", "classes": ["a"]})
    assert [file.name for file in tmp_path.iterdir()] == ["sums.pt2"]
    module, metadata = load_compiled(path)
    assert metadata == {"precision": "float32", "classes": ["a"]}
    image = torch.rand(9, 3)
    torch.testing.assert_close(module(image=image)["sums"], image.sum(0) + 1)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    def none(*arguments):
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ValueError, match=r"none is found: install one \(g\+\+\)"):
        require_compiler()
    with pytest.raises(FileNotFoundError, match=r"no\.pt2: no such file"):
        load_compiled(tmp_path / "no.pt2")
    (tmp_path / "cut.pt2").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"cut\.pt2 is no whole file"):
        load_compiled(tmp_path / "cut.pt2")
