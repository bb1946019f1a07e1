from dataclasses import replace

import pytest

from lab.kubernetes.preflight import COLD_DISK_GIB, WARM_DISK_GIB, Facts, gather, obstacle, sentence

ABLE = Facts(
    system="Linux",
    root=True,
    privileged=True,
    overlay=True,
    cgroups=True,
    packages=True,
    go=(1, 26),
    go_needed=(1, 25),
    compiled=False,
    built=False,
    free_gib=COLD_DISK_GIB + 1,
)


def test_an_able_machine_has_no_obstacle() -> None:
    assert obstacle(ABLE) is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"system": "Darwin"}, "Darwin"),
        ({"root": False}, "root"),
        ({"privileged": False}, "containers"),
        ({"overlay": False}, "overlay"),
        ({"cgroups": False}, "control groups"),
        ({"packages": False}, "apt-get"),
        ({"go": None}, "Go is missing, 1.25"),
        ({"go": (1, 24)}, "Go is 1.24, 1.25"),
        ({"free_gib": COLD_DISK_GIB - 1}, f"{COLD_DISK_GIB - 1} GiB of disk are free"),
        ({"compiled": True, "built": True, "free_gib": WARM_DISK_GIB - 1}, f"{WARM_DISK_GIB} are needed"),
    ],
)
def test_an_obstacle_is_named_in_one_line_with_the_way_around_it(changes: dict[str, object], word: str) -> None:
    reason = obstacle(replace(ABLE, **changes))  # type: ignore[arg-type]
    assert reason is not None
    assert word in reason
    line = sentence(reason)
    assert "\n" not in line
    assert "make try" in line


def test_compiled_programs_need_no_go_and_built_images_little_disk() -> None:
    assert obstacle(replace(ABLE, go=None, compiled=True)) is None
    assert obstacle(replace(ABLE, compiled=True, built=True, free_gib=WARM_DISK_GIB + 1)) is None


def test_the_facts_of_this_machine_can_be_gathered() -> None:
    assert gather().system
