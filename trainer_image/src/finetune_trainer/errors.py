"""Errors that end a run without an adapter: one exception class, and the only table from reasons to exit codes.

`TrainingError` is raised close to the cause, with a message that names the field or row, the value found, the value expected
and the remedy. `tasks.finetuning_task.run_finetuning` is the one place that translates it into an Outcome.
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
"""Exit code by reason. Every other reason exits with `ExitCode.BUG`; its Outcome has the details."""

NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a volume without space: full, over quota, or read-only (which a file system also becomes after errors)."""
NO_SPACE_PHRASES: Final = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "os error 28",
)
"""Texts by which safetensors and tokenizers, which write from native code, report a full disk."""

NO_HOST_MEMORY: Final = ("can't allocate memory", "std::bad_alloc")
"""Texts of a plain RuntimeError for exhausted main memory: from torch's allocator, and from C++ for a small allocation."""
NO_CODE_MEMORY: Final = "could not create a primitive"
"""Whole text of oneDNN's error when memory for generated code is exhausted; a longer text has another cause."""
NO_HANDLE_MEMORY: Final = "CUBLAS_STATUS_ALLOC_FAILED"
"""Text of a plain RuntimeError of cuBLAS when torch's allocator has left no memory for its handle."""


class TrainingError(Exception):
    """Error that ends a run, with a reason that a user or the operator can act on."""

    def __init__(self, reason: Reason, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable
        """True if the same run, started again unchanged, can end differently."""

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of a process that this error ends."""
        return EXIT_CODES.get(self.reason, ExitCode.BUG)

    def to_outcome(self, *, step: int = 0, checkpoint_step: int | None = None) -> Outcome:
        """Return the Outcome that reports this error."""
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
    """Return the exit code of an Outcome's reason."""
    return EXIT_CODES.get(outcome.reason, ExitCode.BUG)


def as_training_error(error: BaseException) -> TrainingError:
    """Translate errors of libraries and of the kernel; an unexpected one is worth another attempt."""
    if isinstance(error, TrainingError):
        return error
    text = one_line(error)
    if is_storage_full(error):
        # Worth another attempt, because somebody may free space meanwhile.
        return TrainingError(
            Reason.STORAGE_FULL,
            f"The output volume is full or read-only ({text}). Remove old adapters or enlarge output.claim; the next attempt "
            "resumes from the last checkpoint.",
            retryable=True,
        )
    if is_out_of_memory(error):
        on_gpu = _is_of_accelerator(error)
        return TrainingError(
            Reason.CUDA_OUT_OF_MEMORY if on_gpu else Reason.HOST_OUT_OF_MEMORY,
            f"The {'GPU' if on_gpu else 'trainer'} has too little memory even for the smallest micro-batch ({text}). "
            f"Lower hyperparameters.maxLength or method.lora.rank, or {'use a larger GPU' if on_gpu else 'raise resources.memory'}.",
        )
    return TrainingError(Reason.TRAINER_CRASHED, f"{type(error).__name__}: {text}", retryable=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Check if an error is exhausted memory, of the accelerator or of the host."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or any(phrase in text for phrase in NO_HOST_MEMORY)
        or text == NO_CODE_MEMORY
        or _is_of_accelerator(error)
    )


def _is_of_accelerator(error: BaseException) -> bool:
    # The class is torch's; comparing its name keeps torch out of this module.
    return type(error).__name__ == "OutOfMemoryError" or NO_HANDLE_MEMORY in str(error)


@contextlib.contextmanager
def on_scratch(content: str) -> Iterator[None]:
    """Name the scratch volume, not the output claim, if writing `content` within this context finds it full.

    Raises TrainingError (StorageFull).
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, TrainingError) or not is_storage_full(error):
            raise
        raise TrainingError(
            Reason.STORAGE_FULL,
            f"The scratch volume, or its node's disk, is full with {content} ({one_line(error)}). Use a smaller one, put it on "
            "a claim, or ask the administrator to raise workloads.scratchSize.",
            retryable=True,  # another node may have the space
        ) from error


def is_storage_full(error: BaseException) -> bool:
    """Check if an error, or one of its causes, is a volume without space."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and current.errno in NO_SPACE:
            return True
        if any(phrase in str(current) for phrase in NO_SPACE_PHRASES):
            return True
        current = current.__cause__ or current.__context__
    return False


def one_line(error: BaseException) -> str:
    """Return the first line of an error's text, short enough for a status."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
