"""Secure aggregation: what one hospital does, and how the coordinator opens the sum of masked vectors, and no more.

Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017, the variant against an
honest-but-curious coordinator. Every round has fresh keys and four exchanges between coordinator and hospitals:

1. `Advertise` -> `PublicKeys`;
2. `ShareKeys` -> `Shares`: of its two secrets one Shamir share for each hospital, encrypted for it alone;
3. the round's training -> a vector + PRG(own secret) +/- PRG(secret shared with each peer), modulo 2^64;
4. `Unmask` -> `Unmasking`: of a hospital whose vector came the shares of its own secret, of one that dropped out those
   of its mask key; never both of one hospital.

Messages hold bytes, names and counts alone, so any transport can carry them; a `Participant` holds nothing else
either, so a hospital can put it away between two messages. docs/secure-aggregation.md says what this protects.
"""

import dataclasses
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from engine.errors import RunError, UpdateError

Vector = npt.NDArray[np.uint64]

KEY_BYTES = 32
PRIME = 2**256 + 297  # the least prime above every 32-byte secret
SHARE_BYTES = 33
TAG_BYTES = 16
BLOCK = 2**17  # numbers masked at once: 1 MiB


@dataclass(frozen=True)
class PublicKeys:
    """Two X25519 keys of 32 bytes: for the shares on their way through the coordinator, and for the pairwise masks."""

    cipher: bytes
    mask: bytes


@dataclass(frozen=True)
class Advertise:
    """A round begins: make keys."""


@dataclass(frozen=True)
class ShareKeys:
    """All keys of the round by hospital, the receiver's own among them, and how many shares open a secret."""

    keys: Mapping[str, PublicKeys]
    threshold: int


@dataclass(frozen=True)
class Shares:
    """By recipient, the sender itself among them: a share of the sender's self mask and one of its mask key, sealed."""

    sealed: Mapping[str, bytes]


@dataclass(frozen=True)
class Unmask:
    """Whose vectors came, and what each of the round's hospitals had sealed for the receiver, by sender."""

    survivors: tuple[str, ...]
    sealed: Mapping[str, bytes]


@dataclass(frozen=True)
class Unmasking:
    """The sender's shares, by owner: of the survivors' self masks, and of the mask keys of those who dropped out."""

    self_masks: Mapping[str, bytes]
    mask_keys: Mapping[str, bytes]


Request = Advertise | ShareKeys | Unmask
Reply = PublicKeys | Shares | Unmasking


@dataclass
class Participant:
    """One hospital in one round. Everything secret follows from `secret`, 32 bytes that never leave it.

    Every method raises UpdateError for a request that an honest coordinator would not make, such as a second one.
    """

    hospital: str
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(KEY_BYTES), repr=False)
    threshold: int = 0
    keys: Mapping[str, PublicKeys] = field(default_factory=dict)
    peers: tuple[str, ...] = ()  # all whose masks are in this hospital's vector, itself among them
    has_unmasked: bool = False

    def answer(self, request: Request) -> Reply:
        if isinstance(request, Advertise):
            return self._public_keys()
        return self._share(request) if isinstance(request, ShareKeys) else self._unmask(request)

    def mask(self, vector: Vector, peers: Collection[str]) -> None:
        """Mask in place. `peers` are the hospitals that have shared their keys; raises UpdateError as `answer` does."""
        self._require(not self.peers, "two vectors under one mask would show their difference")
        self._require(self.hospital in peers and self.keys.keys() >= set(peers), "a peer has no keys")
        self._require(len(peers) >= self.threshold, f"{len(peers)} hospitals are fewer than {self.threshold}")
        self.peers = tuple(peers)
        _add_stream(vector, self._derive("self mask"), 1)
        for peer in self.peers:
            if peer != self.hospital:
                seed = _mask_seed(self._derive("mask key"), self.keys[peer].mask, self.hospital, peer)
                _add_stream(vector, seed, _sign(self.hospital, peer))

    def _public_keys(self) -> PublicKeys:
        self._require(not self.keys, "keys are made once a round")
        return PublicKeys(_public(self._derive("cipher key")), _public(self._derive("mask key")))

    def _share(self, request: ShareKeys) -> Shares:
        self._require(request.keys.get(self.hospital) == self._public_keys(), "its own keys are not those it sent")
        self._require(2 * request.threshold > len(request.keys) >= request.threshold, "threshold is no majority")
        self.keys, self.threshold = dict(request.keys), request.threshold
        names = sorted(self.keys)
        self_mask = split_secret(self._derive("self mask"), self.threshold, len(names))
        mask_key = split_secret(self._derive("mask key"), self.threshold, len(names))
        return Shares({
            name: self._cipher(self.hospital, name).encrypt(bytes(12), self_mask[i] + mask_key[i], None)
            for i, name in enumerate(names)
        })  # fmt: skip

    def _unmask(self, request: Unmask) -> Unmasking:
        survivors = set(request.survivors)
        self._require(not self.has_unmasked, "a second answer could give both kinds of share of one hospital")
        self._require(self.hospital in survivors <= set(self.peers), "survivors are not among those it masked with")
        self._require(len(survivors) >= self.threshold, f"{len(survivors)} survivors are fewer than {self.threshold}")
        self._require(request.sealed.keys() >= set(self.peers), "a peer's shares are missing")
        self.has_unmasked = True
        self_masks, mask_keys = {}, {}
        for peer in self.peers:
            try:
                shares = self._cipher(peer, self.hospital).decrypt(bytes(12), request.sealed[peer], None)
            except InvalidTag:
                raise UpdateError(f"secure aggregation: what {peer} sealed for {self.hospital} was changed") from None
            if peer in survivors:
                self_masks[peer] = shares[:SHARE_BYTES]
            else:
                mask_keys[peer] = shares[SHARE_BYTES:]
        return Unmasking(self_masks, mask_keys)

    def _derive(self, what: str) -> bytes:
        return _hkdf(self.secret, what)

    def _cipher(self, sender: str, recipient: str) -> AESGCM:
        """A key for this one message, so its nonce may be zero."""
        other = recipient if sender == self.hospital else sender
        return AESGCM(_agree(self._derive("cipher key"), self.keys[other].cipher, f"shares {[sender, recipient]}"))

    def _require(self, is_true: bool, otherwise: str) -> None:
        if not is_true:
            raise UpdateError(f"secure aggregation: {self.hospital} refuses: {otherwise}")


def remove_masks(
    total: Vector,
    keys: Mapping[str, PublicKeys],
    survivors: Collection[str],
    dropped: Collection[str],
    answers: Mapping[str, Unmasking],
    threshold: int,
) -> None:
    """From the sum of the survivors' masked vectors, in place, to the sum of their vectors, modulo 2^64.

    `keys` are all of the round, `dropped` those who shared keys and sent no vector that counts. Raises RunError where
    fewer than `threshold` answers are whole, or shares do not make the key that their owner advertised.
    """
    whole = {
        hospital: answer
        for hospital, answer in answers.items()
        if answer.self_masks.keys() == set(survivors) and answer.mask_keys.keys() == set(dropped)
    }
    if len(whole) < threshold:
        raise RunError(f"secure aggregation: {len(whole)} of at least {threshold} hospitals helped to open the sum")
    place = {name: i for i, name in enumerate(sorted(keys), start=1)}
    for hospital in survivors:
        seed = join_secret({place[name]: answer.self_masks[hospital] for name, answer in whole.items()})
        _add_stream(total, seed, -1)
    for hospital in dropped:
        private = join_secret({place[name]: answer.mask_keys[hospital] for name, answer in whole.items()})
        if _public(private) != keys[hospital].mask:
            raise RunError(f"secure aggregation: the shares of {hospital}'s mask key do not make that key")
        for survivor in survivors:
            seed = _mask_seed(private, keys[survivor].mask, hospital, survivor)
            _add_stream(total, seed, -_sign(survivor, hospital))


def message_bytes(message: object) -> int:
    """Of all keys and shares in a message; names and counts are not counted."""
    if isinstance(message, bytes):
        return len(message)
    if dataclasses.is_dataclass(message):
        message = vars(message)
    return sum(map(message_bytes, message.values())) if isinstance(message, Mapping) else 0


def split_secret(secret: bytes, threshold: int, n_shares: int) -> list[bytes]:
    """Shamir's shares at 1, 2, ..., n_shares, of which any `threshold` make the 32 bytes and fewer say nothing.

    Shamir, How to Share a Secret, CACM 1979.
    """
    coefficients = [int.from_bytes(secret), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    shares = []
    for x in range(1, n_shares + 1):
        y = 0
        for coefficient in reversed(coefficients):
            y = (y * x + coefficient) % PRIME
        shares.append(y.to_bytes(SHARE_BYTES))
    return shares


def join_secret(shares: Mapping[int, bytes]) -> bytes:
    """The secret of `split_secret` from shares by their place: the polynomial's value at zero (Lagrange)."""
    secret = 0
    for x, share in shares.items():
        weight = int.from_bytes(share)
        for other in shares:
            if other != x:
                weight = weight * other * pow(other - x, -1, PRIME) % PRIME
        secret += weight
    try:
        return (secret % PRIME).to_bytes(KEY_BYTES)
    except OverflowError:
        raise RunError("secure aggregation: shares do not make a secret; one of them was changed") from None


def _add_stream(vector: Vector, seed: bytes, sign: int) -> None:
    """Add or take off AES-256-CTR's key stream, in place; a seed is used for one stream, so the counter starts at 0."""
    stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
    zeros = memoryview(bytes(8 * BLOCK))
    change = np.add if sign > 0 else np.subtract
    for start in range(0, len(vector), BLOCK):
        part = vector[start : start + BLOCK]
        change(part, np.frombuffer(stream.update(zeros[: part.nbytes]), "<u8"), out=part)


def _sign(hospital: str, peer: str) -> int:
    """Of their common mask in the hospital's vector: opposite at the two, so that the sum has none of it."""
    return 1 if hospital < peer else -1


def _mask_seed(private: bytes, public: bytes, hospital: str, peer: str) -> bytes:
    return _agree(private, public, f"mask {sorted([hospital, peer])}")


def _agree(private: bytes, public: bytes, purpose: str) -> bytes:
    try:
        common = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise UpdateError("secure aggregation: a public key is no X25519 key") from None
    return _hkdf(common, purpose)


def _public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def _hkdf(material: bytes, purpose: str) -> bytes:
    info = f"consilium secure aggregation: {purpose}".encode()
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(material)
