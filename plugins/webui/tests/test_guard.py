"""Who may ask: no other site, no other name of this machine, and nobody without the token."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from layersync_plugin_webui.guard import Gate
from layersync_plugin_webui.serve import is_loopback

ROUTES = ["/", "/runs", "/runs/table", "/runs/curves", "/runs/0", "/runs/0/live", "/static/runs.js", "/nothing"]


@pytest.mark.parametrize("path", ROUTES)
def test_without_the_token_there_is_nothing(stranger, path):
    answer = stranger.get(path)
    assert answer.status_code == 403
    assert "token" in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("token", ["", "wrong", "é"])
def test_a_wrong_token_is_not_exchanged(stranger, token):
    answer = stranger.get("/runs", params={"token": token})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    cookie = f"layersync-8765={token}".encode("latin-1")
    assert stranger.get("/runs", headers={"cookie": cookie}).status_code == 403


def test_the_token_is_exchanged_for_a_cookie_that_scripts_and_sites_do_not_get(stranger, gate):
    answer = stranger.get(f"/runs?token={gate.token}&page=1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs?page=1")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert gate.token not in cookie
    assert gate.token not in repr(gate)
    assert stranger.get("/runs").status_code == 200


def test_the_token_leads_to_no_other_host(stranger, gate):
    for path in ("//evil.example/", "/%2F%2Fevil.example/", "/\\evil.example/"):
        location = stranger.get(f"http://127.0.0.1:8765{path}?token={gate.token}").headers["location"]
        assert location.startswith("/")
        assert not location.startswith(("//", "/\\"))


def test_a_cookie_of_another_port_or_program_does_no_harm(reader):
    reader.cookies.set("layersync-9000", "another")
    reader.cookies.set("strange", '"\\')
    assert reader.get("/runs").status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8765", "127.0.0.1", "127.0.0.1:80", "127.0.0.1.nip.io:8765", "", "10.0.0.7:8765"],
)
def test_a_forged_host_is_refused(reader, host):
    answer = reader.get("/runs", headers={"host": host})
    assert answer.status_code == 400
    assert "run" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765", "[::1]:8765"])
def test_this_machine_has_three_names(gate, host):
    assert gate.knows(host)


def test_who_listens_for_others_is_asked_by_address_and_not_by_a_name_that_may_be_anybodys():
    gate = Gate("0.0.0.0", 8765, loopback=False)
    assert all(gate.knows(host) for host in ("192.168.1.5:8765", "[fe80::1]:8765", "localhost:8765"))
    assert not any(gate.knows(host) for host in ("evil.example:8765", "192.168.1.5:80", "192.168.1.5"))
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.5", "name")] == [False] * 4


OTHERS = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:9000"},
    {"origin": "https://127.0.0.1:8765"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"},
    {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
]


@pytest.mark.parametrize("headers", OTHERS)
def test_another_site_may_not_read(reader, headers):
    for path in ("/runs", "/runs/curves", "/static/runs.js"):
        answer = reader.get(path, headers=headers)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("headers", OTHERS)
def test_an_event_stream_from_another_origin_is_not_opened(reader, headers):
    answer = reader.get("/runs/curves", headers={"accept": "text/event-stream", **headers})
    assert answer.status_code == 403


def test_a_websocket_is_not_opened(reader):
    with pytest.raises(WebSocketDisconnect), reader.websocket_connect("ws://127.0.0.1:8765/runs"):
        pass


@pytest.mark.parametrize("headers", [*OTHERS, {}, {"sec-fetch-site": "none"}])
def test_a_form_of_another_site_is_not_taken(reader, headers):
    assert reader.post("/runs", data={"a": "b"}, headers=headers).status_code == 403


@pytest.mark.parametrize("headers", [{"origin": "http://127.0.0.1:8765"}, {"sec-fetch-site": "same-origin"}])
def test_a_form_of_our_own_passes(reader, headers):
    assert reader.post("/runs", data={"a": "b"}, headers=headers).status_code == 405  # there is none yet


def test_a_link_that_somebody_followed_passes(reader):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert reader.get("/runs", headers=headers).status_code == 200


@pytest.mark.parametrize("path", [*ROUTES, "/runs/..%2f..%2fetc%2fpasswd"])
def test_every_answer_has_the_policy(reader, path):
    for answer in (reader.get(path), reader.get(path, headers={"host": "evil.example"})):
        assert answer.headers["content-security-policy"].startswith("default-src 'self';")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_fastapis_own_pages_are_not_there(reader: TestClient):
    assert [reader.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404] * 3
