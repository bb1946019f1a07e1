"""The real operator as a process: started with nothing but its environment, killed as the kernel would."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from lab.kubernetes.controlplane import free_ports
from support.cluster.api import wait_for


class OperatorProcess:
    """`python -m finetune_operator` against one kubeconfig."""

    def __init__(self, kubeconfig: Path, log: Path, **settings: str) -> None:
        self.log = log
        self.port = free_ports(1)[0]
        names = {f"FINETUNE_OPERATOR_{name.upper()}": value for name, value in settings.items()}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FINETUNE_")},
            "FINETUNE_OPERATOR_KUBECONFIG": str(kubeconfig),
            "FINETUNE_OPERATOR_HEALTH_PORT": str(self.port),
            "FINETUNE_OPERATOR_HEALTH_HOST": "127.0.0.1",
            **names,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "finetune_operator"], env=self.environment, stdout=log, stderr=log
            )
        if wait:
            wait_for("the operator to be ready", lambda: self.answers("/readyz"), 30)

    def kill(self) -> None:
        """SIGKILL: no chance to finish anything."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; answers the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def restart(self) -> None:
        self.kill()
        self.start()

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def answers(self, path: str) -> bool:
        assert self.is_alive, f"the operator has ended; see {self.log}"
        try:
            return bool(self.read(path))
        except (OSError, urllib.error.HTTPError):
            return False

    def read(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as response:
            return str(response.read().decode())
