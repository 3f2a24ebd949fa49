"""What every test may use: the zoo of real networks, and how hypothesis searches."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: a test never depends on how fast the machine is. In CI the same examples every time.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def zoo() -> Path:
    """Give the folder of real networks, or skip: $NARROWGAUGE_ZOO, else ../shared/zoo beside the repository."""
    repository = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("NARROWGAUGE_ZOO") or repository.parent / "shared" / "zoo")
    if not (folder / "MANIFEST.md").is_file():
        pytest.skip(f"needs the zoo of real networks, which is not at {folder}: set NARROWGAUGE_ZOO to its folder")
    return folder
