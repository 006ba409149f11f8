"""Start the review: prepare the worklist, then hand over to a server whose settings keep everything on the host."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from medfuse.errors import StoreError
from medfuse.palette import BLUE, INK
from medfuse.review.log import ChainedLog
from medfuse.review.settings import ENVIRONMENT, ReviewSettings, to_environment
from medfuse.review.source import open_review
from medfuse.review.worklist import build_worklist, people_of

PORT = 8501


def app_file() -> Path:
    """The Streamlit script, in the source tree or in the installed wheel.

    Raises:
        StoreError: neither is there.
    """
    package = Path(__file__).parents[1]
    for root in (package.parent, package / "_data"):
        path = root / "apps" / "clinician" / "app.py"
        if path.is_file():
            return path
    msg = f"{package}: expected apps/clinician beside or inside the package, found none; install medfuse again"
    raise StoreError(msg)


def server_command(settings: ReviewSettings, *, port: int = PORT) -> list[str]:
    """The command that serves the pages."""
    local = settings.address in {"127.0.0.1", "localhost", "::1"}
    options = {
        "server.address": settings.address,
        "server.port": port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.runOnSave": "false",
        "server.maxUploadSize": 1,
        "server.enableXsrfProtection": "true",
        "server.enableCORS": "true",
        "server.enableStaticServing": "false",
        "server.enableAgentApi": "false",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "client.toolbarMode": "minimal",
        "client.disableDataExport": "true",
        "client.allowedOrigins": f"http://{settings.address}:{port}",
        "runner.magicEnabled": "false",
        "logger.level": "warning",
        "theme.base": "light",
        "theme.primaryColor": BLUE,
        "theme.textColor": INK,
        "theme.font": "sans-serif",
    }
    if settings.oidc_secrets:
        options["secrets.files"] = settings.oidc_secrets
    flags = [f"--{key}={value}" for key, value in options.items()]
    hosts = ("localhost", "127.0.0.1") if local else settings.hosts or (settings.address,)
    flags += [f"--server.allowedHosts={host}" for host in hosts]  # one flag each: a comma would be part of a name
    return [sys.executable, "-m", "medfuse.review.serving", str(app_file()), *flags]


def prepare(settings: ReviewSettings, *, say: Callable[[str], None] = lambda text: None) -> None:
    """Check the run, make the worklist and open the audit log.

    Raises:
        ConfigError: others could reach a review without users.
        StoreError: no finished run, a damaged part, or a broken log.
    """
    settings.require_safe()
    run = open_review(settings.run, settings.outcome)
    run.run.verify()
    folder = Path(settings.folder)
    folder.mkdir(parents=True, exist_ok=True)
    people = people_of(run, Path(settings.data_root) if settings.data_root else None)
    build_worklist(run, folder, people=people)
    log = ChainedLog(settings.audit_file)
    log.rows()
    log.append("start", {"who": "medfuse app", "run_sha256": run.sha256, "protected": settings.protected})
    if not run.explained:
        say(f"{run.path}: not explained yet, so no risk is shown (each needs its interval); run medfuse explain on it")
    if not settings.protected:
        say("open: nobody has to log in, and only this machine can reach it")


def serve(settings: ReviewSettings, *, port: int = PORT, say: Callable[[str], None] = lambda text: None) -> int:
    """Serve the review until it is stopped; the exit status of the server.

    Raises:
        ConfigError, StoreError: as :func:`prepare`.
    """
    prepare(settings, say=say)
    say(f"review: http://{settings.address}:{port}  (Ctrl-C stops it)")
    environment = {**os.environ, ENVIRONMENT: to_environment(settings), "DO_NOT_TRACK": "true"}
    root = Path(__file__).parents[2]
    known = environment.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = f"{root}{os.pathsep}{known}" if known else str(root)
    try:
        return subprocess.run(server_command(settings, port=port), env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 0
