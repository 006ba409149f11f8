"""Login by OIDC in a real browser, against a login server made here on loopback; it signs what it is told to say."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from made import key, make_run, settings
from test_browser import CHROMIUM, REQUIRED, browser, served  # noqa: F401  # a fixture

from medfuse.errors import ConfigError
from medfuse.review.log import ChainedLog
from medfuse.review.source import open_review

why = "authlib is not installed (pip install medfuse[login])"
if REQUIRED:
    import authlib  # noqa: F401  # where it is not, this is the failure
    import httpx  # noqa: F401
else:
    pytest.importorskip("authlib", reason=why)
    pytest.importorskip("httpx", reason=why)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        CHROMIUM is None and not REQUIRED, reason="chromium is not installed (apt-get install chromium)"
    ),
]


class Provider(ThreadingHTTPServer):
    """An OpenID provider that logs everybody in at once, as whom ``claims`` says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        from joserfc.jwk import RSAKey

        self.key = RSAKey.generate_key(2048, parameters={"kid": "one", "use": "sig", "alg": "RS256"})
        self.claims: dict = {}
        self.nonce = ""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    """The routes of a provider."""

    server: Provider

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _json(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:  # the name that the library asks for
        at, own = urlsplit(self.path), self.server
        if at.path == "/.well-known/openid-configuration":
            routes = {f"{n}_endpoint": f"{own.url}/{n}" for n in ("authorization", "token", "userinfo", "end_session")}
            more = {"response_types_supported": ["code"], "id_token_signing_alg_values_supported": ["RS256"]}
            self._json({"issuer": own.url, "jwks_uri": f"{own.url}/jwks", **routes, **more})
        elif at.path == "/jwks":
            self._json({"keys": [own.key.as_dict(private=False)]})
        elif at.path == "/authorization":
            asked = {k: v[0] for k, v in parse_qs(at.query).items()}
            own.nonce = asked.get("nonce", "")
            self.send_response(302)
            self.send_header("Location", f"{asked['redirect_uri']}?code=c&state={asked['state']}")
            self.end_headers()
        elif at.path == "/end_session":
            self.send_response(302)
            self.send_header("Location", parse_qs(at.query)["post_logout_redirect_uri"][0])
            self.end_headers()
        else:
            self.send_error(404)

    def do_POST(self) -> None:  # the name that the library asks for
        from joserfc import jwt

        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        own, now = self.server, int(time.time())
        claims = {"iss": own.url, "aud": "review", "iat": now, "nonce": own.nonce, "sub": "u1", "exp": now + 3600}
        token = jwt.encode({"alg": "RS256", "kid": "one"}, {**claims, **own.claims}, own.key)
        self._json({"access_token": "a", "token_type": "Bearer", "expires_in": 3600, "id_token": token})


@pytest.fixture
def provider():
    own = Provider()
    yield own
    own.shutdown()
    own.server_close()


def with_login(run, provider, folder, port: int):
    secrets = folder / "secrets.toml"
    lines = {
        "redirect_uri": f"http://127.0.0.1:{port}/oauth2callback",
        "cookie_secret": "not a secret: of a test alone",
        "client_id": "review",
        "client_secret": "none",
        "server_metadata_url": f"{provider.url}/.well-known/openid-configuration",
    }
    secrets.write_text("[auth]\n" + "".join(f'{k} = "{v}"\n' for k, v in lines.items()))
    return settings(run, reader_first=False, oidc_roles={"ward": "reader"}, oidc_secrets=str(secrets))


def test_D10_login_by_a_login_server_and_its_groups(browser, tmp_path, provider) -> None:  # noqa: F811
    run = make_run(tmp_path / "run", patients=20)
    patients = list(open_review(run).where)
    with served(lambda port: with_login(run, provider, tmp_path, port)) as port:

        def enter(claims: dict):
            provider.claims = claims
            page = browser.new_context().new_page()
            page.goto(f"http://127.0.0.1:{port}/patient?pid={key(0)}")
            page.wait_for_selector('h1:has-text("Log in")', timeout=60_000)
            assert not [p for p in patients if p in page.inner_text("body")]
            page.get_by_role("button", name="Log in with your organisation").click()
            return page

        page = enter({"sub": "grace", "groups": ["staff", "ward"]})
        page.wait_for_selector('[data-testid="stTable"]', timeout=60_000)
        page.wait_for_timeout(500)
        body = page.inner_text("body")
        assert "grace\nreader" in body
        assert "Performance" not in body  # no page of readers
        page.goto(f"http://127.0.0.1:{port}/patient?pid={key(0)}")
        page.wait_for_selector('h1:has-text("Patient")', timeout=60_000)
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_selector('h1:has-text("Log in")', timeout=60_000)
        assert not [p for p in patients if p in page.inner_text("body")]
        # of no group, of another group, and a login that ends at once
        refused = ({"groups": ["kitchen"]}, {}, {"groups": ["ward"], "exp": int(time.time()) + 3})
        for claims in refused:
            page = enter(claims)
            page.wait_for_timeout(3500)
            page.reload()
            page.wait_for_selector('h1:has-text("Log in")', timeout=60_000)
            page.wait_for_selector("text=gives you no role", timeout=60_000)
            assert not [p for p in patients if p in page.inner_text("body")]
    kinds = [(r["kind"], r["who"]) for r in ChainedLog(settings(run).audit_file).rows()]
    assert ("login", "grace") in kinds
    assert ("sign out", "grace") in kinds


def test_a_login_server_needs_its_secrets(tmp_path) -> None:
    run = make_run(tmp_path / "run", patients=6)
    path = tmp_path / "secrets.toml"
    path.write_text('[auth]\nclient_id = "x"\n')
    with pytest.raises(ConfigError, match="cookie_secret"):
        settings(run, oidc_roles={"ward": "reader"}, oidc_secrets=str(path)).require_safe()
    with pytest.raises(ConfigError, match="TOML"):
        settings(run, oidc_roles={"ward": "reader"}, oidc_secrets=str(tmp_path / "none")).require_safe()
