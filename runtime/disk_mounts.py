"""Finds the mount that a directory is on, by /proc/self/mountinfo (Linux), and whether its data outlives a crash.

| the directory is on | its data is lost with |
| --- | --- |
| tmpfs, ramfs | the container, and any restart of the machine |
| an overlay as the root of the file system | the container: it is its own writable layer |
| an emptyDir of Kubernetes | the pod |
| anything else, or not known (no Linux, no /proc) | nothing that can be found out here |
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Final, NamedTuple

MOUNTINFO: Final = Path("/proc/self/mountinfo")

_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_LAYERED: Final = frozenset({"overlay", "overlayfs", "aufs", "fuse.fuse-overlayfs"})
"""The file systems of which Docker, containerd and Podman make a container's root; others look like a disk."""
_EMPTY_DIR: Final = "/kubernetes.io~empty-dir/"
"""In the path of the host's directory that is mounted."""
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo; see proc(5)."""

    id: int
    parent: int
    root: str
    """The directory of its file system that is mounted."""
    point: str
    kind: str
    """The type of its file system."""


def read_mounts(text: str) -> list[Mount]:
    """The mounts in a text of mountinfo, without lines that cannot be read. Pure."""
    mounts = []
    for line in text.split("\n"):
        before, dash, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")[0]
        if dash and len(fields) >= 5 and fields[0].isdecimal() and fields[1].isdecimal():
            root, point = map(_unescape, fields[3:5])
            mounts.append(Mount(int(fields[0]), int(fields[1]), root, point, kind))
    return mounts


def mount_of(mounts: Sequence[Mount], path: PurePath) -> Mount | None:
    """The mount that an absolute path without symbolic links is on; None if not known. Pure.

    Walks from the root down, as the kernel does: what is mounted on a directory of the present mount takes over, also
    several times, so a mount that another one covers does not count.
    """
    ids = {mount.id for mount in mounts}
    found: Mount | None = None
    for directory in [*reversed(path.parents), path]:
        for _ in mounts:  # as often as there can be one upon another
            on_it = [
                mount
                for mount in mounts
                if mount.point == str(directory)
                and (mount.parent not in ids if found is None else mount.parent == found.id != mount.id)
            ]
            if not on_it:
                break
            found = on_it[-1]
    return found


def risk_of(mount: Mount | None) -> str:
    """Why data on this mount is easily lost, as a clause; empty if it is not. Pure."""
    if mount is None:
        return ""
    if mount.kind in _IN_MEMORY:
        return f"it is in memory ({mount.kind}), and lost when the machine or the container stops"
    if mount.point == "/" and mount.kind in _LAYERED:
        return f"it is in the container's own writable layer ({mount.kind}), and lost with the container"
    if _EMPTY_DIR in mount.root:
        return "it is in an emptyDir, and lost with the pod"
    return ""


def storage_risk(path: Path) -> str:
    """Why data in this directory of this machine is easily lost, as a clause; empty if it is not."""
    try:
        real = path.resolve()
        text = MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, RuntimeError):  # RuntimeError: links that lead in a circle
        return ""
    return risk_of(mount_of(read_mounts(text), real))


def _unescape(text: str) -> str:
    """Undo the octal escapes of blanks, tabs, line ends and backslashes."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
