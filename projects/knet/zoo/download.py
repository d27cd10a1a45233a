"""A file from the network once: resumed, checked, and by one process at a time.

torch.hub and Detectron2's path manager start anew after an interruption, and huggingface_hub,
which resumes, speaks of its own hub. So this is a loop over urllib, which torch.hub uses as well;
the progress bar is tqdm's.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from knet.files import one_at_a_time

logger = logging.getLogger(__name__)

# environment variables: the folder of what is downloaded, and where the published files are
CACHE, URL = "KNET_CACHE", "KNET_ZOO_URL"
_PUBLISHED = "https://download.openmmlab.com/mim-example/knet/det/knet"
_CHUNK = 1 << 20  # bytes
_SILENCE = 30  # seconds without a byte
# errors of the disk, not of the network
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EISDIR)
_TRIES, _PAUSE = 4, 2  # tries that bring nothing, seconds between two


def base_url() -> str:
    """Where the authors' files are; KNET_ZOO_URL names a mirror."""
    return (os.environ.get(URL) or _PUBLISHED).rstrip("/")


def weights_folder() -> Path:
    """`weights` in KNET_CACHE; by default in $XDG_CACHE_HOME/knet or ~/.cache/knet."""
    cache = os.environ.get(CACHE)
    if not cache:
        cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "knet")
    return Path(cache).expanduser() / "weights"


def fetch(url: str, path: Path, *, digits: str) -> Path:
    """The file at `path`, downloaded if it is not there.

    What has come stays beside it as `….part` if the download ends early, and the next call goes on
    from there. Of several processes one downloads, the others wait.

    Args:
        url: of the file.
        path: where it goes; the folder is made.
        digits: with which its SHA-256 begins.

    Returns:
        `path`.

    Raises:
        ValueError: the file, there before or downloaded, is not the published one.
        OSError: it cannot be downloaded or written. Both say what to do by hand.
    """
    if not path.is_file():  # a cache that is full may be read-only
        waiting = f"{path}: another process is downloading it, waiting"
        with one_at_a_time(path, waiting, f"set {CACHE} to a folder that can"):
            if not path.is_file():
                _download(url, path, digits)
                return path
    found = _sha256(path)
    if not found.startswith(digits):
        raise ValueError(
            f"{path}: damaged, or not the published file: its SHA-256 begins with "
            f"{found[: len(digits)]}, not with {digits}. Remove it, and it is downloaded again "
            f"from {url}"
        )
    return path


def _download(url: str, path: Path, digits: str) -> None:
    part = path.with_name(f"{path.name}.part")
    by_hand = f"download {url} by other means and put it to {path}"
    resumed = _complete(url, part, by_hand)
    found = _sha256(part)
    if not found.startswith(digits) and resumed:  # what was there may be of something else
        logger.warning("%s: what was resumed is damaged, starting anew", url)
        part.unlink()
        _complete(url, part, by_hand)
        found = _sha256(part)
    if not found.startswith(digits):
        part.unlink()
        raise ValueError(
            f"{path.name}: what came is not the published file: its SHA-256 begins with "
            f"{found[: len(digits)]}, not with {digits}. Try again, or {by_hand}"
        )
    os.replace(part, path)


def _complete(url: str, part: Path, by_hand: str) -> bool:
    """Download what is missing of a file; whether a part of it was there."""
    before = size = part.stat().st_size if part.exists() else 0
    tries = _TRIES
    while True:
        try:
            _append(url, part)
            return before > 0
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _LOCAL:
                raise OSError(
                    f"{part}: cannot be written ({error.strerror}): mend that, and it goes on "
                    f"where it stopped, or set {CACHE} to another folder"
                ) from error
            now = part.stat().st_size if part.exists() else 0
            tries = _TRIES if now > size else tries - 1
            size = now
            # no connection at all is no interruption
            if not tries or (isinstance(error, urllib.error.URLError) and now == before):
                raise OSError(
                    f"{part.stem}: cannot be downloaded ({_reason(error)}): try again, which goes "
                    f"on where it stopped, or {by_hand}"
                ) from error
            logger.warning("%s: %s, going on at %s", url, _reason(error), _megabytes(now))
            time.sleep(_PAUSE)


def _append(url: str, part: Path) -> None:
    """One connection: append to what is there, or begin anew if the server does not go on."""
    there = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "knet", "Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_SILENCE
        )
    except urllib.error.HTTPError as error:
        if error.code != 416 or not there:
            raise
        # nothing stands behind what is there: it is whole, or too long
        if _total(error.headers) != there:
            part.unlink()
            _append(url, part)
        return
    with response:
        if response.status != 206:
            there = 0
        total = _total(response.headers)
        _require_room(part, None if total is None else total - there)
        logger.info("downloading %s to %s", url, part.parent)
        # a bar with the time left, on a terminal only
        bar = tqdm(
            desc=part.stem[:40], initial=there, total=total, disable=None,
            unit="B", unit_scale=True, unit_divisor=1024,
        )  # fmt: skip
        if not there:
            part.unlink(missing_ok=True)
        with bar, open(part, "ab") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                there += len(chunk)
    if total is not None and there < total:
        raise ConnectionError(f"cut off after {_megabytes(there)} of {_megabytes(total)}")


def _total(headers: Any) -> int | None:
    """Bytes of the whole file, as far as a response says."""
    found = re.search(r"/(\d+)$", headers.get("Content-Range") or "")
    length = found[1] if found else headers.get("Content-Length")
    return int(length) if length and length.isdecimal() else None


def _require_room(part: Path, needed: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed is not None and needed > free:
        raise OSError(
            errno.ENOSPC, f"{_megabytes(needed)} are to come, {_megabytes(free)} are free"
        )


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
