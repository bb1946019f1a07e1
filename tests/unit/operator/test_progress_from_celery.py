"""What Celery writes into a real Redis is what the operator reads."""

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from finetune_api.contract import task_id
from finetune_api.outcome import PROGRESS_STATE
from finetune_operator.io.progress import ProgressReader
from support.objects.operator_objects import UID, a_progress

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


@pytest.fixture
def redis_url() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.02)
    yield f"redis://127.0.0.1:{port}/0"
    server.terminate()
    server.wait(10)


def test_progress_of_a_running_task_is_read_and_its_end_is_silence(redis_url: str) -> None:
    celery = pytest.importorskip("celery")
    app = celery.Celery(broker=redis_url, backend=redis_url)
    progress = a_progress(3, loss=0.25)

    async def read_twice() -> list[object]:
        reader = ProgressReader(redis_url)
        app.backend.store_result(task_id(UID, 2), progress.to_dict(), PROGRESS_STATE)
        answers = [await reader.read(UID, 2), await reader.read(UID, 1)]
        app.backend.store_result(task_id(UID, 2), {"result": "done"}, "SUCCESS")
        answers.append(await reader.read(UID, 2))
        await reader.close()
        return answers

    assert asyncio.run(read_twice()) == [progress, None, None]
