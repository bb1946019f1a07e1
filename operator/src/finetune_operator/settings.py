"""What the administrator decides: images, nodes, storage, intervals. Read once at start from FINETUNE_OPERATOR_* variables.

Builders and `decide` receive the frozen object as a parameter; nothing else reads the environment.
"""

from typing import Annotated, Any, Final

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from finetune_api.contract import BROKER_URL_ENV


def parse_namespaces(value: object) -> object:
    """Namespaces from a comma-separated list; anything else is left to pydantic."""
    if not isinstance(value, str):
        return value
    return frozenset(part.strip() for part in value.split(",") if part.strip())


def parse_key(value: object) -> object:
    """None for an empty text, which everybody knows; anything else is left to pydantic."""
    return None if value == "" else value


BINARY_UNITS: Final = {"Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
GPU_MEMORY_PATTERN: Final = "^[0-9]+(Mi|Gi|Ti)$"


class Settings(BaseSettings):
    """All settings of the operator. Lists and maps are written as JSON, `namespaces` as comma-separated names."""

    model_config = SettingsConfigDict(env_prefix="FINETUNE_OPERATOR_", frozen=True, extra="ignore")

    namespaces: Annotated[frozenset[str], NoDecode, BeforeValidator(parse_namespaces)] = frozenset()
    """Namespaces that are served; empty means the whole cluster."""
    kubeconfig: str | None = None
    """Path of a kubeconfig; unset means the pod's own service account."""

    trainer_image: str = "ghcr.io/finetune-operator/trainer:0.1.0"
    """Image of training pods. Users cannot choose one: whoever chooses the image chooses the code."""
    inference_image: str = "ghcr.io/finetune-operator/inference:0.1.0"
    """Image of server pods."""
    inference_vllm_image: str | None = None
    """Image of server pods with spec.engine VLLM; without it there are none."""
    image_pull_policy: str = "IfNotPresent"
    """imagePullPolicy of all of them."""
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
    """Memory of one GPU of the training nodes, such as 80Gi: `validate` then refuses what cannot fit (WontFitGPU). Unset
    means that only the trainer finds out."""

    broker_secret_name: str = "finetune-broker"  # noqa: S105 - a name, not a secret
    """Secret in the job's namespace with the Redis URL. Optional there: without it training runs without progress."""
    broker_secret_key: str = "url"  # noqa: S105 - a key, not a secret
    """Key of that Secret."""
    broker_url: Annotated[SecretStr | None, Field(validation_alias=AliasChoices(BROKER_URL_ENV))] = None
    """Redis URL for reading progress; unset means that status shows no progress."""

    adapters_size: str = "10Gi"
    """Size of the output claim that the operator creates where a namespace has none."""
    adapters_storage_class: str | None = None
    """Its storage class; unset means the cluster's default."""
    adapters_access_mode: str = "ReadWriteOnce"
    """Its access mode. ReadWriteMany lets training and serving use different nodes."""
    allow_private_sources: bool = False
    """Whether datasets may be fetched from addresses that are not public, such as an object store inside the cluster."""
    scratch_size: str = "10Gi"
    """Limit of each pod's scratch volume (caches, temporary files)."""

    cluster_domain: str = "cluster.local"
    """DNS domain of the cluster, for the URL in status."""
    server_url_template: str | None = None
    """URL of a server pod instead of its own address, with {pod} and {namespace}: for an operator outside the cluster."""

    promotion_key: Annotated[SecretStr | None, BeforeValidator(parse_key)] = None
    """Key of the tokens by which proven versions of adapters get their traffic at once. Unset or empty, each process makes one
    of its own: what is on the way while it restarts then comes with the kubelet, a second later."""

    resync_seconds: float = 15.0
    """Seconds between two LISTs of our kinds. A lost event is made good within this time."""
    progress_seconds: float = 5.0
    """Shortest time between two progress updates of one job's status."""
    settle_seconds: float = 0.7
    """Pause after something was created: the first transitions of a fast pod then cost one status write, not three."""
    retry_seconds: float = 5.0
    """Delay before the second attempt of a job; doubles with each failure."""
    probe_timeout_seconds: float = 20.0
    """Longest time per prompt of the fingerprint probe; a CPU server may take seconds for a first one."""
    probe_retry_seconds: float = 5.0
    """Pause after a probe that got no answer."""
    workers: int = 16
    """Objects that are reconciled at the same time. Reconciles wait for the network, so this is not about cores."""

    health_port: int = 8080
    """Port of /healthz, /readyz and /metrics."""
    health_host: str = "0.0.0.0"  # noqa: S104 - the kubelet and Prometheus come from outside the pod
    """Address of that port."""
    log_level: str = "INFO"
    """Lowest level that is logged."""

    @property
    def gpu_memory_bytes(self) -> int:
        """`gpu_memory` in bytes; 0 if nobody said it."""
        if self.gpu_memory is None:
            return 0
        return int(self.gpu_memory[:-2]) * BINARY_UNITS[self.gpu_memory[-2:]]
