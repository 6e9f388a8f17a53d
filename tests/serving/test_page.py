"""The page at `/` in a headless browser, from a real server on a random bundle. Skipped where no browser is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lsvcr.schema import Task
from tests.experiments.browser import contrast, find
from tests.serving.driver import Driver
from tests.serving.http.process import ServerProcess
from tests.serving.page_bundle import NASTY, USERS, VIDEOS, write_page_bundle

BEYOND = 2**53
"""Ids above are not exact as JavaScript's numbers."""

SHOWN = "!document.getElementById('results').hidden && !document.getElementById('results').ariaBusy"
OPENED = "!document.getElementById('comments').hidden"
ALERT = "document.getElementById('alert').textContent"
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@contextmanager
def serving(folder: Path, **about: Any) -> Iterator[ServerProcess]:
    """A server on a bundle of its own, which `about` describes; without a browser the test is skipped first."""
    find()
    running = ServerProcess(write_page_bundle(folder / "bundle", **about), log=folder / "log")
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with users."""
    with serving(tmp_path_factory.mktemp("page")) as running:
        yield running


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """One browser for all tests of this file."""
    with Driver(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@pytest.fixture
def page(window: Driver, server: ServerProcess) -> Driver:
    """The page, freshly opened in a wide window."""
    return opened(window, server)


def opened(window: Driver, server: ServerProcess) -> Driver:
    """The server's page in a wide window, once it has asked for users."""
    window.problems.clear()
    window.asked_for.clear()
    window.window(1280, 900)
    window.open(address(server))
    window.wait("document.querySelector('#users button') || !document.getElementById('no-users').hidden")
    return window


def ids(page: Driver, name: str) -> list[str]:
    """The ids that a list shows."""
    rows = f"[...document.querySelectorAll('#{name} .below')]"
    found: list[str] = page.ask(f"{rows}.map(row => row.textContent.match(/^id ([^, ]+)/)[1])")
    return found


def address(server: ServerProcess) -> str:
    """Of the page."""
    return f"http://127.0.0.1:{server.port}/"


def get(server: ServerProcess, path: str) -> Any:
    """The content of an answer."""
    return server.get(path).json


def post(server: ServerProcess, path: str, body: Any) -> Any:
    """The content of an answer."""
    return server.post(path, body).json


def choose(page: Driver, user: int) -> None:
    """Ask for a user by id."""
    page.ask(f"document.getElementById('user').value = '{user}'")
    page.click("button.main")
    page.wait(SHOWN)


def expected(server: ServerProcess, user: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the API recommends to the user's histories, with the comments and without."""
    stored = get(server, f"/v1/users/{user}")
    own = {"video_history": stored["video_history"], "comment_history": stored["comment_history"]}
    requests = [own, {**own, "comment_history": []}]
    first, second = post(server, "/v1/recommend", {"requests": requests})["responses"]
    return first["items"], second["items"]


def commented(server: ServerProcess, first: int = 0) -> int:
    """A user with a comment history, in a bundle whose ids begin after `first`."""
    users = range(first + 1, first + USERS + 1)
    return next(user for user in users if get(server, f"/v1/users/{user}")["comment_history"])


def paste(page: Driver, videos: str, liked: str = "") -> None:
    """Histories of one's own."""
    page.click("#way-own")
    for name, text in (("videos", videos), ("liked", liked)):
        page.ask(f"document.getElementById('{name}').focus()")
        page.ask(f"document.getElementById('{name}').value = ''")
        page.type(text)
    page.click("button.main")


def test_a_user_is_chosen_and_sees_what_the_api_recommends(page: Driver, server: ServerProcess):
    user = commented(server)
    choose(page, user)
    first, second = expected(server, user)
    assert ids(page, "with") == [str(item["id"]) for item in first]
    assert ids(page, "without") == [str(item["id"]) for item in second]
    shown = page.ask("[...document.querySelectorAll('#with .title')].map(title => title.textContent)")
    assert shown == [item["title"] for item in first]
    scores = page.ask("[...document.querySelectorAll('#with .score')].map(score => score.textContent)")
    assert scores == [f"{item['score']:.3f}".replace("-", "\u2212") for item in first]


def test_it_says_how_much_there_is(page: Driver):
    page.wait("document.getElementById('here').textContent === 'Here are 40 videos and 500 comments.'")


def test_what_the_comments_changed_is_told_in_words(page: Driver, server: ServerProcess):
    user = commented(server)
    choose(page, user)
    first, second = expected(server, user)
    before = {item["id"]: place for place, item in enumerate(second, 1)}
    told = page.ask("[...document.querySelectorAll('#with .move')].map(move => move.textContent)")
    for place, (item, words) in enumerate(zip(first, told, strict=True), 1):
        was = before.get(item["id"])
        if was is None:
            assert words.endswith("new: not among the 10 without comments")
        elif was == place:
            assert words.endswith("same place")
        else:
            assert f"{'up' if was > place else 'down'} {abs(was - place)}, from {was}" in words
    new = sum(item["id"] not in before for item in first)
    summary = page.ask("document.getElementById('summary').textContent")
    assert f"{new} video{'s are' if new != 1 else ' is'} new in the list" in summary
    gone = page.ask("document.querySelectorAll('#without .gone').length")
    assert gone == sum(item["id"] not in {own["id"] for own in first} for item in second)


def test_both_histories_stand_there_with_titles_and_texts(page: Driver, server: ServerProcess):
    user = commented(server)
    choose(page, user)
    stored = get(server, f"/v1/users/{user}")
    titles = {video["id"]: video["title"] for video in stored["videos"]}
    page.ask("document.querySelectorAll('#histories button').forEach(button => button.click())")
    shown = page.ask(
        "[...document.querySelectorAll('#history-videos .title')].map(title => title.textContent)"
    )
    assert shown == [titles[video] for video in reversed(stored["video_history"])]
    texts = {comment["id"]: comment["text"] for comment in stored["comments"]}
    said = page.ask("[...document.querySelectorAll('#history-comments .said')].map(said => said.textContent)")
    assert said == [texts[c] for visit in reversed(stored["comment_history"]) for c in visit["comments"]]


def test_a_click_shows_the_comments_of_a_video_in_this_persons_order(page: Driver, server: ServerProcess):
    user = commented(server)
    choose(page, user)
    video = expected(server, user)[0][1]["id"]
    page.click("#with li:nth-child(2) button")
    page.wait(OPENED)
    ranking = post(server, "/v1/rank-comments", {"user": user, "video": video})
    assert ids(page, "ranked") == [str(item["id"]) for item in ranking["items"]]
    shown = page.ask("[...document.querySelectorAll('#ranked .title')].map(title => title.textContent)")
    assert shown == [item["title"] for item in ranking["items"]]
    assert page.ask("document.querySelector('#with li:nth-child(2) button').ariaExpanded") == "true"
    page.click("#close")
    assert not page.ask(OPENED)


def test_everything_works_by_keyboard_and_the_focus_is_seen(page: Driver, server: ServerProcess):
    seen = (
        "getComputedStyle(it).outlineStyle === 'solid' && parseFloat(getComputedStyle(it).outlineWidth) >= 2"
    )
    page.tab_to("it.id === 'user'")
    assert page.ask(f"(it => {seen})(document.activeElement)")
    page.type("3")
    page.press("Enter")
    page.wait(SHOWN)
    page.tab_to("it.closest('#with li:nth-child(3)')")
    assert page.ask(f"(it => {seen})(document.activeElement)")
    page.press("Enter")
    page.wait(OPENED)
    assert page.ask("document.activeElement.id") == "comments-title"
    page.press("Escape")
    assert page.ask("Boolean(document.activeElement.closest('#with li:nth-child(3)'))")
    page.press("Tab", shift=True)
    assert page.ask("Boolean(document.activeElement.closest('#with li:nth-child(2)'))")


def test_users_are_found_by_the_beginning_of_their_id(page: Driver, server: ServerProcess):
    page.ask("document.getElementById('user').focus()")
    page.type("1")
    wanted = get(server, "/v1/users?prefix=1&limit=12")["users"]
    shown = "[...document.querySelectorAll('#users button')].map(button => button.textContent)"
    page.wait(f"{shown}.join() === '{','.join(map(str, wanted))}'")
    assert len(wanted) == 11
    assert page.ask("document.getElementById('users-found').textContent") == "11 users found"
    page.click("#users li:nth-child(2) button")
    page.wait(SHOWN)
    assert ids(page, "with") == [str(item["id"]) for item in expected(server, wanted[1])[0]]


@pytest.mark.parametrize(
    ("videos", "liked", "question"),
    [
        ("2, 5 7", "11, 12", {"video_history": [2, 5, 7], "comment_history": [11, 12]}),
        ("[2, 5, 7]", "", {"video_history": [2, 5, 7], "comment_history": []}),
        (
            "",
            '[{"video": 4, "comments": []}]',
            {"video_history": [], "comment_history": [{"video": 4, "comments": []}]},
        ),
        (
            '{"video_history": [9], "comment_history": [3]}',
            "",
            {"video_history": [9], "comment_history": [3]},
        ),
    ],
)
def test_a_history_is_pasted_as_ids_or_as_json(
    page: Driver, server: ServerProcess, videos: str, liked: str, question: dict[str, Any]
):
    paste(page, videos, liked)
    page.wait(SHOWN)
    items = post(server, "/v1/recommend", question)["items"]
    assert ids(page, "with") == [str(item["id"]) for item in items]
    assert page.ask("document.getElementById('other').hidden") is not bool(question["comment_history"])


def test_ids_that_are_not_there_are_named(page: Driver):
    paste(page, "2, 777777", "888888")
    page.wait(SHOWN)
    told = page.ask("document.getElementById('unknown').textContent")
    assert told == "Not in this bundle, so not counted: 1 video (777777) and 1 comment (888888)."


@pytest.mark.parametrize(
    ("videos", "liked", "says"),
    [
        ("[2, 5", "", "The videos begin like JSON but are not: "),
        ("", "", "Give at least one video or one comment."),
        ('{"videos": [2]}', "", 'The JSON object needs "video_history"'),
        ('{"video_history": [2], "comment_history": []}', "3", "Comments stand in both boxes"),
        ("2", '{"video": 3}', "The comments must be a list"),
        ("[[2]]", "", "video_history[0]"),
        ("2", '[{"video": 4, "coments": [5]}]', "comment_history[0]"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_sentence(page: Driver, videos: str, liked: str, says: str):
    paste(page, videos, liked)
    page.wait(ALERT)
    assert says in page.ask(ALERT) and "requests" not in page.ask(ALERT)
    assert page.ask("document.getElementById('alert').getAttribute('role')") == "alert"


def test_errors_of_the_api_are_told_and_go_when_it_works_again(page: Driver, server: ServerProcess):
    page.ask("document.getElementById('user').value = 'nobody'")
    page.click("button.main")
    page.wait(ALERT)
    assert page.ask(ALERT) == get(server, "/v1/users/nobody")["error"]["message"]
    choose(page, 2)
    page.ask("document.getElementById('k').value = '0'")
    assert page.ask("document.getElementById('alert').hidden")
    page.click("button.main")
    page.wait(ALERT)
    assert "whole number from 1" in page.ask(ALERT)


def test_titles_are_text_and_the_page_asks_nobody_else(page: Driver, server: ServerProcess):
    paste(page, "1")
    page.wait(SHOWN)
    page.wait(f"document.querySelector('#history-videos .title').textContent === {NASTY!r}")
    paste(page, "2", f'[{{"video": {owner_of_first_comment(server)}, "comments": [1]}}]')
    page.wait(f"[...document.querySelectorAll('.said')].some(said => said.textContent === {NASTY!r})")
    assert page.ask("document.title").startswith("LSVCR") and page.ask("document.images.length") == 0
    assert page.problems == []
    assert all(asked.startswith((address(server), "data:")) for asked in page.asked_for), page.asked_for
    # What the policy forbids is forbidden: without it this would run.
    page.ask("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title = 1\">')")
    page.ask("new Promise(done => setTimeout(done, 300))")
    assert page.ask("document.title").startswith("LSVCR")


def owner_of_first_comment(server: ServerProcess) -> int:
    """The video that comment 1 stands under and among whose most liked it is not needed to be."""
    for video in range(1, VIDEOS + 1):
        ranking = post(server, "/v1/rank-comments", {"video_history": [2], "video": video})
        if any(item["id"] == 1 for item in ranking["items"]):
            return video
    raise AssertionError("comment 1 has no video")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_every_window_and_can_be_read_in_light_and_dark(
    page: Driver, server: ServerProcess, tmp_path: Path, dark: bool
):
    page.window(360, 800, dark=dark)
    choose(page, commented(server))
    page.click("#with button")
    page.wait(OPENED)
    for width in (1280, 768, 360, 320):
        page.window(width, 800, dark=dark)
        assert page.ask(SIDEWAYS) == 0, width
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
    colours = page.ask(
        """[...document.querySelectorAll(
          'h1, h2, p, label, legend, button, .title, .below, .said, .move, .score, .place'
        )].filter(node => node.checkVisibility()).map(node => {
          const behind = part => getComputedStyle(part).backgroundColor;
          let back = node;
          while (behind(back) === 'rgba(0, 0, 0, 0)' && back.parentElement) back = back.parentElement;
          return [node.className || node.tagName, getComputedStyle(node).color, behind(back)];
        })"""
    )
    assert len(colours) > 50
    for name, front, back in colours:
        assert contrast(front, back) >= 4.5, (name, front, back)
    darkness = page.ask("getComputedStyle(document.body).backgroundColor")
    assert (darkness == "rgb(255, 255, 255)") is not dark


def test_every_field_has_a_label_and_every_part_a_name(page: Driver):
    page.click("#way-own")
    assert page.ask(
        "[...document.querySelectorAll('input, textarea')].every(field => field.labels.length === 1)"
    )
    assert page.ask("[...document.querySelectorAll('button')].every(button => button.textContent.trim())")
    named = "part => Boolean(document.getElementById(part.getAttribute('aria-labelledby')))"
    assert page.ask(f"[...document.querySelectorAll('section')].every({named})")
    for name in ("header", "main", "h1"):
        assert page.ask(f"document.querySelectorAll('{name}').length") == 1
    assert page.ask("document.querySelectorAll('[role=status]').length") >= 2
    assert page.ask("document.documentElement.lang") == "en"


def test_a_bundle_without_users_asks_for_histories_at_once(window: Driver, tmp_path: Path):
    with serving(tmp_path, users=False) as running:
        page = opened(window, running)
        assert page.ask("document.getElementById('videos').checkVisibility()")
        assert not page.ask("document.getElementById('user').checkVisibility()")
        assert page.ask("document.getElementById('no-users').checkVisibility()")
        page.ask("document.getElementById('videos').value = '2, 3'")
        page.click("button.main")
        page.wait(SHOWN)


def test_a_bundle_that_only_recommends_offers_no_comments(window: Driver, tmp_path: Path):
    with serving(tmp_path, tasks=(Task.REC,)) as running:
        page = opened(window, running)
        choose(page, commented(running))
        assert (
            len(ids(page, "with")) == 10 and page.ask("document.querySelectorAll('#with button').length") == 0
        )
        assert "Choose a video" not in page.ask("document.getElementById('summary').textContent")


def test_a_bundle_that_only_ranks_comments_asks_for_the_video(window: Driver, tmp_path: Path):
    with serving(tmp_path, tasks=(Task.COMM_RANK,)) as running:
        page = opened(window, running)
        page.wait("document.getElementById('watched').checkVisibility()")
        paste(page, "2, 777777")
        page.wait(ALERT)
        assert page.ask(ALERT) == "Give the id of the video that is being watched."
        page.ask("document.getElementById('watched').value = '7'")
        page.click("#go")
        page.wait(OPENED)
        ranking = post(running, "/v1/rank-comments", {"video_history": [2], "video": 7})
        assert ids(page, "ranked") == [str(item["id"]) for item in ranking["items"]]
        assert "1 video (777777)" in page.ask("document.getElementById('unknown').textContent")
        page.press("Escape")
        assert page.ask("document.activeElement.id") == "watched" and not page.ask(OPENED)


def test_ids_beyond_what_javascript_counts_to_stay_exact(window: Driver, tmp_path: Path):
    with serving(tmp_path, first=BEYOND) as running:
        page = opened(window, running)
        user = commented(running, BEYOND)
        choose(page, user)
        first, _ = expected(running, user)
        assert ids(page, "with") == [str(item["id"]) for item in first]
        page.click("#with button")
        page.wait(OPENED)
        ranking = post(running, "/v1/rank-comments", {"user": user, "video": first[0]["id"]})
        assert ids(page, "ranked") == [str(item["id"]) for item in ranking["items"]]


def test_a_server_that_has_gone_is_told(window: Driver, tmp_path: Path):
    with serving(tmp_path) as running:
        page = opened(window, running)
    page.click("#users button")
    page.wait(ALERT)
    assert page.ask(ALERT) == "The server does not answer. Is it running? Try again in a moment."
