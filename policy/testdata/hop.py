"""Writes hop.txt: a signed hop, by Python's own HMAC. Run: python3 policy/testdata/hop.py > policy/testdata/hop.txt"""
import hashlib, hmac, struct

SECRET = b"old-secret-of-the-mesh"
BUCKET = 178_000_000
message = b""
for field in [b"v1", b"POST", b"shop.example", b"/orders?x=1", b"main"]:
    message += struct.pack(">Q", len(field)) + field
message += struct.pack(">QQ", 7, BUCKET)
digest = lambda text: hmac.new(SECRET, text, hashlib.sha256).hexdigest()
print(f"v1;t={BUCKET};k={digest(b'tidegate hop key id')[:8]};m={digest(message)}")
