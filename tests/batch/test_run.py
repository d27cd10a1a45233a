"""A run is what its call says, whatever interrupts it."""

import os
import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from detectron2.data import MetadataCatalog

from knet.batch import run as module
from knet.batch.attempts import Attempt
from knet.batch.run import predict_batch
from knet.errors import UserError
from knet.predict.run import predict_pictures
from knet.results.parquet import find_shards, read_rows


@pytest.fixture
def inputs(tiny_shapes, tmp_path):
    """Four pictures and a broken one between them."""
    pictures = sorted((tiny_shapes / "val" / "images").iterdir())
    (tmp_path / "broken.png").write_bytes(pictures[0].read_bytes()[:300])
    return [str(path) for path in (*pictures[:2], tmp_path / "broken.png", *pictures[2:])]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_an_interrupted_run_ends_with_the_same_files(predictor, inputs, tmp_path, monkeypatch):
    whole, parts, files = (tmp_path / name for name in ("whole", "parts", "files"))
    options = {"shard_size": 2, "say": lambda text: said.append(text)}
    said = []
    done = predict_batch(
        lambda: predictor, inputs, output=str(whole), results=str(files), **options
    )
    assert (done.images, done.errors, done.shards) == (5, 1, 3) and said == []
    rows = list(read_rows(find_shards(whole)))
    assert [row["image_id"] for row in rows] == [1, 2, 5, 3, 4]
    assert "broken.png cannot be read as a picture" in rows[2]["error"]
    # the same as files as of `knet predict PICTURES --results`
    predict_pictures(predictor, inputs, results=str(tmp_path / "drawn"), say=said.append)
    names = sorted(p.relative_to(files) for p in files.rglob("*") if p.is_file())
    assert len(names) == 3 + 2 * 4
    for name in names:
        assert (files / name).read_bytes() == (tmp_path / "drawn" / name).read_bytes()

    call, calls = module.BatchPredictor.row, []

    def stop(self, given):
        calls.append(given["image_id"])
        if calls in ([1, 2, 5, 3], [1, 2, 5, 3, 5]):
            os.kill(os.getpid(), signal.SIGTERM if calls[-1] == 3 else signal.SIGINT)
        return call(self, given)

    monkeypatch.setattr(module.BatchPredictor, "row", stop)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        predict_batch(lambda: predictor, inputs, output=str(parts), **options)
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert said[-1] == "SIGTERM: finished files are kept, and the same call goes on"
    with pytest.raises(KeyboardInterrupt):
        predict_batch(lambda: predictor, inputs, output=str(parts), **options)
    assert {path.name for path in parts.iterdir()} == {
        ".training.lock", "inputs.parquet", "results-0000000.parquet"
    }  # fmt: skip
    (parts / "results-0000001.unfinished-000000-1-00000000.parquet").touch()
    predict_batch(lambda: predictor, inputs, output=str(parts), **options)
    assert calls == [1, 2, 5, 3, 5, 5, 3, 4] and said[-1] == "2 of 5 pictures were done before"
    # a left-over of another machine stays for a day
    (parts / "results-0000001.unfinished-000000-1-00000000.parquet").unlink(missing_ok=True)
    assert contents(parts) == contents(whole)


def test_shards_with_errors_are_made_again_where_that_is_asked_for(
    predictor, inputs, tmp_path, monkeypatch
):
    output, written = tmp_path / "out", []
    write = module.ShardWriter.write
    monkeypatch.setattr(
        module.ShardWriter,
        "write",
        lambda self, k, *rest: written.append(k) or write(self, k, *rest),
    )

    def call(**options):
        return predict_batch(
            lambda: predictor, inputs, output=str(output), shard_size=2, **options
        ).errors

    assert (call(), call(), written) == (1, 1, [0, 1, 2])
    broken, whole = Path(inputs[2]), Path(inputs[0]).read_bytes()
    before = contents(output)
    assert call(retry_errors=True) == 1 and contents(output) == before
    broken.write_bytes(whole)
    assert (call(), call(retry_errors=True), call(retry_errors=True)) == (1, 0, 0)
    assert written == [0, 1, 2, 1, 1]
    assert [k for k, data in contents(output).items() if data != before[k]] == [
        "results-0000001.parquet"
    ]


def test_a_file_system_that_fails_ends_the_run(predictor, inputs, tmp_path, monkeypatch):
    output = tmp_path / "out"
    read, gone = module.BatchPredictor.row, [True]

    def row(self, given):
        if given["path"] == inputs[3] and gone:
            raise OSError(gone.pop() and 116, "Stale file handle", inputs[3])
        return read(self, given)

    monkeypatch.setattr(module.BatchPredictor, "row", row)
    options = {"output": str(output), "shard_size": 3}
    with pytest.raises(OSError, match="Stale"):
        predict_batch(lambda: predictor, inputs, **options)
    assert len(find_shards(output)) == 1
    assert predict_batch(lambda: predictor, inputs, **options).errors == 1
    rows = list(read_rows(find_shards(output)))
    assert [row["error"] is None for row in rows] == [True, True, False, True, True]


def test_a_picture_that_ends_the_process_is_left_out(predictor, inputs, tmp_path):
    output = tmp_path / "out"
    options = {"output": str(output), "shard_size": 3}
    first, second = (output / f"results-000000{k}.parquet" for k in range(2))
    expected = contents(output) if predict_batch(lambda: predictor, inputs, **options) else {}
    second.unlink()
    for _ in range(2):
        Attempt(second).__enter__().begin(1)  # and its process is killed
    assert predict_batch(lambda: predictor, inputs, **options).errors == 2
    rows = list(read_rows([first, second]))
    assert rows[4]["error"] == (
        f"{inputs[4]}: 000004.png has ended the process 2 times: a crash, or too little memory; "
        "--retry-errors tries again"
    )
    assert rows[3]["error"] is None and not list(output.glob("*.next"))
    assert predict_batch(lambda: predictor, inputs, **options, retry_errors=True).errors == 1
    assert contents(output) == expected


def test_a_folder_has_one_run(predictor, inputs, tmp_path):
    output = str(tmp_path / "out")

    def call(names=inputs[:1], **options):
        return predict_batch(lambda: predictor, names, output=output, **options)

    call()
    assert call().images == 1
    with pytest.raises(UserError, match="run with another shard size 8: repeat the call"):
        call(shard_size=3)
    with pytest.raises(UserError, match="another inputs"):
        call(inputs[:2])
    predictor.only("instance")
    with pytest.raises(UserError, match="another tasks"):
        call()
    next(predictor.model.parameters()).data[:] = 0
    with pytest.raises(UserError, match="and model"):
        call()
    (tmp_path / "out" / "inputs.parquet").unlink()
    with pytest.raises(UserError, match=r"results without inputs\.parquet"):
        call()
    with pytest.raises(UserError, match="is there already"):
        call(results=str(tmp_path))
    with pytest.raises(UserError, match="--workers 0: it is 1 to 1,000,000"):
        call(workers=0)
    with pytest.raises(UserError, match="--shard-size 1000001: it is 1 to 1,000,000"):
        call(shard_size=1_000_001)


def test_pictures_of_one_name_cannot_be_files(predictor, inputs, tmp_path):
    other = tmp_path / "000001.jpg"
    other.write_bytes(Path(inputs[0]).read_bytes())
    results, names = tmp_path / "files", [inputs[0], str(other)]
    options = {"output": str(tmp_path / "o")}
    with pytest.raises(UserError, match=r"png and .*/000001\.jpg would have one name; leave it"):
        predict_batch(lambda: predictor, names, results=str(results), **options)
    assert not results.exists() and find_shards(tmp_path / "o") == []  # before the work
    assert predict_batch(lambda: predictor, names, **options).errors == 0


def test_it_goes_on_from_another_folder(predictor, inputs, tmp_path, monkeypatch):
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    for path in inputs:
        (places[0] / Path(path).name).write_bytes(Path(path).read_bytes())
    options = {"output": str(tmp_path / "out"), "shard_size": 2}

    def stop(self, given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.chdir(places[0])
        patch.setattr(module.BatchPredictor, "row", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_batch(lambda: predictor, ["."], **options)
    monkeypatch.chdir(places[1])
    with pytest.raises(UserError, match="another inputs"):  # its name means another folder here
        predict_batch(lambda: predictor, ["."], **options)
    assert predict_batch(lambda: predictor, ["../a"], **options).errors == 1


def test_files_are_flushed_once(predictor, inputs, tmp_path, monkeypatch):
    options = {"output": str(tmp_path / "o"), "say": print}
    predict_batch(lambda: predictor, inputs, **options)
    flushed = []
    monkeypatch.setattr("knet.files._flush", lambda path: flushed.append(path.name))
    predict_batch(lambda: predictor, inputs, results=str(tmp_path / "files"), **options)
    pictures = [name for name in flushed if name.startswith("0") and ".unfinished" not in name]
    assert sorted(pictures) == sorted(2 * [f"{k:06d}.png" for k in range(1, 5)])
    assert len([name for name in flushed if name.startswith("0")]) == 8


def test_without_the_packages_a_sentence_says_what_to_install(monkeypatch, tmp_path, capsys):
    from knet_command import main

    words = ["predict", "--model", "nowhere", "--input", "x", "--output", str(tmp_path / "o")]
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "knet.batch.on_ray", raising=False)
    assert main([*words, "--engine", "ray"]) == 2
    assert "needs Ray Data: run `pip install -e .[ray]`" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("knet.results.parquet", "knet.batch.inputs", "knet.batch.predictor",
                 "knet.batch.run"):  # fmt: skip
        monkeypatch.delitem(sys.modules, name)
    assert main(words) == 2
    assert "need pyarrow: run `pip install -e .[parquet]`" in capsys.readouterr().err
    assert main([*words, "--workers", "2"]) == 2
    assert not (tmp_path / "o").exists()


def test_metadata_have_the_classes(predictor, inputs, tmp_path):
    from knet.results.parquet import read_about

    predict_batch(lambda: predictor, inputs[:1], output=str(tmp_path / "o"))
    about = read_about(find_shards(tmp_path / "o")[0])
    names = [c["name"] for c in about["categories"] if c["isthing"]]
    assert names == MetadataCatalog.get("tiny_val").thing_classes[: len(names)]
    assert about["tasks"] == ["panoptic", "instance", "semantic"]
