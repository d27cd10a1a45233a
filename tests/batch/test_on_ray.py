"""Ray's workers write what the loop writes, and their errors are told as they are."""

from functools import partial

import pytest

pytest.importorskip("pyarrow")
ray = pytest.importorskip("ray", reason="no ray: pip install -e '.[ray]'")

from knet.batch import on_ray  # noqa: E402
from knet.batch.run import predict_batch  # noqa: E402
from knet.errors import UserError  # noqa: E402
from knet.predictor import KNetPredictor  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster():
    ray.init(num_cpus=1, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def test_shards_are_those_of_the_loop(cluster, model_folder, tiny_shapes, tmp_path, monkeypatch):
    (tmp_path / "broken.png").write_text("no picture")
    monkeypatch.chdir(tmp_path)  # workers find relative paths
    inputs = ["broken.png", str(tiny_shapes / "val" / "images")]
    options = {"shard_size": 2, "say": print}
    load = partial(KNetPredictor.from_pretrained, "model", device="cpu")
    loop = predict_batch(load, inputs, output="loop", **options)
    done = predict_batch(load, inputs, output="ray", engine="ray", workers=1, **options)
    assert done == loop and (done.images, done.errors, done.shards) == (5, 1, 3)
    files = sorted(path.name for path in (tmp_path / "loop").glob("*.parquet"))
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "loop" / name).read_bytes()
    with pytest.raises(UserError, match="2 workers of 1 CPU and 0 GPUs each do not fit"):
        predict_batch(load, inputs, output="more", engine="ray", workers=2, **options)
    assert ray.is_initialized()  # it is not ours


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
        found = on_ray._Worker(fail, place, place)({"shard": [0, 1]})
        assert found["images"] == [0]
        with pytest.raises(type(error)) as caught:
            on_ray._raise(found["error"][0])
        assert str(caught.value) == str(error)
        assert "in a worker:" in str(caught.value.__cause__) and ", in fail" in str(
            caught.value.__cause__
        )
    error = Odd("first", "second")
    with pytest.raises(RuntimeError, match="Odd: first"):
        on_ray._raise(on_ray._Worker(fail, place, place)({"shard": [0]})["error"][0])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        gone = on_ray._Worker(fail, str(tmp_path / "nowhere"), place)
        on_ray._raise(gone({"shard": [0]})["error"][0])


def test_errors_of_ray_and_of_shards(predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    worker = on_ray._Worker(lambda: predictor, str(tmp_path), str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"inputs\.parquet"):
        on_ray._raise(worker({"shard": [0]})["error"][0])

    def lost(*args, **kwargs):
        raise ray.exceptions.RayTaskError("map", "first line\nthe node was lost\n", OSError())

    monkeypatch.setattr(on_ray.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(on_ray.ray, "cluster_resources", lambda: {"CPU": 2})
    monkeypatch.setattr(on_ray.ray.data, "from_items", lost)
    with pytest.raises(UserError, match="Ray ended the run: the node was lost"):
        on_ray.write_shards(
            Exception, tmp_path, [0], workers=1, gpus_per_worker=0, advance=lambda n: None
        )
    with pytest.raises(UserError, match="no workers of 1 CPU and 2 GPUs"):
        on_ray._count(None, 2)
    assert on_ray._count(None, 0) == 2
