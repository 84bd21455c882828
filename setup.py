"""Build nexuslab from settings.ini; the job notebooks travel as package data."""
import configparser
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
ini = configparser.ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]


class BuildWithJobs(build_py):
    """Copy `nbs/NN_*.ipynb` into the package, so that a wheel can run them."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        jobs = Path(self.build_lib) / cfg["lib_name"] / "job_notebooks"
        jobs.mkdir(parents=True, exist_ok=True)
        for notebook in sorted((here / cfg["nbs_path"]).glob("[0-9][0-9]_*.ipynb")):
            shutil.copy2(notebook, jobs / notebook.name)


readme = here / "README.md"
setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    keywords=cfg["keywords"],
    license="Apache-2.0",
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["nexuslab", "nexuslab.*"]),
    include_package_data=True,
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split(), "kaggle": cfg["kaggle_requirements"].split()},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "papermill.io": ["nexuslab:// = nexuslab.jobs:RunStore"],
    },
    cmdclass={"build_py": BuildWithJobs},
)
