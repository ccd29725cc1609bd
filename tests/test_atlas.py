"""The atlas in a browser: searched by keyboard, clicked, read; with a corpus that attacks it."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

pytest.importorskip("bokeh")
from bokeh.core.enums import MarkerType

from cmining.core.basics import RunError
from cmining.core.runs import Params, read_record, read_run
from cmining.evidence.explain import thresholds
from cmining.mine.pipeline import mine_corpus
from cmining.viz.atlas import bokeh_style, make_atlas
from cmining.viz.colors import BOKEH_MARKERS, LANG_STYLES, OTHER_STYLES

SAMPLE = Path(__file__).parents[1] / "data" / "sample"
EVIL = (
    "</script><script>document.title='owned'</script><img src=x"
    " onerror=\"document.title='owned'\"> @{lead}{safe} $$x$$ "
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
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


class Page:
    "A page in headless Chromium, driven by the DevTools protocol."

    def __init__(self, address: str, profile: Path):
        import websocket

        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-unsafe-swiftshader",
            "--remote-debugging-port=0",
            "--window-size=1280,800",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        port = profile / "DevToolsActivePort"
        self.until(lambda: port.is_file() and port.read_text().count("\n"))
        targets = json.load(
            urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json")
        )
        self.socket = websocket.create_connection(
            next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page"),
            suppress_origin=True,
            timeout=120,
        )
        self.n = 0
        self.events = []
        for domain in ("Page", "Network", "Runtime"):
            self(f"{domain}.enable")
        self("Page.navigate", url=address)
        self.until(
            lambda: self.js(
                "typeof atlas == 'object' && !!atlas.rows &&"
                " document.querySelector('#count').textContent"
            )
        )

    def __call__(self, method: str, **params):
        self.n += 1
        self.socket.send(json.dumps({"id": self.n, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.n:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def js(self, code: str):
        answer = self(
            "Runtime.evaluate",
            expression=f"(() => {{ {DEEP} return {code} }})()",
            returnByValue=True,
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, true, seconds: float = 60):
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "the page did not get there"
            time.sleep(0.1)

    def key(self, name: str, code: int):
        for kind in ("keyDown", "keyUp"):
            self(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                windowsVirtualKeyCode=code,
                **({"text": "\r"} if name == "Enter" and kind == "keyDown" else {}),
            )

    def mouse(self, x: float, y: float, *kinds: str):
        for kind in kinds:
            self(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                **({} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}),
            )

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
        self.key("Enter", 13)

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module")
def browser(made, tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("no Chromium or Chrome is installed")
    pytest.importorskip(
        "websocket", reason="websocket-client drives the browser; Jupyter brings it"
    )
    page = Page(made.as_uri(), tmp_path_factory.mktemp("profile"))
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
    limit = thresholds(read_run(run, "entries"), Params(**read_record(run)["params"]))
    limit = limit[(read_run(run, "entries")["id"] == want["id"]).to_numpy()].iloc[0]
    for number in (
        want["dispersion"],
        limit["max_dispersion"],
        want["entropy"],
        limit["min_entropy"],
        want["dominance"],
        want["centrality"],
    ):
        assert f"{number:.3f}" in said
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
    browser.js("0")
    asked = [
        e["params"]["request"]["url"]
        for e in browser.events
        if e.get("method") == "Network.requestWillBeSent"
    ]
    assert asked and all(a.startswith(("file:", "data:", "blob:")) for a in asked)
    assert not [e for e in browser.events if e.get("method") == "Runtime.exceptionThrown"]


def test_same_bytes(run, made, tmp_path):
    make_atlas(run, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == made.read_bytes()


def test_a_limit_leaves_culture_points_and_says_so(run, tmp_path):
    told = make_atlas(run, tmp_path / "small.html", limit=300)
    assert told["points"] == 300 and told["culture_points"] == len(
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
