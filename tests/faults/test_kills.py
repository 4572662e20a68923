"""The short version of benchmarks/kills.py: the whole road, killed at eight of its writes, and on a full disk."""

import subprocess

import pytest
from conftest import bars

from benchmarks import kills

POINTS = 8


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A clean copy of the checkout with small data, how often its road writes, and what it leaves."""
    folder = tmp_path_factory.mktemp("kills")
    bars(folder / "raw", 32)
    train = {"dataset": "bars", "architecture": "lenet5", "epochs": 4, "learning_rate": 0.005, "batch": 16}
    first = kills.prepare(
        folder / "first", "bars", fetch={"path": str(folder / "raw")}, train=train,
        ingest={"kind": "images", "size": [32, 32], "mode": "grey"}, augment={"copies": 1, "seed": 0, "noise": 5},
    )  # fmt: skip
    writes, _, expected = kills.whole(first)
    assert expected.wrong == ()
    return first, writes, expected


@pytest.mark.parametrize("point", range(POINTS))
def test_fault_01_killed_at_any_write_the_same_command_ends_with_the_same(road, point, tmp_path):
    first, writes, expected = road
    at = kills.points(writes, POINTS)[point]
    during, wrong = kills.killed(first.with_suffix(".clean"), tmp_path / "killed", expected, at)
    assert wrong == [], f"at write {at} of {len(writes)}, in {during}"


def test_fault_10_full_disk_is_reported_and_rerun_gives_the_same_result(road, tmp_path):
    tried = tmp_path / "tried"
    tried.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tried], capture_output=True, check=False).returncode:
        pytest.skip("nothing may be mounted here")
    subprocess.run(["umount", tried], check=True)
    first, _, expected = road
    clean = first.with_suffix(".clean")
    [size] = kills.sizes(clean, first, 1)
    during, wrong = kills.filled(clean, tmp_path / "filled", expected, size)
    assert wrong == [], f"on {size:,} bytes, in {during}"
