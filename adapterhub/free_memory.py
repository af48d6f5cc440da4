"""How much memory there is to take: what Linux and the cgroups of this process leave, else all of the machine."""

from __future__ import annotations

import os
from pathlib import Path

_UNLIMITED = 2**60
"""Limits above this mean none: cgroup v1 writes the largest number of pages."""


def free_on_host(root: Path = Path("/")) -> int | None:
    """The smaller of what the kernel can give without swapping and what the cgroups of this process allow.

    Where there is no /proc (macOS): the memory of the machine. `root` is where /proc and /sys are.
    """
    found = [room for room in (_available(root), *_cgroup_rooms(root)) if room is not None]
    if found:
        return max(0, min(found))
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _available(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None
    )


def _cgroup_rooms(root: Path) -> list[int]:
    """What is left in this process's memory cgroup and in each above it, of version 2 and version 1.

    In a container the path that /proc names may lie outside of what is mounted; then the mount's own root is looked at.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    rooms = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = mount / path.lstrip("/")
        for place in (folder, *folder.parents):
            if place == mount or mount in place.parents:
                room = _room(place, *names)
                rooms += [room] if room is not None else []
    return rooms


def _room(place: Path, limit_name: str, used_name: str) -> int | None:
    """What a cgroup has left; pages of files that it could drop at once are counted as free, as MemAvailable does."""
    try:
        limit = (place / limit_name).read_text().strip()
        if limit == "max" or int(limit) > _UNLIMITED:
            return None
        return int(limit) - int((place / used_name).read_text()) + _droppable(place)
    except (OSError, ValueError):
        return None


def _droppable(place: Path) -> int:
    try:
        lines = (place / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    found = dict(line.split() for line in lines if len(line.split()) == 2)
    return int(found.get("total_inactive_file", found.get("inactive_file", 0)))
