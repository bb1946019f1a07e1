"""Which addresses a user may make the trainer connect to: public ones, unless an administrator allows others."""

import ipaddress
import socket
from typing import Final

from finetune_api.reasons import Reason
from finetune_trainer.errors import TrainingError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
EMBEDDING: Final = tuple(ipaddress.ip_network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))
"""IPv6 networks whose addresses stand for an IPv4 address behind a gateway (NAT64, 6to4, Teredo)."""


def resolve(host: str, port: int, *, allow_private: bool, name: str) -> str:
    """The address to connect to. Every address of the host must be allowed: names can have good and bad ones at once.

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


def is_public(text: str) -> bool:
    """Whether an address is one of the open internet: not loopback, private, link-local, reserved or multicast."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if any(address in network for network in EMBEDDING):
            return False
    return address.is_global and not address.is_multicast
