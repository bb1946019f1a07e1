"""The trainer's last words must fit into a termination message."""

from finetune_api.contract import MAX_TERMINATION_BYTES
from finetune_api.outcome import Outcome, Result
from finetune_api.reasons import Reason


def an_outcome(message: str) -> Outcome:
    return Outcome(result=Result.FAILED, reason=Reason.DATASET_INVALID, message=message)


def test_a_short_outcome_round_trips() -> None:
    outcome = an_outcome("row 3: no completion")
    assert Outcome.model_validate_json(outcome.to_termination_message()) == outcome


def test_a_long_message_is_cut_and_the_rest_survives() -> None:
    for filler in ("x", "é", "日", '"', "\n"):
        text = an_outcome(filler * 9000).to_termination_message()
        assert len(text.encode()) <= MAX_TERMINATION_BYTES
        parsed = Outcome.model_validate_json(text)
        assert parsed.reason is Reason.DATASET_INVALID
        assert parsed.message.startswith(filler)
        assert parsed.message.endswith("…")
