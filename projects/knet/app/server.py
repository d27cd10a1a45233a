"""Serves the page at an address of this machine."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence

from knet.app.page import build_app
from knet.errors import UserError
from knet.predictor import KNetPredictor

_MAX_UPLOAD = "500mb"
_STYLE = """
.gradio-container { max-width: min(1500px, 100vw) !important; margin: 0 auto !important; }
.gradio-container main, .gradio-container .column { min-width: 0; max-width: 100%; }
#found { max-width: 100%; overflow-x: auto; }
#head h1 { font-size: 1.7rem; margin: 0; }
#head p { margin: 0.15rem 0 0.4rem; color: var(--body-text-color-subdued); }
#head summary { cursor: pointer; color: var(--link-text-color); }
.label { margin: 0 0 -0.5rem; color: var(--body-text-color-subdued); font-size: 0.9em; }
#samples .grid-wrap { min-height: 0; max-height: 16rem; overflow-y: auto; }
#samples .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)); padding: 0; }
#samples .gallery-item, #samples .thumbnail-lg { min-width: 0; width: 100%; }
#head details p { max-height: 9rem; overflow: auto; }
.notice { padding: 0.6rem 0.9rem; border-radius: 8px; border-left: 4px solid;
  background: var(--background-fill-secondary); overflow-wrap: anywhere; }
.notice p { margin: 0; }
.notice.said { border-color: var(--color-accent); }
.notice.wrong { border-color: #dc2626; }
.notice.empty { border: 2px dashed var(--border-color-primary); padding: 7rem 1rem;
  text-align: center; color: var(--body-text-color-subdued); }
.notice p + p { margin-top: 0.25rem; color: var(--body-text-color-subdued); font-size: 0.9em; }
"""


def serve(
    predictor: KNetPredictor,
    *,
    name: str | None = None,
    examples: Sequence[str | os.PathLike[str]] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
    open_browser: bool = False,
) -> None:
    """Serve the page of a model until Ctrl-C or SIGTERM; prints its address.

    Nothing leaves the machine: no analytics, no fonts or scripts of others, no public link.

    Args:
        predictor, name, examples: see `build_app`.
        host: the address to listen at; the default is reached from this machine only.
        port: 0 for any free one.
        open_browser: open the page in the user's browser.

    Raises:
        ImportError: gradio is not installed.
        UserError: the address cannot be used.
        ValueError: an example cannot be read.
    """
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    with _listener(host, port) as listener, _private_files():
        port = listener.getsockname()[1]
        app = gr.mount_gradio_app(
            FastAPI(openapi_url=None),
            build_app(predictor, name=name, examples=examples),
            path="/",
            server_name=host,
            server_port=port,
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=_MAX_UPLOAD,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=_STYLE,
        )
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        print(f"The page is at {url} (Ctrl-C ends it)", flush=True)
        if open_browser:
            webbrowser.open(url)
        # connections of open pages never end by themselves
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        # Python adds the address, which is said already
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise UserError(
            f"the page cannot be served at {host}, port {port} ({reason}): choose another host "
            "or port; port 0 is any free one"
        ) from error


@contextlib.contextmanager
def _private_files() -> Iterator[None]:
    """Within, gradio keeps photos and downloads in a folder of this process, which then goes."""
    key = "GRADIO_TEMP_DIR"
    before = os.environ.get(key)
    with tempfile.TemporaryDirectory(prefix="knet-app-") as folder:
        os.environ[key] = folder
        try:
            yield
        finally:
            del os.environ[key]
            if before is not None:
                os.environ[key] = before
