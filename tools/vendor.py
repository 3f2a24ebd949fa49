"""Fetch the chart library that the report carries: pinned versions, checked against their digests.

    python tools/vendor.py

needs npm and writes src/narrowgauge/report/vendor/. To move to a newer version, change a row of PACKAGES; npm says the
digest (`npm view NAME@VERSION dist.integrity`). Read what changed before: the files run in every report.
"""

import base64
import hashlib
import io
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

VENDOR = Path(__file__).resolve().parents[1] / "src" / "narrowgauge" / "report" / "vendor"


class Package(NamedTuple):
    """An npm package, and which of its files are kept: path in the package -> name here."""

    name: str
    version: str
    sha512: str
    files: dict[str, str]


PACKAGES = (
    Package(
        "d3",
        "7.9.0",
        "e1U46jVP+w7Iut8Jt8ri1YsPOvFpg46k+K8TpCb0P+zjCkjkPnV7WzfDJzMHy1LnA+wj5pLT1wjO901gLXeEhA==",
        {"dist/d3.min.js": "d3.min.js", "LICENSE": "d3.LICENSE.txt"},
    ),
    Package(
        "@observablehq/plot",
        "0.6.17",
        "/qaXP/7mc4MUS0s4cPPFASDRjtsWp85/TbfsciqDgU1HwYixbSbbytNuInD8AcTYC3xaxACgVX06agdfQy9W+g==",
        {"dist/plot.umd.min.js": "plot.umd.min.js", "LICENSE": "plot.LICENSE.txt"},
    ),
    # The three below are part of plot.umd.min.js: only their licences are kept.
    Package(
        "isoformat",
        "0.2.1",
        "tFLRAygk9NqrRPhJSnNGh7g7oaVWDwR0wKh/GM2LgmPa50Eg4UfyaCO4I8k6EqJHl1/uh2RAD6g06n5ygEnrjQ==",
        {"LICENSE": "isoformat.LICENSE.txt"},
    ),
    Package(
        "interval-tree-1d",
        "1.0.4",
        "wY8QJH+6wNI0uh4pDQzMvl+478Qh7Rl4qLmqiluxALlNvl+I+o5x38Pw3/z7mDPTPS1dQalZJXsmbvxx5gclhQ==",
        {"LICENSE": "interval-tree-1d.LICENSE.txt"},
    ),
    Package(
        "binary-search-bounds",
        "2.0.5",
        "H0ea4Fd3lS1+sTEB2TgcLoK21lLhwEJzlQv3IN47pJS976Gx4zoWe0ak3q+uYh60ppQxg9F16Ri4tS1sfD4+jA==",
        {"LICENSE": "binary-search-bounds.LICENSE.txt"},
    ),
)


def fetch(package: Package) -> dict[str, bytes]:
    """Return the files of a package by their names here."""
    wanted = f"{package.name}@{package.version}"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", "--pack-destination", folder, wanted], check=True)
        content = next(Path(folder).glob("*.tgz")).read_bytes()
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if digest != package.sha512:
        raise SystemExit(f"{wanted}: expected sha512 {package.sha512}, got {digest}")
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = {name: tar.extractfile(f"package/{path}") for path, name in package.files.items()}
        return {name: member.read() for name, member in members.items() if member is not None}


def main() -> None:
    """Write all files."""
    for package in PACKAGES:
        for name, content in fetch(package).items():
            (VENDOR / name).write_bytes(content)
            print(f"{name}: {len(content):,} bytes of {package.name} {package.version}")


if __name__ == "__main__":
    main()
