"""The site: settings, sidebar, links, commands that pages print, a real run's examples.

`python tests/test_site.py` mines the sample and writes the examples anew, into
nbs/index.ipynb and README.md.
"""

import inspect
import json
import os
import re
import shlex
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from textwrap import fill

import pandas as pd
import pytest
import yaml
from nbdev.doclinks import _nbpath2html, nbglob
from nbdev.processors import FilterDefaults
from nbdev.serve_drv import exec_nb

import cmining
from cmining import mine_corpus, read_record, read_run
from cmining.cli import build_parser

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
README = ROOT / "README.md"
SITE = "https://cmining.github.io/cmining/"
MADE = {"atlas.html"}  # by the workflow that publishes the site


def read_yaml(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def read_cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


notebooks = sorted(map(Path, nbglob(NBS)))
pages = {path.relative_to(NBS).as_posix(): read_cells(path) for path in notebooks}
quarto = read_yaml(ROOT / "_quarto.yml")
workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))


def markdown(page: str) -> str:
    "The text of a page, without its code."
    return "\n\n".join(
        "".join(c["source"]) for c in pages[page] if c["cell_type"] == "markdown"
    )


def sidebar(contents: list) -> list[str]:
    "The pages of a sidebar, and of its sections, in order."
    listed = []
    for item in contents:
        listed += [item] if isinstance(item, str) else sidebar(item["contents"])
    return listed


def test_quarto_settings():
    assert read_yaml(NBS / "_quarto.yml") == {
        "project": {"type": "website"},
        "metadata-files": ["../_quarto.yml", "nbdev.yml"],
    }
    assert "project" not in quarto
    assert quarto["execute"] == {"enabled": False}
    html = quarto["format"]["html"]
    assert html["html-math-method"] == "mathml"
    assert (NBS / html["css"]).is_file()
    assert quarto["website"]["navbar"]["search"] is True
    assert read_yaml(NBS / "nbdev.yml")["website"]["site-url"] + "/" == SITE


def test_sidebar_has_every_notebook_once():
    listed = sidebar(quarto["website"]["sidebar"]["contents"])
    missing = sorted(set(pages) - set(listed))
    gone = sorted(set(listed) - set(pages))
    assert sorted(listed) == sorted(pages), (
        f"not in _quarto.yml: {missing}; no such notebook: {gone}"
    )
    assert {item["href"] for item in quarto["website"]["navbar"]["left"]} <= set(pages)


@pytest.mark.parametrize("page", pages)
def test_opens_with_title_and_promise_alone(page):
    "nbdev makes them front matter, and drops whatever else is in their cell."
    first = next(c for c in pages[page] if c["cell_type"] == "markdown")
    lines = [line for line in "".join(first["source"]).splitlines() if line]
    assert [line[:2] for line in lines] == ["# ", "> "], "\n".join(lines)


def test_api_page_has_every_public_name_once():
    names = markdown("api.ipynb").partition("## The packages")[0]
    listed = re.findall(r"^\|[^|]*\| `(\w+)` \|", names, re.M)
    assert sorted(listed) == cmining.__all__
    assert all(inspect.getdoc(getattr(cmining, name)) for name in listed)


@pytest.fixture(scope="module")
def processed(tmp_path_factory) -> Callable[[str], list]:
    """A notebook's cells as nbdev hands them to Quarto.

    It runs import cells for this; one that does other work may fail.
    """
    processed_page = tmp_path_factory.mktemp("processed") / "page.ipynb"

    @cache
    def process(page: str) -> list:
        exec_nb(NBS / page, processed_page, FilterDefaults)
        return read_cells(processed_page)

    return process


def output_file(page: str) -> str:
    return Path(_nbpath2html(Path(page))).as_posix()


@pytest.mark.parametrize("page", pages)
def test_links(page, processed, monkeypatch):
    "Links of a processed notebook lead to a notebook, or to what a notebook becomes."
    monkeypatch.setenv("IN_TEST", "1")  # as nbdev does
    monkeypatch.chdir((NBS / page).parent)
    cells = processed(page)
    assert cells[0]["cell_type"] == "raw"
    assert yaml.safe_load("".join(cells[0]["source"]).strip().strip("-"))["title"]
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
    named = set()
    for _, line in shell_lines():
        named.update(re.findall(r"^make ([a-z]+)", line))
    for page in pages:
        named.update(re.findall(r"`make ([a-z]+)`", markdown(page)))
    for path in workflows:
        named.update(re.findall(r"run: make ([a-z]+)", path.read_text(encoding="utf-8")))
    assert named <= targets, f"no target of the Makefile: {sorted(named - targets)}"


@pytest.mark.parametrize("path", workflows, ids=lambda p: p.name)
def test_workflows(path):
    for job in read_yaml(path)["jobs"].values():
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])


# The landing page's examples
# ---------------------------------------------------------------------------------------

# shown whatever becomes of them
CHOSEN = ["jianghu", "fallas", "smoko", "gemuetlichkeit", "volcano"]
BLOCK = re.compile(
    r"(?<=<!-- examples: written by python tests/test_site.py -->\n\n)"
    r".*?"
    r"(?=\n\n<!-- end of examples -->)",
    re.S,
)
VERDICT = {
    "pruned": "pruned by its title",
    "shared": "shared with other languages",
    "culture_point": "**culture point**",
}


def as_markdown(head: list[str], rows: list[list[str]]) -> str:
    "A table as Markdown."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read_labels(run: str | Path) -> pd.DataFrame:
    "The labels of the sample, with what the run made of each entry."
    labels = pd.read_csv(ROOT / "data/sample/labels.csv", keep_default_na=False)
    columns = ["id", "stage", "reason", "isolation", "foreign_row", "foreign_similarity"]
    return labels.merge(read_run(run, "entries")[columns], on="id")


def example_entry() -> str:
    "An entry as it stands in its file, shortened."
    text = (ROOT / "data/sample/zh.jsonl").read_text(encoding="utf-8")
    sample = [json.loads(line) for line in text.splitlines()]
    entry = next(e for e in sample if e["title"] == "江湖")
    start = entry["paragraphs"][0][:36]
    return f'{{"title": "{entry["title"]}", "paragraphs": ["{start}…", …]}}'


def counts_sentence(labels: pd.DataFrame) -> str:
    "How many culture points there are, and how many of them are right."
    n_points = (labels["stage"] == "culture_point").sum()
    held_out = labels[labels["split"] == "test"]
    is_culture = held_out["kind"] == "culture"
    selected = held_out["stage"] == "culture_point"
    right = (selected & is_culture).sum()
    return (
        f"Out come {n_points} culture points. {selected.sum()} of them are in the half of"
        f" the sample that is kept for testing; of these {right} are labelled culture"
        f" ({right / selected.sum():.0%}; of all entries of that half,"
        f" {is_culture.mean():.0%}). They are {right / is_culture.sum():.0%} of what is"
        " labelled culture there. The most isolated of each language:"
    )


def isolated_table(points: pd.DataFrame, lines: dict, gloss: pd.Series) -> str:
    "The most isolated culture points of each language."
    rows = []
    for lang, of_lang in points.groupby("lang"):
        by_isolation = of_lang.sort_values(["isolation", "id"], ascending=[False, True])
        first = by_isolation.head(4)
        rows.append(
            [
                lang,
                str(len(of_lang)),
                ", ".join(first["title"]),
                ", ".join(gloss[i] for i in first["id"]),
                f"{first['isolation'].iloc[0]:.2f}",
                f"{lines[lang]:.2f}",
            ]
        )
    head = ["", "culture points", "most isolated", "in English", "isolation", "line"]
    return as_markdown(head, rows)


def verdicts_table(labels: pd.DataFrame, titles: pd.Series, lines: dict) -> str:
    "What became of the entries that were chosen beforehand."
    rows = []
    for concept in CHOSEN:
        entry = labels[labels["concept"] == concept].sort_values("lang").iloc[0]
        verdict = VERDICT[entry["stage"]]
        if isinstance(entry["reason"], str):
            verdict += f" ({entry['reason']})"
        nearest = f"{titles[entry['foreign_row']]}, {entry['foreign_similarity']:.2f}"
        rows.append(
            [
                f"{entry['title']} ({entry['lang']})",
                entry["gloss_en"],
                f"{entry['isolation']:.2f}",
                f"{lines[entry['lang']]:.2f}",
                nearest,
                verdict,
            ]
        )
    head = ["entry", "in English", "isolation", "line", "nearest abroad", "verdict"]
    return as_markdown(head, rows)


def examples(run: str | Path) -> str:
    "What goes in and what comes out, as Markdown."
    labels = read_labels(run)
    points = read_run(run, "culture_points")
    entries = read_run(run, "entries")
    lines = read_record(run)["isolation_lines"]
    titles = entries["title"] + " (" + entries["lang"].astype(str) + ")"
    gloss = labels.set_index("id")["gloss_en"]
    what_goes_in = (
        f"In goes a folder with a file for each language: {len(labels):,} entries in the"
        " sample, a title and paragraphs each."
    )
    what_isolation_is = (
        "*Isolation* is how much nearer an entry lies to its own language than to any"
        " other; here that of the first title. The *line* is what one entry in a hundred"
        " would reach if the languages were shuffled. Five entries that were chosen"
        " beforehand, and what became of them:"
    )
    parts = [
        fill(what_goes_in, 100),
        f"```json\n{example_entry()}\n```",
        fill(counts_sentence(labels), 100),
        isolated_table(points, lines, gloss),
        fill(what_isolation_is, 100),
        verdicts_table(labels, titles, lines),
    ]
    return "\n\n".join(parts)


def test_landing_page_shows_a_real_run(tmp_path):
    mine_corpus(ROOT / "data/sample", tmp_path, jobs=1)
    shown = BLOCK.search(markdown("index.ipynb"))[0]
    assert shown == examples(tmp_path), "run python tests/test_site.py"


def write_examples() -> str:
    "Mine the sample and write its examples into nbs/index.ipynb and README.md."
    with tempfile.TemporaryDirectory() as run:
        mine_corpus(ROOT / "data/sample", run, jobs=1)
        shown = examples(run)
    index = NBS / "index.ipynb"
    nb = json.loads(index.read_text(encoding="utf-8"))
    texts = [BLOCK.sub(lambda _: shown, "".join(c["source"])) for c in nb["cells"]]
    for cell, text in zip(nb["cells"], texts):
        cell["source"] = text.splitlines(keepends=True)
    index.write_text(
        json.dumps(nb, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    README.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return shown


if __name__ == "__main__":
    print(write_examples())
