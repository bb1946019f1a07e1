"""Reasons: the words of `status` that say why a condition is what it is. One that is not listed here never reaches a user.

The docstring of a member is its entry in the generated reference, so it has a fixed form: its meaning, then "To do:" and what
its reader should do. `glossary` reads them.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Reason for the status of a condition: one CamelCase word, with details in the condition's message."""

    # Normal operation
    VALIDATING = "Validating"
    """The first container of the training pod is checking spec, model and dataset.

    To do: Nothing; this usually takes seconds.
    """
    ACCEPTED = "Accepted"
    """Spec, model and dataset passed all checks.

    To do: Nothing. Read the warnings in the message of the condition Validated, if there are any.
    """
    SCHEDULED = "Scheduled"
    """The training pod has a node.

    To do: Nothing.
    """
    WAITING_FOR_ADAPTER = "WaitingForAdapter"
    """The FinetuneJob that spec.continueFrom names has not published its adapter yet.

    To do: Wait for that job. If it is suspended, resume it.
    """
    WAITING_FOR_POD = "WaitingForPod"
    """The training Job exists, but its pod has not started.

    To do: Wait. If it lasts, read the message, and `kubectl describe pod` for the events of the pod.
    """
    TRAINING = "Training"
    """The trainer is running.

    To do: Nothing. Follow status.progress.
    """
    TRAINED = "Trained"
    """Training ended, and the adapter is committed to its claim.

    To do: Nothing.
    """
    SUSPENDED = "Suspended"
    """spec.suspend is true, and no training pod is left.

    To do: Set spec.suspend to false to resume from the last checkpoint.
    """
    SUSPENDING = "Suspending"
    """spec.suspend is true, and the training pod is saving a checkpoint.

    To do: Wait until the pod is gone.
    """
    RESUMED = "Resumed"
    """The job is no longer suspended.

    To do: Nothing.
    """
    QUOTA_PENDING = "QuotaPending"
    """Kueue has not admitted the Job, or a quota or policy of the cluster does not allow it yet.

    To do: Read the API server's own message. Free quota, ask for more, or lower spec.resources in a new job.
    """
    RETRYING = "Retrying"
    """An attempt failed in a way that another attempt may fix, or it was interrupted. The next one starts soon.

    To do: Nothing. status.lastFailure says what happened.
    """
    ROLLING_OUT = "RollingOut"
    """The server pods are starting.

    To do: Wait while the model loads. If it lasts, read the message and the log of the server pod.
    """
    ENDPOINT_READY = "EndpointReady"
    """The endpoint answers.

    To do: Nothing. status.url is its address.
    """
    LOADING = "Loading"
    """The servers have been configured with the adapter and have not loaded it yet.

    To do: Wait; the kubelet delivers a changed list within about a minute.
    """
    VERIFYING = "Verifying"
    """The fingerprint is being replayed against the endpoint.

    To do: Wait.
    """
    FINGERPRINT_MATCHED = "FingerprintMatched"
    """The endpoint answers with the tuned weights: its log-probabilities match those recorded at the end of training.

    To do: Nothing.
    """
    NO_FINGERPRINT = "NoFingerprint"
    """The adapter has no fingerprint, so nothing can be proven about it.

    To do: Copy the fingerprint from status.adapter of the FinetuneJob into spec.adapters, or train the adapter again.
    """
    COMPLETED = "Completed"
    """The job or the rollout is complete.

    To do: Nothing.
    """

    # The spec, the data or the model must change
    SPEC_INVALID = "SpecInvalid"
    """The spec contradicts itself, or the API server or the trainer refuses a value in it.

    To do: Correct the field that the message names. A FinetuneJob is immutable, so create a new one.
    """
    ENGINE_NOT_AVAILABLE = "EngineNotAvailable"
    """spec.engine names an engine for which the operator has no image.

    To do: Use the engine Transformers, or ask the administrator to set the image that the message names.
    """
    DATASET_INVALID = "DatasetInvalid"
    """A row, or the whole file, cannot be used.

    To do: Correct the rows that the message names, and create the job again.
    """
    DATASET_NOT_FOUND = "DatasetNotFound"
    """The ConfigMap, key, claim, file or URL of the dataset does not exist.

    To do: Correct dataset.source or evaluation.source, or create what it names.
    """
    MODEL_NOT_FOUND = "ModelNotFound"
    """There is no model at model.source.

    To do: Correct model.source, or copy the model to the claim.
    """
    MODEL_INVALID = "ModelInvalid"
    """model.source does not contain a causal language model that transformers can load.

    To do: Use the checkpoint folder of a causal language model, with its configuration, weights and tokenizer.
    """
    ADAPTER_NOT_FOUND = "AdapterNotFound"
    """There is no complete adapter at spec.continueFrom: the FinetuneJob does not exist or ended without one, or the folder is not an adapter.

    To do: Name a job that has succeeded, or the folder of a committed adapter.
    """
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    """The hub refused access to the model, or the Secret with the token does not exist.

    To do: Accept the model's license on the hub, and name a Secret with a valid token in model.secretRef.
    """
    TARGET_MODULES_NOT_FOUND = "TargetModulesNotFound"
    """method.lora.targetModules names modules that this model does not have.

    To do: Use one of the module names that the message lists, or all-linear.
    """
    WONT_FIT_GPU = "WontFitGPU"
    """The model and its activations do not fit into the memory of the GPU.

    To do: Lower hyperparameters.maxLength, set method.lora.quantization to nf4, or use a larger GPU.
    """
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    """Even the smallest micro-batch does not fit into resources.memory, or the kernel killed the container for memory.

    To do: Raise resources.memory, or lower hyperparameters.maxLength.
    """
    CUDA_OUT_OF_MEMORY = "CUDAOutOfMemory"
    """The GPU ran out of memory, even with the smallest micro-batch and gradient checkpointing.

    To do: Lower hyperparameters.maxLength, set method.lora.quantization to nf4, or use a larger GPU.
    """
    LOSS_DIVERGED = "LossDiverged"
    """The loss became NaN or infinite, or stayed far above its initial value.

    To do: Lower hyperparameters.learningRate, or raise hyperparameters.warmupRatio.
    """
    STORAGE_FULL = "StorageFull"
    """The output claim is full or read-only, or the pod was evicted because it used too much local disk.

    To do: Free space on the claim or enlarge it. The next attempt, or a new job, resumes from the last checkpoint it finds.
    """
    CANCELLED_BY_USER = "CancelledByUser"
    """spec.cancel is true.

    To do: Nothing. Create a new job to train again.
    """

    # The cluster
    UNSCHEDULABLE = "Unschedulable"
    """No node can take the pod; the message is that of the scheduler.

    To do: Lower spec.resources, or add or free a node. The pod keeps waiting until then.
    """
    IMAGE_PULL_FAILED = "ImagePullFailed"
    """The node cannot pull the image; the message is that of the kubelet.

    To do: Check the image name and the pull secret in the chart's values.
    """
    START_DEADLINE_EXCEEDED = "StartDeadlineExceeded"
    """The pod did not start within policy.startDeadlineSeconds; the message says what it was waiting for.

    To do: Remove that cause, or raise policy.startDeadlineSeconds, and create the job again.
    """
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """There was no adapter within policy.activeDeadlineSeconds.

    To do: Raise policy.activeDeadlineSeconds, or train for fewer steps.
    """
    ATTEMPTS_EXHAUSTED = "AttemptsExhausted"
    """All of policy.maxAttempts attempts failed; the message has the last failure.

    To do: Fix the cause in status.lastFailure, and create the job again.
    """
    PREEMPTED = "Preempted"
    """The pod was evicted or preempted, or the node refused it.

    To do: Nothing; the next attempt resumes from the last checkpoint and does not count as a failure.
    """
    POD_DELETED = "PodDeleted"
    """The training pod or its Job was deleted from outside.

    To do: Nothing; the next attempt resumes from the last checkpoint. Use spec.suspend or spec.cancel to stop a job.
    """
    NODE_LOST = "NodeLost"
    """The node of the pod stopped reporting.

    To do: Wait for the node, or delete it from the cluster if it is gone for good. No other pod starts while this one may be running.
    """
    INTERRUPTED = "Interrupted"
    """The trainer received SIGTERM and saved a checkpoint.

    To do: Nothing; the next attempt resumes from the last checkpoint.
    """
    FENCED = "Fenced"
    """An older attempt detected a newer one and stopped without writing.

    To do: Nothing.
    """
    TRAINER_CRASHED = "TrainerCrashed"
    """The trainer ended without an outcome.

    To do: Read status.lastFailure.logTail. If the message asks for it, report a bug.
    """
    CHILD_CONFLICT = "ChildConflict"
    """An object with the name that a child needs exists and belongs to someone else, or the InferenceService in serve.into cannot take the adapter.

    To do: Rename or remove that object, or do what the message says.
    """

    # The endpoint
    ADAPTER_HAS_NO_EFFECT = "AdapterHasNoEffect"
    """The endpoint answers like the base model: the adapter is not applied, or training changed nothing measurable.

    To do: If training changed nothing, use more steps or a higher hyperparameters.learningRate. Otherwise check the server's log.
    """
    CHAT_TEMPLATE_DIFFERS = "ChatTemplateDiffers"
    """The endpoint has the tuned weights but renders chats with another template or tokenizer than the training run.

    To do: Serve the base model and revision that the adapter was trained on. The message names the first token that differs.
    """
    ADAPTER_INCOMPATIBLE = "AdapterIncompatible"
    """The endpoint matches neither the tuned nor the base model, a server refused the adapter, or training cannot continue from it.

    To do: Use the model, revision and adapter digest of the training run. The message says what differs.
    """
    EVAL_REGRESSION = "EvalRegression"
    """The adapter is worse than the served version by more than serve.gate allows. It is stored, and the served version stays.

    To do: Improve the training data or hyperparameters, or raise serve.gate.maxRegression in a new job.
    """
    ROLLOUT_TIMEOUT = "RolloutTimeout"
    """The endpoint was not ready and verified within serve.timeoutSeconds; the message says what was missing.

    To do: Remove that cause. Raise serve.timeoutSeconds if the model is large.
    """
    ADAPTER_SWITCHED = "AdapterSwitched"
    """Clients get another version of the adapter than before.

    To do: Nothing, if that is the version you expect. status.adapters[].served of the InferenceService names it.
    """
    ENDPOINT_UNREACHABLE = "EndpointUnreachable"
    """The endpoint did not answer the operator's probe, or it was deleted.

    To do: Check the server pods, and NetworkPolicies between the operator and the pods.
    """
