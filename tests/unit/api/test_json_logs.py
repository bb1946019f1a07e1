"""The log format of operator and gateway."""

import json
import logging

from finetune_api.json_logs import JsonFormatter


def formatted(formatter: JsonFormatter, **extra: object) -> str:
    record = logging.LogRecord("finetune.x", logging.WARNING, "f", 1, "it %s", ("failed",), None)
    vars(record).update(extra)
    return formatter.format(record)


def test_numbers_stay_numbers_and_unset_or_hidden_fields_are_left_out() -> None:
    line = json.loads(formatted(JsonFormatter(frozenset({"settings"})), seconds=1.5, object=None, settings="internal"))
    assert line["time"].endswith("+00:00")
    del line["time"]
    assert line == {"level": "warning", "logger": "finetune.x", "message": "it failed", "seconds": 1.5}


def test_a_line_can_always_be_written_and_stays_readable() -> None:
    line = formatted(JsonFormatter(), path="/Grüße\n\ud800")
    assert "Grüße" in line
    assert "\n" not in line
    line.encode()
    json.loads(line)
