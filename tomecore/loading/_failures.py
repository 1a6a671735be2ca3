"""Turn what a library raises, while a model is loaded or run on a wrong image, into one line."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

from tomecore.errors import ArgumentValueError, TomeError

__all__ = ["explained", "first_line", "offline_if_unreachable", "quiet", "shape_errors"]

#: what a model raises on an image whose shape it does not accept
_REFUSALS = (AssertionError, AttributeError, IndexError, TypeError, ValueError, RuntimeError)
#: the libraries that open connections, and what they raise if they cannot
_CLIENTS = {"httpcore", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"}
_UNREACHABLE = ("Connect", "Timeout", "Proxy", "Network", "LocalEntryNotFound", "OfflineMode")
#: seconds after which a host counts as out of reach
_SECONDS = 4.0
#: variable that switches the hub off (1), or the check whether it can be reached (0)
_OFFLINE = "HF_HUB_OFFLINE"


def first_line(error: BaseException) -> str:
    """Return the line of an error that says most: its type, and the first line of its message.

    Paddle prints a stack of C++ calls first; its message begins after "Error: ".
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line.partition("Error: ")[2] for line in lines if "Error: " in line]
    text = (told or lines or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def shape_errors(shape: Sequence[int]) -> Iterator[None]:
    """Within this context, what a model raises becomes an error that names the shape (C, H, W) of its images.

    Raises:
        ArgumentValueError: the model does not accept images of this shape.
    """
    try:
        yield
    except TomeError:
        raise
    except _REFUSALS as error:
        raise ArgumentValueError(
            f"the model refuses an image of {' x '.join(map(str, shape))} (channels, height, width): "
            f"{first_line(error)}"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within this context, libraries log warnings at least, and nothing through the root logger.

    PaddleClas reports each step, to stdout. open_clip reports through the root logger that weights are
    random, and what it also raises.
    """
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.INFO))
    logging.root.addFilter(_drop)  # of the root logger itself, not of the others
    try:
        yield
    finally:
        logging.disable(disabled)
        logging.root.removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    """Return False: a filter that drops every record."""
    return False


def explained(
    error: Exception, name: str, pretrained: bool, resolution: int | None, unreachable: str | None
) -> TomeError | None:
    """Return the error to raise for what a library raised while it loaded a model; None: that error itself.

    Args:
        error: what the library raised.
        name: the name of the model.
        pretrained: whether its weights are downloaded.
        resolution: pixels on a side, if they were chosen.
        unreachable: the address of the hub, if it did not answer.
    """
    if pretrained and _is_network(error):
        reason = _root(error)
        if unreachable is not None:
            reason = (
                f"{unreachable} does not answer within {_SECONDS:.0f} s; {_OFFLINE}=0 waits longer"
            )
        return TomeError(
            f"the pretrained weights of {name} cannot be downloaded, and are not in the cache of their "
            f"library ({reason}). Check the connection, or give a file of weights (--weights FILE)"
        )
    if pretrained:
        return ArgumentValueError(
            f"{name} cannot be loaded with pretrained weights: {first_line(error)}"
        )
    if resolution is not None and isinstance(error, _REFUSALS):
        return ArgumentValueError(
            f"{name} cannot be built for images of {resolution} pixels (--resolution): {first_line(error)}"
        )
    if isinstance(error, ValueError):
        return ArgumentValueError(f"{name} cannot be built: {first_line(error)}")
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, the innermost last."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_network(error: BaseException) -> bool:
    """Whether a host could not be reached."""
    for one in _chain(error):
        if isinstance(one, urllib.error.HTTPError):
            return False  # it was reached
        if isinstance(one, ConnectionError | TimeoutError | urllib.error.URLError):
            return True
        library = type(one).__module__.partition(".")[0]
        if library in _CLIENTS and any(word in type(one).__name__ for word in _UNREACHABLE):
            return True
        if "Retry limit reached" in str(one):  # PaddleClas
            return True
    return False


def _root(error: BaseException) -> str:
    """Return the first line of the innermost error that has one."""
    return [first_line(one) for one in _chain(error) if str(one).strip()][-1]


@contextlib.contextmanager
def offline_if_unreachable() -> Iterator[str | None]:
    """Within this context, the hub of pretrained weights is not called if it cannot be reached.

    Its client retries for a minute; offline, it takes files from its cache, or raises at once. If the user
    has set ``HF_HUB_OFFLINE``, nothing is changed.

    Yields:
        The address of the hub if it cannot be reached, else None.
    """
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if _OFFLINE in os.environ or _reachable(url):
        yield None
        return
    constants = sys.modules.get("huggingface_hub.constants")
    before = getattr(constants, _OFFLINE, False)
    os.environ[_OFFLINE] = "1"  # read when the client is imported
    if constants is not None:
        setattr(constants, _OFFLINE, True)
    try:
        yield url
    finally:
        del os.environ[_OFFLINE]
        constants = sys.modules.get("huggingface_hub.constants")
        if constants is not None:
            setattr(constants, _OFFLINE, before)


def _reachable(url: str) -> bool:
    """Whether a host answers within seconds, through a proxy if there is one."""
    found: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS):
                found.append(True)
        except urllib.error.HTTPError:
            found.append(True)  # it answers
        except (OSError, ValueError):
            found.append(False)

    thread = threading.Thread(target=ask, daemon=True)  # looking up a name has no time limit
    thread.start()
    thread.join(_SECONDS)
    return found == [True]
