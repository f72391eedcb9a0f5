"""Encryption of everything that Temporal stores of a generation: inputs, results, failures, summaries, details.

Each payload names the namespace and the workflow that it was sealed for, and both are authenticated: who can write to
Temporal's database cannot move it to another workflow. Not encrypted are workflow ids, search attributes, types and
names of failures and activities: Temporal itself needs them. `docs/adr/0013-payload-encryption.md` says why it is so,
and `docs/adr/0017-sealed-payloads-are-bound.md` what a writer can and cannot do.
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
"""As in Temporal's own samples."""
_CIPHER: Final = b"AES-256-GCM"
_NAMESPACE: Final = "encryption-namespace"
_WORKFLOW_ID: Final = "encryption-workflow-id"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a payload belongs, as far as whoever sealed it knew."""

    namespace: str | None = None
    workflow_id: str | None = None

    def is_within(self, other: "Place") -> bool:
        """Whether nothing that both name differs."""
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return all(None in pair or pair[0] == pair[1] for pair in zip(ours, theirs, strict=True))


NOWHERE: Final = Place()


class EncryptionCodec(PayloadCodec, WithSerializationContext):
    """Seals each payload as a whole, with its metadata; the key's id and its place stand beside it, readable.

    Payloads that are not encrypted pass, unless `strict`: they are those of anybody's SDK, and of the time before
    encryption. The other way round a ring without keys refuses what is encrypted, because a worker that took it for
    bad input would fail a generation that is paid for.
    """

    def __init__(self, ring: KeyRing, *, strict: bool = False, place: Place = NOWHERE) -> None:
        """Make a codec.

        Args:
            ring: Its keys.
            strict: Refuse payloads that nobody with a key has sealed for this namespace.
            place: Where it seals and opens; the SDK says it by `with_context`.
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
        """The same codec for the payloads of one place."""
        return type(self)(self._ring, strict=self._strict, place=place)

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """See base class."""
        if self._ring.current is None:
            return list(payloads)
        return [self._seal(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """See base class.

        Raises:
            PayloadUnreadable: A key is missing, does not open a payload, or the payload belongs elsewhere. A workflow
                task that fails with it is tried again until that is mended.
        """
        return [self._open(payload) for payload in payloads]

    def _seal(self, payload: Payload) -> Payload:
        key_id, sealed = self._ring.encrypt(payload.SerializeToString(), dataclasses.astuple(self._place))
        metadata = {"encoding": ENCODING, "encryption-cipher": _CIPHER, "encryption-key-id": key_id.encode()}
        for name, value in ((_NAMESPACE, self._place.namespace), (_WORKFLOW_ID, self._place.workflow_id)):
            if value is not None:
                metadata[name] = value.encode()
        return Payload(metadata=metadata, data=sealed)

    def _open(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") != ENCODING:
            if self._strict:
                raise PayloadUnreadable(
                    "a payload is not encrypted, and LONGTAKE_REQUIRE_ENCRYPTION is set: whoever made it has no key. "
                    "Give the key to that client, or unset the setting until all old generations have ended"
                )
            return payload
        key_id = payload.metadata.get("encryption-key-id")
        if key_id is None:
            raise PayloadUnreadable("a payload says that it is encrypted and names no key: longtake did not encrypt it")
        place = Place(_text(payload, _NAMESPACE), _text(payload, _WORKFLOW_ID))
        plain = self._ring.decrypt(key_id.decode(errors="replace"), payload.data, dataclasses.astuple(place))
        if not place.is_within(self._place):
            raise PayloadUnreadable(
                f"a payload was sealed for {_named(place)} and stands in {_named(self._place)}: somebody moved it. "
                "Compare the history with a backup; nothing is done with it"
            )
        if self._strict and self._place.namespace is not None and place.namespace is None:
            raise PayloadUnreadable(
                "a payload was sealed for no namespace, and LONGTAKE_REQUIRE_ENCRYPTION is set: send the codec server "
                "the header X-Namespace, as Temporal's UI does"
            )
        return Payload.FromString(plain)


def _text(payload: Payload, name: str) -> str | None:
    value = payload.metadata.get(name)
    return None if value is None else value.decode(errors="replace")


def _named(place: Place) -> str:
    return f"the workflow {place.workflow_id!r} of the namespace {place.namespace!r}"


def encrypting(converter: DataConverter, ring: KeyRing, *, strict: bool = False) -> DataConverter:
    """A converter that encrypts what the ring has a key for; messages and traces of failures too."""
    codec = EncryptionCodec(ring, strict=strict)
    if ring.current is None:
        return dataclasses.replace(converter, payload_codec=codec)
    return dataclasses.replace(
        converter, payload_codec=codec, failure_converter_class=DefaultFailureConverterWithEncodedAttributes
    )
