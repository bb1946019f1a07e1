"""Addresses that a user may make the trainer connect to: public ones, unless an administrator allows others."""

import ipaddress
import socket
import urllib.parse
from typing import Final

from finetune_api.reasons import Reason
from finetune_trainer.errors import TrainingError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
REFUSED: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        # IPv6 addresses that stand for an IPv4 address behind a gateway: NAT64, 6to4, Teredo, IPv4-compatible, SIIT.
        *("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96", "::ffff:0:0:0/96"),
        # Networks that Python wrongly takes for global: site-local, documentation, protocol assignments.
        *("fec0::/10", "3fff::/20", "192.0.0.0/24"),
    )
)
"""Networks refused in addition to those that `ipaddress` knows not to be global."""


def resolve(host: str, port: int, *, allow_private: bool, name: str) -> str:
    """Resolve a host to the address to connect to. All its addresses must be allowed, because a name can have good and bad ones.

    Raises TrainingError: SpecInvalid for an address that is not allowed, DatasetNotFound (retryable) for an unknown host.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise TrainingError(Reason.DATASET_NOT_FOUND, f"{name}: the host {host} is not known", retryable=True) from None
    addresses = [str(entry[4][0]) for entry in found]
    if not allow_private and (refused := [text for text in addresses if not is_public(text)]):
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"{name}: {host} has the address {refused[0]}, which is not public; put the rows on a claim, or let an "
            "administrator set FINETUNE_ALLOW_PRIVATE_SOURCES for the trainer",
        )
    return addresses[0]


def host_header(parts: urllib.parse.SplitResult) -> str:
    """Return the Host header of a URL in its canonical form, so that the signed header equals the sent one.

    Raises ValueError for an invalid port.
    """
    host = parts.hostname or ""  # in lower case, and without a user
    if ":" in host:
        host = f"[{host}]"
    standard = {"https": 443, "http": 80}.get(parts.scheme)
    return host if parts.port in (None, standard) else f"{host}:{parts.port}"


def is_public(text: str) -> bool:
    """Return whether an address is public: not loopback, private, link-local, reserved or multicast."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return is_public(str(address.ipv4_mapped))
    if any(address in network for network in REFUSED):
        return False
    return address.is_global and not address.is_multicast
