"""The notebooks are the source: they run, are clean, and equal the library and README."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_notebook

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
notebooks = sorted(nbglob(NBS), key=str)


@pytest.mark.parametrize("path", notebooks, ids=lambda p: str(Path(p).relative_to(NBS)))
def test_runs(path):
    passed, seconds = run_notebook(
        Path(path), skip_flags=["notest", "slow"], basepath=ROOT
    )
    assert passed, f"{path} failed: the traceback is above"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    "A copy of the sources, on which nbdev's commands may write."
    copy = tmp_path_factory.mktemp("checkout") / "cmining"
    left_out = (".git", ".venv", "runs", "_docs", "_proc", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*left_out))
    return copy


def read_files(folder: Path, pattern: str) -> dict[str, bytes]:
    "The files of a folder and their bytes."
    paths = [p for p in folder.rglob(pattern) if ".ipynb_checkpoints" not in p.parts]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def changed(before: Path, after: Path, pattern: str) -> list[str]:
    "The files that are not the same in both folders."
    old = read_files(before, pattern)
    new = read_files(after, pattern)
    return sorted(f for f in old.keys() | new.keys() if old.get(f) != new.get(f))


def nbdev(command: str, cwd: Path):
    program = str(Path(sys.executable).parent / command)
    subprocess.run([program], cwd=cwd, check=True, capture_output=True)


def test_library_equals_notebooks(checkout):
    nbdev("nbdev_export", checkout)
    assert not changed(ROOT / "cmining", checkout / "cmining", "*.py"), "run nbdev_export"


def test_notebooks_are_clean(checkout):
    nbdev("nbdev_clean", checkout)
    assert not changed(NBS, checkout / "nbs", "*.ipynb"), "run nbdev_clean"


def test_readme_equals_index():
    "README.md is the text of index.ipynb; white space may differ."
    cells = json.loads((NBS / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join(
        "".join(c["source"]) for c in cells if c["cell_type"] == "markdown"
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.split() == text.split(), "run make readme"
