"""Golden vectors for jump consistent hash: `python3 jump_hash.py > jump_hash.txt`.

The listing of Lamping and Veach (2014), figure 1, line by line; Python floats are the same IEEE doubles as C's.
"""

MASK = (1 << 64) - 1


def jump(key: int, buckets: int) -> int:
    b, j = -1, 0
    while j < buckets:
        b = j
        key = (key * 2862933555777941757 + 1) & MASK
        j = int((b + 1) * (float(1 << 31) / float((key >> 33) + 1)))
    return b


KEYS = [0, 1, 2, 42, 256, 0xDEAD10CC, 1 << 31, 1 << 32, (1 << 63) - 1, MASK] + [
    (n * 0x9E3779B97F4A7C15) & MASK for n in range(1, 21)
]
BUCKETS = [1, 2, 3, 10, 57, 666, 1000, 1024, 65536, 4294967295]

if __name__ == "__main__":
    for key in KEYS:
        for buckets in BUCKETS:
            print(key, buckets, jump(key, buckets))
