"""The notebooks are the source: they run, they are clean, and the library and README equal them."""

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
    shutil.copytree(
        ROOT,
        copy,
        ignore=shutil.ignore_patterns(
            ".git", ".venv", "runs", "_docs", "_proc", "__pycache__"
        ),
    )
    return copy


def changed(before: Path, after: Path, pattern: str) -> list[str]:
    files = {
        p.relative_to(d)
        for d in (before, after)
        for p in d.rglob(pattern)
        if ".ipynb_checkpoints" not in p.parts
    }

    def read(p: Path) -> bytes:
        return p.read_bytes() if p.exists() else b""

    return sorted(str(f) for f in files if read(before / f) != read(after / f))


def nbdev(command: str, cwd: Path):
    subprocess.run(
        [str(Path(sys.executable).parent / command)],
        cwd=cwd,
        check=True,
        capture_output=True,
    )


def test_library_equals_notebooks(checkout):
    nbdev("nbdev_export", checkout)
    assert not changed(ROOT / "cmining", checkout / "cmining", "*.py"), "run nbdev_export"


def test_notebooks_are_clean(checkout):
    nbdev("nbdev_clean", checkout)
    assert not changed(NBS, checkout / "nbs", "*.ipynb"), "run nbdev_clean"


def test_readme_equals_index():
    """README.md is the text of index.ipynb; white space may differ, since Quarto wraps
    lines its own way.
    """
    cells = json.loads((NBS / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join(
        "".join(c["source"]) for c in cells if c["cell_type"] == "markdown"
    )
    assert (ROOT / "README.md").read_text(encoding="utf-8").split() == text.split(), (
        "run make readme"
    )
