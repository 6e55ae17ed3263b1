"""The reader's language: what the browser prefers, and what was chosen in the header."""

from __future__ import annotations

import time

import pytest

from layersync_plugin_webui import language
from layersync_plugin_webui.pages import duration, figure, moment
from layersync_plugin_webui.switching import COOKIE, local
from tests.since import since

ORIGIN = {"origin": "http://127.0.0.1:8765"}
TITLES = {"en": "Runs", "zh": "运行记录", "hi": "रन"}
TAGS = {"en": "en", "zh": "zh-Hans", "hi": "hi"}


def language_of(answer):
    return next(name for name, tag in TAGS.items() if f'<html lang="{tag}">' in answer.text)


@pytest.mark.parametrize(
    ("accepted", "name"),
    [
        ("", "en"),
        ("de", "en"),
        ("zh", "zh"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("zh-Hans-CN", "zh"),
        ("hi-IN,hi;q=0.9,en-US;q=0.8", "hi"),
        ("de,hi;q=0.5", "hi"),
        ("en;q=0.4,zh;q=0.8", "zh"),
        ("zh;q=0,hi;q=0.1", "hi"),
        ("zh;q=nan, ;;;=,hi;q=x," * 9, "en"),
    ],
)
def test_the_browser_says_which_language(reader, accepted, name):
    answer = reader.get("/runs", headers={"accept-language": accepted})
    assert language_of(answer) == name
    assert f"<h1>{TITLES[name]}" in answer.text


@pytest.mark.parametrize("name", language.LANGUAGES)
def test_the_switch_is_kept_whatever_the_browser_prefers(reader, make_run, name):
    make_run("mine")
    answer = reader.post("/language", data={"language": name, "back": "/runs?page=1"}, headers=ORIGIN)
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs?page=1")
    cookie = answer.headers["set-cookie"].lower()
    assert "samesite=strict" in cookie
    assert "max-age=31536000" in cookie
    assert "path=/" in cookie
    others = {"accept-language": "zh" if name == "hi" else "hi"}
    assert language_of(reader.get("/runs", headers=others)) == name
    # What htmx asks for later, and what goes wrong, as well.
    table = reader.get("/runs/table?show=x", headers={**others, "hx-request": "true"}).text
    assert language.LANGUAGES[name].name == "en" or "Finished" not in table
    assert ("There is nothing here" in reader.get("/runs/none", headers=others).text) == (name == "en")
    reader.cookies.delete("layersync-8765")
    assert ("Open the address" in reader.get("/runs", headers=others).text) == (name == "en")


@since("starlette", "0.39", "its client for tests gives the query twice")
def test_the_header_shows_the_languages_by_their_own_names_and_leads_back(reader):
    text = reader.get("/runs?page=1&show=a%26b").text
    for one in language.LANGUAGES.values():
        assert f'value="{one.name}" lang="{one.tag}"' in text
        assert f">{one.title}</button>" in text
    assert text.count('aria-current="true"') == 1
    assert text.count('aria-current="page"') == 1
    assert 'name="back" value="/runs?page=1&amp;show=a%26b"' in text


@pytest.mark.parametrize(
    "back",
    [
        "//evil.example",
        "https://evil.example/",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "javascript:alert(1)",
        "evil.example",
        "",
        "/ok\r\nset-cookie: a=b",
    ],
)
def test_it_leads_to_no_other_site(reader, back):
    answer = reader.post("/language", data={"language": "zh", "back": back}, headers=ORIGIN)
    assert answer.headers["location"] == "/"
    assert local("/runs?show=//x") == "/runs?show=//x"


def test_no_other_site_switches_it_and_nobody_without_the_token(reader, stranger):
    data = {"language": "zh", "back": "/"}
    assert reader.post("/language", data=data, headers={"origin": "http://evil.example"}).status_code == 403
    assert reader.post("/language", data=data).status_code == 403
    reader.cookies.clear()
    answer = stranger.post("/language", data=data, headers=ORIGIN)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("data", [{}, {"language": "xx"}, {"language": "../../etc"}, {"back": "/"}])
def test_an_unknown_language_is_refused_and_an_unknown_cookie_is_none(reader, data):
    answer = reader.post("/language", data=data, headers=ORIGIN)
    assert answer.status_code == 422
    assert "set-cookie" not in answer.headers
    reader.cookies.set(COOKIE, "../../etc")
    assert language_of(reader.get("/runs", headers={"accept-language": "zh"})) == "zh"


def test_a_body_without_an_end_is_not_read(reader):
    answer = reader.post("/language", content=b"back=" + b"a" * 100_000, headers=ORIGIN)
    assert answer.status_code == 413


@pytest.mark.parametrize("name", language.LANGUAGES)
def test_numbers_dates_and_durations_are_in_western_digits_without_separators(name):
    language.choose("", name)
    try:
        shown = [moment(time.time()), figure(123456.0), figure(0.00012345), duration(59), duration(3599), duration(1e6)]
        assert all(text.isascii() for text in shown[:3])
        digits = [[char for char in text if char.isnumeric()] for text in shown]
        assert all(char in "0123456789" for chars in digits for char in chars)
        assert "".join(digits[5]) == "27746"
        assert not any("," in text for text in shown)
    finally:
        language.choose("")
