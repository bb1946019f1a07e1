"""A Kubernetes control plane as a few local processes: etcd, API server and, if wanted, controllers and scheduler.

Two callers. Tests of the API server start one or several for a moment, each in its own folder on free loopback ports:

    with ControlPlane(tmp_path / "api", controllers=True) as plane:
        client = new_client(plane.kubeconfig)
        ...
        writes = [event for event in plane.audit_events() if event["verb"] == "create"]

and `python3 -m lab.kubernetes up` runs one with fixed ports and a node beside it. Nothing here knows about nodes, pods or images.
"""

from __future__ import annotations

import json
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.kubernetes import templates
from lab.kubernetes.api import ApiClient, certificate_user, write_kubeconfig
from lab.kubernetes.binaries import binary_path
from lab.kubernetes.certificates import CertificateAuthority, KeyPair
from lab.kubernetes.errors import ClusterError
from lab.kubernetes.layout import SERVICE_RANGE
from lab.kubernetes.processes import Component, Supervisor

FRONT_PROXY = "front-proxy-client"
"""The name that the API server has where it passes requests on, with the names of those who made them."""

START_ATTEMPTS = 3
"""Free ports are found before they are used, so another process may be faster; then new ones are tried."""

WRITE_VERBS = ("create", "update", "patch", "delete", "deletecollection")
READ_VERBS = ("get", "list", "watch")


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now; held all at once, so no two of them are the same."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for candidate in sockets:
            candidate.bind(("127.0.0.1", 0))
        return [candidate.getsockname()[1] for candidate in sockets]
    finally:
        for candidate in sockets:
            candidate.close()


@dataclass(frozen=True)
class Ports:
    api_server: int
    etcd_client: int
    etcd_peer: int
    controller_manager: int
    scheduler: int

    @classmethod
    def free(cls) -> Ports:
        return cls(*free_ports(5))


@dataclass(frozen=True)
class NodeAccess:
    """The differences of a control plane that pods and a kubelet use."""

    address: str
    """The machine's address as pods see it."""
    extra_names: Sequence[str] = field(default_factory=tuple)
    """More addresses for the API server's certificate: the ClusterIP of the Service `kubernetes`."""


class ControlPlane:
    """The processes, certificates and clients of one control plane, all below one directory."""

    def __init__(
        self,
        directory: Path,
        *,
        controllers: bool = False,
        scheduler: bool = False,
        audit_reads: bool = False,
        ports: Ports | None = None,
        node: NodeAccess | None = None,
        supervisor: Supervisor | None = None,
    ) -> None:
        """Without controllers there is no garbage collection and nobody creates service accounts or runs Jobs."""
        self.directory = directory
        self.controllers = controllers
        self.scheduler = scheduler
        self.audit_reads = audit_reads
        self.node = node
        self.audit_log = directory / "audit.log"
        self.kubeconfig = directory / "admin.kubeconfig"
        self.authority = CertificateAuthority(directory / "pki")
        self.front_proxy_authority = CertificateAuthority(
            directory / "pki" / "front-proxy", "local-cluster-front-proxy-ca"
        )
        self._wanted_ports = ports
        self._ports = ports
        self._supervisor = supervisor or Supervisor(directory / "processes", directory / "logs", detached=False)

    @property
    def ports(self) -> Ports:
        if self._ports is None:
            raise ClusterError("the control plane has no ports before it is started")
        return self._ports

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.ports.api_server}"

    @property
    def ca_file(self) -> Path:
        return self.authority.pair.certificate

    @property
    def admin(self) -> ApiClient:
        return ApiClient(self.url, self.ca_file, self._pair("admin"))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Create what is missing, start what does not run, and return when the API server is ready."""
        for attempt in range(1, START_ATTEMPTS + 1):
            self._ports = self._wanted_ports or Ports.free()
            try:
                self.launch()
                self.wait_until_ready()
            except ClusterError as error:
                self.stop()
                if "address already in use" not in str(error) or attempt == START_ATTEMPTS:
                    raise
            else:
                return

    def launch(self) -> list[str]:
        """Start the processes without waiting for them; names those that were not running and healthy already."""
        if self._ports is None:
            self._ports = Ports.free()
        self._write_files()
        return [component.name for component in self.components() if self._supervisor.start(component)]

    def wait_until_ready(self) -> None:
        for component in self.components():
            self._supervisor.wait_until_healthy(component)

    def stop(self) -> None:
        """Kill the processes: the state is for one test only, so there is nothing that they should finish."""
        for component in reversed(self.components()):
            self._supervisor.stop(component.name, seconds=0)

    def client_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Write a kubeconfig that authenticates as this user with a client certificate; RBAC decides on rights."""
        name = _file_name(user)
        pair = self.authority.issue_client(name, user, groups)
        return write_kubeconfig(self.directory / f"{name}.kubeconfig", self.url, self.ca_file, certificate_user(pair))

    def service_account_token(self, namespace: str, name: str, seconds: int = 3600) -> str:
        """Return a bearer token of an existing service account, the same kind that a pod gets."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        answer = self.admin.post(path, {**request, "spec": {"expirationSeconds": seconds}})
        token: str = answer["status"]["token"]
        return token

    def token_kubeconfig(self, namespace: str, name: str, seconds: int = 3600) -> Path:
        """Write a kubeconfig that authenticates as an existing service account."""
        token = self.service_account_token(namespace, name, seconds)
        file = self.directory / f"{_file_name(f'{namespace}.{name}')}.token.kubeconfig"
        return write_kubeconfig(file, self.url, self.ca_file, {"token": token})

    def audit_events(self) -> Iterator[dict[str, Any]]:
        """Every answered write so far (and read, with `audit_reads`), oldest first, as audit.k8s.io/v1 Events."""
        yield from read_audit_events(self.audit_log)

    def components(self) -> list[Component]:
        """Return the processes in the order of their start."""
        chosen = [self._etcd(), self._api_server()]
        if self.controllers:
            chosen.append(self._controller_manager())
        if self.scheduler:
            chosen.append(self._scheduler())
        return chosen

    def _etcd(self) -> Component:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self.ports.etcd_client, self.ports.etcd_peer))
        return Component(
            name="etcd",
            command=(
                str(binary_path("etcd")),
                f"--data-dir={self.directory / 'etcd'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                # The data never outlives the machine, so waiting for the disk buys nothing.
                "--unsafe-no-fsync",
                "--log-level=warn",
            ),
            healthy=lambda: answers(f"{client}/health"),
        )

    def _api_server(self) -> Component:
        server = self._pair("apiserver")
        signing_key = self.authority.directory / "service-accounts.key"
        policy = self.directory / "audit-policy.yaml"
        command = [
            str(binary_path("kube-apiserver")),
            f"--etcd-servers=http://127.0.0.1:{self.ports.etcd_client}",
            f"--secure-port={self.ports.api_server}",
            f"--tls-cert-file={server.certificate}",
            f"--tls-private-key-file={server.key}",
            f"--client-ca-file={self.ca_file}",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={signing_key}",
            f"--service-account-signing-key-file={signing_key}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-maxsize=200",
            "--audit-log-maxbackup=1",
            "--allow-privileged=true",
            "--profiling=false",
        ]
        if self.node is None:
            command += ["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"]
            # kube-apiserver refuses a loopback address in the endpoints of the Service `kubernetes`.
            command += ["--endpoint-reconciler-type=none"]
        else:
            kubelet_client = self._pair("apiserver-kubelet-client")
            # Pods come over the bridge and people over loopback; the packet filter closes all other interfaces.
            command += ["--bind-address=0.0.0.0", f"--advertise-address={self.node.address}"]
            command += ["--enable-admission-plugins=NodeRestriction"]
            command += [f"--kubelet-client-certificate={kubelet_client.certificate}"]
            command += [f"--kubelet-client-key={kubelet_client.key}"]
            command += [f"--kubelet-certificate-authority={self.ca_file}"]
            command += ["--kubelet-preferred-address-types=InternalIP"]
            command += self._aggregation_flags()
        if not self.controllers:
            # Nobody creates the service account `default`, which this plugin wants for every pod.
            command += ["--disable-admission-plugins=ServiceAccount"]
        return Component(
            name="kube-apiserver",
            command=tuple(command),
            healthy=self.admin.ready,
            files=(policy, server.certificate),
        )

    def _aggregation_flags(self) -> list[str]:
        """Return the flags by which other processes, such as the metrics server, may serve groups of the API."""
        front_proxy = self._front_proxy()
        return [
            f"--requestheader-client-ca-file={self.front_proxy_authority.pair.certificate}",
            f"--requestheader-allowed-names={FRONT_PROXY}",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={front_proxy.certificate}",
            f"--proxy-client-key-file={front_proxy.key}",
        ]

    def _controller_manager(self) -> Component:
        kubeconfig = self.directory / "controller-manager.kubeconfig"
        return Component(
            name="kube-controller-manager",
            command=(
                str(binary_path("kube-controller-manager")),
                f"--kubeconfig={kubeconfig}",
                f"--secure-port={self.ports.controller_manager}",
                "--bind-address=127.0.0.1",
                f"--root-ca-file={self.ca_file}",
                f"--service-account-private-key-file={self.authority.directory / 'service-accounts.key'}",
                f"--cluster-signing-cert-file={self.ca_file}",
                f"--cluster-signing-key-file={self.authority.pair.key}",
                "--use-service-account-credentials=true",
                "--leader-elect=false",
                "--pvclaimbinder-sync-period=2s",
                "--resource-quota-sync-period=10s",
                "--kube-api-qps=200",
                "--kube-api-burst=400",
                "--profiling=false",
            ),
            healthy=lambda: answers(f"https://127.0.0.1:{self.ports.controller_manager}/healthz"),
            files=(kubeconfig,),
        )

    def _scheduler(self) -> Component:
        kubeconfig = self.directory / "scheduler.kubeconfig"
        return Component(
            name="kube-scheduler",
            command=(
                str(binary_path("kube-scheduler")),
                f"--kubeconfig={kubeconfig}",
                f"--secure-port={self.ports.scheduler}",
                "--bind-address=127.0.0.1",
                "--leader-elect=false",
                "--kube-api-qps=200",
                "--kube-api-burst=400",
                "--profiling=false",
            ),
            healthy=lambda: answers(f"https://127.0.0.1:{self.ports.scheduler}/healthz"),
            files=(kubeconfig,),
        )

    def _write_files(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._issue_certificates()
        if self.node is not None:
            self._issue_front_proxy_certificate()
        verbs = WRITE_VERBS + (READ_VERBS if self.audit_reads else ())
        templates.write("audit-policy.yaml", self.directory / "audit-policy.yaml", audited_verbs=json.dumps(verbs))
        for name, pair in (
            ("admin", self._pair("admin")),
            ("controller-manager", self._pair("controller-manager")),
            ("scheduler", self._pair("scheduler")),
        ):
            write_kubeconfig(self.directory / f"{name}.kubeconfig", self.url, self.ca_file, certificate_user(pair))

    def _issue_certificates(self) -> None:
        complete = self.authority.directory / "complete"
        if complete.exists():
            return
        self.authority.create()
        names = ["localhost", "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        names += ["kubernetes.default.svc.cluster.local"]
        if self.node is not None:
            names += [self.node.address, *self.node.extra_names]
        jobs: list[Callable[[], object]] = [
            lambda: self.authority.create_signing_key("service-accounts"),
            lambda: self.authority.issue_server("apiserver", names, "kube-apiserver"),
            lambda: self.authority.issue_client("admin", "local-admin", ["system:masters"]),
            lambda: self.authority.issue_client("apiserver-kubelet-client", "kube-apiserver", ["system:masters"]),
            lambda: self.authority.issue_client("controller-manager", "system:kube-controller-manager"),
            lambda: self.authority.issue_client("scheduler", "system:kube-scheduler"),
        ]
        with ThreadPoolExecutor(max_workers=2) as pool:
            for result in [pool.submit(job) for job in jobs]:
                result.result()
        complete.touch()

    def _issue_front_proxy_certificate(self) -> None:
        """By an authority of its own: whoever it vouches for may speak in anybody's name."""
        complete = self.front_proxy_authority.directory / "complete"
        if complete.exists():
            return
        self.front_proxy_authority.create()
        self.front_proxy_authority.issue_client(FRONT_PROXY, FRONT_PROXY)
        complete.touch()

    def _front_proxy(self) -> KeyPair:
        directory = self.front_proxy_authority.directory
        return KeyPair(directory / f"{FRONT_PROXY}.crt", directory / f"{FRONT_PROXY}.key")

    def _pair(self, name: str) -> KeyPair:
        return KeyPair(self.authority.directory / f"{name}.crt", self.authority.directory / f"{name}.key")


def read_audit_events(audit_log: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of an audit log; a last line that is still being written is left for the next call."""
    if not audit_log.exists():
        return
    with audit_log.open() as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def answers(url: str) -> bool:
    """Return whether a health endpoint answers 200. Certificates are not checked, because the process is our own."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def _file_name(user: str) -> str:
    return "".join(character if character.isalnum() or character in ".-" else "-" for character in user)
