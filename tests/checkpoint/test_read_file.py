"""Files from elsewhere: what they may hold, and what is said of those that are refused."""

import argparse
import os
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch

from knet.checkpoint.read_file import read_file
from knet.checkpoint.write_file import write_weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def save(saved, path):
    """By suffix: torch.save, the same as before PyTorch 1.6, or pickle as Detectron2 does."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(saved, protocol=2))
    else:
        torch.save(saved, path, _use_new_zipfile_serialization=path.suffix == ".pth")
    return str(path)


@pytest.mark.parametrize("file", ["w.pth", "w.old", "w.pkl"])
def test_code_in_a_file_does_not_run(tmp_path, file):
    state = {k: v.numpy() if file == "w.pkl" else v for k, v in STATE.items()}
    trace = tmp_path / "it_ran"
    path = save({"model": state, "extra": Malicious(trace)}, tmp_path / file)
    with pytest.raises(
        ValueError,
        match=r"w\.\w+: refused.*(posix|nt)\.mkdir .*MODEL\.KNET\.UNSAFE_WEIGHTS.*--trust",
    ):
        read_file(path)
    assert not trace.exists()
    assert set(read_file(path, trust=True)["model"]) == set(STATE)
    assert trace.exists()


@pytest.mark.parametrize("attack", ["exec", "dtype", "codec"])
def test_other_ways_to_run_code_are_closed(tmp_path, attack):
    import codecs

    class Attack:
        def __reduce__(self):
            return {
                "exec": (exec, ("raise SystemExit",)),
                "dtype": (np.dtype, ("O",)),
                "codec": (codecs.encode, ("x", "rot13")),
            }[attack]

    with pytest.raises(ValueError, match="refused, nothing was loaded"):
        read_file(save({"model": Attack()}, tmp_path / "w.pkl"))


@pytest.mark.parametrize("file", ["w.pth", "w.old"])
def test_training_checkpoints_are_plain(tmp_path, file):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    saved = {
        "model": OrderedDict(STATE),
        "optimizer": optimizer.state_dict(),
        "best": np.float64(0.5), "step": np.int64(7), "palette": np.zeros((2, 3), np.uint8),
        "args": argparse.Namespace(lr=0.1), "meta": {"CLASSES": ("cat", "dog"), "done": {1, 2}},
    }  # fmt: skip
    read = read_file(save(saved, tmp_path / file))
    assert read["best"] == 0.5 and read["step"] == 7 and read["args"].lr == 0.1
    assert read["meta"] == saved["meta"] and (read["palette"] == 0).all()
    assert torch.equal(read["model"]["a.weight"], STATE["a.weight"])


def test_logs_of_mmengine_are_plain_records(tmp_path, monkeypatch):
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = type("HistoryBuffer", (), {"__module__": module.__name__})
    buffer = module.HistoryBuffer()
    buffer._log_history = np.ones(3)
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        path = save({"state_dict": STATE, "message_hub": {"loss": buffer}}, tmp_path / "w.pth")
    read = read_file(path)["message_hub"]["loss"]
    assert type(read) is argparse.Namespace and (read._log_history == 1).all()


@pytest.mark.parametrize("file", ["w.pth", "w.pkl"])
def test_arrays_are_made_by_their_values_alone(tmp_path, file):
    class Large:
        def __reduce__(self):
            return np.ndarray, ((10**12,), "u1")

    with pytest.raises(ValueError, match=r"w\.\w+: (refused|truncated or damaged)"):
        read_file(save({"model": Large()}, tmp_path / file))


def test_pickles_of_detectron2_are_plain(tmp_path):
    saved = {"model": {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.float32(3)},
             "__author__": "Caffe2", "matching_heuristics": True}  # fmt: skip
    read = read_file(save(saved, tmp_path / "w.pkl"))
    assert (read["model"]["a"] == saved["model"]["a"]).all() and read["model"]["n"] == 3
    assert read["__author__"] == "Caffe2"


def test_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, STATE)
    read = read_file(str(path))
    assert set(read) == {"model"} and torch.equal(read["model"]["a.weight"], STATE["a.weight"])


@pytest.mark.parametrize("file", ["w.pth", "w.old", "w.pkl", "w.safetensors"])
@pytest.mark.parametrize("share", [0.5, 0.98])
def test_truncated_files(tmp_path, file, share):
    path = tmp_path / file
    state = {"a.weight": torch.rand(50, 40)}
    if file == "w.safetensors":
        write_weights(path, state)
    else:
        save({k: v.numpy() for k, v in state.items()} if file == "w.pkl" else state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"w\.\w+: truncated or damaged, \d+ bytes: copy or down"):
        read_file(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page .* download failed"),
        (b'{"message": "not found"}', "JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\noid", ".*git lfs pull"),
        (b"MZ\x90\x00 a program", "no weight file: .*starts with b'MZ"),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, message):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"knet\.pth: " + message):
        read_file(str(path), name="knet.pth")


def test_whole_files_that_need_trust_are_not_called_damaged(tmp_path):
    module = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    module.save(str(tmp_path / "script.pth"))
    with pytest.raises(ValueError, match=r"script\.pth: refused.*TorchScript.*state_dict"):
        read_file(str(tmp_path / "script.pth"))
    torch.save(STATE, tmp_path / "five.pth", pickle_protocol=5)
    try:
        read = read_file(str(tmp_path / "five.pth"))
    except ValueError as error:
        assert "refused" in str(error) and "--trust" in str(error)
    else:  # a newer PyTorch reads it
        assert set(read) == set(STATE)
