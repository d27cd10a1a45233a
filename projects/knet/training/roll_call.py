"""Which process of a job is gone. Collectives do not tell: they wait, or name an address."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from detectron2.utils import comm

from knet.errors import UserError, first_of

__all__ = ["LOST", "Loss", "RollCall"]

# status of a process that ends since another one is gone: EX_TEMPFAIL of sysexits.h, "try again"
LOST = 75
# seconds: a machine that is off is noticed after the first and the tries, a process that has ended
# at once. Then the others end themselves, or by force; together below a minute
_IDLE, _BETWEEN, _TRIES = 10, 4, 4
_GRACE = 15.0
_JOIN = 120.0
_LINE = 4096


class Loss(NamedTuple):
    """How a process was lost: one sentence, and the status with which the others end."""

    text: str
    status: int


class RollCall:
    """A connection from each process to the first one, which the operating systems watch.

    It ends with its process, however that ends, and with its machine, and not because Python is
    busy. Who has seen a connection end tells all; they end after some seconds, if the error that a
    collective raises has not ended them before. All processes must make one at the same time.

    Args:
        host: of the first process, as others reach it.
        names: of all processes, by rank.
    """

    def __init__(self, host: str, names: Sequence[str]) -> None:
        self._names = names
        self._rank = comm.get_rank()
        self._loss: Loss | None = None
        self._lost = threading.Event()
        self._over = False  # for this process: connections may end
        self._peers: dict[int, socket.socket] = {}
        self._meet(host)
        threading.Thread(target=self._watch, name="roll_call", daemon=True).start()

    def _meet(self, host: str) -> None:
        others = range(1, len(self._names))
        with _server() if self._rank == 0 else contextlib.nullcontext() as server:
            address = server and (server.getsockname()[1], secrets.token_hex(8))
            port, word = comm.all_gather(address)[0]
            try:
                if server is None:
                    peer = socket.create_connection((host, port), timeout=_JOIN)
                    peer.sendall(f"{word} {self._rank}\n".encode())
                    self._peers[0] = _watched(peer)
                    return
                while len(self._peers) < len(others):
                    peer, _ = server.accept()
                    peer.settimeout(_JOIN)
                    told = _line(peer).split()  # a stranger says something else
                    if len(told) == 2 and told[0] == word and told[1].isdecimal():
                        self._peers[int(told[1])] = _watched(peer)
            except OSError as error:
                apart = [r for r in others if r not in self._peers] if server else [self._rank]
                raise UserError(
                    f"{first_of([self._names[r] for r in apart], 3)}: does not reach "
                    f"{self._names[0]} at {host}, port {port} ({error}). The machines of a job "
                    "must reach each other on any port"
                ) from error

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    try:
                        told = _line(self._peers[key.data])
                    except OSError:  # such as that its machine does not answer
                        told = ""
                    if self._over:
                        return
                    if told == "bye":
                        selector.unregister(key.fileobj)
                        continue
                    status, _, text = told.partition(" ")
                    loss = Loss(text, int(status)) if text else self._gone(key.data)
                    if self._rank == 0:  # to which alone the others have a connection
                        self._tell(loss)
                    self._loss = loss
                    self._lost.set()
                    time.sleep(_GRACE)
                    if not self._over:
                        self.end(loss)

    def _gone(self, rank: int) -> Loss:
        return Loss(f"{self._names[rank]} is gone", LOST)

    def _tell(self, loss: Loss) -> None:
        self._say(f"{loss.status} {' '.join(loss.text.split())[: _LINE // 8]}")

    def _say(self, line: str) -> None:
        for peer in self._peers.values():
            try:
                peer.sendall(f"{line}\n".encode())
            except OSError:  # it is gone, too
                continue

    def loss(self, seconds: float) -> Loss | None:
        """Who is gone, if that becomes known within some seconds."""
        self._lost.wait(seconds)
        return self._loss

    def fail(self, reason: str, status: int) -> None:
        """Tell the others that this process ends with an error, and why."""
        self._over = True
        self._tell(Loss(f"{self._names[self._rank]} {reason}", status))

    def leave(self) -> None:
        """Tell the others that this process has done its work."""
        self._over = True
        self._say("bye")

    def end(self, loss: Loss) -> None:
        """End this process now; what it waits for will never come."""
        again = ". A training goes on from its last checkpoint with --resume"
        print(
            f"{loss.text}; {self._names[self._rank]} ends too{again if loss.status > 2 else ''}",
            file=sys.stderr,
        )
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(loss.status)


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        server = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        server = socket.create_server(("", 0))
    server.settimeout(_JOIN)
    return server


def _watched(peer: socket.socket) -> socket.socket:
    """With the operating system asking whether the other side is still there."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    timeout = 1000 * (_IDLE + _BETWEEN * _TRIES)
    options = {"KEEPIDLE": _IDLE, "KEEPALIVE": _IDLE, "KEEPINTVL": _BETWEEN, "KEEPCNT": _TRIES}
    for name, value in {**options, "USER_TIMEOUT": timeout}.items():
        if hasattr(socket, f"TCP_{name}"):  # each system has some of them
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"), value)
    return peer


def _line(peer: socket.socket) -> str:
    """The next line; empty at the end of the connection."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE:
        byte = peer.recv(1)
        if not byte:
            return ""
        line += byte
    return line.decode("utf-8", "replace").strip()
