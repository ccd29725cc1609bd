"""The house: packages by floor, imports that only go down, one statement a line, a small public face."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cmining

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "cmining"
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
ALL_NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
FLOORS = [
    "core",
    "models",
    "ingest",
    "mine",
    "evidence",
    "instruct",
    "train",
    "align",
    "collect",
]


def cells_of(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def module_of(notebook: Path) -> str:
    "mine.discover for 33_mine.discover.ipynb."
    return notebook.stem.split("_", 1)[1]


NUMBER = {module_of(path): int(path.stem[:2]) for path in NOTEBOOKS}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(LIBRARY.rglob("*.py")):
        if path.name not in ("__init__.py", "_modidx.py"):
            yield (
                path.relative_to(LIBRARY).with_suffix("").as_posix().replace("/", "."),
                path,
            )


def imported_modules(name: str, path: Path) -> set[str]:
    "The modules of the library that a module imports, at its top or inside a function."
    package = name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        parts = (node.module or "").split(".") if node.module else []
        if node.level:
            base = package[: len(package) - node.level + 1]
        elif parts[0] == "cmining":
            base = []
            parts = parts[1:]
        else:
            continue
        target = ".".join(base + parts)
        found |= (
            {target} if target in NUMBER else {f"{target}.{a.name}" for a in node.names}
        )
    return {module for module in found if module in NUMBER}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_exports_the_module_it_is_named_after(path):
    exports = [c for c in cells_of(path) if c.startswith("#| default_exp")]
    assert exports == [f"#| default_exp {module_of(path)}"]
    assert (LIBRARY / f"{module_of(path).replace('.', '/')}.py").is_file()


def test_numbers_tell_the_floor():
    for name, number in NUMBER.items():
        package = name.split(".")[0]
        if package == "tasks":  # of train, in a folder that lm-eval can be pointed at
            package = "train"
        floor = FLOORS.index(package) if package in FLOORS else 9
        assert number // 10 == floor, (
            f"{name} is on floor {floor}, its notebook says {number}"
        )
    assert len(set(NUMBER.values())) == len(NUMBER)


def test_every_module_has_a_notebook():
    assert {name for name, path in modules()} == set(NUMBER)


@pytest.mark.parametrize(
    ("name", "path"), modules(), ids=lambda value: str(value).split("/")[-1]
)
def test_imports_go_down(name, path):
    "A module imports modules with lower numbers only; so no two import each other."
    up = {m for m in imported_modules(name, path) if NUMBER[m] >= NUMBER[name]}
    assert not up, f"{name} ({NUMBER[name]}) imports {', '.join(sorted(up))}"


@pytest.mark.parametrize(
    ("name", "path"), modules(), ids=lambda value: str(value).split("/")[-1]
)
def test_a_name_is_defined_once(name, path):
    "Of two functions of one name in a module, the first is lost without a word."
    body = ast.parse(path.read_text(encoding="utf-8")).body
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = [node.name for node in body if isinstance(node, kinds)]
    assert len(names) == len(set(names)), {n for n in names if names.count(n) > 1}


def test_the_check_of_imports_sees_them():
    assert "core.engine" in imported_modules(
        "mine.pipeline", LIBRARY / "mine/pipeline.py"
    )
    inside_a_function = imported_modules("commands.mine", LIBRARY / "commands/mine.py")
    assert "viz.atlas" in inside_a_function


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_cell_has_one_directive_of_a_kind(path):
    "Of two, nbdev obeys one: what follows the other is missing from the module's names."
    for cell in cells_of(path):
        exports = re.findall(r"^#\|\s*(?:default_exp|exporti?)\b", cell, re.M)
        assert len(exports) <= 1, cell[:200]
        assert not exports or cell.startswith("#|"), cell[:200]


def test_lines_fit_a_page():
    "None over 120 characters, nine of ten under 90."
    lines = []
    for _, path in modules():
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"^__all__ = \[.*?\]$", "", text, flags=re.M | re.S)  # nbdev's own
        lines += [(len(line), path.name, line) for line in text.splitlines()]
    wide = [line for line in lines if line[0] > 120]
    assert not wide, wide
    assert sum(length < 90 for length, *_ in lines) > 0.9 * len(lines)


# a table's row, a formula, a picture, an address; a page's description is one line
CANNOT_BREAK = re.compile(r"\||\$\$|!\[|\[[^\]]+\]\(\S+\)$|> |\s*\\")


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=lambda path: path.stem)
def test_prose_fits_a_page(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    prose = re.sub(r"^```.*?^```", "", "\n".join(texts), flags=re.M | re.S)
    wide = [line for line in prose.splitlines() if len(line) > 120]
    assert not [line for line in wide if not CANNOT_BREAK.match(line)]


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=" ".join)
def test_style(command):
    "One statement a line, no unused names, sorted imports: what make format leaves as it is."
    ruff = Path(sys.executable).parent / "ruff"
    done = subprocess.run(
        [ruff, *command, "nbs", "tests"], cwd=ROOT, capture_output=True, text=True
    )
    assert not done.returncode, f"run make format\n{done.stdout}"


def brings(statement: str) -> set[str]:
    "The packages that a statement loads in a fresh process."
    code = (
        f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    )
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


def test_light_imports():
    heavy = {"sklearn", "spacy", "mwparserfromhell", "torch", "matplotlib", "hdbscan"}
    assert not brings("import cmining.models.llm") & heavy
    assert not brings("import cmining") & (heavy | {"numpy", "pandas", "pyarrow"})


def test_public_names():
    assert 10 <= len(cmining.__all__) <= 24
    for name in cmining.__all__:
        assert getattr(cmining, name).__doc__, name
    assert set(cmining.__all__) <= set(dir(cmining))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cmining.nothing
