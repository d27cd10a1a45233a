"""Which graphs are kept, with a stand-in for their capture; a GPU runs the real one."""

import copy

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

    return Graphs(lambda x: x * 2, 2, capture=capture)


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
    graphs(x[4])
    assert sizes(made) == [3, 4, 5, 4]
    graphs.clear()
    graphs(x[3])
    assert len(made) == 4


def test_what_cannot_be_captured_is_said():
    def capture(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Graphs(lambda x: x, 1, capture=capture)
    graphs(torch.ones(1))
    with pytest.raises(RuntimeError, match=r"not permitted .*: set MODEL\.KNET\.ACCEL\.GRAPHS 0"):
        graphs(torch.ones(1))


def test_a_model_clears_graphs_whose_weights_have_moved(tiny_cfg, graphs, made):
    model = accelerate(build_model(tiny_cfg)).eval()
    graphs.capture = lambda function, images, pool: (made.append(images.shape), (function, pool))[1]
    graphs.function = model.inference._forward
    model.inference._run = graphs
    image = {"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}
    with torch.no_grad():
        for _ in range(3):
            before = model.predict([image])[0].masks
        assert len(made) == 1
        model.backbone.stem.conv1.weight.mul_(2)  # written over what the graph reads
        assert not torch.equal(model.predict([image])[0].masks, before)
        assert len(made) == 1
        model.heads.neck.localise.conv.weight.data = model.heads.neck.localise.conv.weight * 2
        model.predict([image]), model.predict([image])
        assert len(made) == 2
    other = copy.deepcopy(model)
    assert isinstance(other.inference._run, Graphs) and not other.inference._run._graphs
    assert other.inference._run.function.__self__ is other.inference
