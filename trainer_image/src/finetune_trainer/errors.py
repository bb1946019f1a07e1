"""Why a run ended without an adapter: one exception class, and the only table from reasons to exit codes.

`TrainingError` is raised close to the cause, with a sentence that names the field or row, what was found, what is expected
and what to do. It is translated once, in `tasks.finetuning_task.run_finetuning`.
"""

import contextlib
import errno
from collections.abc import Iterator
from typing import Final

from finetune_api.contract import ExitCode
from finetune_api.outcome import Outcome, Result
from finetune_api.reasons import Reason

EXIT_CODES: Final = {
    Reason.TRAINED: ExitCode.SUCCEEDED,
    Reason.ACCEPTED: ExitCode.SUCCEEDED,
    Reason.SPEC_INVALID: ExitCode.CONFIG_INVALID,
    Reason.ADAPTER_NOT_FOUND: ExitCode.CONFIG_INVALID,
    Reason.ADAPTER_INCOMPATIBLE: ExitCode.CONFIG_INVALID,
    Reason.DATASET_INVALID: ExitCode.DATASET_INVALID,
    Reason.DATASET_NOT_FOUND: ExitCode.DATASET_INVALID,
    Reason.MODEL_INVALID: ExitCode.MODEL_INVALID,
    Reason.MODEL_NOT_FOUND: ExitCode.MODEL_INVALID,
    Reason.MODEL_ACCESS_DENIED: ExitCode.MODEL_INVALID,
    Reason.TARGET_MODULES_NOT_FOUND: ExitCode.MODEL_INVALID,
    Reason.STORAGE_FULL: ExitCode.STORAGE_FULL,
    Reason.FENCED: ExitCode.FENCED,
    Reason.INTERRUPTED: ExitCode.INTERRUPTED,
}
"""Exit code by reason; every other reason ends with `ExitCode.BUG` and the Outcome says more."""

NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""A volume that takes nothing more: full, over quota, or read-only (a file system turns so after errors, too)."""
NO_SPACE_PHRASES: Final = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "os error 28",
)
"""safetensors and tokenizers write from native code and report a full disk as text only."""

NO_HOST_MEMORY: Final = ("can't allocate memory", "std::bad_alloc")
"""What torch's allocator of main memory says, and C++ of a small piece of it, in a plain RuntimeError."""
NO_CODE_MEMORY: Final = "could not create a primitive"
"""All that oneDNN says when it has no memory for a product's code; with anything behind it, something else is wrong."""
NO_HANDLE_MEMORY: Final = "CUBLAS_STATUS_ALLOC_FAILED"
"""What cuBLAS says where torch's allocator left it nothing, in a plain RuntimeError too."""


class TrainingError(Exception):
    """A run cannot go on, for a reason that a user or the operator can act upon."""

    def __init__(self, reason: Reason, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable
        """Whether the same run, started again without any change, can end differently."""

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of a process that ends with this error."""
        return EXIT_CODES.get(self.reason, ExitCode.BUG)

    def to_outcome(self, *, step: int = 0, checkpoint_step: int | None = None) -> Outcome:
        """The Outcome that reports this error."""
        interrupted = self.reason in (Reason.INTERRUPTED, Reason.FENCED)
        return Outcome(
            result=Result.INTERRUPTED if interrupted else Result.FAILED,
            reason=self.reason,
            message=self.message,
            retryable=self.retryable,
            step=step,
            checkpoint_step=checkpoint_step,
        )


def exit_code_of(outcome: Outcome) -> ExitCode:
    """Exit code that goes with an Outcome."""
    return EXIT_CODES.get(outcome.reason, ExitCode.BUG)


def as_training_error(error: BaseException) -> TrainingError:
    """Translate what libraries and the kernel raise; what nobody planned for is worth another attempt."""
    if isinstance(error, TrainingError):
        return error
    text = one_line(error)
    if is_storage_full(error):
        # Worth another attempt: space can be made meanwhile, and then it goes on from the last checkpoint.
        return TrainingError(
            Reason.STORAGE_FULL,
            f"The output volume is full or read-only ({text}). Enlarge output.claim or remove old adapters; another attempt "
            "goes on from the last checkpoint.",
            retryable=True,
        )
    if is_out_of_memory(error):
        on_gpu = _is_of_accelerator(error)
        return TrainingError(
            Reason.CUDA_OUT_OF_MEMORY if on_gpu else Reason.HOST_OUT_OF_MEMORY,
            f"The {'accelerator' if on_gpu else 'trainer'} ran out of memory ({text}), in the smallest passes that there are. "
            f"Lower hyperparameters.maxLength or method.lora.rank, or {'use a larger GPU' if on_gpu else 'raise resources.memory'}.",
        )
    return TrainingError(Reason.TRAINER_CRASHED, f"{type(error).__name__}: {text}", retryable=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is memory that does not suffice, of the accelerator or of the host."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or any(phrase in text for phrase in NO_HOST_MEMORY)
        or text == NO_CODE_MEMORY
        or _is_of_accelerator(error)
    )


def _is_of_accelerator(error: BaseException) -> bool:
    # torch's class; comparing names keeps torch out of this module
    return type(error).__name__ == "OutOfMemoryError" or NO_HANDLE_MEMORY in str(error)


@contextlib.contextmanager
def on_scratch(what: str) -> Iterator[None]:
    """Around what is written to the scratch volume: that it is full is not the output claim's fault.

    Raises TrainingError (StorageFull).
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, TrainingError) or not is_storage_full(error):
            raise
        raise TrainingError(
            Reason.STORAGE_FULL,
            f"The scratch volume, or its node's disk, is full with {what} ({one_line(error)}); use a smaller one, put it on a "
            "claim, or have the administrator raise workloads.scratchSize",
            retryable=True,  # another node may have the space
        ) from error


def is_storage_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a volume that takes nothing more."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and current.errno in NO_SPACE:
            return True
        if any(phrase in str(current) for phrase in NO_SPACE_PHRASES):
            return True
        current = current.__cause__ or current.__context__
    return False


def one_line(error: BaseException) -> str:
    """First line of an error's text, short enough for a status."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
