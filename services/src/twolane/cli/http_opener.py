"""Opens HTTP addresses as a person on this machine means them: a proxy never stands before localhost.

`twolane up` asks its own router with it, `twolane chat` any server.
"""

from __future__ import annotations

import ipaddress
import urllib.request
from urllib.parse import urlsplit


def opener_for(url: str) -> urllib.request.OpenerDirector:
    """An opener that leaves the environment's proxies out for addresses of this machine."""
    if is_local(urlsplit(url).hostname or ""):
        return urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener()


def is_local(host: str) -> bool:
    """Whether the name or address means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
