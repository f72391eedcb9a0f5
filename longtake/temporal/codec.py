"""Encrypts all payloads that Temporal stores of a generation: inputs, results, failures, summaries, details.

Each payload names its namespace and workflow, and both are authenticated, so that somebody with write access to
Temporal's database cannot move it to another workflow. Workflow ids, search attributes and the types of failures and
activities stay readable, because Temporal needs them. See `docs/adr/0013-payload-encryption.md` and
`docs/adr/0017-sealed-payloads-are-bound.md`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Final, Self

from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    ActivitySerializationContext,
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    PayloadCodec,
    SerializationContext,
    WithSerializationContext,
    WorkflowSerializationContext,
)

from longtake.temporal.key_ring import KeyRing, PayloadUnreadable

ENCODING: Final = b"binary/encrypted"
"""The encoding that Temporal's samples use."""
_CIPHER: Final = b"AES-256-GCM"
_NAMESPACE: Final = "encryption-namespace"
_WORKFLOW_ID: Final = "encryption-workflow-id"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a payload belongs, as far as its encrypter knew."""

    namespace: str | None = None
    workflow_id: str | None = None

    def is_within(self, other: "Place") -> bool:
        """Whether both agree in everything that both name."""
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return all(None in pair or pair[0] == pair[1] for pair in zip(ours, theirs, strict=True))


NOWHERE: Final = Place()


class EncryptionCodec(PayloadCodec, WithSerializationContext):
    """Encrypts each payload with its metadata. The key's id and the place stay readable.

    Plaintext payloads pass unless `strict`: other SDKs send them, and old histories have them. Without keys the codec
    refuses encrypted payloads. A worker that took them for bad input would fail a paid generation.
    """

    def __init__(self, ring: KeyRing, *, strict: bool = False, place: Place = NOWHERE) -> None:
        """Create a codec.

        Args:
            ring: The keys.
            strict: Refuse payloads that were not encrypted for this namespace.
            place: Where the payloads belong; the SDK sets it with `with_context`.
        """
        self._ring = ring
        self._strict = strict and ring.current is not None
        self._place = place

    def with_context(self, context: SerializationContext) -> Self:
        """See base class."""
        if isinstance(context, (WorkflowSerializationContext, ActivitySerializationContext)):
            return self.at(Place(context.namespace, context.workflow_id or None))
        return self

    def at(self, place: Place) -> Self:
        """A copy for the payloads of one place."""
        return type(self)(self._ring, strict=self._strict, place=place)

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """See base class."""
        if self._ring.current is None:
            return list(payloads)
        return [self._encrypt(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """See base class.

        Raises:
            PayloadUnreadable: A key is missing or wrong, or the payload belongs elsewhere. Temporal retries a workflow
                task that fails with it until somebody fixes that.
        """
        return [self._decrypt(payload) for payload in payloads]

    def _encrypt(self, payload: Payload) -> Payload:
        key_id, ciphertext = self._ring.encrypt(payload.SerializeToString(), dataclasses.astuple(self._place))
        metadata = {"encoding": ENCODING, "encryption-cipher": _CIPHER, "encryption-key-id": key_id.encode()}
        for name, value in ((_NAMESPACE, self._place.namespace), (_WORKFLOW_ID, self._place.workflow_id)):
            if value is not None:
                metadata[name] = value.encode()
        return Payload(metadata=metadata, data=ciphertext)

    def _decrypt(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") != ENCODING:
            if self._strict:
                raise PayloadUnreadable(
                    "a payload is not encrypted, and LONGTAKE_REQUIRE_ENCRYPTION is set. Give the keys to the client "
                    "that sent it, or unset the setting until all old generations have ended"
                )
            return payload
        key_id = payload.metadata.get("encryption-key-id")
        if key_id is None:
            raise PayloadUnreadable("an encrypted payload names no key, so longtake did not encrypt it")
        place = Place(_text(payload, _NAMESPACE), _text(payload, _WORKFLOW_ID))
        plain = self._ring.decrypt(key_id.decode(errors="replace"), payload.data, dataclasses.astuple(place))
        if not place.is_within(self._place):
            raise PayloadUnreadable(
                f"a payload was encrypted for {_named(place)} and is in {_named(self._place)}: somebody moved it. "
                "longtake does not use it; compare the history with a backup"
            )
        if self._strict and self._place.namespace is not None and place.namespace is None:
            raise PayloadUnreadable(
                "a payload names no namespace, and LONGTAKE_REQUIRE_ENCRYPTION is set: send the codec server the "
                "header X-Namespace, as Temporal's UI does"
            )
        return Payload.FromString(plain)


def _text(payload: Payload, name: str) -> str | None:
    value = payload.metadata.get(name)
    return None if value is None else value.decode(errors="replace")


def _named(place: Place) -> str:
    return f"the workflow {place.workflow_id!r} of the namespace {place.namespace!r}"


def encrypting(converter: DataConverter, ring: KeyRing, *, strict: bool = False) -> DataConverter:
    """A converter that encrypts with the ring, messages and stack traces of failures included."""
    codec = EncryptionCodec(ring, strict=strict)
    if ring.current is None:
        return dataclasses.replace(converter, payload_codec=codec)
    return dataclasses.replace(
        converter, payload_codec=codec, failure_converter_class=DefaultFailureConverterWithEncodedAttributes
    )
