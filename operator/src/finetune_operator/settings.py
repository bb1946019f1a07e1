"""Settings of the operator: images, nodes, storage, intervals. Read once at start from FINETUNE_OPERATOR_* variables.

Builders and `decide` receive the frozen object as a parameter; nothing else reads the environment.
"""

from typing import Annotated, Any, Final

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from finetune_api.contract import BROKER_URL_ENV


def parse_namespaces(value: object) -> object:
    """Parse namespaces from a comma-separated list; leave anything else to pydantic."""
    if not isinstance(value, str):
        return value
    return frozenset(part.strip() for part in value.split(",") if part.strip())


def parse_key(value: object) -> object:
    """Convert an empty key to None, because it would be no secret; leave anything else to pydantic."""
    return None if value == "" else value


BINARY_UNITS: Final = {"Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
GPU_MEMORY_PATTERN: Final = "^[0-9]+(Mi|Gi|Ti)$"


class Settings(BaseSettings):
    """Settings of the operator. Lists and maps are written as JSON, `namespaces` as comma-separated names."""

    model_config = SettingsConfigDict(env_prefix="FINETUNE_OPERATOR_", frozen=True, extra="ignore")

    namespaces: Annotated[frozenset[str], NoDecode, BeforeValidator(parse_namespaces)] = frozenset()
    """Namespaces that the operator watches; empty means the whole cluster."""
    kubeconfig: str | None = None
    """Path of a kubeconfig; unset means the pod's own service account."""

    trainer_image: str = "ghcr.io/finetune-operator/trainer:0.1.0"
    """Image of training pods. Users cannot choose it, because the image decides what code runs."""
    inference_image: str = "ghcr.io/finetune-operator/inference:0.1.0"
    """Image of server pods."""
    inference_vllm_image: str | None = None
    """Image of server pods with spec.engine VLLM; unset means that this engine is not available."""
    image_pull_policy: str = "IfNotPresent"
    """imagePullPolicy of all these images."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of pull secrets, which must exist in the namespace of the pod."""
    service_account: str = "default"
    """Service account of training and server pods. Its token is never mounted."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """nodeSelector of both kinds of pods."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Tolerations of both kinds of pods, as in a pod spec."""
    runtime_class_name: str | None = None
    """runtimeClassName of both kinds of pods, for example nvidia."""

    gpu_memory: Annotated[str | None, Field(pattern=GPU_MEMORY_PATTERN)] = None
    """Memory of one GPU of the training nodes, such as 80Gi. `validate` then refuses jobs that cannot fit (WontFitGPU). If unset,
    only the trainer can detect that."""

    broker_secret_name: str = "finetune-broker"  # noqa: S105 - a name, not a secret
    """Secret in the job's namespace with the Redis URL. It is optional: without it there is no live progress."""
    broker_secret_key: str = "url"  # noqa: S105 - a key, not a secret
    """Key of that Secret."""
    broker_url: Annotated[SecretStr | None, Field(validation_alias=AliasChoices(BROKER_URL_ENV))] = None
    """Redis URL for reading progress; if unset, status has no live progress."""

    adapters_size: str = "10Gi"
    """Size of the default output claim that the operator creates."""
    adapters_storage_class: str | None = None
    """Storage class of the default output claim; unset means the cluster's default."""
    adapters_access_mode: str = "ReadWriteOnce"
    """Access mode of the default output claim. ReadWriteMany allows training and serving on different nodes."""
    allow_private_sources: bool = False
    """Permission for datasets from addresses that are not public, such as an object store inside the cluster."""
    scratch_size: str = "10Gi"
    """Limit of each pod's scratch volume (caches, temporary files)."""

    cluster_domain: str = "cluster.local"
    """DNS domain of the cluster, for the URL in status."""
    server_url_template: str | None = None
    """Template of a server pod's URL, with {pod} and {namespace}, for an operator outside the cluster; unset means the pod's address."""

    promotion_key: Annotated[SecretStr | None, BeforeValidator(parse_key)] = None
    """Key of the tokens with which verified versions of adapters are promoted at once. If unset or empty, each process makes its
    own: promotions during its restart then arrive through the kubelet, about a second later."""

    resync_seconds: float = 15.0
    """Seconds between two resyncs (LISTs of both kinds), within which a lost event is recovered."""
    progress_seconds: float = 5.0
    """Minimum seconds between two progress updates of one job's status."""
    settle_seconds: float = 0.7
    """Seconds of pause after creating a child, so that the first transitions of a fast pod cost one status write, not three."""
    retry_seconds: float = 5.0
    """Seconds before the second attempt of a job; doubled with each failure."""
    probe_timeout_seconds: float = 20.0
    """Timeout in seconds per sequence of the fingerprint probe; a CPU server may need seconds for the first one."""
    probe_retry_seconds: float = 5.0
    """Seconds of pause after a probe without an answer."""
    workers: int = 16
    """Number of objects that are reconciled concurrently. It can exceed the number of cores, because reconciles wait for the network."""

    health_port: int = 8080
    """Port of /healthz, /readyz and /metrics."""
    health_host: str = "0.0.0.0"  # noqa: S104 - the kubelet and Prometheus come from outside the pod
    """Address on which that port listens."""
    log_level: str = "INFO"
    """Minimum level that is logged."""

    @property
    def gpu_memory_bytes(self) -> int:
        """`gpu_memory` in bytes; 0 if it is not set."""
        if self.gpu_memory is None:
            return 0
        return int(self.gpu_memory[:-2]) * BINARY_UNITS[self.gpu_memory[-2:]]
