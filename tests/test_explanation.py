"""Explanations built by hand: what they say in a sentence, in text, and in HTML that is safe."""

from __future__ import annotations

import io
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from dlcf.explain.reader import Page
from dlcf.explanation import Counterfactual, Explanation, GenreEffect, HistoryItem, table_of

NASTY = '<b>"&'
# Colours, the end of a line or of a string, a bell, text that runs the other way, half a character.
STEERING = {
    "\x1b[31mred": r"\x1b[31mred",
    "a\nb\r\x85\u2028c": r"a\nb\r\x85\u2028c",
    "\0\a\x7f\x9b2J": r"\x00\x07\x7f\x9b2J",
    "\u202edrow\u2066": r"\u202edrow\u2066",
    "\ud83c": r"\ud83c",
}
VOID = {"br", "hr", "img"}


class Reading(HTMLParser):
    """Reads HTML strictly: every element that is opened is closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> repeats an attribute"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]


def item(movie: int, rating: float, effect: float | None, title: str | None = None) -> HistoryItem:
    return HistoryItem(movie, title, rating, 0.1, effect)


@pytest.fixture
def full() -> Explanation:
    """With all its parts; every title is hostile."""
    history = (
        item(1, 5.0, 0.2, NASTY), item(2, 1.0, -0.3, "Alien"), item(3, 4.0, 0.004, "Heat"),
        *(item(10 + i, 4.5, 0.1 - i / 100) for i in range(7)),
    )  # fmt: skip
    return Explanation(
        7, 9, 0.8, 0.574, 0.426, 4.1, (0.5, 5.0), NASTY,
        history=history,
        method="attention",
        faithfulness=0.123,
        chance=0.734,
        threshold=4.0,
        genres=(GenreEffect("Drama", 0.5, 3), GenreEffect(NASTY, -0.25, 2)),
        counterfactual=Counterfactual(1, NASTY, 4.5, 2.5, 4.4, 3.9, 10, True, False),
    )  # fmt: skip


class TestSentence:
    def test_it_names_single_deletions_and_attention_by_its_name(self, full: Explanation) -> None:
        assert str(full) == (
            f"“{NASTY}” is predicted 4.1 of 5 for user 7 (recommendation strength 80%, chance of "
            "4 stars or more 73%); it would be 0.30 stars higher without 1.0 for “Alien”, and 0.20 "
            f"stars lower without 5.0 for “{NASTY}”; attention weights: user's preferences 57%, "
            "movie's characteristics 43%."
        )

    def test_other_weights_are_not_called_attention(self, full: Explanation) -> None:
        said = str(replace(full, method="shapley"))
        assert "; weights: user's preferences 57%" in said and "attention" not in said

    @pytest.mark.parametrize("method", [None, "attention", "attention trained to be faithful"])
    def test_nothing_is_called_important(self, full: Explanation, method: str | None) -> None:
        plain = replace(full, method=method, genres=(), counterfactual=None)
        attended = replace(plain, history=(HistoryItem(1, "Heat", 5.0, 0.4),))
        for why in (plain, attended, replace(plain, history=())):
            assert not re.search(r"count|carr|important|matter", why.text() + why.html())
        assert "; highest attention weights: 5.0 for “Heat” (0.40);" in str(attended)

    def test_a_model_without_weights_names_none(self, full: Explanation) -> None:
        bare = replace(full, user_weight=math.nan, movie_weight=math.nan)
        assert "weights" not in str(bare)
        assert "filled" not in bare.text() and 'role="img"' not in bare._repr_html_()
        assert "nan" not in bare.text() and "nan" not in bare._repr_html_()

    def test_it_says_where_no_deletion_changes_anything(self, full: Explanation) -> None:
        nothing = replace(full, history=(item(3, 4.0, 0.004, "Heat"),))
        assert "; no rating that was left out makes a difference by itself;" in str(nothing)

    def test_a_single_rating(self, full: Explanation) -> None:
        single = str(replace(full, history=full.history[:1]))
        assert f"; it would be 0.20 stars lower without 5.0 for “{NASTY}”; attention" in single


class TestCounterfactual:
    @pytest.mark.parametrize(
        ("listed", "then", "words"),
        [
            (True, False, "it would have left your top 10."),
            (True, True, "it would have stayed in your top 10."),
            (False, True, "it would have entered your top 10."),
            (False, False, "it is not in your top 10 either way."),
        ],
    )
    def test_it_says_what_becomes_of_the_list(self, listed: bool, then: bool, words: str) -> None:
        what_if = Counterfactual(1, "Heat", 4.5, 2.5, 4.4, 3.9, 10, listed, then)
        assert what_if.sentence() == (
            "Had you rated “Heat” 2.5 and not 4.5, this movie would have been predicted 3.9 and "
            f"not 4.4; {words}"
        )

    def test_it_admits_that_nothing_changes(self) -> None:
        same = Counterfactual(1, None, 4.5, 2.5, 4.41, 4.44, 5, True, True)
        assert same.sentence() == (
            "Had you rated movie 1 2.5 and not 4.5, this movie would have been predicted 4.4 all "
            "the same; it would have stayed in your top 5."
        )


class TestText:
    def test_line_by_line(self, full: Explanation) -> None:
        assert full.text().splitlines() == [
            str(full),
            "",
            "[###########.........] 57% the user's preferences (filled), 43% the movie's "
            "characteristics (attention; faithfulness 0.12 of 1 on held-out data)",
            "",
            "Stars by which the prediction is higher with a rating than without it (10 ratings, "
            "left out one at a time):",
            "  raise it:",
            f"    +0.20  5.0 for “{NASTY}”",
            *(f"    +{0.1 - i / 100:.2f}  4.5 for movie {10 + i}" for i in range(4)),
            "  lower it:",
            "    -0.30  1.0 for “Alien”",
            "",
            f"Their sums by genre, in stars: raise it: Drama +0.50; lower it: {NASTY} -0.25.",
            "",
            full.counterfactual.sentence(),  # type: ignore[union-attr]
        ]

    def test_what_was_not_measured_is_not_shown(self) -> None:
        plain = Explanation(7, 9, 0.8, 0.5, 0.5, 4.1, (0.5, 5.0), "Up", history=(item(1, 5, None),))
        assert "raise it" not in plain.text() and "by genre" not in plain.text()
        assert "faithfulness" not in plain.text() and "<table" not in plain._repr_html_()
        assert "faithfulness not measured" in replace(plain, method="attention").text()

    @pytest.mark.parametrize(("weight", "filled"), [(0.0, 0), (0.5, 10), (1.0, 20)])
    def test_the_bar_is_as_long_as_the_weight(self, weight: float, filled: int) -> None:
        why = Explanation(7, 9, 0.8, weight, 1 - weight, 4.1, (0.5, 5.0))
        assert f"[{'#' * filled}{'.' * (20 - filled)}] {weight:.0%} the user's" in why.text()
        assert f"{1 - weight:.0%} the movie's" in why.text()

    def test_ipython_prints_the_text(self, full: Explanation) -> None:
        class Printer:
            said = ""

            def text(self, value: str) -> None:
                self.said += value

        printer = Printer()
        full._repr_pretty_(printer, False)
        assert printer.said == full.text()


class TestHTML:
    def test_it_is_well_formed_and_holds_what_the_text_holds(self, full: Explanation) -> None:
        page = Reading(full._repr_html_())
        for part in (str(full), "57% the user's preferences", "“Alien”", "-0.30", "Drama +0.50"):
            assert part in page.text
        assert page.text.count("Raise it") == page.text.count("Lower it") == 1
        assert full.counterfactual and full.counterfactual.sentence() in page.text

    def test_titles_are_text_and_never_markup(self, full: Explanation) -> None:
        html = full._repr_html_()
        assert NASTY not in html and "&lt;b&gt;&quot;&amp;" in html
        page = Reading(html)
        assert not page.all("b")
        assert page.all("section")[0]["aria-label"] == f"Explanation of “{NASTY}” for user 7"
        assert page.text.count(NASTY) == 5  # twice in the sentence; table, genres, counterfactual

    def test_it_is_inert_and_the_same_every_time(self, full: Explanation) -> None:
        html = full._repr_html_()
        page = Reading(html)
        assert html == replace(full)._repr_html_()
        names = {tag for tag, _ in page.tags}
        assert names <= {
            "section",
            "p",
            "div",
            "table",
            "caption",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
        }
        attributes = {name for _, given in page.tags for name in given}
        assert attributes <= {"style", "role", "aria-label", "scope", "colspan"}
        assert "http" not in html and "url(" not in html

    def test_it_has_no_colours_of_its_own(self, full: Explanation) -> None:
        styles = [
            given["style"] or ""
            for _, given in Reading(full._repr_html_()).tags
            if "style" in given
        ]
        rules = {rule.split(":")[0] for style in styles for rule in style.split(";")}
        assert rules <= {"max-width", "border", "border-top", "width", "text-align"}
        assert not any("#" in style or "rgb" in style for style in styles)

    def test_the_bar_has_a_text_alternative(self, full: Explanation) -> None:
        bar, inner = Reading(full._repr_html_()).all("div")
        assert bar["role"] == "img"
        assert bar["aria-label"] == "Bar of the two weights: user 57%, movie 43%"
        assert "width:57%" in inner["style"]

    def test_every_header_has_a_scope(self, full: Explanation) -> None:
        page = Reading(full._repr_html_())
        scopes = [head["scope"] for head in page.all("th")]
        assert scopes.count("col") == 3 and scopes.count("rowgroup") == 2
        assert scopes.count("row") == 6  # five of the ratings that counted for, one against
        assert len(page.all("caption")) == 1


def test_a_table_escapes_all_it_is_given() -> None:
    page = Reading(table_of(NASTY, (NASTY, NASTY), [(NASTY, [(NASTY, NASTY)]), (NASTY, [])]))
    assert page.text.count(NASTY) == 7 and not page.all("b")
    assert f"{NASTY}: none" in page.text


@pytest.mark.parametrize(("title", "shown"), STEERING.items(), ids=range(len(STEERING)))
def test_a_title_does_not_steer_what_shows_it(full: Explanation, title: str, shown: str) -> None:
    change = replace(full.counterfactual, title=title)  # type: ignore[type-var]
    history = (item(1, 5.0, 0.2, title), item(2, 1.0, -0.3, title))
    genres = (GenreEffect(title, 0.2, 1),)
    odd = replace(full, title=title, history=history, genres=genres, counterfactual=change)
    page = Page(7, 2, history, (odd,))
    for text in (odd.sentence(), str(odd), odd.text(), odd.html(), page.text(), page.html()):
        assert title not in text and shown in text
        assert all(c == "\n" or c.isprintable() for c in text)
    assert odd.text().count(shown) == 6 + odd.text().count("Had you")  # each place, none raw
    assert len(odd.text().splitlines()) == len(replace(odd, title="x").text().splitlines())


def test_titles_of_all_scripts_are_shown_as_they_are(full: Explanation) -> None:
    for title in ("Amélie", "千と千尋の神隠し", "می\u200cخواهم", "👩\u200d🚀", "A\xa0B"):
        assert f"“{title}”" in replace(full, title=title).sentence()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_printing_needs_no_certain_encoding(
    full: Explanation, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = replace(full, title="Амели")
    page = Page(7, 1, odd.history, (odd,))
    written = io.BytesIO()
    with io.TextIOWrapper(written, encoding=encoding) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        print(odd, odd.text(), page, page.text(), sep="\n")
        stdout.flush()
        text = written.getvalue().decode(encoding)
    assert text.count("Амели" if encoding == "utf-8" else r"\u0410\u043c") >= 4
