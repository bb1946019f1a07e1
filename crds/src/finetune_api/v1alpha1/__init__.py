"""finetune.dev/v1alpha1: the two kinds that users write, typed spec and typed status."""

from finetune_api.v1alpha1.common import (
    Condition,
    LocalSecretReference,
    Metric,
    ModelReference,
    ObjectMeta,
    OwnerReference,
    Resources,
)
from finetune_api.v1alpha1.inference_service import (
    AdapterReference,
    Autoscaling,
    InferenceService,
    InferenceServiceSpec,
    InferenceServiceStatus,
    ReplicaVerdict,
    RolloutStrategy,
    ServedAdapterStatus,
    ServedVersion,
)
from finetune_api.v1alpha1.job.dataset import Dataset
from finetune_api.v1alpha1.job.evaluation import Evaluation
from finetune_api.v1alpha1.job.hyperparameters import Checkpoint, Hyperparameters
from finetune_api.v1alpha1.job.kind import FinetuneJob, FinetuneJobSpec
from finetune_api.v1alpha1.job.method import Lora, Method
from finetune_api.v1alpha1.job.policy import Output, Policy
from finetune_api.v1alpha1.job.serve import GateMetric, RegressionGate, Serve
from finetune_api.v1alpha1.job.status import (
    AdapterStatus,
    CheckpointStatus,
    FailureStatus,
    FinetuneJobStatus,
    MetricStatus,
    ProgressStatus,
    ServingStatus,
)

__all__ = [
    "AdapterReference",
    "AdapterStatus",
    "Autoscaling",
    "Checkpoint",
    "CheckpointStatus",
    "Condition",
    "Dataset",
    "Evaluation",
    "FailureStatus",
    "FinetuneJob",
    "FinetuneJobSpec",
    "FinetuneJobStatus",
    "GateMetric",
    "Hyperparameters",
    "InferenceService",
    "InferenceServiceSpec",
    "InferenceServiceStatus",
    "LocalSecretReference",
    "Lora",
    "Method",
    "Metric",
    "MetricStatus",
    "ModelReference",
    "ObjectMeta",
    "Output",
    "OwnerReference",
    "Policy",
    "ProgressStatus",
    "RegressionGate",
    "ReplicaVerdict",
    "Resources",
    "RolloutStrategy",
    "Serve",
    "ServedAdapterStatus",
    "ServedVersion",
    "ServingStatus",
]
