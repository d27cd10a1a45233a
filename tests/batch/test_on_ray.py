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


def test_an_error_of_a_worker_is_that_error(monkeypatch):
    """Without a cluster: what Ray raises is what `write_shards` has to unpack."""
    cause = OSError(28, "No space left on device")

    def full(*args, **kwargs):
        raise ray.exceptions.RayTaskError("map", "the worker's trace", cause)

    monkeypatch.setattr(on_ray.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(on_ray.ray, "cluster_resources", lambda: {"CPU": 2})
    monkeypatch.setattr(on_ray.ray.data, "from_items", full)
    with pytest.raises(OSError, match="No space left"):
        on_ray.write_shards(
            Exception, None, [0], workers=1, gpus_per_worker=0, advance=lambda n: None
        )
    with pytest.raises(UserError, match="no workers of 1 CPU and 2 GPUs"):
        on_ray._count(None, 2)
    assert on_ray._count(None, 0) == 2
