"""Charts: well-formed SVG within its bounds, whatever the figures and the labels are."""

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest

from kwsiem import charts
from kwsiem.charts import Part

HOSTILE = "\x1b[2J<b>&](\u202e\"'\r\n<script>alert(1)</script>" + "A" * 5000
SVG = {"svg", "title", "desc", "g", "rect", "line", "text", "polyline"}


def parsed(text):
    root = ET.fromstring(text)  # well-formed, or it raises
    assert {element.tag for element in root.iter()} <= SVG
    assert not any(name.startswith("on") or name == "style" for each in root.iter() for name in each.attrib)
    return root


def bars(root):
    return [float(r.get("height")) for r in root.iter("rect")]


def chart(parts, labels, title="Alerts"):
    return parsed(charts.stacked_bars("k", title, "What it shows.", parts, labels))


@pytest.mark.parametrize("count", [0, 1, 2, 60, 168, 400, 5000])
def test_every_bar_lies_within_the_picture(count):
    parts = [Part(name, name, [n % 7 for n in range(count)]) for name in ("high", "low")]
    root = chart(parts, [f"day {n}" for n in range(count)])
    width, height = map(float, root.get("viewBox").split()[2:])
    for rect in root.iter("rect"):
        x, y, w, h = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    assert len(list(root.iter("g"))) == sum(1 for n in range(min(count, 400)) if n % 7)


def test_heights_are_in_proportion_and_parts_stand_on_each_other():
    root = chart([Part("high", "high", [1, 4]), Part("low", "low", [3, 0])], ["a", "b"])
    high, low, other = root.findall(".//rect")
    assert float(low.get("height")) == pytest.approx(3 * float(high.get("height")), abs=0.05)
    assert float(other.get("height")) == pytest.approx(4 * float(high.get("height")), abs=0.05)
    assert float(low.get("y")) + float(low.get("height")) == pytest.approx(float(high.get("y")), abs=0.02)
    assert [g.find("title").text for g in root.iter("g")] == ["a: high 1, low 3", "b: high 4"]


@pytest.mark.parametrize("values", [[], [0, 0], [math.nan, -3], [-math.inf, math.inf], [float("nan")] * 3])
def test_without_figures_it_says_so(values):
    root = chart([Part("high", "high", values)], ["a", "b"])
    assert not bars(root)
    assert "nothing in this span" in [text.text for text in root.iter("text")]


def test_what_is_no_number_counts_as_nothing():
    root = chart([Part("high", "high", [math.nan, 2, math.inf, -1])], list("abcd"))
    assert [g.find("title").text for g in root.iter("g")] == ["b: high 2"]


@pytest.mark.parametrize("value", [0.001, 1, 3, 9, 11, 99, 100, 101, 12_345, 10**9, 10**15, 2**63])
def test_the_scale_holds_the_highest_value_and_is_not_much_higher(value):
    root = chart([Part("high", "high", [value])], ["a"])
    (height,) = bars(root)
    assert 0 < height <= 178.01
    if value >= 4:
        assert height > 178 / 2.1


def test_labels_do_not_run_into_each_other_or_out_of_the_picture():
    labels = [f"{day:02} Nov 14:00" for day in range(1, 31)] * 5
    root = chart([Part("high", "high", [1] * len(labels))], labels)
    places = [float(t.get("x")) for t in root.iter("text") if t.text in labels]
    assert 4 <= len(places) <= 8
    assert all(b - a > 80 for a, b in itertools.pairwise(places))
    assert places[-1] + 80 < 760


def test_it_is_named_for_people_who_do_not_see_it():
    root = chart([Part("high", "high", [1])], ["a"])
    assert root.get("role") == "img"
    named = {each.get("id"): each.text for each in root.iter() if each.get("id")}
    assert [named[name] for name in root.get("aria-labelledby").split()] == ["Alerts", "What it shows."]


def test_hostile_names_are_text():
    parts = [Part(HOSTILE, "high", [2])]
    for text in (
        charts.stacked_bars("k", HOSTILE, HOSTILE, parts, [HOSTILE]),
        charts.strip("k", HOSTILE, [1.0]),
        f"<svg>{charts.meter(1, 2, 'high')}</svg>",
        f"<svg>{charts.spark([1, 2])}</svg>",
    ):
        parsed(text)
        assert "<b>" not in text
        assert not re.search("[\x00-\x1f\u202e]", text)
        assert len(text) < 8000
    legend = charts.legend(parts)
    assert "<b>&" not in legend and "&lt;b&gt;&amp;](" in legend


@pytest.mark.parametrize("css", ['high" onload="x', "a b", "\u202e", "<"])
def test_a_class_or_id_cannot_end_its_attribute(css):
    text = charts.stacked_bars(css, "t", "d", [Part("n", css, [1])], ["a"])
    parsed(text)
    assert "onload=" not in text


def test_a_strip_tells_running_from_not_and_from_not_known():
    root = parsed(charts.strip("k", "When net ran", [None, 0, 0.5, 0.99, 1, math.nan]))
    assert [r.get("class") for r in root.iter("rect")] == ["none", "bad", "part", "good", "good", "bad"]
    parsed(charts.strip("k", "none", []))


@pytest.mark.parametrize(
    ("value", "most", "width"),
    [(5, 10, 50), (0, 10, 0), (20, 10, 100), (1, 0, 1), (math.nan, 1, 0), (1, 10**9, 1)],
)
def test_a_meter_is_between_nothing_and_all(value, most, width):
    _, inner = parsed(charts.meter(value, most)).findall("rect")
    assert float(inner.get("width")) == width


@pytest.mark.parametrize("values", [[], [1], [0, 0], [1, math.nan, 3], list(range(1000))])
def test_a_spark_stays_in_its_picture(values):
    points = parsed(charts.spark(values)).find("polyline").get("points").split()
    places = [tuple(map(float, point.split(","))) for point in points]
    assert all(0 <= x <= 100 and 0 <= y <= 20 for x, y in places)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234, "1,234"), (1.25, "1.2"), (math.nan, "0"), (-1, "0")]
)
def test_numbers_are_written_for_people(value, text):
    assert charts.number(value) == text
