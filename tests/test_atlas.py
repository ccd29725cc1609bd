"""The atlas in a browser: searched by keyboard, clicked, read; with a corpus that attacks it."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("bokeh")
from bokeh.core.enums import MarkerType
from browser import Page, need_browser

from cmining.core.basics import RunError
from cmining.core.runs import read_record, read_run
from cmining.mine.pipeline import mine_corpus
from cmining.viz.atlas import bokeh_style, make_atlas
from cmining.viz.colors import BOKEH_MARKERS, LANG_STYLES, OTHER_STYLES

SAMPLE = Path(__file__).parents[1] / "data" / "sample"
EVIL = (
    "</script><script>document.title='owned'</script><img src=x"
    " onerror=\"document.title='owned'\"> @{lead}{safe} $$x$$ "
)
DEEP = (
    "const deep = (root, what) => [...root.querySelectorAll(what),"
    " ...[...root.querySelectorAll('*')].flatMap(e => e.shadowRoot ? deep(e.shadowRoot,"
    " what) : [])];"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the sample with an attack in the title and the lead of Fallas, and in a
    group's most central title.
    """
    corpus = tmp_path_factory.mktemp("corpus")
    out = tmp_path_factory.mktemp("run")
    for file in SAMPLE.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        for row in rows:
            if row["title"] in ("Fallas", "紋付"):
                row |= {
                    "title": EVIL + row["title"],
                    "paragraphs": [EVIL + row["paragraphs"][0], *row["paragraphs"][1:]],
                }
        (corpus / file.name).write_text(
            "\n".join(json.dumps(r, ensure_ascii=False) for r in rows), "utf-8"
        )
    mine_corpus(corpus, out, jobs=1)
    return out


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "atlas.html"
    make_atlas(run, out)
    return out


class Atlas(Page):
    "The atlas in a browser."

    prelude = DEEP

    def middle(self) -> tuple[float, float]:
        "The middle of the map, where a search brings what it found."
        return self.js(
            "(() => { const v = Bokeh.index.find_one(model('map')), box ="
            " v.el.getBoundingClientRect(), f = v.frame.bbox; return [box.x + f.left +"
            " f.width / 2, box.y + f.top + f.height / 2] })()"
        )

    def search(self, text: str):
        """Type into the search field, which Tab reaches first, and take the first
        completion.
        """
        (
            self.js(
                "(document.activeElement.blur(), deep(document, 'input')[0].select())"
            )
            if self.js("document.activeElement != document.body")
            else self.key("Tab", 9)
        )
        self("Input.insertText", text=text)
        self.key("Shift", 16)  # the field looks at its text when a key is let go
        self.key("Enter", 13, "\r")


@pytest.fixture(scope="module")
def browser(made, tmp_path_factory):
    need_browser()
    page = Atlas(tmp_path_factory.mktemp("profile"))
    page.open(
        made.as_uri(),
        "typeof atlas == 'object' && !!atlas.rows &&"
        " document.querySelector('#count').textContent",
    )
    yield page
    page.close()


def test_search_click_and_read_the_evidence(browser, run):
    points = read_run(run, "culture_points")
    want = points[points["title"] == "土俵入り"].iloc[0]
    browser.search("土俵")
    browser.until(
        lambda: (
            browser.js("document.querySelector('#panel h2')?.textContent") == "土俵入り"
        )
    )

    browser.js("points.selected.indices = []")
    assert "Islands of culture" in browser.js(
        "document.querySelector('#panel').textContent"
    )
    browser.mouse(*browser.middle(), "mouseMoved")
    browser.until(
        lambda: (
            "土俵入り"
            in "".join(
                browser.js(
                    "deep(document, '.bk-Tooltip').map(e => e.shadowRoot?.textContent ??"
                    " e.textContent)"
                )
            )
        )
    )
    browser.mouse(*browser.middle(), "mousePressed", "mouseReleased")
    browser.until(
        lambda: (
            browser.js("document.querySelector('#panel h2')?.textContent") == "土俵入り"
        )
    )

    said = browser.js("document.querySelector('#panel').innerText")
    line = read_record(run)["isolation_lines"]["ja"]
    for number in (want["isolation"], line, want["centrality"]):
        assert f"{number:.3f}" in said
    assert want["foreign_title"] in said
    for other in points.loc[points["group"] == want["group"], "title"]:
        assert other in said


def test_filter_by_language_stage_and_group(browser):
    def shown():
        return browser.js("document.querySelector('#count').textContent")

    everything = shown()
    browser.js("model('langs').active = [facts.langs.indexOf('ja')]")
    browser.js("model('stages').active = [0]")
    only = browser.js(
        "d.lang.filter((l, i) => l == 'ja' && d.stage[i] == 'culture_point').length"
    )
    assert shown() == f"{only} culture points and 0 others shown"
    group = browser.js(
        "String(d.group.find((g, i) => d.lang[i] == 'ja' && d.stage[i] =="
        " 'culture_point'))"
    )
    browser.js(f"model('group').value = '{group}'")
    assert (
        int(shown().split()[0])
        == browser.js(
            "d.lang.filter((l, i) => l == 'ja' && d.stage[i] == 'culture_point' &&"
            f" d.group[i] == {group}).length"
        )
        <= only
    )
    browser.js(
        "[model('langs').active = [0, 1, 2, 3, 4, 5], model('stages').active = [0, 1, 2,"
        " 3, 4], atlas.back()]"
    )
    assert shown() == everything


@pytest.mark.parametrize("title", ["Fallas", "紋付"])
def test_corpus_text_stays_text(browser, title):
    browser.search(EVIL.strip()[:30])
    browser.until(
        lambda: (
            EVIL.strip()
            in (browser.js("document.querySelector('#panel h2')?.textContent") or "")
        )
    )
    browser.js(f"atlas.go(d.title.findIndex(t => t.endsWith('{title}')))")
    assert browser.js("document.querySelector('#panel h2').textContent") == EVIL + title
    browser.js("points.selected.indices = []")
    browser.mouse(5, 5, "mouseMoved")
    browser.mouse(*browser.middle(), "mouseMoved")
    browser.until(
        lambda: (
            f"{EVIL}{title}"
            in "".join(
                browser.js(
                    "deep(document, '.bk-Tooltip').map(e => e.shadowRoot?.textContent ??"
                    " e.textContent)"
                )
            )
        )
    )
    assert browser.js("document.title") == "Atlas of culture points"
    assert not browser.js("deep(document, 'img').length")


def test_no_network_and_no_exception(browser):
    asked = browser.requests()
    assert asked and all(a.startswith(("file:", "data:", "blob:")) for a in asked)
    assert not browser.exceptions()


def test_same_bytes(run, made, tmp_path):
    make_atlas(run, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == made.read_bytes()


def test_a_limit_leaves_culture_points_and_says_so(run, tmp_path):
    told = make_atlas(run, tmp_path / "small.html", limit=600)
    assert told["points"] == 600 and told["culture_points"] == len(
        read_run(run, "culture_points")
    )
    assert "left out at random" in (tmp_path / "small.html").read_text("utf-8")


def test_a_run_without_culture_points(tmp_path):
    (tmp_path / "en.jsonl").write_text(
        "\n".join(
            json.dumps({"title": f"Word {c}", "text": f"About {c}."}) for c in "abcdefgh"
        ),
        "utf-8",
    )
    mine_corpus(tmp_path, tmp_path / "run", jobs=1)
    assert make_atlas(tmp_path / "run", tmp_path / "atlas.html")["culture_points"] == 0


def test_a_cleaned_run_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("work"))
    with pytest.raises(RunError, match="clean=False"):
        make_atlas(tmp_path / "run", tmp_path / "atlas.html")


def test_colours_are_those_of_the_figures():
    plots = pytest.importorskip("cmining.viz.plots")
    langs = [*LANG_STYLES, "ko", "pt", "sw"]
    assert {lang: bokeh_style(lang)[0] for lang in langs} == {
        lang: plots.lang_style(lang)["color"] for lang in langs
    }


def test_every_marker_can_be_filled():
    "A marker of lines alone, such as x, would be drawn in white on white."

    lines_alone = {"asterisk", "cross", "dash", "x", "y"}
    for _, marker in [*LANG_STYLES.values(), *OTHER_STYLES]:
        name, character = BOKEH_MARKERS[marker]
        assert name in set(MarkerType) - lines_alone
        assert len(character) == 1
