"""The workflows of GitHub: pinned, without standing rights, and free of what zizmor and actionlint find."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))

each = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def load(path: Path) -> dict[Any, Any]:
    document: dict[Any, Any] = yaml.safe_load(path.read_text())
    return document


@each
def test_actions_are_pinned_by_commit_with_their_version(path: Path) -> None:
    uses = re.findall(r"uses: (.+)", path.read_text())
    assert uses
    assert [use for use in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)] == []


@each
def test_a_workflow_has_no_rights_and_each_job_has_its_own(path: Path) -> None:
    document = load(path)
    assert document["permissions"] == {}
    assert "concurrency" in document
    for name, job in document["jobs"].items():
        assert job["permissions"], name
        assert job["timeout-minutes"], name


@each
def test_no_workflow_runs_a_strangers_code_with_rights(path: Path) -> None:
    # YAML 1.1 reads the key `on` as True.
    triggers = load(path)[True]
    assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(triggers)


@each
def test_make_targets_exist(path: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = {
        target
        for line in re.findall(r"\bmake ([a-z0-9 -]+)$", path.read_text(), re.MULTILINE)
        for target in line.split()
    }
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_zizmor_finds_nothing() -> None:
    program = Path(sys.executable).parent / "zizmor"
    done = subprocess.run(
        [program, "--offline", "--no-progress", ".github"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_actionlint_finds_nothing() -> None:
    program = shutil.which("actionlint")
    if program is None:
        pytest.skip("actionlint is not installed: go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12")
    done = subprocess.run([program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
