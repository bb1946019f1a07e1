"""Rules about the repository that would only hurt much later: shadowed modules, layers, versions, tags."""

import operator
import re
import subprocess
import sys
import sysconfig
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = [
    "finetune_api",
    "finetune_model",
    "finetune_operator",
    "finetune_gateway",
    "finetune_trainer",
    "finetune_inference",
    "finetune_cli",
]


def tracked(*patterns: str) -> list[Path]:
    """Files that git knows, or everything below the usual folders where there is no git."""
    try:
        output = subprocess.run(
            ["git", "ls-files", "--", *patterns], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [REPOSITORY / line for line in output.splitlines() if (REPOSITORY / line).exists()]


def test_the_folder_called_operator_is_not_a_package() -> None:
    """It would shadow the standard library's `operator`, and with it break `import collections`."""
    assert not (REPOSITORY / "operator" / "__init__.py").exists()
    assert list((REPOSITORY / "operator").glob("*.py")) == []
    assert operator.__file__ is not None
    assert Path(operator.__file__).parent == Path(sysconfig.get_paths()["stdlib"])


def test_the_standard_library_is_not_shadowed_from_the_repositorys_root() -> None:
    code = "import collections, operator; print(operator.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(result.stdout.strip()).parent == Path(sysconfig.get_paths()["stdlib"])


def test_import_contracts_are_kept() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    """Imports inside functions and for annotations count too: a circle means that two modules are one."""
    graph = grimp.build_graph(package)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_test_folders_are_no_packages() -> None:
    """Two test files of one name can then live in two folders (`--import-mode=importlib`)."""
    assert tracked("tests/**/__init__.py", "tests/__init__.py") == []


def test_no_manifest_and_no_dockerfile_uses_a_moving_tag() -> None:
    moving = re.compile(r"(image: *\S+|FROM \S+|BASE_IMAGE=\S+):latest\b|\btag: *\"?latest\b")
    files = tracked("*.yaml", "*.yml", "*Dockerfile*", "*.tpl", "*.md")
    assert [str(f.relative_to(REPOSITORY)) for f in files if moving.search(f.read_text())] == []


def test_every_dockerfile_can_be_built_from_another_base() -> None:
    for file in tracked("*Dockerfile"):
        if "base_image_sources" in file.parts:
            continue
        text = file.read_text()
        assert re.search(r"^ARG BASE_IMAGE=\S+:\S+$", text, re.MULTILINE), file
        assert re.search(r"^USER 10001", text, re.MULTILINE), file


def test_no_file_has_the_marks_of_an_unfinished_merge() -> None:
    marks = ("<" * 7 + " ", ">" * 7 + " ")
    for file in tracked():
        lines = file.read_bytes().decode(errors="replace").splitlines() if file.is_file() else []
        assert not [line for line in lines if line.startswith(marks)], file
