"""Signed requests for objects of an S3-compatible store (AWS Signature Version 4)."""

import datetime as dt
import hashlib
import hmac
import urllib.parse
from typing import Final

from finetune_api.reasons import Reason
from finetune_trainer.config import SourceSettings
from finetune_trainer.errors import TrainingError
from finetune_trainer.sources.addresses import host_header

EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
"""Digest of the body of a GET request."""


def s3_request(uri: str, settings: SourceSettings, now: dt.datetime | None = None) -> tuple[str, dict[str, str]]:
    """Return URL and headers of a request for `s3://BUCKET/KEY`; anonymous without an access key.

    The bucket is part of the path, because a store inside a cluster has no host name per bucket. Raises TrainingError
    (SpecInvalid) for an endpoint that is not a URL.
    """
    region = settings.aws_region
    endpoint = settings.aws_endpoint_url or f"https://s3.{region}.amazonaws.com"
    path = "/" + urllib.parse.quote(uri.removeprefix("s3://"), safe="/~")
    url = endpoint.rstrip("/") + path
    parts, host = _split(url)
    if settings.aws_access_key_id is None or settings.aws_secret_access_key is None:
        return url, {}
    time = (now or dt.datetime.now(dt.UTC)).strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-amz-content-sha256": EMPTY_SHA256, "x-amz-date": time}
    if settings.aws_session_token:
        headers["x-amz-security-token"] = settings.aws_session_token.get_secret_value()
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    names = ";".join(sorted(headers))
    canonical = "\n".join(
        ["GET", parts.path, "", *(f"{name}:{headers[name]}" for name in sorted(headers)), "", names, EMPTY_SHA256]
    )
    to_sign = "\n".join(["AWS4-HMAC-SHA256", time, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{settings.aws_secret_access_key.get_secret_value()}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    signature = _hmac(key, to_sign).hex()
    credential = f"{settings.aws_access_key_id}/{scope}"
    authorization = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}"
    del headers["host"]  # the connection sets it, to the same
    return url, {**headers, "Authorization": authorization}


def _split(url: str) -> tuple[urllib.parse.SplitResult, str]:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts, host_header(parts)
    except ValueError:  # not quoted: it may hold a password
        raise TrainingError(Reason.SPEC_INVALID, "AWS_ENDPOINT_URL is not a URL; expected https://HOST") from None


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
