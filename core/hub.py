"""Not waiting for a hub that cannot be reached: downloads would retry for most of a minute before they fail."""

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 3.0


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Offline mode inside, where the hub does not answer: what is cached loads, all else fails at once.

    datasets, which has a switch of its own, need not be installed, and is not imported for it.
    """
    import huggingface_hub.constants as hub

    found = hub.HF_HUB_OFFLINE
    before = {id(switch): switch.HF_HUB_OFFLINE for switch in _switches()}
    if not any(before.values()) and not is_reachable(hub.ENDPOINT):
        for switch in _switches():
            switch.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for switch in _switches():  # datasets may have been imported inside, and taken the hub's value
            switch.HF_HUB_OFFLINE = before.get(id(switch), found)


def _switches() -> list[Any]:
    """Of the hub's client, and of datasets where it has been imported."""
    return [sys.modules[name] for name in ("huggingface_hub.constants", "datasets.config") if name in sys.modules]


def is_reachable(url: str) -> bool:
    """Whether the host of ``url`` accepts a connection; taken on trust where a proxy stands in between."""
    if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return True
    address = urlsplit(url)
    port = address.port or (80 if address.scheme == "http" else 443)
    reached: list[bool] = []

    def connect() -> None:
        with suppress(OSError):
            socket.create_connection((address.hostname, port), timeout=TIMEOUT_S).close()
            reached.append(True)

    thread = threading.Thread(target=connect, daemon=True)  # looking up a name knows no time limit
    thread.start()
    thread.join(TIMEOUT_S)
    return bool(reached)
