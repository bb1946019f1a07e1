"""A certificate authority and its certificates, made with the openssl command: no Python package is needed.

Keys are elliptic-curve ones, which takes 10 ms for each certificate instead of the seconds that RSA may take.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.kubernetes.errors import ClusterError

VALID_DAYS = 365
"""A cold `up` makes new certificates, so this only has to outlive one run of a cluster."""


@dataclass(frozen=True)
class KeyPair:
    certificate: Path
    key: Path


class CertificateAuthority:
    """Signs client and server certificates into its own folder."""

    def __init__(self, directory: Path, name: str = "local-cluster-ca") -> None:
        self.directory = directory
        self.name = name
        self.pair = KeyPair(directory / "ca.crt", directory / "ca.key")

    def create(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._request("ca", f"/CN={self.name}", ["keyUsage=critical,keyCertSign,cRLSign,digitalSignature"], [])

    def issue_server(self, name: str, addresses: Sequence[str], common_name: str | None = None) -> KeyPair:
        """Issue a certificate for a server that is reached by these host names and IP addresses."""
        subject = f"/CN={common_name or name}"
        return self._issue(name, subject, "serverAuth", [f"subjectAltName={alternative_names(addresses)}"])

    def issue_client(self, name: str, user: str, groups: Sequence[str] = ()) -> KeyPair:
        """Issue a certificate that authenticates as this user, a member of these groups."""
        organizations = "".join(f"/O={_escape(group)}" for group in groups)
        return self._issue(name, f"{organizations}/CN={_escape(user)}", "clientAuth", [])

    def create_signing_key(self, name: str) -> Path:
        """Create a bare private key, for service account tokens."""
        key = self.directory / f"{name}.key"
        # The API server reads the public half from this older form of an EC key, but not from PKCS #8.
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key))
        return key

    def _issue(self, name: str, subject: str, usage: str, extensions: list[str]) -> KeyPair:
        signer = ["-CA", str(self.pair.certificate), "-CAkey", str(self.pair.key)]
        limits = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature"]
        return self._request(name, subject, [*limits, f"extendedKeyUsage={usage}", *extensions], signer)

    def _request(self, name: str, subject: str, extensions: list[str], signer: list[str]) -> KeyPair:
        pair = KeyPair(self.directory / f"{name}.crt", self.directory / f"{name}.key")
        arguments = ["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        arguments += ["-days", str(VALID_DAYS), "-subj", subject, *signer]
        for extension in extensions:
            arguments += ["-addext", extension]
        _openssl(*arguments, "-keyout", str(pair.key), "-out", str(pair.certificate))
        return pair


def alternative_names(addresses: Sequence[str]) -> str:
    """Return the subjectAltName extension for host names and IPv4 addresses."""
    return ",".join(f"{'IP' if address.replace('.', '').isdigit() else 'DNS'}:{address}" for address in addresses)


def _escape(text: str) -> str:
    """Names such as system:serviceaccount:a/b hold characters that separate the parts of an openssl subject."""
    return text.replace("\\", "\\\\").replace("/", "\\/").replace("+", "\\+")


def _openssl(*arguments: str) -> None:
    result = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        raise ClusterError(f"`openssl {' '.join(arguments)}` failed: {result.stderr.strip()}")
