"""Serves the page of a saved model; tells of every connection that would leave the machine.

Started by `test_browser`: serve_driver.py MODEL_FOLDER EXAMPLE…
"""

import os
import socket
import sys
import time
from pathlib import Path


def guard(name):
    """Refuse what a function of sockets would do with an address that is not this machine's."""
    plain = getattr(*name)

    def guarded(*args, **options):
        host = next((a for arg in args for a in (arg if isinstance(arg, tuple) else [arg])
                     if isinstance(a, (str, bytes))), "")  # fmt: skip
        if host not in ("127.0.0.1", "localhost", "::1", b"127.0.0.1", ""):
            print(f"OUTSIDE {host}", flush=True)
            raise OSError(f"{host} is outside")
        return plain(*args, **options)

    setattr(*name, guarded)


guard((socket.socket, "connect"))
guard((socket, "getaddrinfo"))

import knet  # noqa: E402, F401

# isort: split
from knet.app import serve  # noqa: E402
from knet.errors import run_command  # noqa: E402
from knet.predictor import KNetPredictor  # noqa: E402


def main() -> None:
    predictor = KNetPredictor.from_pretrained(sys.argv[1], device="cpu")
    plain, hold = predictor.predict, Path(os.environ["HOLD"])

    def predict(image):
        """Pictures of one colour take as long as the test wants."""
        if image.min() == image.max():
            hold.touch()
            while hold.exists():
                time.sleep(0.02)
        return plain(image)

    predictor.predict = predict
    serve(predictor, name="tiny <model>", examples=sys.argv[2:], port=0)


sys.exit(run_command("driver", main))
