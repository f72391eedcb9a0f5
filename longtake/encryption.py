"""Encryption of everything that Temporal stores of a generation: inputs, results, failures, summaries, details.

Not encrypted are workflow ids, search attributes, types and names of failures and activities: Temporal itself needs
them. `docs/adr/0013-payload-encryption.md` says why it is so.
"""

import dataclasses
from collections.abc import Sequence
from typing import Final

from temporalio.api.common.v1 import Payload
from temporalio.converter import DataConverter, DefaultFailureConverterWithEncodedAttributes, PayloadCodec

from longtake.keyring import KeyRing, PayloadUnreadable

ENCODING: Final = b"binary/encrypted"
"""As in Temporal's own samples."""
_CIPHER: Final = b"AES-256-GCM"


class EncryptionCodec(PayloadCodec):
    """Seals each payload as a whole, with its metadata; the key's id stands beside it, readable.

    Payloads that are not encrypted pass: they are those of anybody's SDK, and of the time before encryption. The other
    way round a ring without keys refuses what is encrypted, because a worker that took it for bad input would fail a
    generation that is paid for.
    """

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """See base class."""
        if self._ring.current is None:
            return list(payloads)
        return [self._seal(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """See base class.

        Raises:
            PayloadUnreadable: A key is missing, or does not open a payload. A workflow task that fails with it is tried
                again until the key is there.
        """
        return [
            self._open(payload) if payload.metadata.get("encoding") == ENCODING else payload for payload in payloads
        ]

    def _seal(self, payload: Payload) -> Payload:
        key_id, sealed = self._ring.encrypt(payload.SerializeToString())
        metadata = {"encoding": ENCODING, "encryption-cipher": _CIPHER, "encryption-key-id": key_id.encode()}
        return Payload(metadata=metadata, data=sealed)

    def _open(self, payload: Payload) -> Payload:
        key_id = payload.metadata.get("encryption-key-id")
        if key_id is None:
            raise PayloadUnreadable("a payload says that it is encrypted and names no key: longtake did not encrypt it")
        return Payload.FromString(self._ring.decrypt(key_id.decode(errors="replace"), payload.data))


def encrypting(converter: DataConverter, ring: KeyRing) -> DataConverter:
    """A converter that encrypts what the ring has a key for; messages and traces of failures too."""
    if ring.current is None:
        return dataclasses.replace(converter, payload_codec=EncryptionCodec(ring))
    return dataclasses.replace(
        converter,
        payload_codec=EncryptionCodec(ring),
        failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
    )
