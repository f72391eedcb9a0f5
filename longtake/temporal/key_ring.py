"""The keys that payloads are encrypted with: the first of them encrypts, all of them decrypt.

Pure bytes; `longtake.temporal.codec` puts it before Temporal. The package `cryptography` is loaded at first use only.
"""

import base64
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
"""AES-256."""
_NONCE_BYTES: Final = 12
"""GCM's own size. Random: NIST SP 800-38D allows 2^32 messages for a key, then it must be rotated."""
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class PayloadUnreadable(Exception):
    """An encrypted payload that these keys do not open; the message names the key's id and says what to do."""


@dataclass(frozen=True)
class EncryptionKey:
    """A key and its name; the name travels with every payload."""

    id: str
    secret: bytes = field(repr=False)


def new_key(key_id: str) -> str:
    """A new random key, as it stands in `LONGTAKE_ENCRYPTION_KEYS`.

    Raises:
        ValueError: The id has other characters than letters, digits and . _ -
    """
    if not _ID.fullmatch(key_id):
        raise ValueError("an id of a key is 1 to 64 letters, digits and . _ -")
    return f"{key_id}:{base64.b64encode(os.urandom(KEY_BYTES)).decode()}"


def parse_keys(text: str) -> tuple[EncryptionKey, ...]:
    """Read `id:base64,id2:base64,…`.

    Raises:
        ValueError: Saying which entry is wrong and how; never what stands in it.
    """
    keys: dict[str, EncryptionKey] = {}
    for number, entry in enumerate((part.strip() for part in text.split(",")), 1):
        key_id, colon, encoded = entry.partition(":")
        how = "make one with `starter.py encryption-key`"
        if not colon or not _ID.fullmatch(key_id):
            raise ValueError(f"key {number} is not ID:BASE64, the ID being 1 to 64 letters, digits and . _ - ({how})")
        try:
            secret = base64.b64decode(encoded, validate=True)
        except ValueError:  # binascii.Error, and what is not ASCII
            raise ValueError(f"key {number} is not base64 behind its id ({how})") from None
        if len(secret) != KEY_BYTES:
            raise ValueError(f"key {number} has {len(secret)} bytes, not {KEY_BYTES} ({how})")
        if key_id in keys:
            raise ValueError(f"key {number} has the id of an earlier one: each id names one key")
        keys[key_id] = EncryptionKey(key_id, secret)
    return tuple(keys.values())


class KeyRing:
    """Encrypts with the newest key and decrypts with the one that is named; without keys it encrypts nothing."""

    def __init__(self, keys: Iterable[EncryptionKey] = ()) -> None:
        self._keys = {key.id: key for key in keys}

    @property
    def current(self) -> str | None:
        """The id of the key that encrypts; None where nothing is encrypted."""
        return next(iter(self._keys), None)

    def encrypt(self, plain: bytes, place: Sequence[str | None] = ()) -> tuple[str, bytes]:
        """Encrypt and authenticate.

        Args:
            plain: What to seal.
            place: Where it belongs; it opens only together with the same.

        Returns:
            The key's id, and the nonce with the ciphertext behind it.

        Raises:
            LookupError: There is no key.
        """
        key = next(iter(self._keys.values()), None)
        if key is None:
            raise LookupError("an empty key ring encrypts nothing")
        nonce = os.urandom(_NONCE_BYTES)
        return key.id, nonce + _aes_gcm(key).encrypt(nonce, plain, _bound(key.id, place))

    def decrypt(self, key_id: str, sealed: bytes, place: Sequence[str | None] = ()) -> bytes:
        """Open what `encrypt` sealed.

        Raises:
            PayloadUnreadable: The key is not here, or does not open it.
        """
        key = self._key(key_id)
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - loaded only where something is encrypted

        try:
            return _aes_gcm(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _bound(key_id, place))
        except (InvalidTag, ValueError):
            raise PayloadUnreadable(
                f"a payload does not open with the key {key_id!r} of LONGTAKE_ENCRYPTION_KEYS: another key has this id "
                "here, or the payload was changed. Put the key back that it was encrypted with"
            ) from None

    def _key(self, key_id: str) -> EncryptionKey:
        try:
            return self._keys[key_id]
        except KeyError:
            known = f"it has {', '.join(map(repr, self._keys))}" if self._keys else "it is not set"
            raise PayloadUnreadable(
                f"a payload is encrypted with the key {key_id!r}, which is not in LONGTAKE_ENCRYPTION_KEYS ({known}): "
                "add that key behind the others"
            ) from None


def _bound(key_id: str, place: Sequence[str | None]) -> bytes:
    """What is authenticated beside the payload; as JSON, so that no two places read alike."""
    return json.dumps([key_id, *place], ensure_ascii=True).encode()


def _aes_gcm(key: EncryptionKey) -> "AESGCM":
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - see above

    return AESGCM(key.secret)
