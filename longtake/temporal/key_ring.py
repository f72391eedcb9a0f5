"""The keys that encrypt payloads: the first encrypts, all decrypt.

`longtake.temporal.codec` applies them to Temporal's payloads. The package `cryptography` is imported at first use.
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
"""GCM's standard size. Nonces are random, so NIST SP 800-38D allows 2^32 messages per key."""
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class PayloadUnreadable(Exception):
    """These keys do not decrypt a payload; the message names the key's id and says what to do."""


@dataclass(frozen=True)
class EncryptionKey:
    """A key and its id, which every payload carries."""

    id: str
    secret: bytes = field(repr=False)


def new_key(key_id: str) -> str:
    """A new random key in the form of `LONGTAKE_ENCRYPTION_KEYS`.

    Raises:
        ValueError: The id is not 1 to 64 letters, digits and . _ -
    """
    if not _ID.fullmatch(key_id):
        raise ValueError("a key's id has 1 to 64 characters: letters, digits and . _ -")
    return f"{key_id}:{base64.b64encode(os.urandom(KEY_BYTES)).decode()}"


def parse_keys(text: str) -> tuple[EncryptionKey, ...]:
    """Read `id:base64,id2:base64,…`.

    Raises:
        ValueError: Says which entry is wrong and why, without its content.
    """
    keys: dict[str, EncryptionKey] = {}
    for number, entry in enumerate((part.strip() for part in text.split(",")), 1):
        key_id, colon, encoded = entry.partition(":")
        how = "create one with `starter.py encryption-key`"
        if not colon or not _ID.fullmatch(key_id):
            raise ValueError(f"key {number} is not ID:BASE64 with an ID of 1 to 64 letters, digits and . _ - ({how})")
        try:
            secret = base64.b64decode(encoded, validate=True)
        except ValueError:  # binascii.Error, or not ASCII
            raise ValueError(f"key {number} has no valid base64 after its id ({how})") from None
        if len(secret) != KEY_BYTES:
            raise ValueError(f"key {number} has {len(secret)} bytes, not {KEY_BYTES} ({how})")
        if key_id in keys:
            raise ValueError(f"key {number} repeats the id of an earlier key")
        keys[key_id] = EncryptionKey(key_id, secret)
    return tuple(keys.values())


class KeyRing:
    """Encrypts with its first key, and decrypts with the key that a payload names."""

    def __init__(self, keys: Iterable[EncryptionKey] = ()) -> None:
        self._keys = {key.id: key for key in keys}

    @property
    def current(self) -> str | None:
        """The id of the key that encrypts; None if there is no key."""
        return next(iter(self._keys), None)

    def encrypt(self, plain: bytes, place: Sequence[str | None] = ()) -> tuple[str, bytes]:
        """Encrypt and authenticate.

        Args:
            plain: The plaintext.
            place: Where the payload belongs. Decryption needs the same place.

        Returns:
            The key's id, and the nonce followed by the ciphertext.

        Raises:
            LookupError: There is no key.
        """
        key = next(iter(self._keys.values()), None)
        if key is None:
            raise LookupError("the key ring has no key")
        nonce = os.urandom(_NONCE_BYTES)
        return key.id, nonce + _aes_gcm(key).encrypt(nonce, plain, _bound(key.id, place))

    def decrypt(self, key_id: str, sealed: bytes, place: Sequence[str | None] = ()) -> bytes:
        """Decrypt what `encrypt` returned.

        Raises:
            PayloadUnreadable: The key is missing, or does not decrypt the payload.
        """
        key = self._key(key_id)
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an optional package

        try:
            return _aes_gcm(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _bound(key_id, place))
        except (InvalidTag, ValueError):
            raise PayloadUnreadable(
                f"the key {key_id!r} of LONGTAKE_ENCRYPTION_KEYS does not decrypt a payload: another key has this id "
                "here, or somebody changed the payload. Restore the key that encrypted it"
            ) from None

    def _key(self, key_id: str) -> EncryptionKey:
        try:
            return self._keys[key_id]
        except KeyError:
            known = f"it has {', '.join(map(repr, self._keys))}" if self._keys else "it is not set"
            raise PayloadUnreadable(
                f"a payload is encrypted with the key {key_id!r}, which is not in LONGTAKE_ENCRYPTION_KEYS ({known}): "
                "append that key to the list"
            ) from None


def _bound(key_id: str, place: Sequence[str | None]) -> bytes:
    """The additional authenticated data: JSON, so that two places never look alike."""
    return json.dumps([key_id, *place], ensure_ascii=True).encode()


def _aes_gcm(key: EncryptionKey) -> "AESGCM":
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - an optional package

    return AESGCM(key.secret)
