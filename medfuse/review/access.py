"""Who may see what: roles, local users with scrypt hashes, and identities of a login server. Denied unless allowed."""

import base64
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfuse.errors import ConfigError
from medfuse.files import read_json, write_json

READER, INVESTIGATOR, STEWARD = "reader", "investigator", "steward"
ROLES = (READER, INVESTIGATOR, STEWARD)
# page or act -> roles that may; what is not named here nobody may.
ALLOWED: Mapping[str, frozenset[str]] = {
    "worklist": frozenset(ROLES),
    "patient": frozenset(ROLES),
    "evidence": frozenset(ROLES),
    "missing": frozenset(ROLES),
    "performance": frozenset({INVESTIGATOR, STEWARD}),
    "reviews": frozenset(ROLES),
    "review": frozenset({READER, INVESTIGATOR}),
    "export": frozenset({INVESTIGATOR, STEWARD}),
    "audit": frozenset({STEWARD}),
    "unlock": frozenset({STEWARD}),
}
IDLE_SECONDS = 30 * 60
SESSION_SECONDS = 12 * 3600
_N, _R, _P = 2**15, 8, 1  # 32 MiB and about 0.1 s per guess
_SHORTEST = 12
_TRIES, _PAUSE = 5, 300.0


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Somebody who is logged in.

    Attributes:
        name: as in the log.
        roles: of :data:`ROLES`.
        since: seconds since the epoch at login.
        expires: seconds since the epoch when the login ends.
    """

    name: str
    roles: frozenset[str]
    since: float
    expires: float

    def may(self, what: str) -> bool:
        """Whether a page or act is allowed."""
        return bool(self.roles & ALLOWED.get(what, frozenset()))

    def live(self, now: float, seen: float) -> bool:
        """Whether the login still holds at ``now`` when it was last used at ``seen``."""
        return now < self.expires and now - seen < IDLE_SECONDS


def open_identity(now: float | None = None) -> Identity:
    """Whoever sits at this machine, when nobody has to log in."""
    start = time.time() if now is None else now
    return Identity(name="local (no login)", roles=frozenset(ROLES), since=start, expires=start + 10 * 365 * 86400)


def is_loopback(address: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class Users:
    """Local users in one JSON file: name -> salt, scrypt hash and roles."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._failed: dict[str, list[float]] = {}

    @property
    def exist(self) -> bool:
        """Whether there is a file of users."""
        return self.path.is_file()

    def add(self, name: str, password: str, roles: frozenset[str]) -> None:
        """Add or replace a user.

        Raises:
            ConfigError: an empty name, a short password or an unknown role.
        """
        unknown = roles - set(ROLES)
        if not name.strip() or len(name) > 100 or unknown or not roles:
            msg = f"users: expected a name and roles of {', '.join(ROLES)}, found {len(name)} letters, {sorted(roles)}"
            raise ConfigError(msg)
        if len(password) < _SHORTEST:
            msg = f"users: expected a password of {_SHORTEST} characters or more, found {len(password)}"
            raise ConfigError(msg)
        content = self._read()
        salt = secrets.token_bytes(16)
        content["users"][name] = {
            "salt": base64.b64encode(salt).decode(),
            "hash": base64.b64encode(_hash(password, salt)).decode(),
            "scrypt": [_N, _R, _P],
            "roles": sorted(roles),
        }
        write_json(self.path, content)
        self.path.chmod(0o600)

    def login(self, name: str, password: str, *, now: float | None = None) -> Identity | None:
        """The identity of a user who knows the password; None otherwise, and during five minutes after five failures.

        The same work is done for names that do not exist.
        """
        at = time.time() if now is None else now
        recent = [t for t in self._failed.get(name, []) if at - t < _PAUSE]
        if len(recent) >= _TRIES:
            return None
        user = self._read()["users"].get(name)
        salt = base64.b64decode(user["salt"]) if user else b"nobody has this!"
        cost = tuple(user["scrypt"]) if user else (_N, _R, _P)
        given = _hash(password, salt, cost)
        if user and hmac.compare_digest(given, base64.b64decode(user["hash"])):
            self._failed.pop(name, None)
            roles = frozenset(user["roles"]) & set(ROLES)
            return Identity(name=name, roles=roles, since=at, expires=at + SESSION_SECONDS) if roles else None
        self._failed[name] = [*recent, at]
        if len(self._failed) > 10_000:  # names that nobody has must not fill the memory
            self._failed.clear()
        return None

    def _read(self) -> dict[str, Any]:
        content = read_json(self.path) if self.exist else {"format_version": 1, "users": {}}
        if not isinstance(content.get("users"), dict):
            msg = f"{self.path}: expected a table of users, found none; add users with medfuse app RUN --add-user NAME"
            raise ConfigError(msg)
        return dict(content)


def _hash(password: str, salt: bytes, cost: tuple[int, ...] = (_N, _R, _P)) -> bytes:
    n, r, p = cost
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=2**27, dklen=32)


def identity_of_claims(
    claims: Mapping[str, Any], *, role_claim: str, roles: Mapping[str, str], now: float
) -> Identity | None:
    """The identity that a login server's claims give; None when they have expired or give no role.

    Args:
        claims: of ``st.user``. Streamlit checks the signature at login, and never ``exp`` afterwards: this does.
        role_claim: name of the claim that holds the group or groups.
        roles: group -> role.
        now: seconds since the epoch.
    """
    if not claims.get("is_logged_in"):
        return None
    expires = claims.get("exp")
    if not isinstance(expires, int | float) or isinstance(expires, bool) or now >= expires:
        return None
    groups = claims.get(role_claim) or ()
    groups = [groups] if isinstance(groups, str) else list(groups) if isinstance(groups, list | tuple) else []
    found = frozenset(roles[g] for g in groups if isinstance(g, str) and roles.get(g) in ROLES)
    name = str(claims.get("sub") or "")
    if not found or not name:
        return None
    return Identity(name=name, roles=found, since=now, expires=float(expires))
