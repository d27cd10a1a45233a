"""Addresses of the page; `test_browser` uses a served one."""

import os
import socket

import pytest

pytest.importorskip("gradio", reason="no gradio: pip install -e '.[app]'")

from knet.app import serve
from knet.app.server import _private_files
from knet.errors import UserError


def test_addresses_that_cannot_be_used_are_named(predictor):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"127\.0\.0\.1, port {port} \(.*in use\): choose"):
            serve(predictor, port=port)
    with pytest.raises(UserError, match="port 70000"):
        serve(predictor, port=70000)
    with pytest.raises(UserError, match=r"served at no\.such\.host\.invalid, port 7860"):
        serve(predictor, host="no.such.host.invalid")


def test_files_of_the_page_are_private_and_go(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    with _private_files():
        folder = os.environ["GRADIO_TEMP_DIR"]
        assert os.stat(folder).st_mode & 0o077 == 0
    assert not os.path.exists(folder) and os.environ["GRADIO_TEMP_DIR"] == "before"
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    with pytest.raises(KeyboardInterrupt), _private_files():
        raise KeyboardInterrupt
    assert "GRADIO_TEMP_DIR" not in os.environ
