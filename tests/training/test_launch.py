"""The group of processes: how it ends."""

import gc
import weakref

import torch.distributed as dist
from detectron2.utils import comm

from knet.training.launch import _free_port, _run


def test_nothing_keeps_the_group_when_the_work_is_done():
    """Its threads, which end with it, would meet an interpreter that is ending."""

    def main():
        assert comm._get_global_gloo_group() is dist.group.WORLD  # which Detectron2 keeps
        assert comm._LOCAL_PROCESS_GROUP is not None
        return weakref.ref(dist.group.WORLD)

    group = _run(0, 0, 1, 1, f"tcp://127.0.0.1:{_free_port()}", False, main, ())
    gc.collect()
    assert group() is None and not dist.is_initialized()
    assert comm._LOCAL_PROCESS_GROUP is None
