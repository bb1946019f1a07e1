"""Train one tiny job, wait for the proof, ask the endpoint one question, and delete the job: the chart's `helm test`.

It runs in the operator's image. Its exit status is 0 if the adapter was verified and the endpoint answered.
"""

import json
import os
import signal
import sys
import time
import urllib.request
from typing import Any, Final

from kubernetes import client, config

KIND: Final = {"group": "finetune.dev", "version": "v1alpha1", "plural": "finetunejobs"}
QUESTION: Final = "Where is my parcel?"
ROWS: Final = (
    (QUESTION, "#late [SHIPPING]"),
    ("My parcel has not arrived.", "#late [SHIPPING]"),
    ("The mirror arrived cracked.", "#damaged [SHIPPING]"),
    ("I was charged twice, please refund me.", "#refund [BILLING]"),
    ("Send me last week's invoice.", "#invoice [BILLING]"),
    ("I forgot my password.", "#password [ACCOUNT]"),
    ("Please delete my account.", "#delete [ACCOUNT]"),
    ("The app crashes when I open a photo.", "#crash [APP]"),
)
LABEL: Final = {"app.kubernetes.io/created-by": "helm-test"}
POLL_SECONDS: Final = 3.0


def manifest(model: str) -> dict[str, Any]:
    """Return the job, with the label by which a later test finds it if this program is killed."""
    rows = "\n".join(json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in ROWS)
    return {
        "apiVersion": f"{KIND['group']}/{KIND['version']}",
        "kind": "FinetuneJob",
        "metadata": {"generateName": "helm-test-", "labels": LABEL},
        "spec": {
            "model": {"source": model},
            "dataset": {"inline": rows},
            "hyperparameters": {"epochs": 20, "learningRate": 0.001},
            "serve": {},
        },
    }


def condition(job: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a condition of the job, or an empty one."""
    return next((c for c in job.get("status", {}).get("conditions", []) if c["type"] == name), {})


def wait_until_verified(api: Any, namespace: str, name: str, deadline: float) -> dict[str, Any]:
    """Print each new phase until the adapter is verified, and return the job. Raise RuntimeError if that fails."""
    shown = ""
    while time.monotonic() < deadline:
        job = api.get_namespaced_custom_object(**KIND, namespace=namespace, name=name)
        status = job.get("status", {})
        line = f"{status.get('phase', 'Pending')}: {status.get('message', '')}"
        if line != shown:
            print(line)
            shown = line
        if condition(job, "AdapterVerified").get("status") == "True":
            return job
        if condition(job, "Failed").get("status") == "True" or status.get("phase") == "Cancelled":
            raise RuntimeError(f"FinetuneJob {namespace}/{name} did not succeed. {line}")
        time.sleep(POLL_SECONDS)
    raise RuntimeError(
        f"FinetuneJob {namespace}/{name} is not verified in time; set tests.timeoutSeconds. Last: {shown}"
    )


def ask(url: str, model: str) -> str:
    """Return the endpoint's answer to the question."""
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 16}
    request = urllib.request.Request(  # noqa: S310 - the URL is that of the job's Service
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        answer = str(json.load(response)["choices"][0]["message"]["content"])
    if not answer.strip():
        raise RuntimeError(f"{url} answered with an empty text")
    return answer


def run(api: Any, namespace: str, model: str, seconds: float) -> int:
    """Run the test with a CustomObjectsApi. Return the exit status."""
    selector = ",".join(f"{key}={value}" for key, value in LABEL.items())
    for job in api.list_namespaced_custom_object(**KIND, namespace=namespace, label_selector=selector)["items"]:
        api.delete_namespaced_custom_object(**KIND, namespace=namespace, name=job["metadata"]["name"])
        print(f"FinetuneJob {namespace}/{job['metadata']['name']} of a killed test deleted")
    created = api.create_namespaced_custom_object(**KIND, namespace=namespace, body=manifest(model))
    name = created["metadata"]["name"]
    print(f"FinetuneJob {namespace}/{name} created, model {model}, {len(ROWS)} rows")
    try:
        job = wait_until_verified(api, namespace, name, time.monotonic() + seconds)
        status = job["status"]
        print(f"Verified: {condition(job, 'AdapterVerified').get('message', '')}")
        answer = ask(status["serving"]["url"], status["adapter"]["name"])
        print(f"Asked {status['serving']['url']}: {QUESTION}\nAnswer: {answer}")
    except (RuntimeError, OSError, client.ApiException) as error:
        print(f"FAILED: {error}")
        return 1
    finally:
        try:
            api.delete_namespaced_custom_object(**KIND, namespace=namespace, name=name)
            print(f"FinetuneJob {namespace}/{name} deleted")
        except client.ApiException as error:
            # What ended the test is the news, not that its job is gone already.
            print(f"FinetuneJob {namespace}/{name} is not deleted: {error.status} {error.reason}")
    return 0


if __name__ == "__main__":
    # An exception instead of the default end, so that the job is deleted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    config.load_incluster_config()
    environment = os.environ
    sys.exit(
        run(
            client.CustomObjectsApi(),
            environment["TEST_NAMESPACE"],
            environment["TEST_MODEL"],
            float(environment["TEST_SECONDS"]),
        )
    )
