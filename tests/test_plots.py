"""Plots: hostile titles stay text, scripts are drawn or replaced, and the same figure gives the same bytes."""

import warnings
import xml.etree.ElementTree as ET

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.font_manager import FontEntry

from cmining.core.basics import RunError
from cmining.viz import colors, plots

HOSTILE = [
    "<script>alert(1)</script>",
    "--><script>x</script><!--",
    "]]><b>",
    "$\\frac{",
    "a $x_1$ b",
    "x\x00\x1b[31m\ny",
    "\u202egnp.exe",
    "&amp;\"'",
    "\\",
    "",
]


@pytest.fixture(autouse=True)
def closed():
    plots.use_style()
    yield
    plt.close("all")


@pytest.mark.parametrize("title", HOSTILE)
def test_hostile_titles_stay_text(title, tmp_path):
    fig, ax = plt.subplots(figsize=(4, 1))
    plots.write_title(ax, 0.5, 0.5, title, "en", instead="an id")
    assert not ax.texts[0].get_parse_math()
    plots.save_figure(fig, pd.DataFrame({"title": [title]}), tmp_path, "hostile")
    tree = ET.parse(tmp_path / "hostile.svg")  # well-formed
    assert not [
        e for e in tree.iter() if e.tag.rpartition("}")[2] in ("script", "foreignObject")
    ]


def test_same_bytes_and_no_date(tmp_path):
    for name in "ab":
        fig, ax = plt.subplots()
        ax.plot([1, 2], label="y")
        ax.legend()
        plots.save_figure(fig, pd.DataFrame({"y": [1 / 3]}), tmp_path / name, "same")
    for suffix in ("svg", "png", "csv"):
        assert (tmp_path / "a" / f"same.{suffix}").read_bytes() == (
            tmp_path / "b" / f"same.{suffix}"
        ).read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a" / "same.svg").read_bytes()


def pretend_fonts(monkeypatch, has: dict[str, str]):
    "Pretend that these font families are installed, with these glyphs."
    entries = {family: FontEntry(name=family, weight=400) for family in has}
    monkeypatch.setattr(plots, "system_fonts", lambda: entries)
    monkeypatch.setattr(plots, "glyphs", lambda font: set(map(ord, has[font.name])))


@pytest.mark.parametrize(
    "text,lang,font",
    [
        ("abc", "zh", "DejaVu Sans"),
        ("江湖", "zh", "Noto Sans CJK SC"),
        ("江湖", "ja", "Noto Sans CJK JP"),
        # the preferred font lacks a glyph, another has it
        ("カ江", "zh", "Noto Sans CJK JP"),
        ("江湖", "de", "Noto Sans CJK JP"),
        ("한", "ko", None),
        ("a江", "zh", None),
    ],
)
def test_finds_a_font_with_every_glyph(text, lang, font, monkeypatch):
    has = {"DejaVu Sans": "abc", "Noto Sans CJK SC": "江湖", "Noto Sans CJK JP": "江湖カ"}
    pretend_fonts(monkeypatch, has)
    assert plots.find_font(text, lang) == font


def test_the_font_of_boxes_is_not_used():
    assert not [
        name
        for name in plots.system_fonts()
        if "last" in name.lower() and "resort" in name.lower()
    ]


def islands():
    sample = pd.DataFrame(
        {
            "id": ["83db90b286554f74", "00"],
            "lang": ["zh", "de"],
            "title": ["江湖", "Heimat"],
            "x": [0.0, 1],
            "y": [0.0, 1],
            "selected": [True, False],
        }
    )
    numbers = pd.DataFrame(
        {
            "selected": [True, False],
            "n": [1, 1],
            "purity": [1.0, 0],
            "chance": [0.5, 0.5],
            "silhouette": [0.0, 0],
        }
    )
    return plots.plot_islands(sample, numbers, sample[:1])


def test_without_glyphs_the_id_and_a_note(monkeypatch):
    real = plots.system_fonts()["DejaVu Sans"]
    monkeypatch.setattr(plots, "system_fonts", lambda: {"DejaVu Sans": real})
    axes = islands()
    assert [t.get_text() for t in axes[0].texts] == ["zh 83db90b2"]
    assert axes[0].figure.get_supxlabel() == plots.NO_GLYPHS


def test_with_glyphs_the_title_and_no_note(tmp_path):
    if plots.find_font("江湖", "zh") is None:
        pytest.skip("no font with Han characters is installed")
    axes = islands()
    assert [t.get_text() for t in axes[0].texts] == ["江湖"]
    assert axes[0].figure.get_supxlabel() == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Matplotlib warns of a missing glyph
        plots.save_figure(axes[0].figure, pd.DataFrame(), tmp_path, "islands")


def draw_titles(folder):
    "A figure with a Japanese and a Chinese title, saved; their font families."
    fig, ax = plt.subplots(figsize=(4, 1))
    for x, (title, lang) in enumerate([("歌舞伎 土俵入り", "ja"), ("江湖 骨气", "zh")]):
        assert plots.write_title(ax, x / 2, 0.5, title, lang, instead="an id")
    plots.save_figure(fig, pd.DataFrame(), folder, "titles")
    return [text.get_fontfamily() for text in ax.texts]


def test_the_font_package_draws_japanese_and_chinese(monkeypatch, tmp_path, caplog):
    if not plots.package_fonts():
        pytest.skip("manimgx-fonts-cjk is not installed")
    noto = {
        name: font
        for name, font in plots.system_fonts().items()
        if name == "DejaVu Sans" or name.startswith("Noto Sans CJK")
    }
    monkeypatch.setattr(plots, "system_fonts", lambda: noto)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Matplotlib warns of a missing glyph
        ja, zh = draw_titles(tmp_path / "a")
        draw_titles(tmp_path / "b")
    assert not caplog.records  # and logs a family or weight that it does not find
    assert ja == ["Noto Sans CJK JP"]
    # before 3.11 Matplotlib knows the first face of a file only
    assert zh == ["Noto Sans CJK SC" if "Noto Sans CJK SC" in noto else ja[0]]
    for suffix in ("svg", "png"):
        name = f"titles.{suffix}"
        assert (tmp_path / "a" / name).read_bytes() == (
            tmp_path / "b" / name
        ).read_bytes()
    assert "<text" not in (tmp_path / "a" / "titles.svg").read_text("utf-8")


def test_a_language_looks_the_same_everywhere():
    assert plots.lang_style("ko") == plots.lang_style("ko")
    assert len({plots.lang_style(l)["color"] for l in colors.LANG_STYLES}) == 6


@pytest.mark.parametrize(
    "name,text,error",
    [
        ("t.csv", "title,en\nx,y\n", "needs? lang, title, gloss_en"),
        ("t.txt", "", "no table that can be read"),
        ("none.csv", None, "there is no table"),
    ],
)
def test_unusable_renderings(name, text, error, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(RunError, match=error):
        plots.read_renderings(tmp_path, tmp_path / name)


def test_renderings_of_a_model_name_it(tmp_path):
    (tmp_path / "t.jsonl").write_text(
        '{"lang": "zh", "title": "江湖", "gloss_en": "rivers and lakes", "model":'
        ' "some-model"}\n'
    )
    table, source = plots.read_renderings(tmp_path, tmp_path / "t.jsonl")
    assert (
        table.to_numpy().tolist() == [["zh", "江湖", "rivers and lakes"]]
        and source == "t.jsonl, rendered by some-model"
    )
