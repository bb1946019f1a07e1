"""The trial Redis of the chart, run here: what its users may do is what Celery and the operator need, and no more."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from finetune_api.contract import queue_name, task_id
from finetune_operator.io.progress import ProgressReader
from lab.kubernetes.controlplane import free_ports
from support.cluster.chart import MISSING_HELM, named, of_kind, render

REASON = MISSING_HELM or (
    None if shutil.which("redis-server") else "redis-server is not installed (Debian: redis-server)"
)
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

START_SECONDS = 10


class TrialRedis:
    """A running server and the URLs that the chart hands out."""

    def __init__(self, port: int, secret: dict[str, str]) -> None:
        self.port = port
        self.operator = f"redis://operator:{secret['operator-password']}@127.0.0.1:{port}/0"
        self.trainer = f"redis://trainer:{secret['trainer-password']}@127.0.0.1:{port}/0"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrialRedis]:
    manifests = render({})
    secret = named(manifests, "Secret", "-redis")["stringData"]
    directory = tmp_path_factory.mktemp("redis")
    acl = directory / "users.acl"
    acl.write_text(secret["users.acl"])
    (port,) = free_ports(1)
    configuration = of_kind(manifests, "ConfigMap")[0]["data"]["redis.conf"]
    for said, here in (
        ("port 6379", f"port {port}\nbind 127.0.0.1"),
        ("/etc/redis/users.acl", str(acl)),
        ("/data", str(directory)),
    ):
        assert said in configuration
        configuration = configuration.replace(said, here)
    file = directory / "redis.conf"
    file.write_text(configuration)
    process = subprocess.Popen(["redis-server", str(file)], stdout=(directory / "log").open("w"))
    try:
        wait_until_it_answers(port, directory / "log", process)
        yield TrialRedis(port, secret)
    finally:
        process.kill()
        process.wait()


def wait_until_it_answers(port: int, log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with closing(redis.Redis(port=port)) as client:
                client.ping()
        except redis.AuthenticationError:
            return
        except redis.ConnectionError:
            time.sleep(0.02)
    raise AssertionError(f"no answer within {START_SECONDS} s: {log.read_text()}")


def test_nobody_gets_in_without_a_password(server: TrialRedis) -> None:
    with closing(redis.Redis(port=server.port)) as client, pytest.raises(redis.AuthenticationError):
        client.get("celery-task-meta-x")


def test_a_trainer_sends_consumes_and_reports_and_the_operator_reads(server: TrialRedis) -> None:
    celery_app = pytest.importorskip("finetune_trainer.tasks.celery_app")
    app = celery_app.create_app(server.trainer)
    uid, attempt = "0f0e", 1
    queue, task = queue_name(uid, attempt), task_id(uid, attempt)
    with app.connection_for_write() as connection:
        connection.default_channel.queue_purge(queue)
        app.send_task("t", args=[uid, attempt], task_id=task, queue=queue, connection=connection, retry=False)
        message = connection.SimpleQueue(queue).get(timeout=5)
        assert message.headers["id"] == task
        message.ack()
    progress = {"step": 3, "totalSteps": 10, "timestamp": time.time()}
    app.backend.store_result(task, progress, "PROGRESS")
    found = asyncio.run(read_progress(server.operator, uid, attempt))
    assert found is not None
    assert found.step == 3


async def read_progress(url: str, uid: str, attempt: int) -> object:
    reader = ProgressReader(url)
    try:
        return await reader.read(uid, attempt)
    finally:
        await reader.close()


@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("EVAL", "return 1", "0"),
        ("SCRIPT", "FLUSH"),
        ("SHUTDOWN",),
        ("GET", "somebody-elses-key"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("user", ["operator", "trainer"])
def test_what_nobody_needs_nobody_may(user: str, command: tuple[str, ...], server: TrialRedis) -> None:
    url = str(getattr(server, user))
    with closing(redis.Redis.from_url(url)) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


@pytest.mark.parametrize(
    "command", [("SET", "celery-task-meta-x", "1"), ("LPUSH", "celery-finetune-x-1", "1")], ids=" ".join
)
def test_the_operator_only_reads(command: tuple[str, ...], server: TrialRedis) -> None:
    with closing(redis.Redis.from_url(server.operator)) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)
