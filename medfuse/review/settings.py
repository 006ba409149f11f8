"""How a review is run: the run, the folder beside it, who may log in, and what readers see first."""

import importlib.util
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from medfuse.errors import ConfigError
from medfuse.review.access import ROLES, is_loopback

ENVIRONMENT = "MEDFUSE_REVIEW"
SECRETS = ("redirect_uri", "cookie_secret", "client_id", "client_secret", "server_metadata_url")


@dataclass(frozen=True, kw_only=True)
class ReviewSettings:
    """Settings of one review; nothing in them removes the research-use banner.

    Attributes:
        run: run directory.
        folder: of reviews, log, users and worklist; never inside the run, which is sealed.
        outcome: default the run's first.
        address: that the server listens on.
        reader_first: predictions appear after the reader's own estimate, or a reason to skip it.
        data_root: of the cohort's files, for sites and subgroups in the worklist; may be missing.
        store: folder of the feature store, for the evidence page; may be missing.
        threshold: risk above which one would act, for what a missing modality could change.
        oidc_roles: group of the login server -> role; empty without a login server.
        oidc_claim: claim that holds the groups.
        oidc_secrets: TOML file whose section ``auth`` names the login server, as ``st.login`` reads it; default: where
            Streamlit looks by itself.
        hosts: names under which browsers may ask for the server, where it listens for other machines.

    Raises:
        ConfigError: a folder inside the run, or a threshold outside (0, 1).
    """

    run: str
    folder: str
    outcome: str | None = None
    address: str = "127.0.0.1"
    reader_first: bool = True
    data_root: str | None = None
    store: str | None = None
    threshold: float = 0.5
    oidc_roles: Mapping[str, str] = field(default_factory=dict)
    oidc_claim: str = "groups"
    oidc_secrets: str | None = None
    hosts: Sequence[str] = ()

    def __post_init__(self) -> None:
        run, folder = Path(self.run).resolve(), Path(self.folder).resolve()
        if run == folder or run in folder.parents:
            msg = f"{folder}: expected a folder outside the run, which is sealed, found one inside; choose another"
            raise ConfigError(msg)
        if not 0 < self.threshold < 1:
            msg = f"review: expected a threshold within 0 and 1, found {self.threshold:g}"
            raise ConfigError(msg)

    @property
    def users_file(self) -> Path:
        """Local users."""
        return Path(self.folder) / "users.json"

    @property
    def audit_file(self) -> Path:
        """Who did what."""
        return Path(self.folder) / "audit.jsonl"

    @property
    def reviews_file(self) -> Path:
        """Judgements of readers."""
        return Path(self.folder) / "reviews.jsonl"

    @property
    def protected(self) -> bool:
        """Whether somebody has to log in."""
        return self.users_file.is_file() or bool(self.oidc_roles)

    def require_safe(self) -> None:
        """Refuse to serve other machines when nobody has to log in.

        Raises:
            ConfigError: no users, and an address that others reach; a login server without what asks it.
        """
        if self.oidc_roles:
            self._require_login_server()
        if not self.protected and not is_loopback(self.address):
            msg = (
                f"review: expected users before others can reach {self.address}, found none; add them with "
                "medfuse app RUN --add-user NAME, or leave out --address"
            )
            raise ConfigError(msg)

    def _require_login_server(self) -> None:
        missing = [name for name in ("authlib", "httpx") if importlib.util.find_spec(name) is None]
        if missing:
            msg = f"--oidc-role: expected {' and '.join(missing)} to be installed; pip install medfuse[login]"
            raise ConfigError(msg)
        if self.oidc_secrets is None:
            return
        try:
            section = tomllib.loads(Path(self.oidc_secrets).read_text(encoding="utf-8")).get("auth", {})
        except (OSError, ValueError) as error:
            msg = f"{self.oidc_secrets}: expected a TOML file with a section auth, found none that can be read"
            raise ConfigError(msg) from error
        lost = [k for k in SECRETS if not isinstance(section, dict) or not section.get(k)]
        if lost:
            msg = f"{self.oidc_secrets}: expected {', '.join(SECRETS)} in the section auth, found no {', '.join(lost)}"
            raise ConfigError(msg)


def beside(run: Path) -> Path:
    """The default folder: the run's name with ``-review``, next to it."""
    resolved = run.resolve()
    return resolved.with_name(f"{resolved.name}-review")


def to_environment(settings: ReviewSettings) -> str:
    """Settings as the text that the server's process receives."""
    return json.dumps(asdict(settings))


def from_environment(environment: Mapping[str, str] = os.environ) -> ReviewSettings:
    """The inverse.

    Raises:
        ConfigError: the pages were started without ``medfuse app``.
    """
    text = environment.get(ENVIRONMENT)
    if not text:
        msg = "review: expected to be started by medfuse app RUN, found no settings; start it so"
        raise ConfigError(msg)
    content = json.loads(text)
    return ReviewSettings(**{**content, "hosts": tuple(content["hosts"])})


def roles_of(texts: Sequence[str]) -> dict[str, str]:
    """``GROUP=ROLE`` texts as a table.

    Raises:
        ConfigError: a text of another form or an unknown role.
    """
    out = {}
    for text in texts:
        group, _, role = text.rpartition("=")
        if not group or role not in ROLES:
            msg = f"--oidc-role: expected GROUP=ROLE with a role of {', '.join(ROLES)}, found {text!r}"
            raise ConfigError(msg)
        out[group] = role
    return out
