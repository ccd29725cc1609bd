"""The notebooks are the source: they run, are clean, and equal the library and README."""

import json
import math
import re
import shutil
import subprocess
import sys
from os.path import commonprefix
from pathlib import Path

import pandas as pd
import pytest
from execnb.shell import CaptureShell
from nbdev.doclinks import nbglob
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
SHARED = ROOT.parent / "shared"  # corpora that are not part of the repository
notebooks = sorted(nbglob(NBS), key=str)


# what differs from one run to the next: places in memory, folders, dates, times and sizes
VARIES = re.compile(
    r" at 0x[0-9a-f]+|/tmp/\S+|\d{4}-\d\d-\d\d|[\d.,]+ ?(?:ms|s|min|h|MB|MiB|GB|GiB)\b"
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
TAGS = re.compile(r"<style.*?</style>|<[^>]+>", re.S)


def shown(outputs: list[dict]) -> str:
    "What a cell's outputs say in words, without what varies."
    words, pictures = [], 0
    for output in outputs:
        data = output.get("data", {})
        if output["output_type"] == "stream" and output["name"] == "stdout":
            words.append("".join(output["text"]))
        elif "image/png" in data:
            pictures += 1
        elif data:
            html = TAGS.sub(" ", "".join(data.get("text/html", "")))
            words.append(html or "".join(data.get("text/plain", "")))
    text = VARIES.sub("", f"{''.join(words)} {pictures} pictures")
    return " ".join(text.split())


def are_alike(one: str, other: str) -> bool:
    "Are the words of two texts the same, and the numbers as near as on two machines?"
    numbers = [list(map(float, NUMBER.findall(text))) for text in (one, other)]
    return NUMBER.sub("#", one) == NUMBER.sub("#", other) and all(
        math.isclose(a, b, rel_tol=0.05, abs_tol=0.02) for a, b in zip(*numbers)
    )


def from_where_they_differ(one: str, other: str) -> tuple[str, str]:
    "The next words of two texts from where they differ."
    begin = len(commonprefix([one, other]))
    return one[begin : begin + 80], other[begin : begin + 80]


def is_left_out(cell: dict) -> bool:
    "Is a cell not run here?"
    marks = cell.get("directives_") or {}
    is_code = cell["cell_type"] == "code"
    off = {"slow", "notest"} & set(marks) or marks.get("eval:", [""])[0] == "false"
    return not is_code or bool(off) or "nbdev_export(" in cell["source"]


def is_to_be_compared(cell: dict) -> bool:
    "Does a cell keep outputs that are the same each time, here as elsewhere?"
    if is_left_out(cell) or "varies" in (cell.get("directives_") or {}):
        return False
    needs_more = "shared" in cell["source"] and not SHARED.is_dir()
    return bool(cell.get("outputs")) and not needs_more


@pytest.mark.parametrize("path", notebooks, ids=lambda p: str(Path(p).relative_to(NBS)))
def test_runs(path, monkeypatch):
    "It runs, and what it keeps of its outputs is what it prints."
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("IN_TEST", "1")
    monkeypatch.setenv("COLUMNS", "100")
    pd.reset_option("^display")  # of a notebook before
    monkeypatch.chdir(Path(path).parent)
    notebook = NBProcessor(path, procs=FrontmatterProc, process=True).nb
    kept = {
        cell["id"]: shown(cell["outputs"])
        for cell in notebook.cells
        if is_to_be_compared(cell)
    }
    shell = CaptureShell(path)
    try:
        shell.run_all(notebook, exc_stop=True, preproc=is_left_out)
    except Exception:
        pytest.fail(f"{path} failed\n{shell.prettytb(fname=path)}")
    now = {
        cell["id"]: shown(cell.get("outputs", ()))
        for cell in notebook.cells
        if cell["cell_type"] == "code" and cell["id"] in kept
    }
    stale = [
        from_where_they_differ(old, now[id])
        for id, old in kept.items()
        if not are_alike(old, now[id])
    ]
    assert not stale, "run the notebook, and read what is written beside its outputs"


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
