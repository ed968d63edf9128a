"""Requests that do not come from the user are refused."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from mien.studio.guard import COOKIE, Guard

HOST = "127.0.0.1:7860"


async def answer(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("answer")


def client(token: str | None = None) -> TestClient:
    app = Starlette(routes=[Route("/", answer, methods=["GET", "POST"])])
    return TestClient(Guard(app, hosts=[HOST, "localhost:7860"], token=token), base_url=f"http://{HOST}")


def test_the_user_is_answered_with_a_policy() -> None:
    found = client().get("/")
    assert found.text == "answer"
    assert "script-src 'self'" in found.headers["content-security-policy"]
    assert "unsafe" not in found.headers["content-security-policy"]
    assert found.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:80", "127.0.0.1.evil.example:7860", ""])
def test_other_names_of_this_address_are_refused(host: str) -> None:
    found = client().get("/", headers={"Host": host})
    assert found.status_code == 421
    assert "content-security-policy" in found.headers


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:80", "http://localhost:7860"])
def test_other_pages_are_refused(origin: str) -> None:
    assert client().post("/", headers={"Origin": origin}).status_code == 403
    assert client().get("/", headers={"Origin": origin}).status_code == 403


def test_the_own_page_is_answered() -> None:
    headers = {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}
    assert client().post("/", headers=headers).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_requests_of_other_sites_are_refused_but_links_are_followed(site: str) -> None:
    """A page of another site may not read photos with an image or a script; a link opens the page."""
    assert client().get("/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}).status_code == 403
    assert client().get("/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}).status_code == 200
    assert client().post("/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}).status_code == 403


def test_with_a_token_others_need_it() -> None:
    guarded = client("secret")
    assert guarded.get("/").status_code == 401
    assert guarded.get("/", headers={"Authorization": "Bearer secre"}).status_code == 401
    assert guarded.get("/?token=wrong").status_code == 401
    assert guarded.get("/", headers={"Authorization": "Bearer secret"}).text == "answer"
    assert guarded.get("/", headers={"Cookie": f"{COOKIE}=secret"}).text == "answer"


def test_the_token_of_the_address_becomes_a_cookie() -> None:
    found = client("secret").get("/?token=secret", follow_redirects=False)
    assert (found.status_code, found.headers["location"]) == (303, "/")
    assert "httponly" in found.headers["set-cookie"].lower()
    assert "samesite=strict" in found.headers["set-cookie"].lower()


def test_without_a_token_an_empty_one_opens_nothing() -> None:
    assert client("secret").get("/", headers={"Authorization": "Bearer "}).status_code == 401
    assert client("secret").get("/?token=").status_code == 401
