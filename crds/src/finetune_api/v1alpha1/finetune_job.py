"""FinetuneJob: one fine-tuning, from model and dataset to an adapter, optionally served and verified."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import CEL, SpecModel, StatusModel
from finetune_api.constants import API_VERSION, DEFAULT_ADAPTERS_CLAIM
from finetune_api.fingerprint import Fingerprint
from finetune_api.outcome import StepPasses
from finetune_api.v1alpha1.common import (
    DNS_LABEL_PATTERN,
    SERVICE_NAME_PATTERN,
    AdapterSource,
    Condition,
    DatasetSource,
    LocalSecretReference,
    ModelReference,
    ObjectMeta,
    Resources,
    Time,
)

WANDB_NAME = r"^[A-Za-z0-9_.-]+$"
"""Names that Weights & Biases accepts everywhere."""
MUTABLE_FIELDS = ("suspend", "cancel", "ttlSecondsAfterFinished")
"""Fields of spec that may change after creation; `crd` makes CEL transition rules for all others. What is immutable is
what the adapter's record says it was made from."""


class Columns(SpecModel):
    """Which columns of the dataset play which part."""

    messages: Annotated[
        str | None, Field(description="messages is the column with a chat: a list of {role, content}.", max_length=128)
    ] = None
    prompt: Annotated[str | None, Field(description="prompt is the column with the input.", max_length=128)] = None
    completion: Annotated[
        str | None, Field(description="completion is the column with the wanted output.", max_length=128)
    ] = None
    text: Annotated[str | None, Field(description="text is the column with plain text.", max_length=128)] = None
    chosen: Annotated[
        str | None, Field(description="chosen is the column with the better of two answers.", max_length=128)
    ] = None
    rejected: Annotated[
        str | None, Field(description="rejected is the column with the worse of two answers.", max_length=128)
    ] = None


DatasetFormat = Literal["auto", "messages", "prompt-completion", "text", "preference"]


class Dataset(SpecModel):
    """Training rows: exactly one of `inline` and `source`."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [{"rule": "has(self.inline) != has(self.source)", "message": "set exactly one of inline and source"}]
        }
    )

    inline: Annotated[
        str | None,
        Field(description="inline rows as JSON Lines: one JSON object a line.", min_length=1, max_length=131_072),
    ] = None
    source: Annotated[
        DatasetSource | None,
        Field(
            description="source of the rows: pvc://CLAIM/PATH (.jsonl, .json, .csv or .parquet; text may be "
            "compressed, .gz or .zst), configmap://NAME/KEY (JSON Lines), hf://ORG/NAME[@REVISION], https://HOST/PATH or "
            "s3://BUCKET/KEY."
        ),
    ] = None
    secret_ref: Annotated[
        LocalSecretReference | None,
        Field(
            description="secretRef names the Secret with the credentials of dataset.source and evaluation.source: its key "
            "is the token for hf:// and https://; for s3:// the Secret has AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, "
            "if need be, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL."
        ),
    ] = None
    format: Annotated[
        DatasetFormat,
        Field(
            description="format of a row: messages ({messages: [{role, content}]}), prompt-completion "
            "({prompt, completion}), text ({text}), preference ({prompt, chosen, rejected}, for "
            "method.dpo), or auto to detect it."
        ),
    ] = "auto"
    columns: Annotated[
        Columns | None, Field(description="columns maps the names used in the dataset to the parts of the format.")
    ] = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.inline is None) == (self.source is None):
            raise ValueError("set exactly one of inline and source")
        return self


EvaluationMetric = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z][a-z0-9_]*$")]
"""Name of a metric; the trainer knows which there are, since packages may bring more."""


class EvaluationSettings(SpecModel):
    """What is done with held-out rows; their loss is measured at the end in any case."""

    eval_steps: Annotated[
        int | None,
        Field(
            description="evalSteps is the number of optimizer steps between evaluations while training runs; the adapter "
            "of the best one is kept. Unset, only the end is evaluated.",
            ge=1,
            le=1_000_000,
        ),
    ] = None
    early_stopping_patience: Annotated[
        int | None,
        Field(
            description="earlyStoppingPatience is how many evaluations in a row may be no better than the best one before "
            "training stops early; never if unset.",
            ge=1,
            le=1000,
        ),
    ] = None

    metrics: Annotated[
        list[EvaluationMetric],
        Field(
            description="metrics that are measured beside the loss. exact_match is the share of held-out rows whose answer "
            "greedy decoding gives token by token, its end included. All others compare answers that are generated at the end "
            "of training with the wanted ones: answer_match, token_f1, rouge_l, and entry points of the group "
            "finetune_trainer.metrics in the trainer image. Pairs of method.dpo have reward_accuracy and reward_margin "
            "instead, always.",
            max_length=8,
        ),
    ] = Field(default_factory=list)
    generated_rows: Annotated[
        int | None,
        Field(
            description="generatedRows is how many held-out rows, evenly spread, are answered for metrics that need "
            "generated answers; 200 if unset.",
            ge=1,
            le=100_000,
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        Field(
            description="maxNewTokens is where a generated answer is cut off that has not ended by itself; 128 if unset.",
            ge=1,
            le=8192,
        ),
    ] = None

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> Self:
        if self.early_stopping_patience is not None and self.eval_steps is None:
            raise ValueError("earlyStoppingPatience counts evaluations; set evalSteps too")
        return self


class Evaluation(EvaluationSettings):
    """Held-out rows: a share of the dataset, or rows of their own."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "!has(self.earlyStoppingPatience) || has(self.evalSteps)",
                    "message": "earlyStoppingPatience counts evaluations; set evalSteps too",
                },
                {
                    "rule": "(has(self.fraction) ? 1 : 0) + (has(self.inline) ? 1 : 0) + (has(self.source) ? 1 : 0) == 1",
                    "message": "set exactly one of fraction, inline and source",
                },
            ]
        }
    )

    fraction: Annotated[
        float | None, Field(description="fraction of the dataset's rows that is held out.", gt=0, le=0.5)
    ] = None
    inline: Annotated[
        str | None, Field(description="inline held-out rows as JSON Lines.", min_length=1, max_length=131_072)
    ] = None
    source: Annotated[DatasetSource | None, Field(description="source of the held-out rows, as dataset.source.")] = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(v is not None for v in (self.fraction, self.inline, self.source)) != 1:
            raise ValueError("set exactly one of fraction, inline and source")
        return self


Quantization = Literal["none", "nf4"]


class ContinueFrom(SpecModel):
    """An earlier adapter that training starts from: exactly one of `finetuneJob` and `source`."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "has(self.finetuneJob) != has(self.source)",
                    "message": "set exactly one of finetuneJob and source",
                }
            ]
        }
    )

    finetune_job: Annotated[
        str | None,
        Field(
            description="finetuneJob is the name of a FinetuneJob of this namespace; training waits until its adapter is "
            "published.",
            min_length=1,
            max_length=50,
            pattern=SERVICE_NAME_PATTERN,
        ),
    ] = None
    source: Annotated[
        AdapterSource | None, Field(description="source of the adapter: pvc://CLAIM/PATH of its folder.")
    ] = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.finetune_job is None) == (self.source is None):
            raise ValueError("set exactly one of finetuneJob and source")
        return self


class Lora(SpecModel):
    """LoRA (Hu et al. 2021, arXiv 2106.09685): the frozen weights get a trainable product of two thin matrices."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "!(has(self.useDora) && self.useDora && has(self.quantization) && self.quantization != 'none')",
                    "message": "useDora needs whole weights in each step; leave quantization at none, or useDora unset",
                }
            ]
        }
    )

    rank: Annotated[int, Field(description="rank of the update matrices.", ge=1, le=256)] = 8
    alpha: Annotated[
        float,
        Field(description="alpha scales the update by alpha / rank; twice the rank is a common choice.", gt=0, le=4096),
    ] = 16
    dropout: Annotated[float, Field(description="dropout on the adapter's input.", ge=0, lt=1)] = 0.0
    use_rslora: Annotated[
        bool,
        Field(
            description="useRslora scales the update by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732), which "
            "keeps high ranks effective."
        ),
    ] = False
    use_dora: Annotated[
        bool,
        Field(
            description="useDora learns a magnitude for each output beside the direction (DoRA, arXiv 2402.09353): often "
            "better at low ranks, and slower to train."
        ),
    ] = False
    target_modules: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]],
        Field(
            description="targetModules are the module names that get an adapter, for example q_proj; all-linear means "
            "every linear layer but the head.",
            min_length=1,
            max_length=64,
            json_schema_extra={"default": ["all-linear"]},
        ),
    ] = Field(default_factory=lambda: ["all-linear"])
    quantization: Annotated[
        Quantization,
        Field(
            description="quantization of the frozen linear layers while training runs: nf4 (QLoRA, arXiv 2305.14314) takes about a "
            "quarter of the memory of bfloat16, and somewhat longer. The adapter is for the model as it is, and proven there."
        ),
    ] = "none"

    @model_validator(mode="after")
    def _dora_needs_whole_weights(self) -> Self:
        if self.use_dora and self.quantization != "none":
            raise ValueError("useDora needs whole weights in each step; leave quantization at none, or useDora unset")
        return self


class Dpo(SpecModel):
    """DPO (Rafailov et al. 2023, arXiv 2305.18290): learning from pairs of a better and a worse answer."""

    beta: Annotated[
        float,
        Field(
            description="beta of the implicit reward; the larger, the closer the model stays to where it started.",
            gt=0,
            le=10,
        ),
    ] = 0.1


class Method(SpecModel):
    """How the model is tuned: which weights, and on what objective."""

    lora: Annotated[Lora, Field(description="lora hyperparameters.")] = Field(default_factory=Lora)
    dpo: Annotated[
        Dpo | None,
        Field(
            description="dpo learns from preference pairs (dataset.format preference); unset, the wanted answers are learnt "
            "(supervised)."
        ),
    ] = None


GradientCheckpointing = Literal["auto", "enabled", "disabled"]

DEFAULT_EPOCHS = 3.0
"""Passes over the dataset when a job names neither epochs nor maxSteps; OpenAI's `auto` gives 3 for small sets too."""


class Hyperparameters(SpecModel):
    """How training proceeds."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "!(has(self.epochs) && has(self.maxSteps))",
                    "message": "set at most one of epochs and maxSteps",
                }
            ]
        }
    )

    epochs: Annotated[
        float | None,
        Field(
            description="epochs is the number of passes over the dataset; 3 if maxSteps is unset too.", gt=0, le=1000
        ),
    ] = None
    max_steps: Annotated[
        int | None, Field(description="maxSteps is the number of optimizer steps.", ge=1, le=10_000_000)
    ] = None
    batch_size: Annotated[
        int, Field(description="batchSize is the number of rows per optimizer step.", ge=1, le=4096)
    ] = 8
    micro_batch_size: Annotated[
        int | None,
        Field(
            description="microBatchSize is the number of rows per forward pass; unset lets the trainer choose. It never "
            "changes the result of a step, only its memory and speed, and is halved where memory runs out.",
            ge=1,
            le=4096,
        ),
    ] = None
    gradient_checkpointing: Annotated[
        GradientCheckpointing,
        Field(
            description="gradientCheckpointing computes activations again instead of keeping them: a step takes about a third "
            "longer and much less memory, with the same result. auto enables it if memory would not suffice otherwise."
        ),
    ] = "auto"
    learning_rate: Annotated[
        float, Field(description="learningRate is the peak learning rate of AdamW.", gt=0, le=1)
    ] = 2e-4
    schedule: Annotated[
        Literal["linear", "cosine", "constant"],
        Field(description="schedule of the learning rate after warm-up."),
    ] = "linear"
    warmup_ratio: Annotated[
        float, Field(description="warmupRatio is the share of all steps used for warm-up.", ge=0, le=0.5)
    ] = 0.03
    weight_decay: Annotated[float, Field(description="weightDecay of AdamW.", ge=0, le=1)] = 0.0
    max_length: Annotated[
        int,
        Field(description="maxLength is the longest row in tokens; longer rows are cut at the end.", ge=8, le=131_072),
    ] = 1024
    loss_on: Annotated[
        Literal["completion", "all"],
        Field(
            description="lossOn says which tokens carry loss: completion (the assistant's turns, or the completion) or all."
        ),
    ] = "completion"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(description="precision of the weights and the arithmetic; auto is bfloat16 on GPUs, float32 on CPUs."),
    ] = "auto"
    seed: Annotated[int, Field(description="seed of everything random.", ge=0, le=4_294_967_295)] = 42

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("set at most one of epochs and maxSteps")
        return self


class Checkpoint(SpecModel):
    """When work is saved while training runs."""

    every_steps: Annotated[
        int, Field(description="everySteps is the number of optimizer steps between checkpoints.", ge=1, le=1_000_000)
    ] = 50
    every_minutes: Annotated[
        int,
        Field(
            description="everyMinutes is the longest time without a checkpoint, for steps that take long.",
            ge=1,
            le=10_080,
        ),
    ] = 10
    keep: Annotated[int, Field(description="keep is how many checkpoints stay on the volume.", ge=1, le=20)] = 2


class TensorBoardTracking(SpecModel):
    """TensorBoard's event files."""


class MlflowTracking(SpecModel):
    """A run of an MLflow server."""

    uri: Annotated[
        str,
        Field(
            description="uri of the tracking server: http(s)://HOST[:PORT][/PATH], or file:///PATH of a folder.",
            max_length=512,
            pattern=r"^(https?|file)://[^\s?#@]+$",
        ),
    ]
    experiment: Annotated[
        str,
        Field(
            description="experiment that the run belongs to; it is made if there is none of this name.",
            min_length=1,
            max_length=250,
        ),
    ] = "finetune"
    secret_ref: Annotated[
        LocalSecretReference | None,
        Field(
            description="secretRef names the Secret with the server's credentials: its key is MLFLOW_TRACKING_TOKEN, or it has "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        ),
    ] = None


class WandbTracking(SpecModel):
    """A run of Weights & Biases."""

    project: Annotated[
        str, Field(description="project that the run belongs to.", min_length=1, max_length=128, pattern=WANDB_NAME)
    ] = "finetune"
    entity: Annotated[
        str | None,
        Field(
            description="entity (user or team) of the project; the API key's default if unset.",
            min_length=1,
            max_length=128,
            pattern=WANDB_NAME,
        ),
    ] = None
    base_url: Annotated[
        str | None,
        Field(
            description="baseUrl of a server of your own: http(s)://HOST[:PORT]; the public one if unset.",
            max_length=512,
            pattern=r"^https?://[^\s?#@]+$",
        ),
    ] = None
    secret_ref: Annotated[
        LocalSecretReference | None, Field(description="secretRef names the Secret whose key is the API key.")
    ] = None


class Tracking(SpecModel):
    """Where the figures of each step go beside the job's own status. A tracker that fails never ends a training."""

    tensorboard: Annotated[
        TensorBoardTracking | None,
        Field(
            description="tensorboard writes event files to the output claim, in ADAPTER_NAME/tensorboard/JOB_UID; write {} to "
            "ask for it."
        ),
    ] = None
    mlflow: Annotated[MlflowTracking | None, Field(description="mlflow keeps a run at an MLflow server.")] = None
    wandb: Annotated[WandbTracking | None, Field(description="wandb keeps a run at Weights & Biases.")] = None


class Policy(SpecModel):
    """Attempts and deadlines."""

    max_attempts: Annotated[
        int,
        Field(
            description="maxAttempts is how many failed attempts end the job; an interruption (eviction, preemption, "
            "deleted pod) is not a failed attempt.",
            ge=1,
            le=20,
        ),
    ] = 3
    start_deadline_seconds: Annotated[
        int,
        Field(
            description="startDeadlineSeconds is how long an attempt's pod may take to start (scheduling, images).",
            ge=10,
            le=604_800,
        ),
    ] = 600
    active_deadline_seconds: Annotated[
        int | None,
        Field(
            description="activeDeadlineSeconds is how long the job may take in all, from its creation to the adapter.",
            ge=10,
            le=31_536_000,
        ),
    ] = None


class Output(SpecModel):
    """Where the adapter goes."""

    claim: Annotated[
        str,
        Field(
            description="claim is the PersistentVolumeClaim that receives adapter and checkpoints; the default claim is "
            "created if the namespace has none.",
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL_PATTERN,
        ),
    ] = DEFAULT_ADAPTERS_CLAIM
    adapter_name: Annotated[
        str | None,
        Field(
            description="adapterName is the adapter's name, also as `model` at the endpoint; the job's name if unset.",
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL_PATTERN,
        ),
    ] = None


GateMetric = Literal["eval_loss", "exact_match"]
"""Metrics that can keep an adapter from being served; of eval_loss less is better, of exact_match more."""


class Gate(SpecModel):
    """What the new version of a served adapter must not be worse in."""

    metric: Annotated[
        GateMetric, Field(description="metric of the evaluation that is compared with the version served until now.")
    ] = "eval_loss"
    max_regression: Annotated[
        float,
        Field(
            description="maxRegression is how much worse the metric may be, in its own unit: nats per token of eval_loss, a "
            "share of rows of exact_match.",
            ge=0,
            le=100,
        ),
    ] = 0.0


class Serve(SpecModel):
    """Roll the adapter out behind an OpenAI-compatible endpoint and prove it."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "!(has(self.into) && has(self.name))",
                    "message": "name is of an endpoint that the job makes and owns, into is of one that exists; give one",
                },
                {
                    "rule": "!has(self.gate) || has(self.into)",
                    "message": "gate compares with what is served already, so it needs into: a new endpoint serves nothing yet",
                },
            ]
        }
    )

    name: Annotated[
        str | None,
        Field(
            description="name of the InferenceService; the job's name if unset. The job owns it.",
            min_length=1,
            max_length=50,
            pattern=SERVICE_NAME_PATTERN,
        ),
    ] = None
    into: Annotated[
        str | None,
        Field(
            description="into is the name of an InferenceService of this namespace, with adaptersFrom: Jobs, that the adapter is "
            "added to; a version of the same name is replaced once the new one is proven. It stays there when the job is deleted.",
            min_length=1,
            max_length=50,
            pattern=SERVICE_NAME_PATTERN,
        ),
    ] = None
    gate: Annotated[
        Gate | None,
        Field(
            description="gate keeps an adapter that is worse than the served one from replacing it: it is stored, and the job "
            "fails with EvalRegression."
        ),
    ] = None
    replicas: Annotated[
        int, Field(description="replicas is the number of server pods of an own endpoint.", ge=1, le=64)
    ] = 1
    resources: Annotated[Resources, Field(description="resources of each server pod of an own endpoint.")] = Field(
        default_factory=Resources
    )
    timeout_seconds: Annotated[
        int,
        Field(
            description="timeoutSeconds is how long the endpoint may take to become ready and verified.",
            ge=30,
            le=86_400,
        ),
    ] = 900

    @model_validator(mode="after")
    def _one_endpoint(self) -> Self:
        if self.into is not None and self.name is not None:
            raise ValueError("serve.name is of an endpoint that the job makes, serve.into of one that exists; give one")
        if self.gate is not None and self.into is None:
            raise ValueError("serve.gate compares with what is served already, so it needs serve.into")
        return self


class FinetuneJobSpec(SpecModel):
    """Desired state of a FinetuneJob. Immutable but for suspend, cancel and ttlSecondsAfterFinished."""

    model_config = ConfigDict(
        json_schema_extra={
            CEL: [
                {
                    "rule": "!(has(self.serve) && !has(self.serve.into) && has(self.ttlSecondsAfterFinished))",
                    "message": "ttlSecondsAfterFinished would remove the endpoint together with the job that owns it; "
                    "remove serve, or serve the adapter with an InferenceService of your own",
                },
                {
                    "rule": "!has(self.serve) || !has(self.serve.gate) || has(self.evaluation)",
                    "message": "serve.gate compares evaluations, so it needs evaluation",
                },
                {
                    "rule": "!oldSelf.cancel || self.cancel",
                    "message": "cancel cannot be taken back; create a new FinetuneJob instead",
                },
            ]
        }
    )

    model: Annotated[ModelReference, Field(description="model is the base model to tune.")]
    dataset: Annotated[Dataset, Field(description="dataset holds the training rows.")]
    evaluation: Annotated[
        Evaluation | None, Field(description="evaluation holds the held-out rows; none by default.")
    ] = None
    continue_from: Annotated[
        ContinueFrom | None,
        Field(
            description="continueFrom is an earlier adapter that training starts from, with the same model and method.lora (but "
            "for dropout); an untrained one by default."
        ),
    ] = None
    method: Annotated[Method, Field(description="method of tuning.")] = Field(default_factory=Method)
    hyperparameters: Annotated[Hyperparameters, Field(description="hyperparameters of training.")] = Field(
        default_factory=Hyperparameters
    )
    checkpoint: Annotated[Checkpoint, Field(description="checkpoint says when work is saved.")] = Field(
        default_factory=Checkpoint
    )
    tracking: Annotated[
        Tracking | None, Field(description="tracking says where figures go beside the status; nowhere by default.")
    ] = None
    resources: Annotated[Resources, Field(description="resources of the training pod.")] = Field(
        default_factory=Resources
    )
    policy: Annotated[Policy, Field(description="policy for attempts and deadlines.")] = Field(default_factory=Policy)
    output: Annotated[Output, Field(description="output says where the adapter goes.")] = Field(default_factory=Output)
    serve: Annotated[
        Serve | None, Field(description="serve rolls the adapter out; without it the job ends with the adapter.")
    ] = None
    queue_name: Annotated[
        str | None,
        Field(
            description="queueName of Kueue's LocalQueue; the training Job then waits for Kueue's admission.",
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL_PATTERN,
        ),
    ] = None
    suspend: Annotated[
        bool, Field(description="suspend stops training after a checkpoint, until it is false again.")
    ] = False
    cancel: Annotated[bool, Field(description="cancel ends the job for good; it cannot be taken back.")] = False
    ttl_seconds_after_finished: Annotated[
        int | None,
        Field(
            description="ttlSecondsAfterFinished is how long the finished object is kept; for ever if unset.",
            ge=0,
            le=31_536_000,
        ),
    ] = None

    @model_validator(mode="after")
    def _ttl_without_endpoint(self) -> Self:
        if self.serve is not None and self.serve.into is None and self.ttl_seconds_after_finished is not None:
            raise ValueError("ttlSecondsAfterFinished would remove the endpoint together with the job; remove serve")
        return self


class ProgressStatus(StatusModel):
    """How far the running attempt is."""

    step: Annotated[int, Field(description="step is the number of finished optimizer steps.", ge=0)] = 0
    total_steps: Annotated[int, Field(description="totalSteps is the number of planned steps.", ge=0)] = 0
    epoch: Annotated[float | None, Field(description="epoch is the number of passes over the dataset so far.")] = None
    percent: Annotated[int, Field(description="percent of the steps that is done.", ge=0, le=100)] = 0
    loss: Annotated[
        str | None, Field(description="loss of the latest logged step, as text: floats do not survive every client.")
    ] = None
    eval_loss: Annotated[
        str | None, Field(description="evalLoss of the latest evaluation on held-out rows, as text.")
    ] = None
    eta_seconds: Annotated[int | None, Field(description="etaSeconds until training ends, as estimated.", ge=0)] = None
    eta: Annotated[str | None, Field(description="eta is etaSeconds as people write it, for example 2m10s.")] = None
    tokens_per_second: Annotated[int | None, Field(description="tokensPerSecond of real training tokens.", ge=0)] = None
    passes: Annotated[
        StepPasses | None, Field(description="passes that steps are cut into, smaller once memory ran out.")
    ] = None
    last_update_time: Annotated[Time | None, Field(description="lastUpdateTime of these figures.")] = None


class MetricStatus(StatusModel):
    """One measured value."""

    name: Annotated[str, Field(description="name of the metric, for example train_loss.", max_length=128)]
    value: Annotated[str, Field(description="value as text.", max_length=64)]


class CheckpointStatus(StatusModel):
    """One checkpoint on the volume."""

    step: Annotated[int, Field(description="step that was saved.", ge=0)]
    path: Annotated[str, Field(description="path inside the output claim.", max_length=512)]


class FailureStatus(StatusModel):
    """The last failed attempt, kept after its pod is gone."""

    attempt: Annotated[int, Field(description="attempt that failed.", ge=1)]
    pod: Annotated[str | None, Field(description="pod that ran it.", max_length=253)] = None
    exit_code: Annotated[int | None, Field(description="exitCode of the trainer.")] = None
    reason: Annotated[str, Field(description="reason from the glossary.", max_length=128)]
    message: Annotated[str, Field(description="message that says what to change.", max_length=4096)] = ""
    log_tail: Annotated[str | None, Field(description="logTail is the end of the trainer's log.", max_length=4096)] = (
        None
    )
    finish_time: Annotated[Time | None, Field(description="finishTime of the attempt.")] = None


class AdapterStatus(StatusModel):
    """The committed adapter."""

    name: Annotated[str, Field(description="name of the adapter.", max_length=63)]
    uri: Annotated[str, Field(description="uri of its folder: pvc://CLAIM/PATH.", max_length=512)]
    digest: Annotated[str, Field(description="digest is the sha256 of its manifest.", max_length=71)]
    size_bytes: Annotated[int | None, Field(description="sizeBytes of all its files.", ge=0)] = None
    base_model: Annotated[str, Field(description="baseModel it was trained on, as the source URI.", max_length=512)]
    base_revision: Annotated[
        str | None, Field(description="baseRevision is the commit or digest of the base model.", max_length=128)
    ] = None
    fingerprint: Annotated[Fingerprint | None, Field(description="fingerprint to recognise the tuned weights by.")] = (
        None
    )


class InitialAdapterStatus(StatusModel):
    """The adapter that all attempts start from."""

    uri: Annotated[str, Field(description="uri of its folder: pvc://CLAIM/PATH.", max_length=512)]
    digest: Annotated[str, Field(description="digest is the sha256 of its manifest.", max_length=71)]


class ServingStatus(StatusModel):
    """The endpoint."""

    name: Annotated[str, Field(description="name of the InferenceService.", max_length=63)]
    url: Annotated[str | None, Field(description="url of the OpenAI-compatible API inside the cluster.")] = None
    ready: Annotated[bool, Field(description="ready says whether the endpoint answers.")] = False
    verified: Annotated[
        bool, Field(description="verified says whether it was shown to answer with the tuned weights.")
    ] = False
    state: Annotated[
        str | None,
        Field(description="state in one word, for the printer column: Deploying, Ready, Verified or Failed."),
    ] = None
    started_time: Annotated[Time | None, Field(description="startedTime is when the rollout began.")] = None


class Usage(StatusModel):
    """What the job has used."""

    attempt_seconds: Annotated[
        int,
        Field(
            description="attemptSeconds is the running time of all trainers of the job; validation, which uses no GPU, is not counted.",
            ge=0,
        ),
    ] = 0
    wasted_seconds: Annotated[
        int, Field(description="wastedSeconds is the part of attemptSeconds spent in failed attempts.", ge=0)
    ] = 0
    trained_tokens: Annotated[int | None, Field(description="trainedTokens of the successful attempt.", ge=0)] = None


class FinetuneJobStatus(StatusModel):
    """Observed state of a FinetuneJob."""

    observed_generation: Annotated[
        int, Field(description="observedGeneration is metadata.generation that this status was computed from.", ge=0)
    ] = 0
    phase: Annotated[str | None, Field(description="phase is one word for people, derived from the conditions.")] = None
    reason: Annotated[str | None, Field(description="reason of the phase, from the glossary.")] = None
    message: Annotated[str | None, Field(description="message of the phase.", max_length=4096)] = None
    conditions: Annotated[
        list[Condition],
        Field(
            description="conditions of the job; Succeeded and Failed never leave True.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)
    start_time: Annotated[Time | None, Field(description="startTime of the first trainer.")] = None
    completion_time: Annotated[Time | None, Field(description="completionTime of the job.")] = None
    attempt: Annotated[int, Field(description="attempt is the number of the latest attempt, from 1.", ge=0)] = 0
    failed_attempts: Annotated[int, Field(description="failedAttempts counts towards policy.maxAttempts.", ge=0)] = 0
    initial_adapter: Annotated[
        InitialAdapterStatus | None,
        Field(description="initialAdapter is what continueFrom.finetuneJob had when the first attempt was due."),
    ] = None
    progress: Annotated[ProgressStatus | None, Field(description="progress of the running attempt.")] = None
    metrics: Annotated[
        list[MetricStatus],
        Field(
            description="metrics of the finished training.",
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    checkpoints: Annotated[
        list[CheckpointStatus], Field(description="checkpoints that can be resumed from.", max_length=20)
    ] = Field(default_factory=list)
    last_failure: Annotated[FailureStatus | None, Field(description="lastFailure of an attempt.")] = None
    adapter: Annotated[AdapterStatus | None, Field(description="adapter that was committed.")] = None
    serving: Annotated[ServingStatus | None, Field(description="serving is the endpoint.")] = None
    usage: Annotated[Usage | None, Field(description="usage of all attempts.")] = None


class FinetuneJob(StatusModel):
    """FinetuneJob tunes a base model on a dataset with LoRA and yields one adapter, optionally served and verified."""

    api_version: str = API_VERSION
    kind: str = "FinetuneJob"
    metadata: ObjectMeta
    spec: FinetuneJobSpec
    status: FinetuneJobStatus = Field(default_factory=FinetuneJobStatus)

    @property
    def adapter_name(self) -> str:
        """Name of the adapter this job makes."""
        return self.spec.output.adapter_name or self.metadata.name

    @property
    def initial_adapter_uri(self) -> str | None:
        """Where the adapter is that training starts from; None without one, or as long as its job has not published it."""
        if self.status.initial_adapter is not None:
            return self.status.initial_adapter.uri
        return self.spec.continue_from.source if self.spec.continue_from else None

    @property
    def service_name(self) -> str:
        """Name of the InferenceService that the adapter is served by, if it is: one of the job's own, or one that exists."""
        serve = self.spec.serve
        return (serve.into or serve.name if serve else None) or self.metadata.name
