"""The site: its settings, its sidebar, links between pages, commands that the pages print, examples from a real run.

`python tests/test_site.py` mines the sample and writes the examples anew, into nbs/index.ipynb and README.md.
"""

import json
import os
import re
import shlex
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import yaml
from nbdev.doclinks import _nbpath2html, nbglob
from nbdev.processors import FilterDefaults
from nbdev.serve_drv import exec_nb

from cmining.cli import build_parser
from cmining.core.runs import read_run
from cmining.mine.pipeline import mine_corpus

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
README = ROOT / "README.md"
SITE = "https://cmining.github.io/cmining/"
MADE = {"atlas.html"}  # by the workflow that publishes the site
pages = {
    Path(p).relative_to(NBS).as_posix(): json.loads(Path(p).read_text(encoding="utf-8"))[
        "cells"
    ]
    for p in sorted(nbglob(NBS), key=str)
}
quarto = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))


def markdown(page: str) -> str:
    return "\n\n".join(
        "".join(c["source"]) for c in pages[page] if c["cell_type"] == "markdown"
    )


def sidebar(contents: list) -> list[str]:
    return [
        path
        for item in contents
        for path in ([item] if isinstance(item, str) else sidebar(item["contents"]))
    ]


def test_quarto_settings():
    inner = yaml.safe_load((NBS / "_quarto.yml").read_text(encoding="utf-8"))
    assert inner == {
        "project": {"type": "website"},
        "metadata-files": ["../_quarto.yml", "nbdev.yml"],
    }
    assert "project" not in quarto and quarto["execute"] == {"enabled": False}
    assert (
        quarto["format"]["html"]["html-math-method"] == "mathml"
        and (NBS / quarto["format"]["html"]["css"]).is_file()
    )
    assert quarto["website"]["navbar"]["search"] is True
    assert (
        yaml.safe_load((NBS / "nbdev.yml").read_text(encoding="utf-8"))["website"][
            "site-url"
        ]
        + "/"
        == SITE
    )


def test_sidebar_has_every_notebook_once():
    listed = sidebar(quarto["website"]["sidebar"]["contents"])
    assert sorted(listed) == sorted(pages), (
        f"not in _quarto.yml: {sorted(set(pages) - set(listed))}; not there:"
        f" {sorted(set(listed) - set(pages))}"
    )
    assert {item["href"] for item in quarto["website"]["navbar"]["left"]} <= set(pages)


@pytest.mark.parametrize("page", pages)
def test_opens_with_title_and_promise_alone(page):
    "nbdev makes them front matter, and drops whatever else is in their cell."
    first = next(c for c in pages[page] if c["cell_type"] == "markdown")
    lines = [line for line in "".join(first["source"]).splitlines() if line]
    assert len(lines) == 2 and lines[0].startswith("# ") and lines[1].startswith("> "), (
        "\n".join(lines[2:])
    )


@pytest.fixture(scope="module")
def processed(tmp_path_factory) -> Callable[[str], list]:
    """A notebook's cells as nbdev hands them to Quarto.

    It runs import cells for this; one that does other work may fail.
    """
    folder = tmp_path_factory.mktemp("processed")

    @cache
    def process(page: str) -> list:
        exec_nb(NBS / page, folder / "page.ipynb", FilterDefaults)
        return json.loads((folder / "page.ipynb").read_text(encoding="utf-8"))["cells"]

    return process


def output_file(page: str) -> str:
    return Path(_nbpath2html(Path(page))).as_posix()


@pytest.mark.parametrize("page", pages)
def test_links(page, processed, monkeypatch):
    """Links in the processed notebook lead to pages of the site: to a notebook, or to
    what it becomes.
    """
    monkeypatch.setenv("IN_TEST", "1")  # as nbdev does
    monkeypatch.chdir((NBS / page).parent)
    cells = processed(page)
    assert (
        cells[0]["cell_type"] == "raw"
        and yaml.safe_load("".join(cells[0]["source"]).strip().strip("-"))["title"]
    )
    text = "\n\n".join(
        "".join(c["source"]) for c in cells if c["cell_type"] == "markdown"
    )
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    made = MADE | {output_file(p) for p in pages}
    for link in re.findall(r"\]\(([^()\s]+(?:\([^()\s]*\))?[^()\s]*)\)", text):
        target = link.partition("#")[0]
        if target.startswith(SITE):
            assert target.removeprefix(SITE) in made, link
        elif target and not re.match("[a-z]+:", target):
            path = os.path.normpath(Path(page).parent / target)
            assert path in pages or path in made, f"{link}: no page of the site"


def shell_lines() -> list[tuple[str, str]]:
    return [
        (page, line)
        for page in pages
        for block in re.findall(r"^```sh\n(.*?)^```", markdown(page), re.S | re.M)
        for line in block.splitlines()
    ]


def test_commands_in_pages_parse():
    "Every cmining command that a page prints is one that the program takes."
    wrong = []
    n = 0
    for page, line in shell_lines():
        for command in re.findall(r"(?:^|do )cmining ([^;]+)", line):
            n += 1
            try:
                build_parser().parse_args(shlex.split(command, comments=True))
            except SystemExit:
                wrong.append(f"{page}: cmining {command}")
    assert not wrong and n > 20  # n: the pattern still finds them


def test_make_targets_exist():
    targets = set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    )
    workflows = "\n".join(
        p.read_text(encoding="utf-8")
        for p in sorted((ROOT / ".github/workflows").glob("*.yml"))
    )
    named = {
        m for _, line in shell_lines() for m in re.findall(r"^make ([a-z]+)", line)
    } | set(re.findall(r"run: make ([a-z]+)", workflows))
    named |= {m for page in pages for m in re.findall(r"`make ([a-z]+)`", markdown(page))}
    assert named <= targets, f"no target of the Makefile: {sorted(named - targets)}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda p: p.name
)
def test_workflows(path):
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    assert all(
        ("uses" in step) != ("run" in step)
        for job in jobs.values()
        for step in job["steps"]
    )


# The landing page's examples
# ---------------------------------------------------------------------------------------

# followed whatever becomes of them
CHOSEN = ["jianghu", "fallas", "smoko", "gemuetlichkeit", "volcano"]
BLOCK = re.compile(
    r"(?<=<!-- examples: written by python tests/test_site.py -->\n\n).*?(?=\n\n<!-- end"
    r" of examples -->)",
    re.S,
)
VERDICT = {
    "pruned": "pruned by its title",
    "sparse": "no near neighbours",
    "incoherent": "does not hang together",
    "small": "group too small",
    "mixed": "no island",
    "culture_point": "**culture point**",
}


def rows_of(table: list[list[str]]) -> list[str]:
    head, *body = table
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]]


def examples(run: str) -> str:
    "What goes in and what comes out, as Markdown."
    points, entries = (read_run(run, t) for t in ("culture_points", "entries"))
    groups = read_run(run, "groups").set_index("group")
    labels = pd.read_csv(ROOT / "data/sample/labels.csv", keep_default_na=False)
    labels = labels.merge(entries[["id", "stage", "reason", "group"]], on="id")
    gloss = labels.set_index("id")["gloss_en"]
    held_out = labels[labels["split"] == "test"]
    chosen = held_out[held_out["stage"] == "culture_point"]
    right = int((chosen["kind"] == "culture").sum())
    sample = [
        json.loads(line)
        for line in (
            (ROOT / "data/sample/zh.jsonl").read_text(encoding="utf-8").splitlines()
        )
    ]
    row = next(e for e in sample if e["title"] == "江湖")
    lines = [
        (
            f"In goes a folder with a file for each language: {len(entries):,} entries in"
            " the sample, a title and paragraphs each."
        ),
        "",
        "```json",
        (
            f'{{"title": "{row["title"]}", "paragraphs": ["{row["paragraphs"][0][:36]}…",'
            " …]}"
        ),
        "```",
        "",
        (
            f"Out come {len(points)} culture points. {len(chosen)} of them are in the"
            f" half of the sample that is kept for testing; of these {right} are labelled"
            f" culture ({right / len(chosen):.0%}; of all entries of that half,"
            f" {(held_out['kind'] == 'culture').mean():.0%}). The largest island of each"
            " language, its most central titles first:"
        ),
        "",
    ]
    table = [["", "culture points", "largest island", "in English", "γ", "size", "q"]]
    for lang, mine_ in points.groupby("lang"):
        first = mine_.sort_values(["group_size", "group"], ascending=[False, True])[
            "group"
        ].iloc[0]
        island = mine_[mine_["group"] == first].sort_values("rank")
        fact = island.iloc[0]
        table.append(
            [
                lang,
                str(len(mine_)),
                ", ".join(island["title"][:4]),
                ", ".join(gloss[i] for i in island["id"][:4]),
                f"{fact['dominance']:.2f}",
                str(fact["group_size"]),
                f"{fact['q_value']:.0e}",
            ]
        )
    lines += rows_of(table) + [
        "",
        (
            "γ is how purely the group belongs to the language, size the number of its"
            " entries, and q how likely so pure a group is by chance. Five entries that"
            " were chosen beforehand, and what became of them:"
        ),
        "",
    ]
    table = [["entry", "in English", "γ of its group", "verdict"]]
    for concept in CHOSEN:
        for e in (
            labels[labels["concept"] == concept].sort_values("lang").head(1).itertuples()
        ):
            gamma = (
                f"{groups.loc[e.group, 'dominance']:.2f} ({groups.loc[e.group, 'lang']})"
                if e.group in groups.index
                else "–"
            )
            table.append(
                [
                    f"{e.title} ({e.lang})",
                    e.gloss_en,
                    gamma,
                    VERDICT[e.stage]
                    + (f" ({e.reason})" if isinstance(e.reason, str) else ""),
                ]
            )
    return "\n".join(lines + rows_of(table))


def test_landing_page_shows_a_real_run(tmp_path):
    mine_corpus(ROOT / "data/sample", tmp_path, jobs=1)
    assert BLOCK.search(markdown("index.ipynb"))[0] == examples(tmp_path), (
        "run python tests/test_site.py"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as run:
        mine_corpus(ROOT / "data/sample", run, jobs=1)
        shown = examples(run)
    nb = json.loads((NBS / "index.ipynb").read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        cell["source"] = BLOCK.sub(lambda _: shown, "".join(cell["source"])).splitlines(
            keepends=True
        )
    (NBS / "index.ipynb").write_text(
        json.dumps(nb, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    README.write_text(
        "\n\n".join("".join(c["source"]) for c in nb["cells"]) + "\n", encoding="utf-8"
    )
    print(shown)
