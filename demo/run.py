"""`make demo`: from nothing to a fine-tuned model that is served and shown to be tuned, on a real Kubernetes.

    python -m demo.run                        # on this machine's own cluster, which it brings up
    python -m demo.run --cluster current --values images.yaml --model hf://HuggingFaceTB/SmolLM2-135M-Instruct

It may be interrupted and repeated at any point: each stage finds what is done already, and the job is trained anew.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from demo import chart, cluster, job, score
from demo.narrate import Narrator, say
from demo.shell import REPOSITORY, DemoError
from lab.figures import Figure, record

STAGES = 6
WARM_SECONDS_MUST = 120
"""Longest run on two processor cores when nothing has to be compiled, downloaded or built for the first time."""
COLD_SECONDS_MUST, COLD_SECONDS_AIM = 840, 540
"""The same with empty caches, Python environment included."""


def main() -> int:
    """Entry point; 1 if a stage failed, 130 if interrupted."""
    narrator = Narrator(STAGES)
    try:
        demonstrate(_target(), narrator)
    except DemoError as error:
        say(f"\nFAILED: {narrator.current}\n\n{error}")
        if error.hint:
            say(f"\nWhat to do: {error.hint}")
        return 1
    except KeyboardInterrupt:
        say(f"\ninterrupted during: {narrator.current}\nThe same command resumes here; `make demo-down` removes all.")
        return 130
    return 0


def demonstrate(target: cluster.Target, narrator: Narrator) -> None:
    """Run all stages in order."""
    # The Makefile's start: before it made the Python environment.
    before = time.time() - float(os.environ.get("DEMO_STARTED") or time.time())
    started = time.monotonic() - before
    with narrator.stage("cluster", "A Kubernetes cluster, and images of operator, trainer and server"):
        cluster.bring_up(target)
        images = cluster.provide_images(target)
    with narrator.stage("model", "A namespace for jobs, with a base model"):
        cluster.provide_namespace_and_model(target)
    with narrator.stage("chart", "The Helm chart: operator, gateway, Redis"):
        chart.install(target, cluster.chart_values(target, images))
    with narrator.stage("submit", "A FinetuneJob and its rows"):
        submitted = time.time()
        job.submit(target)
    with narrator.stage("job", "Train, publish, deploy, verify"):
        finished = job.follow(target)
    with (
        narrator.stage("questions", "The same endpoint, base model and tuned model, on messages neither has seen"),
        target.shell.forward(cluster.JOB_NAMESPACE, finished.service, "http") as port,
    ):
        client = score.client_at(port)
        score.show_side_by_side(client, finished)
        say()
        base = score.score(client, finished.base, "base model")
        tuned = score.score(client, finished.adapter, "tuned model")
    seconds = time.monotonic() - started
    figures = demo_figures(target, narrator, seconds, base, tuned) + cluster_figures(target, images, submitted)
    path = record("demo", figures, seconds)
    if target.local and not target.warm:
        cold = Figure("demo cold s", round(seconds, 1), "s", "lower", COLD_SECONDS_MUST, COLD_SECONDS_AIM)
        record("first-run", [cold], seconds, merge=True)
    say(f"\nDone in {seconds:.0f} s; figures are in {path.relative_to(REPOSITORY)}. Everything is still running.\n")
    say(how_to_go_on(target, finished))


def demo_figures(
    target: cluster.Target, narrator: Narrator, seconds: float, base: score.Score, tuned: score.Score
) -> list[Figure]:
    """Return the figures of this run."""
    whole = (
        Figure("demo with warm caches", round(seconds, 1), "s", "lower", must=WARM_SECONDS_MUST)
        if target.warm
        else Figure("demo with cold caches", round(seconds, 1), "s", "lower")
    )
    return [
        whole,
        Figure("held-out exact match, base model", round(base.percent, 1), "%", "lower", must=5, aim=0),
        Figure("held-out exact match, tuned model", round(tuned.percent, 1), "%", "higher", must=90, aim=100),
        *(Figure(f"stage {name}", round(value, 1), "s", "lower") for name, value in narrator.seconds.items()),
    ]


def cluster_figures(target: cluster.Target, images: cluster.Images | None, submitted: float) -> list[Figure]:
    """Return the figures that only our own cluster has: sizes of images, and the operator's writes."""
    figures = []
    if images and images.operator_megabytes_over_base is not None:
        size = round(images.operator_megabytes_over_base, 1)
        figures.append(Figure("operator image over its base", size, "MB", "lower", must=70))
        figures += [
            Figure(f"{part} image, compressed", round(images.megabytes[part], 1), "MB", "lower")
            for part in ("trainer", "inference")
        ]
    if target.audit_log and target.audit_log.exists():
        writes = operator_writes(target.audit_log, submitted)
        figures.append(Figure("operator writes for the served job", float(writes), "writes", "lower"))
    return figures


def operator_writes(audit_log: Path, since: float) -> int:
    """Count the operator's writes in the job's namespace, from the API server's audit log."""
    user = f"system:serviceaccount:{cluster.SYSTEM_NAMESPACE}:{chart.RELEASE}-operator"
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since))
    count = 0
    with audit_log.open() as log:
        for line in log:
            if user not in line:
                continue
            event = json.loads(line)
            is_ours = event.get("objectRef", {}).get("namespace") == cluster.JOB_NAMESPACE
            count += is_ours and event["user"]["username"] == user and event["requestReceivedTimestamp"] >= moment
    return count


def how_to_go_on(target: cluster.Target, finished: job.Finished) -> str:
    """Return lines to paste."""
    row = score.held_out_rows()[score.SHOWN_ROWS[0]]
    message = json.dumps({"role": "user", "content": row.prompt})
    body = json.dumps(
        {"model": finished.adapter, "temperature": 0, "messages": [{"role": "user", "content": row.prompt}]}
    )
    namespace = cluster.JOB_NAMESPACE
    lines = [
        "Go on with:",
        "",
        *target.hints,
        f"kubectl --namespace {namespace} get finetunejobs,inferenceservices.finetune.dev,pods",
        f"kubectl --namespace {namespace} describe finetunejob {job.NAME}",
        f"kubectl --namespace {namespace} port-forward service/{finished.service} 8000:80 &",
        f"curl -s localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
        "",
        "from openai import OpenAI",
        'client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")',
        f'answer = client.chat.completions.create(model="{finished.adapter}", temperature=0, messages=[{message}])',
        "print(answer.choices[0].message.content)",
        "",
        f"{_python()} -m demo.chat{'' if target.local else ' --use-current-context'}   # talk to it; --base: to the untuned model",
    ]
    if target.local:
        lines += ["make demo-down   # removes the cluster; images and compiled programs are kept"]
    return "\n".join(lines)


def _target() -> cluster.Target:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cluster",
        choices=["local", "kind", "current"],
        default="local",
        help="this machine's own cluster, one of kind, or that of kubectl's current context (default: %(default)s)",
    )
    parser.add_argument(
        "--use-current-context", dest="cluster", action="store_const", const="current", help="same as --cluster current"
    )
    parser.add_argument("--kind-name", default="kind", help="name of the cluster of kind (default: %(default)s)")
    parser.add_argument(
        "--values", type=Path, help="values for the chart on the current cluster: your images, at least"
    )
    parser.add_argument(
        "--model", default=cluster.HUB_MODEL, help="base model on other clusters (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.values and arguments.cluster != "current":
        parser.error("--values belongs to --cluster current")
    if arguments.model != cluster.HUB_MODEL and arguments.cluster == "local":
        parser.error("--model belongs to --cluster kind or current")
    if arguments.cluster == "kind":
        return cluster.kind_target(arguments.kind_name, arguments.model)
    if arguments.cluster == "current":
        return cluster.named_target(arguments.values, arguments.model)
    return cluster.local_target()


def _python() -> str:
    """Return this interpreter as a person in the checkout would type it."""
    return sys.executable.removeprefix(f"{REPOSITORY}/")


if __name__ == "__main__":
    sys.exit(main())
