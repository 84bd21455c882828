"""A wheel works away from its checkout."""
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, TOYS

RUN = "import sys; from nexuslab.jobs import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that holds nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True,
        check=True,
    ).stdout.decode().split("\0")
    for name in filter(None, tracked):
        if name.startswith(("nexuslab/", "nbs/0")) or name in (
            "setup.py", "settings.ini", "pyproject.toml", "README.md"
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return wheel, folder / "site"


def test_the_wheel_carries_the_jobs(site):
    names = zipfile.ZipFile(site[0]).namelist()
    jobs = [n for n in names if n.startswith("nexuslab/job_notebooks/")]
    assert len([n for n in jobs if n.endswith(".ipynb")]) >= 8 and "nexuslab/systems/circuits/task.py" in names
    assert not [n for n in names if n.startswith(("tests", "nbs", "runs", "data"))]


@pytest.mark.parametrize("home", ["working directory", "NEXUSLAB_HOME"])
def test_the_wheel_trains(site, tmp_path, home):
    environment = {
        k: v for k, v in os.environ.items() if k not in ("NEXUSLAB_HOME", "NEXUSLAB_REPORT")
    } | {"PYTHONPATH": f"{site[1]}{os.pathsep}{TOYS}"}
    place = tmp_path / "elsewhere"
    place.mkdir()
    if home == "NEXUSLAB_HOME":
        environment["NEXUSLAB_HOME"] = str(place)
    where = subprocess.run(
        [sys.executable, "-c", "import nexuslab; print(nexuslab.__file__)"], env=environment, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    ).stdout
    assert Path(where.strip()).is_relative_to(site[1])
    command = [sys.executable, "-c", RUN, "train", "--system", "toy_graphs", "--preset", "smoke"]
    done = subprocess.run(
        command, env=environment, cwd=place if home == "working directory" else tmp_path, capture_output=True,
        text=True, timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [run] = (place / "runs" / "toy_graphs").iterdir()
    assert (run / "report.ipynb").exists() and (run / "evaluation.json").exists()
    assert list((place / "data" / "toy_graphs").glob("*.h5"))
