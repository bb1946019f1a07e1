"""The operator's process: health server and controller, until SIGTERM.

python -m finetune_operator        settings come from FINETUNE_OPERATOR_* variables, see `settings`
"""

import asyncio
import logging
import secrets
import signal
from typing import Final

from aiohttp import web
from pydantic import SecretStr

from finetune_operator.handlers.controller import Controller
from finetune_operator.io.cluster import Cluster
from finetune_operator.io.progress import ProgressReader
from finetune_operator.process.health import Health, build_app
from finetune_operator.process.logs import configure_logging
from finetune_operator.reconcile.context import Context
from finetune_operator.settings import Settings

logger = logging.getLogger(__name__)

PROMOTION_KEY_BYTES: Final = 32


def main() -> int:
    """Entry point; returns the exit status."""
    settings = Settings()
    if settings.promotion_key is None:
        settings = settings.model_copy(update={"promotion_key": SecretStr(secrets.token_hex(PROMOTION_KEY_BYTES))})
    configure_logging(settings.log_level)
    asyncio.run(run(settings))
    return 0


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    health = Health()
    progress = ProgressReader(settings.broker_url.get_secret_value() if settings.broker_url else None)
    async with Cluster(settings.kubeconfig) as cluster:
        controller = Controller(Context(cluster, progress, settings), health, mirrors=True)
        server = await _serve(settings, health)
        scope = sorted(settings.namespaces) or "all namespaces"
        logger.info("started", extra={"scope": scope, "port": settings.health_port})
        try:
            await _work_until(stop, controller)
        finally:
            await server.cleanup()
            await progress.close()
    logger.info("stopped")


async def _work_until(stop: asyncio.Event, controller: Controller) -> None:
    """Run the controller until asked to stop. If the controller itself ends, that is a bug, and the process ends too."""
    work = asyncio.create_task(controller.run(), name="controller")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if work.done():
        work.result()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


async def _serve(settings: Settings, health: Health) -> web.AppRunner:
    runner = web.AppRunner(build_app(health), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, settings.health_host, settings.health_port).start()
    return runner
