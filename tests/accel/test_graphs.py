"""Which graphs are kept, with a stand-in for their capture; a GPU runs the real one."""

import copy
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from detectron2.modeling import build_model

from knet.accel import accelerate
from knet.accel.graphs import Graphs


@pytest.fixture
def made():
    """Sizes that were captured, in order, and the pools that captures were given."""
    return []


@pytest.fixture
def graphs(made):
    def capture(function, images, pool):
        made.append((tuple(images.shape), pool))
        return lambda x: function(x) + 1, "the pool"

    return Graphs(lambda x: x * 2, 2, capture=capture, device_type="cpu")


def sizes(made):
    return [shape[-1] for shape, _ in made]


def test_a_size_is_captured_when_it_comes_again(graphs, made):
    x = torch.ones(1, 4)
    assert graphs(x).tolist() == [[2.0] * 4]
    assert not made
    assert graphs(x).tolist() == graphs(x).tolist() == [[3.0] * 4]
    assert sizes(made) == [4]
    with torch.autocast("cpu", torch.bfloat16):
        assert graphs(x).tolist() == [[2.0] * 4]
    # the same size in another order of memory or type is another graph
    graphs(torch.ones(4, 1).T), graphs(torch.ones(1, 4, dtype=torch.float64))
    assert len(made) == 1


def test_the_least_recently_used_goes(graphs, made):
    x = {n: torch.ones(1, n) for n in (3, 4, 5)}
    for n in (3, 3, 4, 4, 3, 5, 5):
        graphs(x[n])
    assert sizes(made) == [3, 4, 5] and [pool for _, pool in made] == [None, *["the pool"] * 2]
    graphs(x[3])
    assert sizes(made) == [3, 4, 5]
    graphs(x[4]), graphs(x[4])
    assert sizes(made) == [3, 4, 5, 4]
    graphs.clear()
    graphs(x[3])
    assert len(made) == 4


def test_an_evicted_size_must_come_twice_again(graphs, made):
    for n in (3, 3, 4, 4, 5, 5, 3):
        graphs(torch.ones(1, n))
    assert sizes(made) == [3, 4, 5]
    graphs(torch.ones(1, 3))
    assert sizes(made) == [3, 4, 5, 3]


def test_what_cannot_be_captured_runs_and_is_said_once(caplog):
    def capture(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Graphs(lambda x: x * 2, 1, capture=capture, device_type="cpu")
    for n in (1, 1, 1, 2, 2):
        assert graphs(torch.ones(n)).tolist() == [2.0] * n
    (said,) = caplog.messages
    assert "not permitted" in said and "MODEL.KNET.ACCEL.GRAPHS 0" in said


def test_images_elsewhere_are_not_captured(made):
    graphs = Graphs(lambda x: x, 1, capture=lambda *_: made.append(1))
    for _ in range(3):
        graphs(torch.ones(1))
    assert not made


def test_threads_do_not_mix_their_images():
    def capture(function, images, pool):
        static, out = images.clone(), torch.empty_like(images)

        def replay(x):
            static.copy_(x)
            time.sleep(1e-4)
            out.copy_(static)
            time.sleep(1e-4)
            return out.clone()

        return replay, None

    graphs = Graphs(lambda x: x, 1, capture=capture, device_type="cpu")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: graphs(torch.full((3,), float(n))), range(200)))
    assert [x.tolist() for x in found] == [[float(n)] * 3 for n in range(200)]


def test_a_model_drops_graphs_of_weights_that_have_changed(tiny_cfg, made):
    model = accelerate(build_model(tiny_cfg)).eval()
    forward = model.inference._forward

    def capture(function, images, pool):
        made.append(images.shape)
        return function, pool

    model.inference.graphs = Graphs(forward, 2, capture=capture, device_type="cpu")
    image = {"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}
    with torch.no_grad():
        for _ in range(3):
            before = model.predict([image])[0].masks
        assert len(made) == 1
        model.backbone.stem.conv1.weight.mul_(2)
        assert not torch.equal(model.predict([image])[0].masks, before)
        assert not model.inference.graphs._graphs
        model.predict([image]), model.predict([image])
        assert len(made) == 2
    other = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    for inference in (copy.deepcopy(model).inference, other.inference):
        assert inference.graphs.most == 2 and not inference.graphs._graphs
        assert inference.graphs.function.__self__ is inference
    assert other.inference._model is other
