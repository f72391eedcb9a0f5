"""Keys of payloads: how they are read, which of them encrypts, and what no other one opens."""

import base64

import pytest

from longtake.temporal.key_ring import KEY_BYTES, EncryptionKey, KeyRing, PayloadUnreadable, new_key, parse_keys

SECRET = base64.b64encode(b"s" * KEY_BYTES).decode()
OLD, NEW = EncryptionKey("old", b"o" * KEY_BYTES), EncryptionKey("new", b"n" * KEY_BYTES)


def test_a_new_key_can_be_read_and_no_two_are_alike() -> None:
    (first,), (second,) = parse_keys(new_key("k1")), parse_keys(new_key("k1"))
    assert (first.id, len(first.secret)) == ("k1", KEY_BYTES)
    assert first.secret != second.secret
    assert repr(first.secret) not in repr(first)


@pytest.mark.parametrize("key_id", ["", "a:b", "a,b", "ä", "a" * 65])
def test_an_id_that_a_list_of_keys_cannot_hold_is_refused(key_id: str) -> None:
    with pytest.raises(ValueError, match="id"):
        new_key(key_id)


@pytest.mark.parametrize(
    "text",
    [
        "",
        SECRET,
        f"a b:{SECRET}",
        "k1:",
        f"k1:{SECRET[:-4]}",
        f"k1:{SECRET}{SECRET}",
        f"k1:!{SECRET}",
        f"k1:{SECRET}ä",
        f"k1:{SECRET},",
        f"k1:{SECRET},k1:{SECRET}",
    ],
)
def test_an_unusable_list_of_keys_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="key ") as refused:
        parse_keys(text)
    assert SECRET[:8] not in str(refused.value)


def test_keys_are_read_in_their_order() -> None:
    assert [key.id for key in parse_keys(f" k2:{SECRET} , k1:{SECRET}")] == ["k2", "k1"]


def test_the_first_key_encrypts_and_each_decrypts() -> None:
    before = KeyRing([OLD]).encrypt(b"plain", ["default", None])
    ring = KeyRing([NEW, OLD])
    assert ring.decrypt(*before, ["default", None]) == b"plain"
    key_id, sealed = ring.encrypt(b"plain")
    assert (ring.current, key_id, ring.decrypt(key_id, sealed)) == ("new", "new", b"plain")
    assert ring.encrypt(b"plain")[1] != sealed, "a nonce is used once"


@pytest.mark.parametrize(
    ("ring", "key_id", "place"),
    [
        (KeyRing([OLD]), "new", ()),
        (KeyRing(), "old", ()),
        (KeyRing([EncryptionKey("old", b"x" * KEY_BYTES)]), "old", ()),
        (KeyRing([OLD]), "old", ("elsewhere",)),
    ],
    ids=["unknown key", "no keys", "another key with this id", "another place"],
)
def test_nothing_else_opens_it(ring: KeyRing, key_id: str, place: tuple[str, ...]) -> None:
    _, sealed = KeyRing([OLD]).encrypt(b"plain")
    with pytest.raises(PayloadUnreadable, match=key_id):
        ring.decrypt(key_id, sealed, place)


@pytest.mark.parametrize("cut", [0, 5, 12, -1])
def test_a_cut_payload_is_unreadable(cut: int) -> None:
    key_id, sealed = KeyRing([OLD]).encrypt(b"plain")
    with pytest.raises(PayloadUnreadable):
        KeyRing([OLD]).decrypt(key_id, sealed[:cut])


def test_an_empty_ring_encrypts_nothing() -> None:
    assert KeyRing().current is None
    with pytest.raises(LookupError):
        KeyRing().encrypt(b"plain")
