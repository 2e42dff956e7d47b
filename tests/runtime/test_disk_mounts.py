"""What a directory lies on, by samples of /proc/self/mountinfo from containers and machines."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.runtime import disk_mounts
from maskline.runtime.disk_mounts import Mount, mount_of, read_mounts, risk_of, storage_risk

# A container of Docker: a volume, a directory of the host, a tmpfs, a file of the host.
DOCKER = """\
1289 1084 0:62 / / rw,relatime master:502 - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/A:/var/lib
1290 1289 0:66 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
1291 1289 0:67 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
1294 1291 0:64 / /dev/memory rw,nosuid,nodev,noexec,relatime - tmpfs shm rw,size=65536k
1295 1289 254:1 /srv/volumes/maskline_spool/_data /var/lib/maskline/spool rw,relatime master:1 - ext4 /dev/vda1 rw
1296 1289 254:1 /srv/my\\040spool /mnt/my\\040spool rw,relatime - ext4 /dev/vda1 rw
1297 1289 254:1 /var/lib/docker/containers/x/hostname /etc/hostname rw,relatime - ext4 /dev/vda1 rw
1298 1289 0:70 / /scratch rw,nosuid - tmpfs tmpfs rw
1299 1298 254:1 /srv/kept /scratch/kept rw - ext4 /dev/vda1 rw
"""
KUBERNETES = """\
600 500 0:300 / / rw,relatime - overlay overlay rw,lowerdir=/var/lib/containerd/x
601 600 259:1 /var/lib/kubelet/pods/1-2/volumes/kubernetes.io~empty-dir/spool /spool rw - xfs /dev/nvme0n1p1 rw
602 600 0:301 / /memory rw - tmpfs tmpfs rw,size=1024k
603 600 259:3 / /claim rw,relatime - ext4 /dev/nvme1n1 rw
604 600 259:1 /var/lib/kubelet/pods/1-2/volumes/kubernetes.io~local-volume/pv /local rw - xfs /dev/nvme0n1p1 rw
"""
PODMAN = "50 40 0:50 / / rw,relatime - fuse.fuse-overlayfs fuse-overlayfs rw,user_id=0\n"
# A machine; /home is mounted over, and what was below it before is out of sight.
MACHINE = """\
21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
22 21 0:20 / /scratch rw shared:2 - tmpfs tmpfs rw
23 21 0:21 / /home/old rw - tmpfs tmpfs rw
24 21 254:2 / /home rw - btrfs /dev/vdb rw
25 21 0:23 / /run rw - tmpfs tmpfs rw
26 25 0:24 / /run/ram rw - ramfs ramfs rw
27 21 0:25 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw
28 22 254:1 /data /scratch/disk rw - ext4 /dev/vda1 rw
"""
STACKED = """\
1 1 0:2 / / rw - rootfs rootfs rw
20 1 254:1 / / rw - ext4 /dev/vda1 rw
30 20 0:30 / /spool rw - tmpfs tmpfs rw
31 30 254:3 / /spool rw - xfs /dev/vdc rw
"""


@pytest.mark.parametrize(
    ("text", "path", "risk"),
    [
        (DOCKER, "/var/lib/maskline/spool", ""),
        (DOCKER, "/var/lib/maskline", "writable layer (overlay)"),
        (DOCKER, "/app/spool", "writable layer (overlay)"),
        (DOCKER, "/", "writable layer (overlay)"),
        (DOCKER, "/dev/memory/spool", "in memory (tmpfs)"),
        (DOCKER, "/scratch/spool", "in memory (tmpfs)"),
        (DOCKER, "/scratch/kept/spool", ""),
        (DOCKER, "/scratch/keptnot", "in memory (tmpfs)"),
        (DOCKER, "/mnt/my spool/a", ""),
        (KUBERNETES, "/spool", "emptyDir"),
        (KUBERNETES, "/memory/spool", "in memory"),
        (KUBERNETES, "/claim/spool", ""),
        (KUBERNETES, "/local", ""),
        (PODMAN, "/app/spool", "writable layer (fuse.fuse-overlayfs)"),
        (MACHINE, "/srv/spool", ""),
        (MACHINE, "/scratch/spool", "in memory (tmpfs)"),
        (MACHINE, "/scratch/disk", ""),
        (MACHINE, "/home/old/spool", ""),
        (MACHINE, "/run/ram", "in memory (ramfs)"),
        (MACHINE, "/var/lib/docker/overlay2/x/merged/a", ""),  # from outside: it is not our root
        (STACKED, "/spool/a", ""),
        ("", "/spool", ""),
        ("some\nlines - of\nanother 1 2 3 4 - kind", "/spool", ""),
    ],
)
def test_risk_of_a_directory(text, path, risk):
    found = risk_of(mount_of(read_mounts(text), PurePosixPath(path)))
    assert (risk in found) if risk else (found == "")


NAMES = st.text(st.sampled_from("ab \t\n\\é0"), min_size=1, max_size=3)


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_escaped_paths_are_unescaped(names):
    point = "/" + "/".join(names)
    escaped = point
    for character in "\\ \t\n":
        escaped = escaped.replace(character, f"\\{ord(character):03o}")
    lines = f"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / {escaped} rw,x shared:1 - tmpfs tmpfs rw\n"
    assert read_mounts(lines) == [Mount(1, 0, "/", "/", "ext4"), Mount(2, 1, "/", point, "tmpfs")]
    assert mount_of(read_mounts(lines), PurePosixPath(point)).kind == "tmpfs"


@given(st.text(max_size=200))
def test_any_text_of_mountinfo_can_be_read(text):
    mount_of(read_mounts(text), PurePosixPath("/a/b"))


def test_links_are_followed_and_without_mountinfo_no_risk_is_known(tmp_path, monkeypatch):
    sample = tmp_path / "mountinfo"
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    real = str((tmp_path / "real").resolve())
    sample.write_text(f"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / {real} rw - tmpfs t rw\n")
    monkeypatch.setattr(disk_mounts, "MOUNTINFO", sample)
    assert "in memory" in storage_risk(tmp_path / "link" / "not there yet")
    assert storage_risk(tmp_path) == ""
    monkeypatch.setattr(disk_mounts, "MOUNTINFO", Path("/nowhere"))
    assert storage_risk(tmp_path / "link") == ""
