"""Draw ``review_performance.png`` and ``review_stress.png`` of a demonstration again, with Chromium through Playwright.

Usage, with the extra ``browser`` and a Chromium, from the root of the repository::

    medfuse demo --patients 120 --out DEMO
    export MEDFUSE_DATA=DEMO/cohort MEDFUSE_STORE=DEMO/store
    medfuse explain DEMO/run
    medfuse stress DEMO/run --mechanism mcar
    python docs/figures/review_pictures.py DEMO [FOLDER]
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from medfuse.review.launch import prepare, server_command
from medfuse.review.settings import ENVIRONMENT, ReviewSettings, to_environment
from medfuse.review.words import BANNER

WIDTH, HEIGHT = 1280, 2400
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"]'


@contextmanager
def served(one: ReviewSettings) -> Iterator[int]:
    """A server of the review; gives its port."""
    prepare(one)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, ENVIRONMENT: to_environment(one), "PYTHONPATH": paths}
    command = server_command(one, port=port)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(3_000):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def settled(page: Any) -> None:  # noqa: ANN401  # Playwright's page
    """Wait until the page is whole: its banner is there, the script has ended and the charts are drawn."""
    page.wait_for_function("text => document.body.innerText.includes(text)", arg=BANNER, timeout=60_000)
    page.wait_for_timeout(500)
    page.wait_for_selector(IDLE, timeout=60_000)
    page.wait_for_timeout(2_000)


def draw(demo: Path, folder: Path) -> None:
    """Write the two pictures into a folder."""
    with tempfile.TemporaryDirectory() as beside, sync_playwright() as started:
        places = {"data_root": str(demo / "cohort"), "store": str(demo / "store")}
        one = ReviewSettings(run=str(demo / "run"), folder=beside, reader_first=False, **places)
        chromium = started.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--headless=new", "--no-sandbox"]
        )
        with served(one) as port:
            page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(f"http://127.0.0.1:{port}/performance")
            settled(page)
            page.get_by_label("Why are they opened?").fill("pictures of the documentation")
            page.keyboard.press("Enter")
            settled(page)
            page.get_by_role("button", name="Open held-out results").click()
            page.wait_for_selector('h2:has-text("Stress tests")', timeout=60_000)
            settled(page)
            page.screenshot(path=folder / "review_performance.png")
            # The part of the page from one heading to the next, the last of which stands below the picture.
            page.set_viewport_size({"width": WIDTH, "height": 12_000})
            settled(page)
            tops = {
                name: page.locator(f'h2:has-text("{name}")').bounding_box()["y"]
                for name in ("Stress tests", "Prototypes")
            }
            middle = page.locator('h3:has-text("Do the explanations"), p:has-text("Checks of faithfulness")').first
            end = min(tops["Prototypes"], middle.bounding_box()["y"])
            top = tops["Stress tests"] - 40
            clip = {"x": 0, "y": top, "width": WIDTH, "height": end - top}
            page.screenshot(path=folder / "review_stress.png", clip=clip)
        chromium.close()


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent)
