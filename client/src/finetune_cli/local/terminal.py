"""Terminal output of a run: one line per condition and event, a bar while training runs, the answers at the end."""

import json
import time
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from finetune_api.contract import FINETUNE_JOB_KIND
from finetune_cli.local.chat import Answers, Endpoint, Score
from finetune_cli.local.store import Change
from finetune_operator.io.cluster import EVENTS, FINETUNE_JOBS
from finetune_operator.kubernetes_types import Raw

QUIET_SECONDS: Final = 10.0
"""Where output is no terminal, progress is a line this often."""
MARKS: Final = {"True": "[green]✓[/]", "False": "[dim]·[/]", "Unknown": "[yellow]·[/]"}
BAR_WIDTH: Final = 30


class Terminal:
    """Prints; knows nothing of how a run works but the objects that change."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._started = time.monotonic()
        self._conditions: dict[str, tuple[str, str, str]] = {}
        self._said: set[str] = set()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last_line = float("-inf")
        self._step = -1

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def note(self, text: str) -> None:
        """Print one line of the command's own."""
        self._line("[dim]-[/]", escape(text))

    def forget(self, status: Raw) -> None:
        """Take the conditions and the progress of an earlier run as known."""
        self._step = (status.get("progress") or {}).get("step", -1)
        self._conditions = {c["type"]: _key(c) for c in status.get("conditions") or []}

    def on_change(self, change: Change) -> None:
        """Print what is new in the job or in an event about it."""
        if change.is_deletion:
            return
        if change.resource == FINETUNE_JOBS:
            status = change.object.get("status") or {}
            for condition in status.get("conditions") or []:
                self._show_condition(condition)
            self._show_progress(status)
        elif change.resource == EVENTS and change.object["regarding"]["kind"] == FINETUNE_JOB_KIND:
            self._show_event(change.object)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def answers(self, questions: list[Answers]) -> None:
        """Print answers of both models side by side."""
        table = Table(show_edge=False, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
        table.add_column("message", ratio=3)
        table.add_column("base model", ratio=3, style="dim")
        table.add_column("tuned model", ratio=2, style="green")
        for answer in questions:
            table.add_row(escape(answer.prompt), escape(_shortened(answer.base)), escape(answer.tuned))
        self.console.print()
        self.console.print(table)

    def score(self, score: Score) -> None:
        """Print how many answers of both models were exactly right."""
        self.console.print(
            f"\nHeld-out rows answered exactly right: base model {score.base} of {score.rows}, "
            f"[bold]tuned model {score.tuned} of {score.rows}[/]"
        )

    def how_to_ask(self, endpoint: Endpoint, question: str, *, chat_page: str) -> None:
        """Print lines to paste while the server runs."""
        message = {"role": "user", "content": question}
        body = json.dumps({"model": endpoint.tuned, "temperature": 0, "messages": [message]})
        quoted = body.replace("'", "'\\''")
        lines = [
            f"Serving {endpoint.tuned} and {endpoint.base} at {endpoint.url} (chat page: {chat_page}). Ctrl-C ends it.",
            "",
            f"curl -s {endpoint.url}/chat/completions -H 'Content-Type: application/json' -d '{quoted}'",
            "",
            "from openai import OpenAI",
            f'client = OpenAI(base_url="{endpoint.url}", api_key="none")',
            f'answer = client.chat.completions.create(model="{endpoint.tuned}", temperature=0, messages=[{json.dumps(message)}])',
            "print(answer.choices[0].message.content)",
        ]
        self.console.print()
        for line in lines:
            self.console.print(escape(line), soft_wrap=True)

    def summary(self, *lines: str) -> None:
        """Print closing lines."""
        self.console.print()
        for line in lines:
            self.console.print(escape(line), soft_wrap=True)

    def _show_condition(self, condition: Raw) -> None:
        key = _key(condition)
        if self._conditions.get(condition["type"]) == key:
            return
        self._conditions[condition["type"]] = key
        status, reason, message = key
        if condition["type"] == "Running" and status != "True":
            self.close()
        self._said.add(message)
        mark = "[red]✗[/]" if (condition["type"], status) == ("Failed", "True") else MARKS[status]
        text = " ".join(f"{reason}: {message}".split()) if message else "" if reason == condition["type"] else reason
        self._line(mark, f"[bold]{condition['type']:19}[/] {escape(text)}")

    def _show_event(self, event: Raw) -> None:
        if event["note"] in self._said:
            return
        self._said.add(event["note"])
        mark = "[yellow]![/]" if event["type"] == "Warning" else "[dim]·[/]"
        self._line(mark, f"[bold]{'Event':19}[/] {escape(event['reason'])}: {escape(event['note'])}")

    def _show_progress(self, status: Raw) -> None:
        progress = status.get("progress") or {}
        step, total = progress.get("step", 0), progress.get("totalSteps") or 0
        if not total or step == self._step or status.get("phase") not in ("Running", "Publishing", "Deploying"):
            return
        self._step = step
        words = [f"step {step}/{total}"]
        words += [f"loss {progress['loss']}"] if "loss" in progress else []
        words += [f"{progress['tokensPerSecond']} tokens/s"] if "tokensPerSecond" in progress else []
        words += [f"{progress['eta']} left"] if progress.get("eta") else []
        if self.console.is_terminal:
            self._move_bar(step, total, "  ".join(words))
        elif self.seconds - self._last_line >= QUIET_SECONDS or step == total:
            self._last_line = self.seconds
            self._line(" ", f"{'':19} {'  '.join(words)}")

    def _move_bar(self, step: int, total: int, text: str) -> None:
        if self._bar is None:
            indent = TextColumn(" " * 31)
            self._bar = Progress(indent, BarColumn(BAR_WIDTH), TextColumn("{task.description}"), console=self.console)
            self._task = self._bar.add_task(text, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=step, total=total, description=text)

    def _line(self, mark: str, text: str) -> None:
        self.console.print(f"[dim]{self.seconds:7.1f} s[/] {mark} {text}", soft_wrap=True)


def _key(condition: Raw) -> tuple[str, str, str]:
    return condition["status"], condition["reason"], condition.get("message") or ""


def _shortened(answer: str, characters: int = 90) -> str:
    words = " ".join(answer.split())
    return words if len(words) <= characters else words[: characters - 1] + "…"
