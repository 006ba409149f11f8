"""The review in a browser: first page, page switches, ten sessions at once, and what nobody who is not logged in gets.

    python benchmarks/app.py [--patients 1000 100000] [--reruns 500] [--out benchmarks/results/app.json]

Needs Chromium and playwright. Runs are made by tests/review/made.py (stored values, no training). Times are wall
clock of a machine that others may use: the load stands beside them, and so does the processor time of the server.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "review"))
from made import key, make_run, settings

from medfuse.review.access import Users
from medfuse.review.launch import prepare, server_command
from medfuse.review.patient import patient_view, summary
from medfuse.review.settings import ENVIRONMENT, ReviewSettings, to_environment
from medfuse.review.source import open_review

PAGES = {"Patient": "Patient", "Missing data": "Missing data", "Worklist": "Worklist", "Reviews and export": "Reviews"}
ROUTES = ("", "worklist", "patient", "evidence", "missing", "performance", "reviews", "login")
SERVER_ROUTES = (
    "_stcore/health",
    "_stcore/script-health-check",
    "_stcore/host-config",
    "_stcore/metrics",
    "_stcore/stream",
    "_stcore/agent",
    "_stcore/upload_file/x/y",
    "_stcore/bidi-components/x",
    "_stcore/component/x",
    "media/x.html",
    "media/0123456789abcdef.png",
    "component/x",
    "app/static/x",
    "oauth2callback",
    "auth/login",
    "auth/logout",
    "export",
    "tiles/0/0_0.png",
)
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"]'


@contextlib.contextmanager
def served(one: ReviewSettings) -> Iterator[tuple[int, psutil.Process, dict[str, float]]]:
    """A fresh server; its port, process, and how long it took to prepare and to listen."""
    begin = time.perf_counter()
    prepare(one)
    prepared = time.perf_counter()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        server_command(one, port=port),
        env={**os.environ, ENVIRONMENT: to_environment(one), "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.05)
        spent = {"prepare_s": prepared - begin, "listening_s": time.perf_counter() - prepared}
        yield port, psutil.Process(process.pid), spent
    finally:
        process.terminate()
        process.wait(30)


def clock(process: psutil.Process) -> float:
    """Processor seconds of a process and its threads."""
    used = process.cpu_times()
    return float(used.user + used.system)


def p95(values: list[float]) -> float:
    """95th percentile, by the nearest rank."""
    return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]


def first_page(browser: Any, port: int) -> float:
    """Seconds from an empty browser to the worklist's table."""
    context = browser.new_context()
    page = context.new_page()
    begin = time.perf_counter()
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_selector('[data-testid="stTable"]', timeout=120_000)
    took = time.perf_counter() - begin
    context.close()
    return took


def switches(browser: Any, port: int, rounds: int) -> list[float]:
    """Seconds of page switches by the links of the side bar, one uncounted round first."""
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{port}/patient?pid={key(0)}")
    page.wait_for_selector('h1:has-text("Patient")', timeout=120_000)
    page.wait_for_selector(IDLE, timeout=60_000)
    took: list[float] = []
    for number in range(rounds + 1):
        for link, title in PAGES.items():
            begin = time.perf_counter()
            page.get_by_role("link", name=link, exact=True).first.click()
            page.wait_for_selector(f'h1:has-text("{title}")', timeout=60_000)
            page.wait_for_selector(IDLE, timeout=60_000)
            if number:
                took.append(time.perf_counter() - begin)
    page.close()
    return took


def speed(browser: Any, patients: int, folder: Path) -> dict[str, Any]:
    """First page and page switches with so many patients."""
    one = settings(make_run(folder / f"run{patients}", patients=patients, parts=True), reader_first=False)
    load = os.getloadavg()[0]
    with served(one) as (port, process, spent):
        begun = clock(process)
        cold = first_page(browser, port)
        cold_processor = clock(process) - begun
        again = [first_page(browser, port) for _ in range(3)]
        begun = clock(process)
        took = switches(browser, port, 6)
        processor = (clock(process) - begun) / (len(took) + 2 * len(PAGES))
    return {
        "patients": patients,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        **spent,
        "first_page_of_a_fresh_server_s": cold,
        "first_page_server_processor_s": cold_processor,
        "first_page_of_a_fresh_browser_median_s": statistics.median(again),
        "switches": len(took),
        "switch_median_s": statistics.median(took),
        "switch_p95_s": p95(took),
        "switch_server_processor_s": processor,
    }


def sessions(browser: Any, folder: Path, *, count: int, reruns: int, seed: int = 0) -> dict[str, Any]:
    """Many sessions, each on its own patient, in a random order: does anybody see another's, and does memory grow?"""
    path = make_run(folder / "many", patients=200)
    run = open_review(path)
    mine = [p for p in run.where if patient_view(run, p).has][:count]
    told = {p: summary(patient_view(run, p))[0] for p in mine}
    load, random_ = os.getloadavg()[0], random.Random(seed)
    crossed, wrong, memory = 0, 0, []
    with served(settings(path, reader_first=False)) as (port, process, _):
        pages = {p: browser.new_context().new_page() for p in mine}
        for patient, page in pages.items():
            page.goto(f"http://127.0.0.1:{port}/patient?pid={patient}")
            page.wait_for_selector(f"text={told[patient]}", timeout=120_000)
            page.wait_for_selector(IDLE, timeout=60_000)
        begin = time.perf_counter()
        for number in range(reruns):
            patient = random_.choice(mine)
            page = pages[patient]
            link = "Missing data" if number % 5 == 4 else "Patient"
            if link == "Patient" and page.locator('h1:has-text("Patient")').count():
                page.locator("body").press("r")  # the server runs the page again
                page.wait_for_timeout(30)
            else:
                page.get_by_role("link", name=link, exact=True).first.click()
            page.wait_for_selector(f'h1:has-text("{link}")', timeout=60_000)
            page.wait_for_selector(IDLE, timeout=60_000)
            text = page.inner_text("body")
            wrong += patient not in text
            crossed += any(other in text for other in mine if other != patient and link == "Patient")
            crossed += any(sentence in text for other, sentence in told.items() if other != patient)
            if number % 25 == 0:
                memory.append(process.memory_info().rss / 2**20)
        took = time.perf_counter() - begin
        memory.append(process.memory_info().rss / 2**20)
    warm = memory[2] if len(memory) > 3 else memory[0]
    return {
        "sessions": len(mine),
        "reruns": reruns,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "pages_without_their_own_patient": wrong,
        "pages_with_another_patient": crossed,
        "seconds_per_rerun": took / reruns,
        "memory_mib": [round(m, 1) for m in memory],
        "memory_growth": memory[-1] / warm - 1,
        "memory_growth_is_from_rerun": 50,
    }


def doors(folder: Path) -> dict[str, Any]:
    """Every route without a login, by HTTP and by the socket of the pages: bytes of patients that come back."""
    path = make_run(folder / "closed", patients=60, parts=True)
    one = settings(path, reader_first=False)
    Users(one.users_file).add("ada", "correct horse battery", frozenset({"steward"}))
    patients = [p.encode() for p in open_review(path).where]
    answers: dict[str, int] = {}
    found = 0
    with served(one) as (port, _, _spent):
        for route in (*ROUTES, *SERVER_ROUTES):
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
                link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                link.request(method, f"/{route}?pid={key(0)}")
                answer = link.getresponse()
                body = answer.read() + str(answer.getheaders()).encode()
                found += sum(len(p) for p in patients if p in body)
                answers[f"{method} /{route}"] = answer.status
                link.close()
    return {"routes": len(answers), "patient_bytes": found, "statuses": sorted(set(answers.values()))}


def socket_doors(browser: Any, folder: Path) -> dict[str, Any]:
    """Pages without a login in a browser: bytes of patients in what the server sent over its socket."""
    path = make_run(folder / "socket", patients=60, parts=True)
    one = settings(path, reader_first=False)
    Users(one.users_file).add("ada", "correct horse battery", frozenset({"steward"}))
    patients = [p.encode() for p in open_review(path).where]
    frames: list[bytes] = []
    with served(one) as (port, _, _spent):
        page = browser.new_page()
        page.on(
            "websocket",
            lambda ws: ws.on("framereceived", lambda f: frames.append(f if isinstance(f, bytes) else f.encode())),
        )
        for route in ROUTES:
            page.goto(f"http://127.0.0.1:{port}/{route}")
            page.wait_for_selector('h1:has-text("Log in")', timeout=60_000)
        page.close()
    return {
        "pages": len(ROUTES),
        "frames": len(frames),
        "patient_bytes": sum(len(p) for p in patients for f in frames if p in f),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, nargs="*", default=[1_000, 100_000])
    parser.add_argument("--reruns", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "app.json")
    asked = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or "/usr/bin/chromium"
    result: dict[str, Any] = {
        "cores": os.cpu_count(),
        "goals": {"first_page_s": 5, "switch_p95_s": {"1000": 1.5, "100000": 2}, "memory_growth": 0.2},
        "speed": [],
    }
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        root = Path(folder)
        browser = started.chromium.launch(executable_path=chromium, args=["--headless=new", "--no-sandbox"])
        for patients in asked.patients:
            result["speed"].append(speed(browser, patients, root))
            print(json.dumps(result["speed"][-1], indent=1), flush=True)
        result["doors"] = {"http": doors(root), "socket": socket_doors(browser, root)}
        print(json.dumps(result["doors"], indent=1), flush=True)
        if asked.reruns:
            result["sessions"] = sessions(browser, root, count=10, reruns=asked.reruns)
            print(json.dumps(result["sessions"], indent=1), flush=True)
        browser.close()
    asked.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
