"""Damaged and odd weight files: one error that names the file, and no value changed unseen."""

import pickle
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from workload import peak_memory

from knet.checkpoint.checkpointer import KNetCheckpointer
from knet.checkpoint.read_file import read_file
from knet.checkpoint.write_file import write_openmmlab, write_weights
from knet.training.step import TrainStep

from .bombs import KINDS, write_bomb

KERNELS = "heads.kernel_head.init_kernels.weight"


class Tiny(nn.Module):
    """Has names as K-Net's."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.heads = nn.ModuleDict({"kernel_head": nn.Module()})
        self.heads["kernel_head"].init_kernels = nn.Conv2d(4, 5, 1, bias=False)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def load(path, **arguments):
    """The state of a new model after loading, or None if the file is refused by name."""
    model = Tiny()
    try:
        KNetCheckpointer(model, strict=True, **arguments).load(str(path))
    except (ValueError, FileNotFoundError) as error:
        assert path.name in str(error), error
        return None
    return state_of(model)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def step_of(model):
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return TrainStep(model, lambda seed, step: [], optimizer, seed=1)


def write(path, model):
    """A file of the kind that the suffix names, as this package or Detectron2's authors do."""
    if path.suffix == ".pkl":
        state = {name: value.numpy() for name, value in model.state_dict().items()}
        path.write_bytes(pickle.dumps({"model": state, "__author__": "someone"}, protocol=2))
    elif path.suffix == ".safetensors":
        write_weights(path, model.state_dict())
    elif path.stem == "foreign":
        torch.save({"model": model.state_dict()}, path)
    else:
        KNetCheckpointer(model, str(path.parent), trainer=step_of(model)).save(
            path.stem, iteration=0
        )


def damage(content, rng):
    place, kind = rng.randrange(len(content)), rng.random()
    if kind < 0.7:
        flipped = content[place] ^ (1 << rng.randrange(8))
        return content[:place] + bytes([flipped]) + content[place + 1 :]
    if kind < 0.8:
        return content[:place]
    if kind < 0.9:
        return content[:place] + rng.randbytes(rng.randrange(1, 9)) + content[place:]
    return content[:place] + bytes(64) + content[place + 64 :]


@pytest.mark.parametrize("name", ["w.pth", "foreign.pth", "w.safetensors", "w.pkl"])
def test_damage_is_found(tmp_path, name, cases=40):
    path = tmp_path / name
    model = Tiny()
    write(path, model)
    content, expected = path.read_bytes(), state_of(model)
    assert same(load(path), expected)
    rng, refused = random.Random(name), 0
    for case in range(cases):
        path.write_bytes(damage(content, rng))
        read = load(path)
        refused += read is None
        # a pickle has no checksum
        assert name == "w.pkl" or read is None or same(read, expected), case
    assert refused > cases / 4


def test_every_bit_of_the_values_counts(tmp_path):
    state = {KERNELS: torch.zeros(4, 4)}
    for name in ("w.pth", "w.safetensors", "mm.pth"):
        path = tmp_path / name
        (write_openmmlab if name == "mm.pth" else write_weights)(path, state)
        content = bytearray(path.read_bytes())
        start = content.index(bytes(64))
        for i in range(0, 512, 37):
            changed = bytearray(content)
            changed[start + i // 8] ^= 1 << i % 8
            path.write_bytes(changed)
            with pytest.raises(
                ValueError, match=rf"{name}: .*damaged.*(checksum|download).*(checksum|download)"
            ):
                read_file(str(path))


def test_an_entry_marked_as_a_folder(tmp_path):
    """PyTorch reads nothing in its place, and leaves the memory as it is."""
    path = tmp_path / "foreign.pth"
    torch.save({"model": {KERNELS: torch.ones(4, 4)}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"foreign/data/0", content.index(b"PK\x01\x02")) - 8] = 0x10
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"foreign\.pth: .*damaged.*data/0' is marked wrongly"):
        read_file(str(path))


def test_a_type_of_the_same_size_is_seen(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, {KERNELS: torch.ones(2, 2)})
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))
    with pytest.raises(ValueError, match=r"w\.safetensors: damaged, its content is not what"):
        read_file(str(path))


def test_a_pickle_that_would_fill_the_memory(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(ValueError, match=r"w\.pkl: truncated or damaged.*impossible number"):
        read_file(str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_file_that_claims_to_be_large(tmp_path, kind):
    path = write_bomb(tmp_path, kind, KERNELS)
    assert path.stat().st_size < 1 << 20

    def load():
        with pytest.raises(ValueError, match=rf"^\S*{path.name}: "):
            KNetCheckpointer(Tiny()).load(str(path))

    assert peak_memory(load, "cpu") < 30 << 20


def sparse():
    return torch.eye(4).to_sparse()


ODD = {
    "tuple": (1, 2),
    "nothing": None,
    "empty": {},
    "tuple_key": {("a", 1): torch.ones(1)},
    "number_key": {"model": {3: torch.ones(1)}},
    "key_none": {"state_dict": {None: torch.ones(1), KERNELS: torch.ones(1)}},
    "nested": {"model": {"model": {KERNELS: torch.ones(1)}}},
    "list_of_states": {"model": [{KERNELS: torch.ones(1)}]},
    "sparse": {"model": {KERNELS: sparse()}},
    "csr": {"model": {KERNELS: torch.eye(4).to_sparse_csr()}},
    "meta": {"model": {KERNELS: torch.ones(5, 4, 1, 1, device="meta")}},
    "quantised": {
        "model": {KERNELS: torch.quantize_per_tensor(torch.ones(5, 4, 1, 1), 1, 0, torch.qint8)}
    },
    "complex": {"model": {KERNELS: torch.ones(5, 4, 1, 1, dtype=torch.complex64)}},
    "float8": {"model": {KERNELS: torch.ones(5, 4, 1, 1).to(torch.float8_e4m3fn)}},
    "huge": {"model": {KERNELS: torch.ones(1).expand(1 << 20, 1 << 20)}},
    "scalar": {"model": {KERNELS: torch.tensor(1.0)}},
    "no_rows": {"model": {KERNELS: torch.ones(0, 4, 1, 1)}},
    "caffe2": {"conv1_w": torch.ones(1), "res2_0_branch2a_w": torch.tensor(1.0)},
    "blobs": {"blobs": {"a": torch.ones(1)}, "__author__": torch.ones(3)},
    "heuristics": {"model": {"": torch.ones(1)}, "matching_heuristics": torch.ones(3)},
    "openmmlab": {"state_dict": {"decode_head.conv_seg.weight": torch.ones(1)},
                  "meta": {"CLASSES": np.ones(3), "dataset_meta": 3}},
    "merging": {"state_dict": {"backbone.stages.0.downsample.norm.weight": torch.ones(3),
                               "decode_head.kernel_generate_head.conv_seg.bias": torch.ones(1)}},
    "swin": {"stages.0.blocks.0.attn.w_msa.qkv.bias": torch.ones(1),
             "stages.0.downsample.norm.weight": torch.tensor(1.0)},
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_content_is_refused_by_name(tmp_path, name):
    torch.save(ODD[name], tmp_path / "odd.pth")
    for finetune in (dict(), dict(finetune="adapt")):
        model = Tiny()
        checkpointer = KNetCheckpointer(model, **finetune)
        with pytest.raises(ValueError, match=r"^\S*odd\.pth: "):
            checkpointer.load(str(tmp_path / "odd.pth"))


@pytest.mark.parametrize(
    "value",
    [
        np.ones((5, 4, 1, 1), complex),
        np.ones((5, 4, 1, 1), "U1"),
        np.ones((5, 4, 1, 1), np.longdouble),
        np.ones((5, 4, 1, 1), np.int32),
    ],
)
def test_arrays_of_odd_types(tmp_path, value):
    path = tmp_path / "odd.pkl"
    path.write_bytes(pickle.dumps({"model": {**numpy_state(), KERNELS: value}}))
    with pytest.raises(
        ValueError, match=rf"^\S*odd\.pkl: the weight {KERNELS} is (of type|an array of) .*float32"
    ):
        KNetCheckpointer(Tiny()).load(str(path))


def numpy_state():
    return {name: value.numpy() for name, value in Tiny().state_dict().items()}


def test_byte_order_does_not_matter(tmp_path):
    state = OrderedDict(numpy_state())
    expected = {name: torch.from_numpy(value.copy()) for name, value in state.items()}
    swapped = {k: v.astype(v.dtype.newbyteorder(">")) for k, v in state.items()}
    path = tmp_path / "big.pkl"
    path.write_bytes(pickle.dumps({"model": swapped}))
    assert same(load(path), expected)
