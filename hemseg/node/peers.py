"""Who talks to the node: application entities with their titles, hosts and ports. Text in, plain values out."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from hemseg.errors import HemsegError

_TITLE = re.compile(
    r"[\x20-\x5b\x5d-\x7e]{1,16}"
)  # PS3.5, value representation AE: no backslash, no control characters
_MAX_PORT = 65535


@dataclass(frozen=True)
class Peer:
    """An application entity somewhere.

    Attributes:
        title: its AE title.
        host: name or address.
        port: where it listens; 0 for one that only calls.
    """

    title: str
    host: str
    port: int = 0

    def __str__(self) -> str:
        return f"{self.title} at {self.host}{f':{self.port}' if self.port else ''}"


def ae_title(text: str, option: str) -> str:
    """A valid AE title, without the blanks around it, which do not count.

    Raises:
        HemsegError: it is none.
    """
    title = text.strip(" ")
    if not title or not _TITLE.fullmatch(title):
        raise HemsegError(f"{option} {text!r}: an AE title has 1 to 16 characters of ASCII, and no backslash.")
    return title


def parse_destination(text: str) -> Peer:
    """``HOST:PORT:AE``, where results go; an IPv6 address stands in brackets.

    Raises:
        HemsegError: it is not of that form.
    """
    found = re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]+):(\d{1,5}):(.+)", text)
    if not found or not 1 <= int(found[2]) <= _MAX_PORT:
        raise HemsegError(f"--return {text!r} is not HOST:PORT:AE, such as pacs.example.org:4242:ORTHANC.")
    return Peer(ae_title(found[3], "--return"), found[1].strip("[]"), int(found[2]))


def parse_caller(text: str) -> Peer:
    """``AE@HOST``, who may call.

    Raises:
        HemsegError: it is not of that form.
    """
    title, at, host = text.rpartition("@")
    if not at or not host.strip():
        raise HemsegError(f"--allow {text!r} is not AE@HOST, such as ORTHANC@pacs.example.org.")
    return Peer(ae_title(title, "--allow"), host.strip().strip("[]"))


def may_call(title: str, address: str, allowed: Iterable[Peer]) -> bool:
    """Whether an application entity of this title may call from this address.

    Names of hosts are looked up now, and only those that go with the title: addresses in container networks change.
    """
    caller = _plain(address)
    return any(peer.title == title.strip(" ") and caller in _addresses(peer.host) for peer in allowed)


def _addresses(host: str) -> set[str]:
    try:
        return {_plain(str(found[4][0])) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):  # a host that cannot be found calls nobody
        return set()


def _plain(address: str) -> str:
    """An address as text, an IPv4 address in IPv6's clothes as IPv4; '' for what is none."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or parsed)
