"""What a server has to bear, phase by phase, and what is seen of it. Every loop is bounded, and so is the whole.

Nothing here knows the server but by HTTP, its process id and its exit status.
"""

import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from lab.soak.raw_http import Answer, Client, completion

START_SECONDS = 240
IDLE_SECONDS = 60
"""In which a server that is left alone must have forgotten all work."""
RUNNING, WAITING = 16, 32
DECLARED = {200, 400, 404, 405, 413, 422, 429}
"""Statuses that a client may get from a server that is well."""
OVERLOAD = 10
MOST_TOKENS = 4096
"""What a server lets a request ask for unless it is told otherwise."""
MOST_TRIES = 50
"""Of a stream that finds the queue full."""
AT_ONCE = 32
"""Connections of the phases that do not overload."""


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    answer_tokens: int
    """Length of the answers under overload."""
    longest: int
    """Tokens of the model's context."""
    overload_seconds: float
    slow_readers: int
    abandoned: int
    giants: int
    random_requests: int
    steady_seconds: float
    draining: int
    """Streams on their way when SIGTERM comes."""


@dataclass
class Seen:
    """What came of it."""

    capacity: float = 0.0
    """Requests per second."""
    refused: list[float] = field(default_factory=list)
    """Seconds until each 429 under overload."""
    accepted: list[float] = field(default_factory=list)
    """Seconds until the end of each answer under overload."""
    problems: list[str] = field(default_factory=list)
    """What no client should have seen."""
    abandoned: int = 0
    """Streams that were hung up on before their end."""
    idle_after_abandoned: float = 0.0
    """Seconds from the last hang-up until nothing was in work."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds and MiB, in the steady phase but for its first quarter."""
    memory_begin: float = 0.0
    """MiB after the first requests."""
    left: dict[str, float] = field(default_factory=dict)
    """Gauges of the idle server at the end; all should be 0."""
    drained: int = 0
    """Streams that ended whole after SIGTERM."""
    turned_away: bool = False
    """Whether a new request found the port closed, or a 503, while others were completed."""
    exit_status: int | None = None

    @property
    def slope(self) -> float:
        """MiB per minute in the steady phase (least squares)."""
        return 60 * statistics.linear_regression(*zip(*self.memory, strict=True)).slope

    @property
    def growth(self) -> float:
        """MiB from after the first requests to the end."""
        return self.memory[-1][1] - self.memory_begin


@contextmanager
def server(model: Path, port: int, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A real server with a short queue; killed if it is still there at the end."""
    settings = {"MAX_RUNNING": RUNNING, "MAX_WAITING": WAITING, "DRAIN_DELAY_SECONDS": 1, "DRAIN_SECONDS": 60}
    environment = {**os.environ, **{f"FINETUNE_SERVER_{name}": str(value) for name, value in settings.items()}}
    command = [sys.executable, "-m", "finetune_inference", "--model", str(model), "--name", "base"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def run(plan: Plan, port: int, process: "subprocess.Popen[bytes]", say: Callable[[str], None]) -> Seen:
    """All phases."""
    soak = _Soak(plan, Client(port), process, say)
    await soak.wait_ready()
    phases: list[Callable[[], Awaitable[None]]] = [
        soak.measure_capacity,
        soak.overload,
        soak.read_slowly,
        soak.abandon,
        soak.send_giants,
        soak.send_anything,
        soak.go_on_steadily,
        soak.look_at_what_is_left,
        soak.drain,
    ]
    for phase in phases:
        started = time.monotonic()
        soak.phase = phase.__name__.replace("_", " ")
        await phase()
        if soak.has_ended and phase != soak.drain:
            soak.complain("the process ended")
            break
        say(f"{soak.phase:<24} {time.monotonic() - started:5.1f} s")
    return soak.seen


class _Soak:
    def __init__(
        self, plan: Plan, client: Client, process: "subprocess.Popen[bytes]", say: Callable[[str], None]
    ) -> None:
        self.seen = Seen()
        self.phase = "start"
        self._plan = plan
        self._client = client
        self._process = process
        self._say = say
        self._pick = random.Random(9)  # noqa: S311 - the same requests in every run

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def complain(self, problem: str) -> None:
        """Note what should not be."""
        self.seen.problems.append(f"{self.phase}: {problem}")

    async def wait_ready(self) -> None:
        await self._wait(lambda: self._is_status("/readyz", 200), START_SECONDS, "the server did not become ready")

    async def measure_capacity(self) -> None:
        count = 4 * RUNNING
        started = time.monotonic()
        answers = await asyncio.gather(*[self._client.ask(self._body()) for _ in range(RUNNING + WAITING)])
        answers += await asyncio.gather(*[self._client.ask(self._body()) for _ in range(count - len(answers))])
        self.seen.capacity = count / (time.monotonic() - started)
        self._expect(answers, {200})
        self.seen.memory_begin = self._memory()

    async def overload(self) -> None:
        """Far more than it can answer, at regular times, whether or not anything came back."""
        rate = OVERLOAD * self.seen.capacity
        begin = time.monotonic()
        tasks = []
        for number in range(int(rate * self._plan.overload_seconds)):
            scheduled = begin + number / rate
            await asyncio.sleep(max(0.0, scheduled - time.monotonic()))
            tasks.append(asyncio.create_task(self._client.ask(self._body(), since=scheduled)))
        answers = await asyncio.gather(*tasks)
        self._expect(answers, {200, 429})
        refused = [answer for answer in answers if answer.status == 429]
        self.seen.refused = [answer.seconds for answer in refused]
        self.seen.accepted = [answer.seconds for answer in answers if answer.status == 200]
        if any(not answer.headers.get("retry-after", "").isdigit() for answer in refused):
            self.complain("a 429 without Retry-After")

    async def read_slowly(self) -> None:
        """Others are answered meanwhile."""
        body = completion(self._prompt(), 2 * self._plan.answer_tokens, stream=True)
        slow = [asyncio.create_task(self._client.read_slowly(body, 0.1)) for _ in range(self._plan.slow_readers)]
        self._expect([await self._client.ask(self._body()) for _ in range(3)], {200})
        self._expect(await asyncio.gather(*slow), {200})

    async def abandon(self) -> None:
        """Streams of answers that would be long, all hung up on before or after their first tokens."""
        body = completion([5, 6, 7], min(self._plan.longest - 8, MOST_TOKENS), stream=True)

        async def one() -> None:
            for _ in range(MOST_TRIES):
                answer = await self._client.abandon(body, self._pick.uniform(0.05, 0.5))
                if answer is None:
                    self.seen.abandoned += 1
                    return
                # Of those that hang up the server learns between two steps, and may be full until then.
                self._expect([answer], {200, 429})
                await asyncio.sleep(0.1)

        await self._in_turns([one] * self._plan.abandoned)
        last = time.monotonic()
        await self._wait(self._is_idle, IDLE_SECONDS, "work is left of abandoned streams")
        self.seen.idle_after_abandoned = time.monotonic() - last

    async def send_giants(self) -> None:
        """Prompts as long as the model takes, and longer; short ones are answered beside them."""
        most = self._plan.longest - 1
        giants = [self._client.ask(completion([7] * most, 1)) for _ in range(self._plan.giants)]
        short = [self._client.ask(self._body()) for _ in range(4)]
        self._expect(await asyncio.gather(*giants, *short), {200})
        self._expect([await self._client.ask(completion([7] * (most + 2), 1))], {400})
        # The refusal comes before so much was read, and the connection may end before the client knows.
        self._expect([await self._client.ask(completion("x" * (5 << 20), 1))], {0, 413})

    async def send_anything(self) -> None:
        """Requests of all sorts, right and wrong."""

        async def one() -> None:
            self._expect([await self._client.ask(*self._anything())], DECLARED)

        await self._in_turns([one] * self._plan.random_requests)

    async def go_on_steadily(self) -> None:
        """The same mixture until the time is over, with an eye on the memory."""
        begin = time.monotonic()
        while (passed := time.monotonic() - begin) < self._plan.steady_seconds:
            # What the giants' end gave back to the system is taken again at first, and is no leak.
            if passed > self._plan.steady_seconds / 4:
                self.seen.memory.append((passed, self._memory()))
            answers = [self._client.ask(*(self._anything() if i % 2 else (self._body(),))) for i in range(AT_ONCE // 2)]
            self._expect(await asyncio.gather(*answers), DECLARED)
        self.seen.memory.append((time.monotonic() - begin, self._memory()))

    async def look_at_what_is_left(self) -> None:
        await self._wait(self._is_idle, IDLE_SECONDS, "an idle server still has work")
        self.seen.left = await self._gauges()

    async def drain(self) -> None:
        """SIGTERM while streams are on their way."""
        body = completion(self._prompt(), 4 * self._plan.answer_tokens, stream=True, logit_bias={"2": -100})
        streams = [asyncio.create_task(self._client.ask(body)) for _ in range(self._plan.draining)]
        await self._wait(self._is_busy, IDLE_SECONDS, "the streams did not begin")
        self._process.send_signal(signal.SIGTERM)
        if not await self._wait(self._turns_away, IDLE_SECONDS, "the port stays open after SIGTERM"):
            return
        self.seen.turned_away = any(not stream.done() for stream in streams)
        answers = await asyncio.gather(*streams)
        self.seen.drained = sum(answer.status == 200 and b"data: [DONE]" in answer.body for answer in answers)
        self.seen.exit_status = await asyncio.to_thread(self._process.wait, IDLE_SECONDS)

    def _body(self) -> bytes:
        return completion(self._prompt(), self._plan.answer_tokens, temperature=0)

    def _prompt(self) -> list[int]:
        return [self._pick.randrange(5, 200) for _ in range(16)]

    def _anything(self) -> tuple[bytes, str]:
        """A body and a path."""
        pick = self._pick
        few = pick.randint(1, 4)
        chat = b'{"model": "base", "messages": [{"role": "user", "content": "Where is my order?"}], "max_tokens": 2}'
        return pick.choice(
            [
                (completion(self._prompt(), few), "/v1/completions"),
                (completion("Paris \N{EARTH GLOBE EUROPE-AFRICA} \x00", few, logprobs=2, echo=True), "/v1/completions"),
                (completion([[5], [6, 7]], few, n=2, stream=True, seed=-1), "/v1/completions"),
                (completion([], few), "/v1/completions"),
                (completion([1 << 40], few), "/v1/completions"),
                (completion("x", -1), "/v1/completions"),
                (completion("x", few, temperature=1e308, top_p=0, stop=["a"] * 9), "/v1/completions"),
                (completion("x", few, model="nobody"), "/v1/completions"),
                (chat, "/v1/chat/completions"),
                (chat.replace(b"Where", b"\xff\xfe\xc0"), "/v1/chat/completions"),
                (chat.replace(b"order", b"\\ud800"), "/v1/chat/completions"),
                (chat[: pick.randrange(1, len(chat))], "/v1/chat/completions"),
                (pick.randbytes(pick.randrange(1, 2000)), pick.choice(["/v1/completions", "/v1/chat/completions"])),
                (b"[" * pick.randrange(1, 5000), "/v1/completions"),
                (b"", pick.choice(["/v1/models", "/v1/models/base", "/v1/models/%ff", "/v1/completions", "/x%00y"])),
            ]
        )

    async def _in_turns(self, work: Sequence[Callable[[], Awaitable[None]]]) -> None:
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(do: Callable[[], Awaitable[None]]) -> None:
            async with turns:
                await do()

        await asyncio.gather(*[one(do) for do in work])

    def _expect(self, answers: Sequence[Answer], statuses: set[int]) -> None:
        for answer in answers:
            if answer.status not in statuses:
                self.complain(f"{answer.status} {answer.body[:200]!r}")
            elif answer.status and not answer.is_complete:
                self.complain(f"an answer that is not whole: {answer.body[-100:]!r}")

    async def _gauges(self) -> dict[str, float]:
        rows = (await self._client.get("/metrics")).body.decode().splitlines()
        names = ("waiting_sequences", "running_sequences", "cached_tokens")
        return {n: float(r.split()[-1]) for n in names for r in rows if r.startswith(f"finetune_inference_{n} ")}

    async def _is_idle(self) -> bool:
        return not any((await self._gauges()).values())

    async def _is_busy(self) -> bool:
        return (await self._gauges())["running_sequences"] >= min(RUNNING, self._plan.draining)

    async def _is_status(self, path: str, status: int) -> bool:
        return (await self._client.get(path)).status == status

    async def _turns_away(self) -> bool:
        return (await self._client.ask(self._body())).status in (0, 503)

    async def _wait(self, condition: Callable[[], Awaitable[bool]], seconds: float, problem: str) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.has_ended:
            if await condition():
                return True
            await asyncio.sleep(0.05)
        self.complain(problem)
        return False

    def _memory(self) -> float:
        """Resident MiB."""
        return float(psutil.Process(self._process.pid).memory_info().rss) / (1 << 20)
