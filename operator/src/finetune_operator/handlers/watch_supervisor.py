"""Supervision of kopf: its settings with their reasons, its login, its thread, its restarts.

kopf runs in a thread with an event loop of its own: when it ends it cancels every task of its loop, and ours must go on.
It ends whenever a watch breaks in an unusual way (an ERROR in the stream, a single 401). The supervisor then starts it
afresh, within a second, in the same process: leaving that to the kubelet would mean its crash back-off of up to minutes.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Final

import kopf

from finetune_operator.handlers.watches import CHILDREN, Mark, build_registry
from finetune_operator.io.connection import read_credentials
from finetune_operator.process import metrics
from finetune_operator.process.health import Health
from finetune_operator.resources.labels import MANAGED_SELECTOR
from finetune_operator.settings import Settings

logger = logging.getLogger(__name__)

IDENTITY: Final[Any] = "finetune-operator"
"""A string; kopf does not export the NewType that its signature wants."""
RESTART_SECONDS: Final = 1.0
"""Pause before kopf is started again; then it still needs a moment to list."""
CANCEL_SECONDS: Final = 1.0
"""Longest time for kopf's tasks to end after one of them has."""
STOP_SECONDS: Final = 15.0
"""Longest time for kopf to end after it was asked to."""


class WatchSupervisor:
    """Runs kopf in a thread and starts it again whenever it ends."""

    def __init__(self, settings: Settings, mark: Mark, health: Health) -> None:
        self._settings = settings
        self._mark = mark
        self._health = health
        self._stop = threading.Event()
        self._end_watch: Callable[[], object] = _nothing
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    def start(self) -> None:
        """Start watching; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ask kopf to end, and wait for it."""
        self._stop.set()
        self._end_watch()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                asyncio.run(self._watch())
            except Exception as error:
                # Any end but the one we asked for is a broken watch; kopf has logged the details.
                logger.warning("kopf ended", extra={"error": f"{type(error).__name__}: {error}"})
            self._health.watch_lost()
            if self._stop.is_set():
                return
            metrics.WATCH_RESTARTS.inc()
            seconds = round(time.monotonic() - started, 1)
            logger.warning("watching starts afresh", extra={"watched_seconds": seconds})
            self._stop.wait(RESTART_SECONDS)

    async def _watch(self) -> None:
        """Run kopf until it ends or is asked to."""
        # Not a threading.Event: kopf would wait for it in a thread of the loop's executor, and the loop could then not be
        # closed after kopf has failed, so that nobody would notice.
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._end_watch = lambda: loop.call_soon_threadsafe(stop.set)
        if self._stop.is_set():
            return
        try:
            await self._run_kopf(stop)
        finally:
            self._end_watch = _nothing

    async def _run_kopf(self, stop: asyncio.Event) -> None:
        registry = build_registry(self._mark)
        add_login(registry, self._settings.kubeconfig)

        @kopf.on.startup(registry=registry)
        async def started(**_: Any) -> None:
            self._health.watch_started()

        namespaces = sorted(self._settings.namespaces)
        tasks = await kopf.spawn_tasks(
            registry=registry,
            settings=build_kopf_settings(),
            standalone=True,
            # Only peering needs a name, but kopf would ask for the user's, and an image's bare uid has none.
            identity=IDENTITY,
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=stop,
        )
        await _until_first_ends(tasks)


async def _until_first_ends(tasks: Collection[asyncio.Task[None]]) -> None:
    """Wait until one of kopf's root tasks ends, end the others, and raise what it raised.

    `kopf.run_tasks` would do the same, but only after five seconds of courtesy to tasks that are of no use any more.
    """
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending, timeout=CANCEL_SECONDS)
    for task in done:
        task.result()


def _nothing() -> None:
    """Do nothing: no watch runs."""


def add_login(registry: kopf.OperatorRegistry, kubeconfig: str | None) -> None:
    """Give kopf credentials, read from disk each time it asks."""

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        credentials = await read_credentials(kubeconfig)
        return kopf.ConnectionInfo(
            server=credentials.server,
            ca_path=credentials.ca_path,
            scheme="Bearer" if credentials.token else None,
            token=credentials.token,
            certificate_path=credentials.certificate_path,
            private_key_path=credentials.key_path,
        )


def build_kopf_settings() -> kopf.OperatorSettings:
    """Return all settings of kopf that are not its defaults, each with its reason."""
    settings = kopf.OperatorSettings()
    # Events are ours, few and after the status write; kopf would post one for each log line.
    settings.posting.enabled = False
    # No CRD or namespace rights: the kinds and namespaces are known.
    settings.scanning.disabled = True
    # The server sees only our children's watches, not every pod of the cluster.
    for resource in CHILDREN:
        settings.watching.label_selectors[resource] = MANAGED_SELECTOR
    # Idle watches die silently behind load balancers; a stream that is silent for longer than a bookmark is dead.
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 5
    settings.watching.inactivity_timeout = 70
    # After an outage kopf's own delays (up to 21 s) would be blindness; two seconds are polite enough.
    settings.networking.error_backoffs = [1, 1, 2, 2, 2, 2, 2, 2]
    settings.networking.connect_timeout = 5
    settings.networking.request_timeout = 30
    # An error in a handler of one object delays that object only briefly.
    settings.queueing.error_delays = [1, 2, 5, 15]
    # In a thread kopf cannot use signals, and its last resort would kill our process.
    settings.process.ultimate_exiting_timeout = None
    return settings


def thread_safe(loop: asyncio.AbstractEventLoop, mark: Mark) -> Mark:
    """Wrap `mark` for use from another thread."""

    def call(key: Any) -> None:
        loop.call_soon_threadsafe(mark, key)

    return call
