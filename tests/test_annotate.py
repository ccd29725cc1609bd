"""Human evaluation: α against its reference, blindness, accounting; the page, driven in a browser."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import Page, need_browser
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from cmining.cli import main
from cmining.core.basics import RunError
from cmining.evidence.annotate import QUESTIONS, krippendorff_alpha
from cmining.evidence.answers import account, read_answers
from cmining.evidence.quality import POINTS
from cmining.evidence.questionnaire import (
    WORDS,
    label_studio_config,
    sheet_page,
    text_hash,
)
from cmining.evidence.study import (
    collect_study,
    sample_study,
    score_study,
    simulate_study,
)
from cmining.mine.pipeline import mine_corpus
from cmining.viz.report import run_notebook

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "sample"
EVIL = (
    "</script><script>document.title='owned'</script><img src=x"
    " onerror=\"document.title='owned'\">"
)
HOSTILE = [EVIL, "=HYPERLINK(1)", "a & b < c", "${x} {done}", "\u202egnp.exe", "'\"`\\"]


# ---- agreement


@pytest.mark.parametrize("seed", range(30))
def test_alpha_equals_the_reference(seed):
    reference = pytest.importorskip("krippendorff")
    rng = np.random.default_rng(seed)
    n_raters, n_units, n_values = rng.integers([2, 5, 2], [7, 60, 8])
    ratings = rng.integers(0, n_values, (n_raters, n_units)).astype(float)
    truth = rng.integers(0, n_values, n_units)
    ratings = np.where(rng.random(ratings.shape) < 0.6, truth, ratings)
    ratings[rng.random(ratings.shape) < rng.choice([0.05, 0.3, 0.6])] = np.nan
    for level in ("nominal", "ordinal", "interval"):
        expected = reference.alpha(reliability_data=ratings, level_of_measurement=level)
        assert abs(krippendorff_alpha(ratings, level) - expected) < 1e-9


# ---- blindness


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of the sample in which some titles and leads are attacks."
    corpus = tmp_path_factory.mktemp("corpus")
    out = tmp_path_factory.mktemp("run") / "sample"
    for file in SAMPLE.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        for row, evil in zip(rows[::30], HOSTILE):
            row["title"] = f"{evil} {row['title']}"
            row["paragraphs"][0] = f"{evil} {row['paragraphs'][0]}"
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (corpus / file.name).write_text("\n".join(lines), "utf-8")
    mine_corpus(corpus, out, jobs=1)
    return out


@pytest.fixture(scope="module")
def study(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "study"
    sample_study([run], out, n=300)
    return out


def page_data(page: Path) -> dict:
    "What is in a rater's page besides its words."
    text = page.read_text("utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    return json.loads(data[1])["sheet"]


def without_texts(study: Path) -> pd.DataFrame:
    """All that a rater's files say of each item besides its title and text.

    Its place, its id, and what comes before it; and which arm it is of, from the key."""
    key = json.loads((study / "key.json").read_text("utf-8"))
    arms = {unit["unit"]: unit["arms"] for unit in key["units"]}
    unit_of = {(row["rater"], row["item"]): row["unit"] for row in key["sheets"]}
    rows = []
    for page in sorted((study / "pages").iterdir()):
        sheet = page_data(page)
        n = len(sheet["items"])
        for place, entry in enumerate(sheet["items"]):
            assert list(entry) == ["item", "title", "text"]
            unit = unit_of[sheet["rater"], entry["item"]]
            if unit not in arms:
                continue
            number = int(entry["item"], 16)
            digits = [number >> shift & 15 for shift in range(0, 40, 4)]
            about = {"place": place / n, "id": number / 16**10, "parity": place % 2}
            about |= {f"digit {i}": digit / 15 for i, digit in enumerate(digits)}
            rows.append(about | {"ours": POINTS in arms[unit]})
    return pd.DataFrame(rows)


def predictability(table: pd.DataFrame) -> float:
    "How well a classifier tells the arm from everything else: the area under its ROC."
    features = table.drop(columns="ours")
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    model = LogisticRegression(max_iter=1000)
    probability = cross_val_predict(
        model, features, table["ours"], cv=folds, method="predict_proba"
    )
    return roc_auc_score(table["ours"], probability[:, 1])


def test_nothing_but_the_texts_tells_the_arm(study):
    table = without_texts(study)
    assert len(table) > 900
    # what labels that were dealt out at random give, and as far beyond as they go
    rng = np.random.default_rng(0)
    by_chance = [
        predictability(table.assign(ours=rng.permutation(table["ours"])))
        for _ in range(20)
    ]
    assert predictability(table) <= max(by_chance) + 0.02
    # the same classifier sees it where arms come one after the other
    in_order = table.sort_values("ours", kind="stable")
    told = in_order.assign(place=np.linspace(0, 1, len(table)))
    assert predictability(told) > 0.95


def test_a_raters_files_hold_what_is_needed_and_no_more(study):
    key = json.loads((study / "key.json").read_text("utf-8"))
    unit_ids = {unit["id"] for unit in key["units"]}
    for page in sorted((study / "pages").iterdir()):
        rater = page.stem
        sheet = page_data(page)
        items = [entry["item"] for entry in sheet["items"]]
        tasks = json.loads((study / "label-studio" / f"{rater}.json").read_text("utf-8"))
        assert [task["data"]["item"] for task in tasks] == items
        assert {tuple(task) for task in tasks} == {("data",)}
        assert {tuple(t["data"]) for t in tasks} == {("rater", "item", "title", "text")}
        table = pd.read_csv(study / "tables" / f"{rater}.csv", dtype=str)
        assert table["item"].iloc[1:].tolist() == [f"i{item}" for item in items]
        text = page.read_text("utf-8")
        assert not [unit_id for unit_id in unit_ids if unit_id in text]
    for public in ("study.json", "items.csv"):
        text = (study / public).read_text("utf-8")
        assert not re.search("culture|Random|Mono|seed", text)


def test_each_rater_has_an_order_of_its_own(study):
    key = json.loads((study / "key.json").read_text("utf-8"))
    sheets = pd.DataFrame(key["sheets"])
    lang = sheets["rater"].str.split("-").str[0]
    for _, of_lang in sheets[~sheets["repeat"]].groupby(lang):
        orders = [sheet["unit"].tolist() for _, sheet in of_lang.groupby("rater")]
        assert len({tuple(order) for order in orders}) == len(orders) == 3
        assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(orders[0]))}
    assert sheets["item"].is_unique


# ---- from the command to the scores


def test_the_three_commands(run, tmp_path, capsys):
    out = tmp_path / "study"
    assert main(["annotate", "sample", str(run), "--n", "60", "--out", str(out)]) == 0
    assert "found four times out of five" in capsys.readouterr().out
    assert main(["annotate", "collect", str(out)]) == 2
    assert "is empty" in capsys.readouterr().err
    simulate_study(out, pd.read_csv(SAMPLE / "labels.csv"))
    key = (out / "key.json").rename(tmp_path / "kept.json")
    assert main(["annotate", "collect", str(out)]) == 0
    collected = capsys.readouterr().out
    assert "SIMULATED" in collected
    assert not re.search("culture points in|Random|Mono", collected)
    assert main(["annotate", "score", str(out)]) == 2
    assert "say where the key is kept" in capsys.readouterr().err
    assert main(["annotate", "score", str(out), "--key", str(key)]) == 0
    told = capsys.readouterr().out
    assert "SIMULATED" in told and "Krippendorff" in told
    for name in ("means", "differences", "agreement", "raters"):
        assert pd.read_csv(out / "scores" / f"{name}.csv")["simulated"].all()
    assert main(["annotate", "sample", str(run), "--out", str(out)]) == 2
    assert main(["annotate", "score", str(tmp_path), "--key", str(key)]) == 2


def test_another_studys_key_is_refused(study, run, tmp_path):
    sample_study([run], tmp_path / "other", n=30, seed=1)
    with pytest.raises(RunError, match="key of another study"):
        score_study(tmp_path / "other", study / "key.json")


def test_hostile_texts_come_back_whole_through_a_spreadsheet(study, tmp_path):
    "Filled in as a spreadsheet saves it: semicolons, a byte order mark, Windows lines."
    table = pd.read_csv(study / "tables" / "de-1.csv", dtype=str, keep_default_na=False)
    assert not table["title"].str.match(r"[=+\-@0-9]").any()
    table.loc[1:, list(QUESTIONS)] = "nein"
    saved = tmp_path / "filled.csv"
    table.to_csv(saved, sep=";", index=False, encoding="utf-8-sig", lineterminator="\r\n")
    rows, unreadable = read_answers([saved])
    manifest = pd.read_csv(study / "items.csv", dtype=str)
    accounts = account(rows, manifest, "")
    assert not unreadable
    assert set(accounts.rows["status"]) == {"used"}
    assert accounts.raters.set_index("rater").loc["de-1", "missing"] == 0


def test_label_studio_export_with_several_annotators(study, tmp_path):
    tasks = json.loads((study / "label-studio" / "ja-2.json").read_text("utf-8"))
    for i, task in enumerate(tasks):
        choices = [
            {"from_name": name, "to_name": "text", "type": "choices"}
            | {"value": {"choices": ["yes" if i % 2 else "いいえ"]}}
            for name in QUESTIONS
        ]
        task["id"] = i
        task["annotations"] = [
            {"completed_by": 3, "was_cancelled": i == 0, "result": choices},
            {"completed_by": {"id": 9, "email": "a@example.org"}, "result": choices},
        ]
    saved = tmp_path / "export.json"
    saved.write_text(json.dumps(tasks, ensure_ascii=False), "utf-8")
    rows, _ = read_answers([saved])
    manifest = pd.read_csv(study / "items.csv", dtype=str)
    accounts = account(rows, manifest, "")
    assert len(accounts.rows) == 2 * len(tasks)
    assert accounts.rows["status"].value_counts().to_dict() == {
        "used": 2 * len(tasks) - 1,
        "cancelled": 1,
    }
    assert set(accounts.ratings["rater"]) == {"ja-2/3", "ja-2/9"}
    assert accounts.missing["item"].tolist() == [tasks[0]["data"]["item"]]
    assert "example.org" not in accounts.rows.to_csv()


@pytest.mark.parametrize("lang", WORDS)
def test_the_configuration_is_xml_with_required_questions(lang):
    view = ET.fromstring(label_studio_config(lang))
    assert [choices.get("name") for choices in view.findall("Choices")] == list(QUESTIONS)
    for choices in view.findall("Choices"):
        assert (choices.get("required"), choices.get("choice")) == ("true", "single")
    headers = [header.get("value") for header in view.findall("Header")]
    assert headers == WORDS[lang]["questions"]


# ---- the page


ITEMS = pd.DataFrame(
    {
        "item": [f"{i:010x}" for i in range(30)],
        "title": [
            f"{HOSTILE[i]}" if i < len(HOSTILE) else f"Begriff {i}" for i in range(30)
        ],
        "text": [f"{HOSTILE[i % len(HOSTILE)]} und ein Text." for i in range(30)],
    }
)


class Sheet(Page):
    "A rater's page in a browser."

    def text(self, selector: str) -> str:
        return self.js(f"document.querySelector({json.dumps(selector)})?.textContent")

    def press(self, *keys: str):
        codes = {"Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39}
        codes |= {"ArrowUp": 38, "ArrowDown": 40}
        for key in keys:
            text = {"Enter": "\r"}.get(key, "" if key in codes else key)
            self.key(key, codes.get(key, ord(key[0])), text)

    def answers(self) -> list[str]:
        "What is pressed of the term that is shown, a character a question."
        return self.js(
            "[...document.querySelectorAll('.question')].map(q => (q.querySelector("
            "'[aria-checked=true]')?.id ?? '-').slice(2)).map(a => a[0] ?? '-').join('')"
        )


def write_sheet(folder: Path) -> Path:
    page = folder / "de-1.html"
    page.write_text(sheet_page(ITEMS, "de-1", "de", "a study"), "utf-8")
    return page


READY = "!!document.querySelector('#main header')"


@pytest.fixture()
def opened(tmp_path):
    need_browser()
    page = write_sheet(tmp_path)
    browser = Sheet(tmp_path / "profile")
    browser("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.address = page.as_uri()
    browser.open(browser.address, READY)
    yield browser
    browser.close()


def given(i: int) -> list[int]:
    "What the test answers to the i-th term."
    return [(i >> bit) & 1 for bit in range(5)]


def answer_by_keys(browser: Sheet, i: int):
    assert browser.text("#title") == ITEMS["title"][i]
    assert browser.text("#text") == ITEMS["text"][i]
    browser.press(*["1" if value else "2" for value in given(i)])


def test_thirty_items_by_keyboard_with_lost_tabs_and_a_file(opened, tmp_path):
    browser = opened
    browser.press("1")  # nothing is answered before the rater agrees
    assert browser.text("#title") is None
    assert browser.text("#agree") == WORDS["de"]["agree"]
    browser.press("Tab", "Tab", "Enter")
    for i in range(12):
        answer_by_keys(browser, i)
        assert browser.answers() == "".join("ny"[value] for value in given(i))
        browser.press("Enter")
    browser.press("1", "2", "1")
    assert browser.answers() == "yny--"

    browser.reload(READY)  # in the middle of a term
    assert browser.text("#title") == ITEMS["title"][12]
    assert browser.answers() == "yny--"
    assert browser.js("document.activeElement.id") == "q3"
    assert browser.text("#progress") == "12 von 30 fertig"

    browser.press("ArrowUp", "1", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp")
    assert browser.js("document.activeElement.id") == "q0"
    browser.press("2")  # the first answer is taken back
    assert browser.answers() == "nny--"
    browser.press("ArrowLeft")
    assert browser.text("#title") == ITEMS["title"][11]
    browser.press("ArrowRight", "ArrowDown")

    browser.open("about:blank", "true")  # the tab is gone
    browser.open(browser.address, READY)
    browser.press("ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp")
    for i in range(12, 30):
        answer_by_keys(browser, i)
        browser.press("Enter")
    assert browser.text("#end") == WORDS["de"]["end"]
    assert browser.text("#progress") == "30 von 30 fertig"
    assert browser.js("document.activeElement.id") == "save"
    browser.press("Enter")

    saved = tmp_path / "answers-de-1.json"
    shown = browser.js("document.querySelector('#copy').value")
    browser.until(lambda: saved.is_file() and saved.read_text("utf-8") == shown)
    rows, _ = read_answers([saved])
    digests = [text_hash(*pair) for pair in zip(ITEMS["title"], ITEMS["text"])]
    manifest = ITEMS[["item"]].assign(rater="de-1", digest=digests)
    ratings = account(rows, manifest, "a study").ratings
    assert ratings["item"].tolist() == ITEMS["item"].tolist()
    assert ratings[list(QUESTIONS)].to_numpy().tolist() == [given(i) for i in range(30)]

    assert browser.js("document.title") == WORDS["de"]["heading"]
    assert not browser.js("document.querySelectorAll('img').length")
    asked = browser.requests()
    assert asked and all(a.startswith(("file:", "blob:", "about:")) for a in asked)
    assert not browser.exceptions()


def test_stop_delete_and_go_on_from_a_file(opened, tmp_path):
    browser = opened
    browser.js("document.querySelector('#agree').click()")
    browser.press("1", "1", "1", "1", "2", "Enter", "2")
    browser.js("document.querySelector('#save').click()")
    saved = tmp_path / "answers-de-1.json"
    browser.until(lambda: saved.is_file() and saved.stat().st_size)
    browser.js("setTimeout(() => document.querySelector('#delete').click())")
    browser.until(
        lambda: (
            browser("Page.getNavigationHistory")
            and [
                e for e in browser.events if e["method"] == "Page.javascriptDialogOpening"
            ]
        )
    )
    browser("Page.handleJavaScriptDialog", accept=True)
    browser.until(lambda: browser.text("#agree"))
    assert browser.js("localStorage.length") == 0

    def load(content: str):
        other = tmp_path / "chosen.json"
        other.write_text(content, "utf-8")
        node = browser("DOM.getDocument")["root"]["nodeId"]
        field = browser("DOM.querySelector", nodeId=node, selector="#file")["nodeId"]
        browser.js("document.querySelector('#note').replaceChildren()")
        browser("DOM.setFileInputFiles", nodeId=field, files=[str(other)])
        browser.until(lambda: browser.text("#note"))
        return browser.text("#note")

    browser.js("document.querySelector('#agree').click()")
    content = saved.read_text("utf-8")
    assert load(content.replace("a study", "another")) == WORDS["de"]["wrong"]
    assert load("no JSON") == WORDS["de"]["wrong"]
    assert browser.text("#progress") == "0 von 30 fertig"
    assert load(content) == WORDS["de"]["loaded"]
    assert browser.text("#progress") == "1 von 30 fertig"
    assert browser.answers() == "n----"
    assert not browser.exceptions()


def test_six_languages_on_a_phone(opened):
    browser = opened
    browser(
        "Emulation.setDeviceMetricsOverride",
        width=360,
        height=640,
        deviceScaleFactor=2,
        mobile=True,
    )
    browser.js("document.querySelector('#agree').click()")
    for lang, words in WORDS.items():
        browser.js(
            f"(() => {{ const menu = document.querySelector('#language'); menu.value ="
            f" '{lang}'; menu.dispatchEvent(new Event('change')) }})()"
        )
        assert browser.js("document.documentElement.lang") == lang
        shown = browser.js(
            "[...document.querySelectorAll('.question p')].map(p => p.textContent)"
        )
        assert [text.partition(" ")[2] for text in shown] == words["questions"]
        assert browser.js("document.documentElement.scrollWidth") <= 360
        heights = browser.js(
            "[...document.querySelectorAll('button, select, .button')].map(b =>"
            " b.getBoundingClientRect().height)"
        )
        assert min(heights) >= 44
    box = browser.js(
        "(() => { const b = document.querySelector('#q0no'); b.scrollIntoView(); const r"
        " = b.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
    )
    browser(
        "Input.dispatchTouchEvent",
        type="touchStart",
        touchPoints=[{"x": box[0], "y": box[1]}],
    )
    browser("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    browser.until(lambda: browser.answers() == "n----")


def test_two_tabs_do_not_undo_each_other(opened):
    browser = opened
    browser.js("document.querySelector('#agree').click()")
    stored = "JSON.parse(localStorage.getItem(localStorage.key(0)))"
    browser.js(
        f"(() => {{ const s = {stored}; s.answers['{ITEMS['item'][5]}'] = [1, 1, 1, 1, 0];"
        " localStorage.setItem(localStorage.key(0), JSON.stringify(s)) })()"
    )
    browser.press("1")
    kept = browser.js(f"{stored}.answers")
    assert kept[ITEMS["item"][5]] == [1, 1, 1, 1, 0]
    assert kept[ITEMS["item"][0]] == [1, None, None, None, None]


def reload_with_local_storage(browser):
    "Chromium sometimes shows a new page none of the local storage; the next page has it."
    for _ in range(5):
        browser.reload(READY)
        if browser.js("localStorage.length"):
            return


def test_one_of_two_stores_is_enough(opened):
    browser = opened
    browser.js("document.querySelector('#agree').click()")
    browser.press("1", "2")
    browser.js("localStorage.clear()")  # as Chromium sometimes shows it
    browser.reload(READY)
    assert browser.answers() == "yn---"
    broken = "indexedDB.open = () => { throw new Error('private window') }"
    browser("Page.addScriptToEvaluateOnNewDocument", source=broken)
    reload_with_local_storage(browser)
    browser.press("1")
    assert browser.answers() == "yny--"
    reload_with_local_storage(browser)
    assert browser.answers() == "yny--"
    assert browser.text("#storage") is None


def test_a_browser_that_keeps_nothing_says_so(opened):
    browser = opened
    broken = (
        "Storage.prototype.setItem = IDBObjectStore.prototype.put = () => { throw 0 }"
    )
    browser("Page.addScriptToEvaluateOnNewDocument", source=broken)
    browser.open(browser.address, READY)
    browser.js("document.querySelector('#agree').click()")
    assert browser.text("#storage") == WORDS["de"]["storage"]
    browser.press("1", "2")
    assert browser.answers() == "yn---"


def test_a_browser_that_is_killed(opened, tmp_path):
    browser = opened
    browser.js("document.querySelector('#agree').click()")
    browser.press("1", "2", "1")
    browser.until(
        lambda: browser.js(
            "(sheets('readonly').get(key).onsuccess = event => { window.kept ="
            " event.target.result.changes }, window.kept == state.changes)"
        )
    )
    browser.process.kill()
    browser.process.wait(20)
    for lock in (tmp_path / "profile").glob("Singleton*"):
        lock.unlink()
    again = Sheet(tmp_path / "profile")
    again.open(browser.address, READY)
    answers = again.answers()
    again.close()
    assert answers == "yny--"


def test_every_row_has_one_status(study, tmp_path, run):
    "A study in which everything goes wrong at once: the statuses add up to the rows."
    out = tmp_path / "study"
    sample_study([run], out, n=60)
    simulate_study(out, pd.read_csv(SAMPLE / "labels.csv"))
    answers = sorted((out / "answers").iterdir())
    first = json.loads(answers[0].read_text("utf-8"))
    first["items"][0]["text"] += " touched"
    first["items"][1]["item"] = "nowhere"
    first["items"][2]["answers"] = {}
    answers[0].write_text(json.dumps(first), "utf-8")
    stranger = json.loads(answers[1].read_text("utf-8")) | {"rater": "xx-9"}
    (out / "answers" / "stranger.json").write_text(json.dumps(stranger), "utf-8")
    (out / "answers" / "broken.json").write_text("{", "utf-8")
    answers[2].unlink()
    outcome = collect_study(out)
    assert sum(outcome["statuses"].values()) == outcome["rows"]
    assert list(outcome["unreadable"]) == ["broken.json"]
    assert outcome["statuses"]["unknown rater"] == len(stranger["items"])
    for status in ("changed text", "unknown item", "unanswered"):
        assert outcome["statuses"][status] == 1
    missing = pd.read_csv(out / "missing.csv", dtype=str)
    assert missing["rater"].tolist() == [first["rater"]] * 3
    gone = answers[2].stem.removeprefix("simulated-")
    of_gone = [r for r in outcome["raters"] if r["rater"] == gone]
    assert of_gone[0]["missing"] == of_gone[0]["items"]


def test_figure_4_from_a_study(study, run, tmp_path):
    "By papermill, in a folder elsewhere; and by report, where there is no study."
    pytest.importorskip("papermill")
    figures = ROOT / "nbs" / "figures"
    simulate_study(study, pd.read_csv(SAMPLE / "labels.csv"))
    collect_study(study)
    means = score_study(study)["means"]
    reported = tmp_path / "read_off.csv"
    reported.write_text("figure,item,measure,value\nfig4,CultureAtlas,de,2.0\n")
    parameters = {"study": str(study), "reported": str(reported)}
    notebook, failure = run_notebook(
        figures / "fig4_human.ipynb", parameters | {"save_to": str(tmp_path)}
    )
    assert failure is None
    drawn = pd.read_csv(tmp_path / "fig4_human.csv")
    total = means[means["measure"] == "total"]
    assert np.allclose(drawn["value"], total["value"], atol=1e-4)
    assert (tmp_path / "fig4_human.svg").is_file()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    notebook, failure = run_notebook(figures / "fig4_human.ipynb", {"run_dir": str(run)})
    assert failure is None
    assert any("There is no study" in str(cell) for cell in notebook.cells)
