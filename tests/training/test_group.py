"""The folder that machines share, told from one that they do not."""

import pytest

from knet.errors import UserError
from knet.training import group


@pytest.fixture
def machines(monkeypatch):
    """As seen by the first of two processes on two machines; the answer of the second one."""

    def answer(sees):
        def all_gather(value):
            return [value, sees if isinstance(value, bool) else value]

        monkeypatch.setattr(group.comm, "all_gather", all_gather)
        monkeypatch.setattr(group.comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(group.comm, "get_local_size", lambda: 1)
        monkeypatch.setattr(group, "_names", ["process 0", "process 1"])

    return answer


def test_all_machines_see_the_output_folder(machines, tmp_path):
    machines(True)
    group.require_shared(str(tmp_path / "new"))
    assert not list((tmp_path / "new").iterdir())
    machines(False)
    with pytest.raises(UserError, match=r"OUTPUT_DIR .* not the same .* \(process 1 cannot see"):
        group.require_shared(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_one_machine_asks_nobody(tmp_path):
    group.require_shared(str(tmp_path / "folder"))
    assert not (tmp_path / "folder").exists()
