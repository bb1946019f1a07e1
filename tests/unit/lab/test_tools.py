"""The Go modules of the cluster's programs, and torch's build for nodes without a GPU: what can be checked without building."""

import re

import pytest

from lab.kubernetes.binaries import BINARIES, CLUSTER_BINARIES, KUBERNETES_VERSION, TOOLS, Module, binary_path
from lab.kubernetes.errors import ClusterError
from lab.kubernetes.torch_cpu import Library, undefined_symbols, version_owners

GO_MOD = (TOOLS / "go.mod").read_text()
PUBLISHED = "v0." + KUBERNETES_VERSION.partition(".")[2]


def test_all_staged_modules_of_kubernetes_are_replaced_by_the_version_that_belongs_to_it() -> None:
    replaced = re.findall(r"^\t(\S+) => (\S+) (\S+)$", GO_MOD, flags=re.MULTILINE)
    assert len(replaced) > 25
    assert {(module, version) for _, module, version in replaced} == {(module, PUBLISHED) for module, _, _ in replaced}


def test_every_module_is_locked() -> None:
    for binary in BINARIES.values():
        assert (binary.module.directory / "go.sum").exists()


def test_kubernetes_programs_are_links_to_one_executable() -> None:
    executables = {BINARIES[name].executable for name in CLUSTER_BINARIES if name.startswith("kube")}
    assert executables == {"kubernetes"}
    main = (TOOLS / "kubernetes" / "main.go").read_text()
    for name in CLUSTER_BINARIES:
        assert not BINARIES[name].executable or f'"{name}"' in main


def test_the_demonstration_compiles_nothing_that_only_tests_use() -> None:
    assert {"metrics-server", "versitygw"}.isdisjoint(CLUSTER_BINARIES)


def test_programs_that_share_a_module_share_a_folder_of_the_cache() -> None:
    assert binary_path("kubelet").parent == binary_path("helm").parent != binary_path("versitygw").parent


def test_a_version_that_go_mod_does_not_name_is_an_error() -> None:
    with pytest.raises(ClusterError, match="does not require example"):
        Module(TOOLS).version("example.com/none")


HEADER = """
Dynamic Section:
  NEEDED               libcublas.so.13

Version References:
  required from libcublas.so.13:
    0x0b5a3b33 0x00 15 libcublas.so.13
  required from libc.so.6:
    0x06969194 0x00 34 GLIBC_2.14
"""
LISTING = """
0000000000000000      DF *UND*\t0000000000000000 (libcublas.so.13) cublasCreate_v2
0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.14)  memcpy
0000000000001000 g    DF .text\t0000000000000010  Base        at_empty
"""


def test_symbols_of_cuda_are_found_with_the_library_that_defines_them() -> None:
    assert dict(version_owners(HEADER)) == {"libcublas.so.13": "libcublas.so.13"}
    assert list(undefined_symbols(LISTING)) == [("cublasCreate_v2", "libcublas.so.13"), ("memcpy", "GLIBC_2.14")]


def test_a_stand_in_defines_every_symbol_under_its_version() -> None:
    library = Library({"libcublas.so.13": {"cublasCreate_v2"}, "": {"other"}})
    assert "void cublasCreate_v2(void)" in library.source
    assert "void other(void)" in library.source
    assert library.version_script == "libcublas.so.13 { global: cublasCreate_v2; };\n"
