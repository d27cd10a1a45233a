"""Traced graphs compiled ahead of time, by AOTInductor: a `.pt2` without Python's model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from knet.export.metadata import METADATA_KEY
from knet.files import whole_file


def require_compiler() -> None:
    """Raise ValueError if there is no C++ compiler, which AOTInductor needs on a CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "AOTInductor compiles with a C++ compiler, and none is found: install one (g++), or "
            "name it in the environment variable CXX"
        ) from error


def save_compiled(
    program: ExportedProgram, path: str | os.PathLike[str], metadata: Mapping[str, Any]
) -> None:
    """Compile a traced graph for this machine's kind of processor, and write it as one file.

    Raises:
        ValueError: there is no compiler.
        OSError: the file cannot be written.
    """
    require_compiler()
    from torch._inductor import aoti_compile_and_package

    with whole_file(path) as unfinished:
        aoti_compile_and_package(
            program,
            package_path=str(unfinished),
            inductor_configs={"aot_inductor.metadata": {METADATA_KEY: json.dumps(metadata)}},
        )


def load_compiled(path: str | os.PathLike[str]) -> tuple[Any, dict[str, Any]]:
    """The graph as a function of its inputs by name, and its metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it was not written by `save_compiled`, or is broken.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such file")
    try:
        module = torch._inductor.aoti_load_package(os.fspath(path))
        return module, json.loads(module.get_metadata()[METADATA_KEY])
    except Exception as error:  # PyTorch's reader raises anything at a broken archive
        raise ValueError(
            f"{os.fspath(path)} is no whole file of knet export --format aot_inductor: export "
            f"the model again ({type(error).__name__}: {str(error)[:200]})"
        ) from error
