"""What is free: the tightest of what the kernel and the cgroups say."""

from __future__ import annotations

from pathlib import Path

from adapterhub.free_memory import free_on_host


def proc(root: Path, cgroup: str, available: int) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)


def limits(folder: Path, **files: str | int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_the_tightest_cgroup_above_the_process_counts_in_version_two(tmp_path: Path) -> None:
    proc(tmp_path, "0::/user/job\n", 8 << 30)
    mount = tmp_path / "sys/fs/cgroup"
    assert free_on_host(tmp_path) == 8 << 30
    limits(mount / "user/job", memory__max="max", memory__current=5 << 30)
    assert free_on_host(tmp_path) == 8 << 30
    limits(
        mount / "user",
        memory__max=6 << 30,
        memory__current=5 << 30,
        memory__stat=f"inactive_file {1 << 20}",
    )
    assert free_on_host(tmp_path) == (1 << 30) + (1 << 20)  # pages of files could be dropped


def test_cgroups_of_version_one_count_as_well(tmp_path: Path) -> None:
    proc(tmp_path, "9:name=systemd:/x\n4:memory:/docker/abc\n0::/\n", 8 << 30)
    mount = tmp_path / "sys/fs/cgroup/memory"
    limits(mount, memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=7)
    assert free_on_host(tmp_path) == 8 << 30
    limits(
        mount, memory__limit_in_bytes=3 << 30, memory__usage_in_bytes=1 << 30
    )  # a container sees its own as the root
    assert free_on_host(tmp_path) == 2 << 30
