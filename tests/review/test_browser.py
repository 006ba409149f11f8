"""The review in a real browser: Playwright with the distribution's Chromium.

They skip with the reason where these lack, and fail instead where MEDFUSE_BROWSER=required, as in .ci/run.
"""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from made import key, make_run, settings

from medfuse.review.access import Users
from medfuse.review.launch import prepare, server_command
from medfuse.review.log import ChainedLog
from medfuse.review.patient import patient_view
from medfuse.review.settings import ENVIRONMENT, to_environment
from medfuse.review.source import open_review
from medfuse.review.words import BANNER

REQUIRED = os.environ.get("MEDFUSE_BROWSER") == "required"
if REQUIRED:
    import playwright.sync_api as playwright  # where it is not, this is the failure
else:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install medfuse[browser])"
    )
CHROMIUM = next((p for p in ("/usr/bin/chromium", shutil.which("chromium") or "") if p and os.access(p, os.X_OK)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        CHROMIUM is None and not REQUIRED, reason="chromium is not installed (apt-get install chromium)"
    ),
]
ALONE = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"  # no name leads anywhere
ROUTES = ("worklist", "patient", "evidence", "missing", "performance", "reviews")


@contextmanager
def served(one):
    """A server of the review, of settings or of a function from its port to them; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one = one(port) if callable(one) else one
    prepare(one)
    process = subprocess.Popen(
        server_command(one, port=port),
        env={
            **os.environ,
            ENVIRONMENT: to_environment(one),
            "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(150):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, "chromium is not installed (apt-get install chromium), and MEDFUSE_BROWSER=required"
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--headless=new", "--no-sandbox", ALONE])
        yield chromium
        chromium.close()


def visit(page, port: int, route: str, patient: str) -> None:
    page.goto(f"http://127.0.0.1:{port}/{'' if route == 'worklist' else route}?pid={patient}")
    page.wait_for_selector("h1", timeout=30_000)
    # Every page ends with its banner in place; on a slow machine the last elements arrive after the script's end.
    page.wait_for_function("text => document.body.innerText.includes(text)", arg=BANNER, timeout=30_000)
    settled(page)


def settled(page) -> None:
    page.wait_for_timeout(300)
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=30_000)


@pytest.mark.parametrize(
    ("more", "patient"),
    [({"parts": True}, key(0)), ({"parts": True}, key(1)), ({"events": False}, key(0))],
    ids=["full", "single modality", "no events"],
)
def test_D1_D6_D11_D13_every_page_on_this_host_alone(browser, tmp_path, more, patient) -> None:
    run = make_run(tmp_path / "run", **more)
    with served(settings(run, reader_first=False)) as port:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for route in ROUTES:
            visit(page, port, route, patient)
            body = page.inner_text("body")
            assert BANNER in body
            assert "went wrong" not in body
            charts = page.locator('[data-testid="stPlotlyChart"]')
            for k in range(charts.count()):
                label = charts.nth(k).evaluate(
                    "e => { const f = e.closest('[role=figure]') || e.querySelector('[role=figure]') || e;"
                    " return f.getAttribute('aria-label') || '' }"
                )
                assert len(label) > 20, f"{route}: chart {k} has no alternative text"
            assert page.get_by_text("Table: ").count() >= charts.count() * (route != "evidence")
        page.close()
    foreign = [
        u for u in asked if not u.startswith((f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}", "data:", "blob:"))
    ]
    assert foreign == []


def test_D11_every_page_where_there_is_no_network(tmp_path) -> None:
    """Server and browser in a network namespace of their own, which has loopback and nothing else."""
    apart = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    if shutil.which("ip") is None or subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this host lets nobody make a network namespace (unshare --net), or lacks ip")
    call = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
    alone = "ip link set lo up && test $(tail -n +3 /proc/net/dev | wc -l) = 1 || exit 99"
    inside = f'{alone}; "$0" -c "$1" 2>/dev/null && exit 98; shift; exec "$@"'
    name = "test_D1_D6_D11_D13_every_page_on_this_host_alone[full]"
    ask = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inside")]
    words = [*apart, "sh", "-c", inside, sys.executable, call, *ask, "-m", "slow", f"{__file__}::{name}"]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "1 passed" in done.stdout


def test_D7_D8_nothing_of_the_prediction_reaches_the_browser_first(browser, tmp_path) -> None:
    run = make_run(tmp_path / "run", parts=True)
    opened = open_review(run)
    with served(settings(run)) as port:
        page = browser.new_page()
        frames: list[bytes] = []
        page.on(
            "websocket",
            lambda ws: ws.on("framereceived", lambda f: frames.append(f if isinstance(f, bytes) else f.encode())),
        )
        visit(page, port, "patient", key(0))
        told = f"{100 * patient_view(opened, key(0)).risk:.1f} %"
        assert told not in page.content()
        assert not [f for f in frames if told.encode() in f]
        assert page.locator('[data-testid="stPlotlyChart"]').count() == 0
        page.get_by_label("Or skip it, with a reason").fill("seen before")
        page.get_by_role("button", name="Keep and go on").click()
        page.wait_for_selector('[data-testid="stPlotlyChart"]', timeout=30_000)
        assert told in page.content()
        visit(page, port, "patient", key(5))
        page.get_by_label("Or skip it, with a reason").fill("seen before")
        page.get_by_role("button", name="Keep and go on").click()
        page.wait_for_selector("text=Prediction withheld", timeout=30_000)
        settled(page)
        assert page.locator('[data-testid="stPlotlyChart"]').count() == 0
        assert f"{100 * patient_view(opened, key(5)).risk:.1f} %" not in page.content()
        page.close()


def test_D10_no_patient_byte_without_a_login(browser, tmp_path) -> None:
    run = make_run(tmp_path / "run", parts=True)
    one = settings(run, reader_first=False)
    Users(one.users_file).add("ada", "correct horse battery", frozenset({"investigator"}))
    patients = [p.encode() for p in open_review(run).where]
    with served(one) as port:
        page = browser.new_page(accept_downloads=True)
        frames: list[bytes] = []
        page.on(
            "websocket",
            lambda ws: ws.on("framereceived", lambda f: frames.append(f if isinstance(f, bytes) else f.encode())),
        )
        for route in ROUTES:
            page.goto(f"http://127.0.0.1:{port}/{'' if route == 'worklist' else route}")
            page.wait_for_selector('h1:has-text("Log in")', timeout=30_000)
        assert frames
        assert not [p for f in frames for p in patients if p in f]
        paths = [
            "",
            *ROUTES,
            "_stcore/health",
            "_stcore/host-config",
            "media/x.html",
            "component/x",
            "app/static/x",
            "_stcore/upload_file/x/y",
            "_stcore/metrics",
            "_stcore/agent",
            "export",
            "tiles/0/0_0.png",
        ]
        for path in paths:
            link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            link.request("GET", f"/{path}?pid={key(0)}")
            body = link.getresponse().read()
            assert not [p for p in patients if p in body], path
        page.goto(f"http://127.0.0.1:{port}/")  # a page that nobody may see asks to be dismissed first
        page.wait_for_selector('h1:has-text("Log in")', timeout=30_000)
        page.get_by_label("Name").fill("ada")
        page.get_by_label("Password", exact=True).fill("correct horse battery")
        page.get_by_role("button", name="Log in").click()
        page.wait_for_selector('h1:has-text("Worklist")', timeout=30_000)
        settled(page)
        served_by_http: list[str] = []
        page.on("response", lambda response: served_by_http.append(response.url))
        page.get_by_role("link", name="Performance").first.click()
        page.wait_for_selector('h1:has-text("Performance")', timeout=30_000)
        page.get_by_label("Find a patient (part of the key)").fill(key(0))
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Open this patient").click()
        page.wait_for_selector('h1:has-text("Patient")', timeout=30_000)
        page.get_by_role("link", name="Record your judgement").click()
        page.get_by_role("button", name="Prepare export (recorded)").click()
        with page.expect_download(timeout=30_000) as waiting:
            page.locator("a.save").click()
        content = waiting.value.path().read_text()
        assert BANNER in content
        assert key(0) in content
        assert not [u for u in served_by_http if "/media/" in u]
        page.close()


SAID = (  # what a screen reader may say of a control
    "e => { if (!['BUTTON', 'A', 'SUMMARY', 'INPUT'].includes(e.tagName)) return '';"
    " const l = e.labels && e.labels[0];"
    " return [e.innerText, e.getAttribute('aria-label'), l && l.innerText, e.value].join('|') }"
)


def test_D13_keyboard_alone_opens_a_patient_and_records_a_review(browser, tmp_path) -> None:
    run = make_run(tmp_path / "run", patients=8)
    one = settings(run, reader_first=False)
    with served(one) as port:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        visit(page, port, "worklist", key(0))

        def reach(name: str, *, most: int = 120) -> None:
            # On a slow machine a button may come, or be enabled, after the page has settled; Tab goes round without it.
            there = (
                f"name => [...document.querySelectorAll('button,a,summary,input')].some(e =>"
                f" !e.disabled && e.checkVisibility() && ({SAID})(e).includes(name))"
            )
            try:
                page.wait_for_function(there, arg=name, timeout=30_000)
            except playwright.TimeoutError:
                pytest.fail(f"{name}: not on the page")
            passed: list[str] = []
            for _ in range(most):
                page.keyboard.press("Tab")
                said = page.evaluate(f"({SAID})(document.activeElement)")
                if name in said:
                    shown = page.evaluate(
                        "(() => { const e = document.activeElement; const s = getComputedStyle(e);"
                        " const w = e.labels && e.labels[0] ? getComputedStyle(e.labels[0]) : s;"
                        " const box = e.type === 'radio' ? w : s;"
                        " return box.outlineStyle !== 'none' || box.boxShadow !== 'none' })()"
                    )
                    assert shown, f"{name}: focus cannot be seen"
                    return
                passed.append(said or page.evaluate("document.activeElement.tagName"))
            pytest.fail(f"{name}: not reached by Tab, but {', '.join(passed)}")

        reach("Open patient")
        page.keyboard.press("Enter")
        page.wait_for_selector('h1:has-text("Patient")', timeout=30_000)
        settled(page)
        reach("Table: What each modality contributed")
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
        assert page.locator("table:visible").count() >= 2
        reach("Record your judgement")
        page.keyboard.press("Enter")
        page.wait_for_selector('h1:has-text("Reviews and export")', timeout=30_000)
        settled(page)
        reach("agree")  # the first of the group, of which none is chosen
        page.keyboard.press("Space")
        page.keyboard.press("ArrowRight")
        settled(page)
        assert page.get_by_role("radio", name="disagree", exact=True).is_checked()
        page.keyboard.press("ArrowLeft")
        settled(page)
        reach("Record judgement")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Recorded.", timeout=30_000)
        assert [r["verdict"] for r in ChainedLog(one.reviews_file).rows() if r["kind"] == "review"] == ["agree"]
        settled(page)
        reach("Prepare export (recorded)")
        page.keyboard.press("Enter")
        page.wait_for_selector("a.save[href^=blob]", timeout=30_000)
        settled(page)
        reach("Save patient-report")
        with page.expect_download(timeout=30_000) as waiting:
            page.keyboard.press("Enter")
        assert BANNER in waiting.value.path().read_text()
        page.close()


NAMES = {
    0: "<script>window.hacked=1</script><img src=x onerror='window.hacked=2'>",
    3: "مريض-١ ‮txt.exe",
    4: "[x](javascript:window.hacked=3) **bold** $x^2$ :red[x]",
    6: "A" * 300,
}


def test_D12_markup_long_keys_and_other_scripts_are_inert_and_leave_the_layout(browser, tmp_path) -> None:
    run = make_run(tmp_path / "run", names=NAMES, patients=12)
    with served(settings(run, reader_first=False)) as port:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for name in NAMES.values():
            for route in ("patient", "reviews", "worklist") if name == NAMES[0] else ("patient",):
                visit(page, port, route, quote(name))
                page.wait_for_function("name => document.body.innerText.includes(name)", arg=name, timeout=30_000)
                assert page.evaluate("window.hacked") is None
                assert page.locator("main img, [data-testid=stMain] img[src=x]").count() == 0
                wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                assert wide <= 0, f"{route}: the page is {wide} pixels wider than the window"
        page.close()
    assert not [u for u in asked if "/x" in u and "stcore" not in u and "static" not in u]


CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const part = v => v <= 10.31 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const lum = ([r, g, b]) => .2126 * part(r) + .7152 * part(g) + .0722 * part(b);
  const over = (f, b) => { const a = f.length > 3 ? f[3] : 1; return [0, 1, 2].map(k => f[k] * a + b[k] * (1 - a)); };
  const ground = e => { const layers = [];
    for (; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((b, f) => over(f, b), [255, 255, 255]); };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
    if (e.closest('script,style,[disabled],[aria-disabled=true],[data-testid=stIconMaterial]')) continue;
    const style = getComputedStyle(e), svg = e.closest('svg');
    const back = ground(e), colour = over(parse(svg ? style.fill : style.color), back);
    const [a, b] = [lum(colour), lum(back)], ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) found.push(ratio.toFixed(2) + ' ' + text.slice(0, 40));
  }
  return found; }"""


def test_D14_every_text_has_a_contrast_of_4_5(browser, tmp_path) -> None:
    run = make_run(tmp_path / "run", parts=True)
    with served(settings(run, reader_first=False)) as port:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        for route in ROUTES:
            visit(page, port, route, key(0))
            page.wait_for_timeout(500)
            assert page.evaluate(CONTRAST) == [], route
        page.evaluate("document.querySelector('h1').style.color = '#999'")
        assert page.evaluate(CONTRAST), "the measure sees nothing"
        page.close()


@pytest.mark.parametrize("patients", [1_000, 100_000])
def test_D15_first_page_and_page_switches_are_quick(browser, tmp_path, patients, record_property) -> None:
    run = make_run(tmp_path / "run", patients=patients)
    one = settings(run, reader_first=False)
    with served(one) as port:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        begin = time.perf_counter()
        page.goto(f"http://127.0.0.1:{port}/?pid={key(0)}")
        page.wait_for_selector('h1:has-text("Worklist")', timeout=20_000)
        page.wait_for_selector('[data-testid="stTable"]', timeout=20_000)
        cold = time.perf_counter() - begin
        visit(page, port, "patient", key(0))
        titles = {
            "Patient": "Patient",
            "Missing data": "Missing data",
            "Worklist": "Worklist",
            "Reviews and export": "Reviews",
        }
        for warm in (True, False):
            took = []
            for _ in range(1 if warm else 4):
                for link, title in titles.items():
                    begin = time.perf_counter()
                    page.get_by_role("link", name=link, exact=True).first.click()
                    page.wait_for_selector(f'h1:has-text("{title}")', timeout=20_000)
                    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=20_000)
                    took.append(time.perf_counter() - begin)
        page.close()
    worst = sorted(took)[int(0.95 * (len(took) - 1))]
    record_property(
        "d15", f"{patients} patients: cold {cold:.2f} s, p95 of switches {worst:.2f} s, load {os.getloadavg()[0]:.1f}"
    )
    # The figures are 5 s, and 1.5 s (2 s at 100,000) on two idle cores; a shared machine gets twice that.
    assert cold <= 10
    assert worst <= (3 if patients == 1_000 else 4)
