"""Talk to the model that the demonstration left running: `python -m demo.chat`, or `--base` for the untuned one."""

import argparse
import sys

from demo.cluster import JOB_NAMESPACE, Target, local_target, named_target
from demo.job import NAME, finished_job
from demo.score import client_at
from demo.shell import DemoError

MAX_TOKENS = 128
"""Longest answer; a tuned one has ten tokens."""


def main() -> None:
    """Entry point; ends with an empty line or Ctrl-D."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", action="store_true", help="talk to the base model")
    parser.add_argument("--use-current-context", action="store_true", help="the cluster of kubectl's current context")
    arguments = parser.parse_args()
    target = named_target(None, "") if arguments.use_current_context else local_target()
    try:
        chat(target, base=arguments.base)
    except DemoError as error:
        sys.exit(f"{error}\n{error.hint}")


def chat(target: Target, *, base: bool) -> None:
    """Each line is a message of its own: the tuned task knows no conversation."""
    job = finished_job(target)
    model = job.base if base else job.adapter
    with target.shell.forward(JOB_NAMESPACE, job.service, "http") as port:
        client = client_at(port)
        print(f"{model}, trained by FinetuneJob {NAME}; an empty line ends.")
        while message := _read():
            answer = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": message}],
                temperature=0,
                max_tokens=MAX_TOKENS,
                stream=True,
            )
            for chunk in answer:
                print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
            print()


def _read() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    main()
