"""YAML files as users and strangers write them: what is wrong is named with file and key."""

import ast
import os
import random
import re
from pathlib import Path

import pytest

from knet.config import add_knet_config, get_cfg_from_file
from knet.config_file import inference_kernels

PANOPTIC = os.path.abspath("configs/shapes/panoptic.yaml")


@pytest.fixture()
def read(tmp_path):
    def read(content, *opts, **arguments):
        path = tmp_path / "my.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return get_cfg_from_file(path, opts, **arguments)

    return read


@pytest.mark.parametrize("content, message", [
    ("SOLVER:\n\tBASE_LR: 1.0", "line 2, column 1: .*spaces, not tabs"),
    ("SOLVER: [1", "line 1, column 11"),
    (b"SEED: 1\nOUTPUT_DIR: \xe9t\xe9", r"byte 0xe9 at position 20 \(line 2\) is not UTF-8"),
    ("SEED: 1".encode("utf-16"), "not UTF-8"),
    ("\0\1\2", "not YAML"),
    ("", "holds nothing"),
    ("- SEED", r"holds \['SEED'\], not keys and values"),
    ("SEED: 1\nSEED: 2", "line 2, column 1: .*SEED comes twice"),
    ("SEED: !!int x", "invalid literal"),
    ("SEED: !!timestamp x", "cannot read"),
    ("[" * 5000, "recursion"),
    ("a: &a [*a]", "aliases"),
    ("\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" if n else "a0: &a0 [1]"
               for n in range(12)), "aliases make it over"),
    ("SEED: " + "1" * 2**20, "over 1048576 bytes"),
    ("SEED: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ("SOLVER:", "SOLVER is None; it is a section"),
    ("SOLVER: {BASE_LRR: 1.0}", r"SOLVER\.BASE_LRR: no such key; did you mean SOLVER\.BASE_LR"),
    ("NUM_KERNELS: 5", r"NUM_KERNELS: no such key; did you mean MODEL\.KNET\.NUM_KERNELS"),
    ("MODEL: {KNETT: {}}", r"MODEL\.KNETT: no such key; did you mean MODEL\.KNET"),
    ("SOLVER: {MAX_ITER: 1e5}", r"SOLVER\.MAX_ITER is 100000.0; it must be a whole number"),
    ("SOLVER: {BASE_LR: null}", r"SOLVER\.BASE_LR is None; it must be a number"),
    ("OUTPUT_DIR: 2024", r"OUTPUT_DIR is 2024; .* in quotes"),
    ("DATASETS: {TRAIN: mine}", r"DATASETS\.TRAIN is 'mine'; it must be a list"),
    ("INPUT: {MIN_SIZE_TRAIN: [a]}", r"MIN_SIZE_TRAIN is \['a'\]; it must be a list of numbers"),
    ("SOLVER: {STEPS: 2020-01-01}", r"SOLVER\.STEPS is datetime"),
    ("SEED: a\nSOLVER: {GAMMA: b}", r"SEED is .*; \S+my\.yaml: SOLVER\.GAMMA"),
])  # fmt: skip
def test_broken_files_are_named(read, content, message):
    with pytest.raises(ValueError, match=rf"(?s)my\.yaml: .*{message}"):
        read(content)


def test_pairs_are_read_as_files_are(read):
    cfg = read(
        "SOLVER: {BASE_LR: 1, STEPS: '(3, 4)'}", "OUTPUT_DIR", "2024", "SEED", "7",
        "MODEL.TIMM.KWARGS.strict_img_size", "False", "INPUT.MIN_SIZE_TRAIN", [64],
    )  # fmt: skip
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.OUTPUT_DIR) == (1.0, (3, 4), "2024")
    assert (cfg.SEED, cfg.MODEL.TIMM.KWARGS.strict_img_size) == (7, False)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (64,) and isinstance(cfg.SOLVER.BASE_LR, float)
    for opts, message in [(["SEED"], "SEED has no value"), (["ONE", 2], "ONE: no such key"),
                          (["SOLVER", 3], "SOLVER is 3; it is a section")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read("SEED: 1", *opts)


def test_bases(read, tmp_path):
    (tmp_path / "one.yaml").write_text(f"_BASE_: {PANOPTIC}\nSEED: 5\nSOLVER: {{MAX_ITER: 9}}")
    (tmp_path / "two.yaml").write_text("SOLVER: {STEPS: [5]}")
    cfg = read("_BASE_: [one.yaml, two.yaml]\nSEED: 6")
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (6, 9, (5,))
    assert cfg.MODEL.BACKBONE.NAME == "build_small_resnet_backbone"
    with pytest.raises(ValueError, match=r"my\.yaml: _BASE_ is 'one\.yaml'; .* stranger's"):
        read("_BASE_: one.yaml", allow_base=False)
    with pytest.raises(ValueError, match=r"_BASE_ is 'https://a/b\.yaml'; it names local files"):
        read("_BASE_: https://a/b.yaml")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml, the _BASE_ of .*my\.yaml"):
        read("_BASE_: gone.yaml")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match=r"pipe, .*is no file"):
        read("_BASE_: pipe")
    (tmp_path / "two.yaml").write_text("_BASE_: my.yaml")
    with pytest.raises(ValueError, match=r"my\.yaml -> \S+two\.yaml -> \S+my\.yaml: .* a circle"):
        read("_BASE_: two.yaml")


def test_text_is_utf8(read):
    assert read("\ufeffOUTPUT_DIR: été").OUTPUT_DIR == "été"


def _sources():
    files = [Path("train_net.py")]
    for folder in ("projects", "benchmarks", "tools", "demo", "datasets"):
        files += sorted(Path(folder).rglob("*.py"))
    return files


def test_no_file_is_opened_in_the_encoding_of_the_locale():
    """Text is read and written as UTF-8 in all of our code, whatever the machine is set to."""
    found = []
    for file in _sources():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _opens_in_the_locale(node):
                found.append(f"{file}:{node.lineno}")
    assert not found


def test_what_is_worth_keeping_is_written_whole():
    """Files get their name when they are complete: writes are within `whole_file` and its like."""
    makes_whole = {"whole_file", "whole_folder", "_whole_file"}
    # in a folder that is made whole, by their callers; system files; another program's scratch;
    # into memory and pipes
    allowed = {
        ("projects/knet/data/shapes/writer.py", "save"),
        ("projects/knet/export/onnx_file.py", "save"),
        ("projects/knet/data/write_shards.py", "open"),
        # a line at a time
        ("benchmarks/ablation_table.py", "open"),
        # what processes say, which is appended
        ("benchmarks/machines.py", "open"),
        # data sets of a measurement
        ("benchmarks/batch.py", "open"),
        ("benchmarks/batch.py", "save"),
        ("benchmarks/batch.py", "write_bytes"),
        ("benchmarks/large_data.py", "open"),
        ("benchmarks/large_data.py", "save"),
        ("benchmarks/workload.py", "save"),
        ("benchmarks/workload.py", "write_text"),
        ("tools/build_detectron2_wheel.py", "write_text"),
        ("tools/build_detectron2_wheel.py", "write_bytes"),
        ("projects/knet/training/batch_size.py", "dump"),
        ("projects/knet/training/curves.py", "savefig"),
        ("projects/knet/training/memory_trial.py", "fdopen"),
        ("projects/knet/training/memory_trial.py", "open"),
        # a download gets its name when it is complete and checked
        ("projects/knet/zoo/download.py", "open"),
        # renamed when it is complete
        ("tools/build_tensorrt.py", "write_bytes"),
        # in a folder that is renamed file by file, or removed
        ("projects/knet_run/tiles/raster.py", "open"),
        ("projects/knet_run/tiles/run.py", "open"),
        ("projects/knet_run/tiles/run.py", "save"),
        ("projects/knet_run/tiles/runs.py", "save"),
        # which picture is next, written over in place
        ("projects/knet/batch/attempts.py", "open"),
        ("benchmarks/tiles.py", "open"),
        ("tools/check_wheel.py", "write_bytes"),
        # written again by every training, a line at a time
        ("projects/knet/training/stop.py", "open"),
    }
    found = set()
    for file in _sources():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        whole = {
            call
            for block in ast.walk(tree)
            if isinstance(block, ast.With)
            and any(
                isinstance(node, ast.Name) and node.id in makes_whole
                for item in block.items
                for node in ast.walk(item.context_expr)
            )
            for call in ast.walk(block)
        }
        found |= {
            (str(file), name)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and node not in whole and (name := _writes(node))
        }
    assert found == allowed


def _writes(call):
    """The name of a function that writes a file, or nothing."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    texts = [a.value for a in (*call.args, *(k.value for k in call.keywords))
             if isinstance(a, ast.Constant) and isinstance(a.value, str)]  # fmt: skip
    if name in ("open", "fdopen"):
        writes = owner != "Image" and any(re.fullmatch("[wax]b?[+]?b?|r[+]b?", t) for t in texts)
    elif name == "save":  # those of pictures, arrays and models, not of our classes
        writes = not re.search("checkpointer|files|^self$", owner) and "stream" not in ast.unparse(
            call
        )
    else:
        writes = (
            name in ("savez", "savez_compressed", "imwrite", "savefig")
            or (name in ("write_bytes", "write_text") and owner != "")
            or (name == "dump" and owner in ("json", "yaml", "pickle"))
        )
    return name if writes else ""


def _opens_in_the_locale(call):
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    if name not in ("open", "read_text", "write_text", "fdopen") or owner in (
        "Image",
        "rasterio",
        "tarfile",
        "os",
        "webbrowser",
    ):
        return False
    if name in ("read_text", "write_text") and not owner:  # those of knet.files
        return False
    texts = [a.value for a in (*call.args, *(k.value for k in call.keywords))
             if isinstance(a, ast.Constant) and isinstance(a.value, str)]  # fmt: skip
    binary = any(re.fullmatch("[rwax]+b[+]?|[rwax]b[+]?|[rwax][+]b", text) for text in texts)
    return not binary and not any(k.arg == "encoding" for k in call.keywords)


def test_damaged_files_end_in_a_message_with_their_name(tmp_path):
    """Seeded: bytes and lines of shipped files are changed, lost, repeated and swapped."""
    rng = random.Random(12)
    shipped = ["shapes/panoptic", "plus/nuclei_instance", "shapes/semantic", "Base-KNet"]
    texts = [Path(f"configs/{name}.yaml").read_bytes() for name in shipped]
    values = [b"-1", b"0", b".nan", b"1e99", b"''", b"null", b"[]", b"{}", b"[[[", b"(((",
              b"*x", b"&x x", b"2020-01-01", b"\t", b"\xff", b"\0", b"!!set {a}", b"~"]  # fmt: skip
    failed = 0
    for number in range(120):
        lines = rng.choice(texts).replace(b'"../Base', b'"Base').splitlines()
        lines = [line for line in lines if b"_BASE_" not in line]
        for _ in range(rng.randint(1, 3)):
            i, kind = rng.randrange(len(lines)), rng.randrange(5)
            if kind == 0:
                lines[i] = lines[i].partition(b":")[0] + b": " + rng.choice(values)
            elif kind == 1:
                at = rng.randrange(len(lines[i]) + 1)
                lines[i] = lines[i][:at] + bytes([rng.randrange(256)]) + lines[i][at + 1 :]
            elif kind == 2:
                del lines[i]
            elif kind == 3:
                lines.insert(rng.randrange(len(lines)), lines[i])
            else:
                lines[i] = lines[i][rng.randrange(len(lines[i]) + 1) :]
        path = tmp_path / f"damaged{number}.yaml"
        path.write_bytes(b"\n".join(lines))
        try:
            get_cfg_from_file(path)
        except (ValueError, FileNotFoundError) as error:
            failed += 1
            assert path.name in str(error), error
            assert len(str(error)) < 4000
    assert failed > 60


def test_configs_of_before_are_read(read):
    """Keys that went are told of and ignored; one has another name."""
    cfg = read("MODEL: {KNET: {COMPILE: true, FAST_CONVOLUTIONS: false, RECOMPUTE: [rounds]}}")
    assert cfg.MODEL.KNET.ACCEL.RECOMPUTE == ("rounds",) and cfg.MODEL.KNET.ACCEL.ENABLED
    assert not {"COMPILE", "FAST_CONVOLUTIONS", "RECOMPUTE"} & set(cfg.MODEL.KNET)
    add_knet_config(cfg)  # as for Detectron2's own configs, a second time
    with pytest.raises(ValueError, match=r"ACCEL\.RECOMPUTE is \['neck'\]"):
        read("MODEL: {KNET: {RECOMPUTE: [neck]}}")


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        (["NUM_KERNELS", 40], ("MODEL.KNET.NUM_KERNELS", 40)),
        (["NUM_KERNELS", 40, "KERNEL_PEAKS", True], ("MODEL.KNET.TEST.NUM_KERNELS", 40)),
        (["KERNEL_PEAKS", True, "TEST.NUM_KERNELS", 300], ("MODEL.KNET.TEST.NUM_KERNELS", 300)),
    ],
)
def test_kernels_in_inference(read, opts, expected):
    opts = [f"MODEL.KNET.{word}" if k % 2 == 0 else word for k, word in enumerate(opts)]
    assert inference_kernels(read("SEED: 1", *opts)) == expected
