"""Writes proved.txt: what two replicas prove, by Python's own HMAC.
Run: python3 xds-server/src/authority/peers/testdata/proved.py > xds-server/src/authority/peers/testdata/proved.txt"""
import hashlib, hmac, struct

CALLER, CALLED = b"\x07" * 32, b"\x08" * 32
FROM, TO = b"a-1", b"b-1"
NONCES = [b"\x01" * 16, b"\x02" * 16]

with_length = lambda part: struct.pack(">Q", len(part)) + part
digest = lambda key, text: hmac.new(key, text, hashlib.sha256).digest()


def opening(label):
    parts = [b"tidegate.v1.Peers", label, FROM, TO, *NONCES]
    return b"".join(map(with_length, parts))


stream = digest(CALLER + CALLED, opening(b"messages"))
print("caller", digest(CALLER, opening(b"caller")).hex())
print("called", digest(CALLED, opening(b"called")).hex())
for side, number, round in [(b"caller", 1, 9), (b"called", 3, 2**64 - 1)]:
    text = with_length(side) + struct.pack(">QQ", number, round)
    print(side.decode(), number, round, digest(stream, text).hex())
