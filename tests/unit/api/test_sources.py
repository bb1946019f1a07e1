"""The grammar of source URIs, in Python and in CEL."""

import pytest

from finetune_api.sources import Source, parse_source


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("pvc://models/SmolLM2-135M-Instruct", Source("pvc", "models", "SmolLM2-135M-Instruct")),
        ("pvc://models/a/b.c/d_e", Source("pvc", "models", "a/b.c/d_e")),
        ("configmap://tickets/train.jsonl", Source("configmap", "tickets", "train.jsonl")),
        ("hf://HuggingFaceTB/SmolLM2-135M", Source("hf", "HuggingFaceTB", "SmolLM2-135M")),
        ("hf://org/rows@v1.2", Source("hf", "org", "rows@v1.2")),
        ("hf://org/rows?split=train_sft", Source("hf", "org", "rows", None, "train_sft")),
        ("hf://org/rows@v1?config=20231101.en&split=a.b", Source("hf", "org", "rows@v1", "20231101.en", "a.b")),
        ("hf://org/rows?split=test&config=en/US", Source("hf", "org", "rows", "en/US", "test")),
        ("https://example.org:65535/rows.jsonl", Source("https", "example.org:65535", "rows.jsonl")),
        ("https://example.org:8443/a/rows.csv.gz", Source("https", "example.org:8443", "a/rows.csv.gz")),
        ("s3://my-bucket/a/b_c.jsonl", Source("s3", "my-bucket", "a/b_c.jsonl")),
    ],
)
def test_a_well_formed_source_is_parsed(uri: str, expected: Source) -> None:
    assert parse_source(uri) == expected


@pytest.mark.parametrize(
    ("uri", "fragment"),
    [
        ("pvc://models/../etc/passwd", "cannot leave their volume"),
        ("pvc://models/a/..", "cannot leave their volume"),
        ("pvc://models//a", "malformed"),
        ("pvc://models", "malformed"),
        ("pvc:///a", "malformed"),
        ("pvc://models/a\n", "malformed"),
        ("/models/a", "not a supported source"),
        ("file:///models/a", "not a supported source"),
        ("http://example.org/rows.jsonl", "not a supported source"),
        ("https://user:secret@example.org/rows.jsonl", "malformed"),
        ("https://example.org/rows.jsonl?signature=secret", "malformed"),
        ("https://[::1]/rows.jsonl", "malformed"),
        ("https://example.org/../rows.jsonl", "cannot leave"),
        ("https://example.org:65536/rows.jsonl", "malformed"),
        ("https://example.org:0/rows.jsonl", "malformed"),
        ("s3://Bucket/key", "malformed"),
        ("s3://bucket", "malformed"),
        ("hf://org/name/extra", "malformed"),
        ("hf://org@main/name", "malformed"),
        ("hf://org/name@", "malformed"),
        ("hf://org/name?", "malformed"),
        ("hf://org/name?token=secret", "malformed"),
        ("hf://org/name?split=", "malformed"),
        ("hf://org/name?split=train[:10%]", "malformed"),
        ("hf://org/name?split=a&split=b", "malformed"),
        ("hf://org/name?config=../a", "malformed"),
        ("pvc://models/a?split=train", "malformed"),
        ("pvc://models/" + "a" * 600, "malformed"),
    ],
)
def test_anything_else_is_refused_with_what_was_found(uri: str, fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        parse_source(uri)


def test_a_scheme_that_the_field_does_not_take_is_refused_with_those_it_takes() -> None:
    with pytest.raises(ValueError, match="use pvc://CLAIM/PATH or configmap://NAME/KEY"):
        parse_source("hf://a/b", ("pvc", "configmap"))


def test_a_model_has_no_split() -> None:
    with pytest.raises(ValueError, match=r"use hf://ORG/NAME$"):
        parse_source("hf://a/b?split=train", ("pvc", "hf"), selects=False)
