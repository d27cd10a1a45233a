"""Ray's workers write what the loop writes, and their errors are told as they are."""

import os
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyarrow")
ray = pytest.importorskip("ray", reason="no ray: pip install -e '.[ray]'")

from knet.batch import on_ray  # noqa: E402
from knet.batch.attempts import Attempt  # noqa: E402
from knet.batch.inputs import Input, write_inputs  # noqa: E402
from knet.batch.run import predict_batch  # noqa: E402
from knet.errors import UserError  # noqa: E402
from knet.predictor import KNetPredictor  # noqa: E402
from knet.results.parquet import read_rows  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster():
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def test_shards_are_those_of_the_loop(cluster, model_folder, tiny_shapes, tmp_path, monkeypatch):
    (tmp_path / "broken.png").write_text("no picture")
    Image.fromarray(np.zeros((7, 9, 3), np.uint8)).save(tmp_path / "crash.png")
    monkeypatch.chdir(tmp_path)  # workers find relative paths
    inputs = ["broken.png", "crash.png", str(tiny_shapes / "val" / "images")]
    options = {"shard_size": 2, "say": print}
    load = partial(KNetPredictor.from_pretrained, "model", device="cpu")

    def load_in_worker():
        class Crashing(KNetPredictor):
            def __call__(self, image):
                return os._exit(1) if image.shape[:2] == (7, 9) else super().__call__(image)

        predictor = load()
        predictor.__class__ = Crashing
        return predictor

    loop = predict_batch(load, inputs, output="loop", **options)
    assert (loop.images, loop.errors, loop.shards) == (6, 1, 3)
    # one end was before, to save one here
    names = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex="call"))
    monkeypatch.setattr(on_ray, "uuid", names)
    (tmp_path / "ray").mkdir()
    Attempt(tmp_path / "ray" / "results-0000000.parquet", "call").__enter__().begin(1)
    done = predict_batch(
        load_in_worker, inputs, output="ray", engine="ray", workers=2, load_on_cpu=load, **options
    )
    assert (done.images, done.errors, done.shards) == (6, 2, 3)
    files = sorted(path.name for path in (tmp_path / "loop").glob("*.parquet"))
    assert len(files) == 4 and not list((tmp_path / "ray").glob("*.next"))
    ours, theirs = ([tmp_path / run / name for name in files] for run in ("ray", "loop"))
    same = [one.read_bytes() == other.read_bytes() for one, other in zip(ours, theirs)]
    assert same == [True, False, True, True]
    first, second = read_rows(ours[1:2])
    assert [first] == list(read_rows(theirs[1:2]))[:1]
    assert "crash.png has ended the process 2 times" in second["error"]
    with pytest.raises(UserError, match="3 workers of 1 CPU and 0 GPUs each do not fit"):
        predict_batch(load, inputs, output="more", engine="ray", workers=3, **options)
    assert ray.is_initialized()  # it is not ours


def test_workers_that_end_too_often_end_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path / "inputs.parquet", [Input("a.png", "a.png")], shard_size=1, about={})
    for _ in range(3):  # each is killed
        worker = on_ray._Worker(KNetPredictor, str(tmp_path), str(tmp_path), "call", 3)
        assert "TypeError" in bytes.fromhex(worker._failed).decode("latin-1")  # by the model
        Attempt(tmp_path / "results-0000000.parquet", "call").__enter__().begin(0)
    last = on_ray._Worker(KNetPredictor, str(tmp_path), str(tmp_path), "call", 3)
    message = "have ended 3 times without an error: .*memory; workers were at a.png$"
    with pytest.raises(UserError, match=message):
        on_ray._raise(last({"shard": [0]})["error"][0])


class Odd(Exception):
    """It cannot be pickled."""

    def __init__(self, first, second):
        super().__init__(first)


def test_an_error_of_a_worker_is_that_error(tmp_path, monkeypatch):
    def fail():
        raise error

    place = str(tmp_path)
    monkeypatch.chdir(tmp_path)
    for error in (OSError(28, "No space left on device"), UserError("no such model")):
        found = on_ray._Worker(fail, place, place, "c", 9)({"shard": [0, 1]})
        assert found["images"] == [0]
        with pytest.raises(type(error)) as caught:
            on_ray._raise(found["error"][0])
        assert str(caught.value) == str(error)
        assert "in a worker:" in str(caught.value.__cause__) and ", in fail" in str(
            caught.value.__cause__
        )
    error = Odd("first", "second")
    with pytest.raises(RuntimeError, match="Odd: first"):
        on_ray._raise(on_ray._Worker(fail, place, place, "c", 9)({"shard": [0]})["error"][0])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        gone = on_ray._Worker(fail, str(tmp_path / "nowhere"), place, "c", 9)
        on_ray._raise(gone({"shard": [0]})["error"][0])


def test_errors_of_ray_and_of_shards(predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    worker = on_ray._Worker(lambda: predictor, str(tmp_path), str(tmp_path), "c", 9)
    with pytest.raises(FileNotFoundError, match=r"inputs\.parquet"):
        on_ray._raise(worker({"shard": [0]})["error"][0])

    write_inputs(tmp_path / "inputs.parquet", [Input("a.png", "a.png")], shard_size=1, about={})

    def lost(*args, **kwargs):
        attempt = Attempt(tmp_path / "results-0000000.parquet", "call")
        attempt.__enter__().begin(0)  # its process is killed
        raise ray.exceptions.RayTaskError("map", "first line\nthe node was lost\n", OSError())

    names = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex="call"))
    monkeypatch.setattr(on_ray, "uuid", names)
    monkeypatch.setattr(on_ray.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(on_ray.ray, "cluster_resources", lambda: {"CPU": 2})
    monkeypatch.setattr(on_ray.ray.data, "from_items", lost)
    message = r"Ray ended the run: the node was lost; workers were at a\.png$"
    with pytest.raises(UserError, match=message):
        on_ray.write_shards(
            Exception, tmp_path, [0],
            workers=1, gpus_per_worker=0, advance=lambda n: None, say=print,
        )  # fmt: skip


@pytest.mark.parametrize("there, asked, given", [
    ({"CPU": 2.0}, (None, None), (2, 0)),
    ({"CPU": 9.0, "GPU": 4.0}, (None, None), (4, 1)),  # wherever the driver is
    ({"CPU": 9.0, "GPU": 4.0}, (None, 0.5), (8, 0.5)),
    ({"CPU": 9.0, "GPU": 4.0}, (3, 0.0), (3, 0)),
    ({"CPU": 9.0, "GPU": 4.0}, (5, None), "5 workers of 1 CPU and 1 GPUs"),
    ({"CPU": 2.0}, (None, 2.0), "no workers of 1 CPU and 2 GPUs"),
])  # fmt: skip
def test_workers_get_what_the_cluster_has(monkeypatch, there, asked, given):
    monkeypatch.setattr(on_ray.ray, "cluster_resources", lambda: there)
    if isinstance(given, str):
        with pytest.raises(UserError, match=given):
            on_ray._share(*asked)
    else:
        assert on_ray._share(*asked) == given
