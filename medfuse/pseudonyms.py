"""Pseudonyms: keyed stand-ins for patient ids in what medfuse writes.

A pseudonym is ``P-`` and the first 128 bits of HMAC-SHA-256(key, id). The same id and key give the same pseudonym in
every cohort, so runs of one key can be joined; another key gives unrelated ones.

What it protects: without the key nobody can compute the pseudonym of an id, or find an id by trying all of them, as is
done with a plain hash of a short number. What it does not: whoever has the key re-identifies everyone; whoever has the
source files can match rows by their values, order or SHA-256; rare values (an age, a date, a face in a scan) still
identify a person. It is pseudonymisation, not anonymisation: the data stay personal data.

The key is read from MEDFUSE_PSEUDONYM_KEY, or from the file that MEDFUSE_PSEUDONYM_KEY_FILE names, and is never
written. ``patients: {pseudonyms: true}`` in a card turns pseudonyms on for everything that is done with the card.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from medfuse.errors import ConfigError, MedfuseError
from medfuse.types import PatientId

KEY = "MEDFUSE_PSEUDONYM_KEY"
KEY_FILE = "MEDFUSE_PSEUDONYM_KEY_FILE"
_NAMED = re.compile(r"\b(patient '?|absent, first )(?!P-[0-9a-f]{32}\b)([^\s,;:'\"()]*\d[^\s,;:'\"()]*)")
_SHORT = re.compile(r"\d{0,3}")
SHORTEST = 32  # bytes; openssl rand -hex 32 gives 64


def pseudonym(patient_id: str, key: bytes) -> PatientId:
    """The stand-in of an id: ``P-`` and 32 hexadecimal digits of HMAC-SHA-256; see the module for its limits."""
    return PatientId("P-" + hmac.new(key, patient_id.encode(), hashlib.sha256).hexdigest()[:32])


@dataclass(frozen=True)
class Pseudonyms:
    """Pseudonyms of one key; the key is in no text, pickle or file of medfuse."""

    _key: bytes = field(repr=False)

    def __call__(self, patient_id: str) -> PatientId:
        """The stand-in of an id; see :func:`pseudonym`."""
        return pseudonym(patient_id, self._key)

    def __getstate__(self) -> object:
        msg = "a pseudonym key is not pickled; pass pseudonyms, not the key"
        raise TypeError(msg)

    @property
    def fingerprint(self) -> str:
        """Tells two keys apart without telling either; no id has its NUL, so it is nobody's pseudonym."""
        return hmac.new(self._key, b"\0key of medfuse", hashlib.sha256).hexdigest()[:16]

    @property
    def path_secret(self) -> bytes:
        """Key of the hashes of paths in the store, made from the key and not leading back to it."""
        return hmac.new(self._key, b"\0paths of medfuse", hashlib.sha256).digest()

    def text(self, text: str, ids: Iterable[str]) -> str:
        """A text with every one of some ids replaced, where it stands between other than letters and digits.

        What follows the word "patient" and has a digit is taken for an id too: files name patients that the cohort
        does not have. Ids of one to three digits are replaced there only, for other numbers look like them.
        """
        known = sorted({i for i in ids if i in text and not _SHORT.fullmatch(i)}, key=len, reverse=True)
        if known:
            any_id = re.compile(r"(?<![^\W_])(?:" + "|".join(map(re.escape, known)) + r")(?![^\W_])")
            text = any_id.sub(lambda match: self(match[0]), text)
        return _NAMED.sub(lambda match: match[1] + self(match[2]), text)

    @contextmanager
    def in_errors(self, ids: Iterable[str]) -> Iterator[None]:
        """Errors of medfuse inside the block name pseudonyms."""
        try:
            yield
        except MedfuseError as error:
            error.args = (self.text(str(error), ids),)
            raise


def pseudonyms_from_environment() -> Pseudonyms:
    """Pseudonyms of the key that the environment names.

    Raises:
        ConfigError: no key, an unreadable file, or fewer than 32 bytes.
    """
    named = os.environ.get(KEY_FILE)
    try:
        key = Path(named).read_bytes().strip() if named else os.environ.get(KEY, "").encode()
    except OSError as error:
        msg = f"{KEY_FILE}: expected a readable file with the key, found {type(error).__name__}; check the path"
        raise ConfigError(msg) from error
    if len(key) < SHORTEST:
        msg = (
            f"pseudonyms: expected a key of at least {SHORTEST} bytes in {KEY}, or in the file that {KEY_FILE} names, "
            f"found {len(key)} bytes; make one with: openssl rand -hex 32, and keep it away from the data"
        )
        raise ConfigError(msg)
    return Pseudonyms(key)
