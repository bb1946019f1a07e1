"""finetune.dev/v1alpha1: the two kinds that users write, with typed spec and typed status."""

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
from finetune_api.v1alpha1.job.dataset import Columns, Dataset, DatasetFormat
from finetune_api.v1alpha1.job.evaluation import Evaluation, EvaluationMetric, EvaluationSettings
from finetune_api.v1alpha1.job.hyperparameters import (
    DEFAULT_EPOCHS,
    Checkpoint,
    GradientCheckpointing,
    Hyperparameters,
)
from finetune_api.v1alpha1.job.kind import MUTABLE_FIELDS, FinetuneJob, FinetuneJobSpec
from finetune_api.v1alpha1.job.method import ContinueFrom, Dpo, Lora, Method, Quantization
from finetune_api.v1alpha1.job.policy import Output, Policy
from finetune_api.v1alpha1.job.serve import GateMetric, RegressionGate, Serve
from finetune_api.v1alpha1.job.status import (
    AdapterStatus,
    CheckpointStatus,
    FailureStatus,
    FinetuneJobStatus,
    InitialAdapterStatus,
    MetricStatus,
    ProgressStatus,
    ServingStatus,
    Usage,
)
from finetune_api.v1alpha1.job.tracking import MlflowTracking, TensorBoardTracking, Tracking, WandbTracking

__all__ = [
    "DEFAULT_EPOCHS",
    "MUTABLE_FIELDS",
    "AdapterReference",
    "AdapterStatus",
    "Autoscaling",
    "Checkpoint",
    "CheckpointStatus",
    "Columns",
    "Condition",
    "ContinueFrom",
    "Dataset",
    "DatasetFormat",
    "Dpo",
    "Evaluation",
    "EvaluationMetric",
    "EvaluationSettings",
    "FailureStatus",
    "FinetuneJob",
    "FinetuneJobSpec",
    "FinetuneJobStatus",
    "GateMetric",
    "GradientCheckpointing",
    "Hyperparameters",
    "InferenceService",
    "InferenceServiceSpec",
    "InferenceServiceStatus",
    "InitialAdapterStatus",
    "LocalSecretReference",
    "Lora",
    "Method",
    "Metric",
    "MetricStatus",
    "MlflowTracking",
    "ModelReference",
    "ObjectMeta",
    "Output",
    "OwnerReference",
    "Policy",
    "ProgressStatus",
    "Quantization",
    "RegressionGate",
    "ReplicaVerdict",
    "Resources",
    "RolloutStrategy",
    "Serve",
    "ServedAdapterStatus",
    "ServedVersion",
    "ServingStatus",
    "TensorBoardTracking",
    "Tracking",
    "Usage",
    "WandbTracking",
]
