"""Hostile files, made from good ones: each function takes a ``random.Random`` and a good file's bytes.

Every change keeps so much of the format that a reader gets past its first look: a header is rewritten with its length,
a zip archive packed again with its checksums, a compressed element compressed again; now and then bytes are changed
without any of that.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

EXECUTED = "isa-fuzz-was-executed"
"""What every pickle here makes in the working directory when it is unpickled."""

Mutator = Callable[[Random, bytes], bytes]


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return open, (EXECUTED, "w")


PICKLES = [pickle.dumps(Payload(), protocol) for protocol in range(5)]
INTEGERS = (0, 1, 2, 7, 127, 128, 255, 256, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**60)
INTEGERS += (2**63 - 1, 2**63, 2**64 - 1, 10**30, 10**400, -1, -2, -(2**31), -(2**63), -(10**400))
FLOATS = (0.0, -0.0, 0.5, 1e-320, 1e-30, 1e30, 1e300, 1.7976931348623157e308, float("nan"), float("inf"), -float("inf"))
# fmt: off
TEXTS = (
    "", " ", "a", "normal", "isa", "unit", "2.1[5*2.2[4]]", "2[1000000]", "cars3d", "\0", "a\0b", "\ud800", "\x1b[2J",
    "é" * 50, "\n", "\u2028", "../../etc/passwd", "~no-such-user/x", "$HOME", "${UNSET}", "/dev/zero", "%s%n", "<b>",
    "x" * 5000, "nan", "1e999", "0x10", "١٢", "[" * 500, "{" * 500, "None", "true", "-1", "=1+1", '"', "'", ",", "\\",
)
# fmt: on
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    *INTEGERS,
    *FLOATS,
    *TEXTS,
    [],
    {},
    [[]],
    [1, "a"],
    {"a": [None]},
    [1] * 300,
)


def value(rng: Random, depth: int = 0) -> Any:
    """Return something that JSON can write, more or less."""
    kind = rng.random()
    if depth < 3 and kind < 0.12:
        return [value(rng, depth + 1) for _ in range(rng.randrange(5))]
    if depth < 3 and kind < 0.18:
        return {rng.choice(TEXTS): value(rng, depth + 1) for _ in range(rng.randrange(3))}
    if kind < 0.3:
        return rng.randrange(-3, 40)
    if kind < 0.4:
        return round(rng.uniform(-2, 12), 3)
    return rng.choice(VALUES)


# ---------------------------------------------------------------------------------------------------------------------
# Bytes and text


def mutate_bytes(rng: Random, held: bytes, most: int = 4) -> bytes:
    """Change, insert, repeat or remove some bytes, or write a number that a size may be."""
    found = bytearray(held)
    for _ in range(rng.randint(1, most)):
        place = rng.randrange(len(found) + 1)
        kind = rng.randrange(7)
        if kind == 0 and found:
            found[place % len(found)] ^= 1 << rng.randrange(8)
        elif kind == 1 and found:
            found[place % len(found)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            found[place:place] = rng.randbytes(rng.randint(1, 8))
        elif kind == 3:
            del found[place : place + rng.choice((1, 2, 4, 8, 64, 1024))]
        elif kind == 4:
            size = rng.choice((1, 4, 16, 256))
            found[place:place] = found[place : place + size] * rng.choice((1, 2, 50))
        elif kind == 5:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(INTEGERS) % (1 << 8 * width)
            place -= place % width
            found[place : place + width] = number.to_bytes(width, rng.choice(("little", "little", "big")))
        else:
            del found[place:]
    return bytes(found)


# fmt: off
YAML = (
    "!!int ''", "!!float ''", "!!timestamp x", "!!bool x", "!!binary '?'", "!!set {a}", "!!omap [a: 1]", "!!str [a]",
    "!!python/object/apply:builtins.open [isa-fuzz-was-executed, w]", "!!python/name:os.system", "!!null x", "!x y",
    "*a", "&a 1", "&a [*a, *a]", "<<: {a: 1}", "? [1]\n: 2", "? {a: 1}\n: 2", ".nan", "-.inf", ".inf", "1e400", "=",
    "0x" + "f" * 400, "0b" + "1" * 2000, "1" + "0" * 5000, "1:2:3", "1" + ":59" * 60, "2001-02-30", "2001-01-01", "~",
    '"\\ud800"', '"\\0"', '"\\x1b[2J"', '"\\U0010ffff"', "|\n  a\n  b", ">-\n  a", "---", "...", "%YAML 9.9", "\t", "@",
    "`", "[" * 2000, "{a: " * 900, "- " * 2000, "'" + "x" * 3000 + "'", "[1, [2, 3]]", "[[4, 4], [2]]", "{a: 1}", "[]",
    "{}", "isa-vae", "beta-tcvae", "factor-vae", "closed_form", "stratified", "2.1[2*2.2[4], 1]", "unit", "true",
    "100000",
)
# fmt: on


def mutate_text(rng: Random, held: bytes, words: tuple[str, ...] = YAML) -> bytes:
    """Replace words and numbers, and repeat, move or remove lines."""
    if rng.random() < 0.1:
        return mutate_bytes(rng, held)
    text = held.decode("utf-8", "surrogateescape")
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        lines = text.split("\n")
        kind = rng.random()
        spots = list(re.finditer(r"[\w.+-]+", text))
        if kind < 0.7 and spots:
            spot = rng.choice(spots)
            harm = rng.random()
            if harm < 0.25:
                new = str(rng.choice((rng.randrange(1, 9), round(rng.uniform(0.1, 9), 2))))
            else:
                new = rng.choice(words) if harm < 0.75 else str(rng.choice(VALUES[: len(VALUES) - 6]))[:6000]
            text = text[: spot.start()] + new + text[spot.end() :]
        elif kind < 0.8:
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
            text = "\n".join(lines)
        elif kind < 0.9:
            del lines[rng.randrange(len(lines))]
            text = "\n".join(lines)
        else:
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(words) + text[place:]
    return text.encode("utf-8", "surrogatepass" if rng.random() < 0.5 else "replace")


def mutate_json(rng: Random, held: Any) -> Any:
    """Return a value of JSON with one or two places of it changed."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        held = _change(rng, held)
    return held


def _change(rng: Random, held: Any) -> Any:
    if isinstance(held, dict) and held and rng.random() < 0.9:
        name = rng.choice(list(held))
        kind = rng.random()
        if kind < 0.08:
            return {key: one for key, one in held.items() if key != name}
        if kind < 0.12:
            return {**held, rng.choice(TEXTS): value(rng)}
        return {**held, name: _change(rng, held[name])}
    if isinstance(held, list) and held and rng.random() < 0.8:
        place = rng.randrange(len(held))
        kind = rng.random()
        if kind < 0.1:
            return held[:place] + held[place + 1 :]
        if kind < 0.2:
            return held + [held[place]] * rng.choice((1, 3, 400))
        return [*held[:place], _change(rng, held[place]), *held[place + 1 :]]
    return value(rng)


def dump_json(rng: Random, held: Any) -> bytes:
    """Write JSON, now and then such as Python's own writer would not."""
    text = json.dumps(held, separators=(",", ":"), ensure_ascii=rng.random() < 0.8)
    kind = rng.random()
    if kind < 0.03:
        text = re.sub(r"\d+", lambda match: rng.choice(("1e999", "-1e999", "1" * 5000)), text, count=1)
    elif kind < 0.05:
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice(("[" * 3000, '{"a":' * 3000, "\0", "NaN", '"a":1,"a":2,')) + text[place:]
    elif kind < 0.07:
        return mutate_bytes(rng, text.encode("utf-8", "surrogatepass"))
    return text.encode(rng.choice(("utf-16", "utf-8")) if kind > 0.99 else "utf-8", "surrogatepass")


# ---------------------------------------------------------------------------------------------------------------------
# Arrays and archives


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0), claim: int | None = None) -> bytes:
    """Return a ``.npy`` file with this header, which may claim another length than it has."""
    text = header.encode("latin1", "replace") + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text) if claim is None else claim)
    return b"\x93NUMPY" + bytes(version) + length + text + data


def mutate_npy(rng: Random, held: bytes) -> bytes:
    """Rewrite the header of a ``.npy`` file: shapes, types, orders, versions, lengths, objects that are pickled."""
    if not held.startswith(b"\x93NUMPY\x01") or rng.random() < 0.15:
        return mutate_bytes(rng, held)
    (length,) = struct.unpack("<H", held[8:10])
    header, data = held[10 : 10 + length].decode("latin1").rstrip(), held[10 + length :]
    kind = rng.random()
    if kind < 0.3:
        dims = [rng.choice((*INTEGERS, 3, 8, 64, True)) for _ in range(rng.randrange(6))]
        header = re.sub(r"'shape': \([^)]*\)", f"'shape': {tuple(dims)!r}", header)
    elif kind < 0.4:
        change = str(rng.choice((*INTEGERS[:-2], "-1", "True", "None", "1.0", "'a'")))
        spots = list(re.finditer(r"\d+", header[header.find("shape") :]))
        if spots:
            spot, start = rng.choice(spots), header.find("shape")
            header = header[: start + spot.start()] + change + header[start + spot.end() :]
    elif kind < 0.6:
        types = ("|O", "|u1", "<i8", ">f4", "|V4294967295", "<U999999999", "|S0", "<M8[ns]", "<c16", "?", "", "|u1,|O")
        types += ([("a", "|O")], [("a", "|u1", (2**31,))], {"names": ["a"]}, 3, ("|u1", (10**6, 10**6)))
        header = re.sub(r"'descr': '[^']*'", lambda _: f"'descr': {rng.choice(types)!r}", header)
    elif kind < 0.65:
        header = header.replace("False", rng.choice(("True", "None", "2", "__import__('os')")))
    elif kind < 0.72:
        header = rng.choice(
            ("{" * 9000, "(" * 9000, "-" * 9000, "[1" * 3000, "'a' 'b'", "{**{}}", "1e999", "\0", "9" * 9000)
        )
    elif kind < 0.84:
        version = rng.choice(((1, 0), (2, 0), (2, 0), (3, 0), (9, 9)))
        return npy(
            header, data, version, rng.choice((None, 0, 65535) if version == (1, 0) else (None, 2**31, 2**32 - 1))
        )
    elif kind < 0.9:
        return npy(header, rng.choice(PICKLES))
    elif kind < 0.95:
        data = data[: rng.randrange(len(data) + 1)]
    else:
        data += bytes(rng.choice((1, 8, 70_000)))
    return npy(header, data)


def members(held: bytes) -> dict[str, bytes]:
    """Return what a zip archive holds, by name."""
    with zipfile.ZipFile(io.BytesIO(held)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(held: list[tuple[str, bytes]], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip archive of these members, names given twice included."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)  # of names given twice, which are meant
        for name, data in held:
            info = zipfile.ZipInfo(name)  # with a fixed date
            info.compress_type = kind
            with archive.open(info, "w") as stream:
                stream.write(data)
    return buffer.getvalue()


def mutate_zip(rng: Random, held: bytes, inner: Callable[[Random, str, bytes], bytes]) -> bytes:
    """Change a member by ``inner``, or the archive around it: methods, names, sizes that are claimed, flags."""
    try:
        found = list(members(held).items())
    except Exception:
        return mutate_bytes(rng, held)
    kind = rng.random()
    place = rng.randrange(len(found))
    if kind < 0.75:
        found[place] = (found[place][0], inner(rng, *found[place]))
    elif kind < 0.78:
        del found[place]
    elif kind < 0.81:
        found.append((rng.choice(("", "/", "../x.npy", "x.npy", "\0", found[place][0])), rng.choice(PICKLES)))
    elif kind < 0.84:
        found[place] = (rng.choice(("a.npy", found[place][0].upper(), found[0][0])), found[place][1])
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED))
    if rng.random() < 0.04:
        method = rng.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    whole = pack(found, method)
    if rng.random() < 0.2:
        whole = _lie(rng, whole)
    return mutate_bytes(rng, whole) if rng.random() < 0.08 else whole


def _lie(rng: Random, whole: bytes) -> bytes:
    """Let a directory's entry, a member's own header, or the archive's end claim something else."""
    found = bytearray(whole)
    signature, fields = rng.choice(
        (
            (b"PK\x01\x02", ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4))),
            (b"PK\x03\x04", ((6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))),
            (b"PK\x05\x06", ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2))),
        )
    )
    starts = [match.start() for match in re.finditer(re.escape(signature), whole)]
    if starts:
        start, (offset, width) = rng.choice(starts), rng.choice(fields)
        number = rng.choice((*INTEGERS, 12, 14, 95, 99)) % (1 << 8 * width)
        found[start + offset : start + offset + width] = number.to_bytes(width, "little")
    return bytes(found)


def zip_of_npy(rng: Random, held: bytes) -> bytes:
    """Change an ``.npz`` file."""
    return mutate_zip(rng, held, lambda rng, name, data: mutate_npy(rng, data))


# ---------------------------------------------------------------------------------------------------------------------
# MATLAB files


def _elements(held: bytes) -> list[tuple[int, bytes]]:
    """Return the top elements of a MATLAB 5 file, each with its kind; of compressed ones, what they hold."""
    found, place = [], 128
    while place + 8 <= len(held):
        kind, size = struct.unpack("<II", held[place : place + 8])
        body = held[place + 8 : place + 8 + size]
        found.append((kind, zlib.decompress(body) if kind == 15 else body))
        place += 8 + size + (0 if kind == 15 else -size % 8)
    return found


def mutate_mat(rng: Random, held: bytes) -> bytes:
    """Change an element of a MATLAB 5 file, and compress it again."""
    try:
        found = _elements(held)
    except Exception:
        return mutate_bytes(rng, held)
    if not found or rng.random() < 0.1:
        return mutate_bytes(rng, held)
    place = rng.randrange(len(found))
    kind, body = found[place]
    change = rng.random()
    if change < 0.6:  # a word of the element's head: flags, number of dimensions, dimensions, name, type, size
        start = 4 * rng.randrange(min(24, max(len(body) // 4, 1)))
        number = rng.choice((*INTEGERS, *range(20))) % (1 << 32)
        body = body[:start] + number.to_bytes(4, "little") + body[start + 4 :]
    elif change < 0.75:
        body = mutate_bytes(rng, body)
    elif change < 0.8:
        body = body[:8] + bytes(rng.choice((100, 100_000))) + body[8:]
    elif change < 0.85:
        kind = rng.choice((14, 15, 1, 9, 0, 2**31, 99))
    found[place] = (kind, body)
    if change > 0.95:
        found.insert(0, found[place])
    parts = [held[:128]]
    for kind, body in found:
        packed = zlib.compress(body) if kind == 15 else body + bytes(-len(body) % 8)
        size = rng.choice(INTEGERS) % (1 << 32) if rng.random() < 0.03 else len(packed if kind == 15 else body)
        parts.append(struct.pack("<II", kind, size) + packed)
    return b"".join(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Headers of JSON, tables, pickles


def mutate_with_header(rng: Random, held: bytes, start: int, width: int) -> bytes:
    """Change the JSON of a file that has its length, ``width`` bytes, at ``start``; the rest stays, if that."""
    kind = rng.random()
    if kind < 0.15 or len(held) < start + width:
        return mutate_bytes(rng, held)
    length = int.from_bytes(held[start : start + width], "little")
    first = start + width
    text, rest = held[first : first + length], held[first + length :]
    try:
        text = dump_json(rng, mutate_json(rng, json.loads(text)))
    except (ValueError, RecursionError):
        return mutate_bytes(rng, held)
    text += b" " * (-len(text) % 8)
    claimed = rng.choice(INTEGERS) % (1 << 8 * width) if kind > 0.93 else len(text)
    if 0.85 < kind < 0.93:
        rest = mutate_bytes(rng, rest)
    return held[:start] + claimed.to_bytes(width, "little") + text + rest


def mutate_table(rng: Random, held: bytes) -> bytes:
    """Change cells and columns of a table of records."""
    if rng.random() < 0.15:
        return mutate_text(rng, held)
    rows = list(csv.reader(io.StringIO(held.decode("utf-8"))))
    for _ in range(rng.randint(1, 2)):
        kind, column = rng.random(), rng.randrange(len(rows[0]))
        row = rng.choice(rows[1:] or rows)
        if kind < 0.8:
            try:
                cell = json.loads(row[column])
            except (ValueError, IndexError, RecursionError):
                cell = None
            fresh = mutate_json(rng, cell) if cell is not None and rng.random() < 0.5 else value(rng)
            cell = (
                fresh
                if isinstance(fresh, str) and rng.random() < 0.5
                else dump_json(rng, fresh).decode("utf-8", "replace")
            )
            row[column : column + 1] = [cell if rng.random() < 0.95 else ""]
        elif kind < 0.9:
            for one in rows:
                del one[column : column + 1]
        elif kind < 0.95:
            rows[0][column] = rng.choice((*rows[0], *TEXTS))
        else:
            rows.insert(rng.randrange(len(rows) + 1), list(rng.choice(rows)))
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode("utf-8", "surrogatepass" if rng.random() < 0.3 else "replace")


def mutate_pickle(rng: Random, held: bytes) -> bytes:
    """Change a pickle: other names, other numbers, one that executes something."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(PICKLES)
    if kind < 0.4:
        return held.replace(
            b"_rebuild_tensor_v2", rng.choice((b"_rebuild_tensor", b"_rebuild_parameter", b"set_default_dtype"))
        )
    if kind < 0.5:
        return held.replace(
            b"torch._utils\n_rebuild_tensor_v2", rng.choice((b"builtins\nbytearray", b"_codecs\nencode", b"os\nsystem"))
        )
    if kind < 0.6:
        return held[:2] + b"(c__builtin__\nopen\n(V" + EXECUTED.encode() + b"\nVw\ntR" + held[2:]
    if kind < 0.75:
        small = [match.start() for match in re.finditer(rb"K.", held, re.DOTALL)]
        if small:
            place = rng.choice(small)
            number = rng.choice(INTEGERS[:16])
            wide = (
                b"J" + (number % 2**31).to_bytes(4, "little")
                if number < 2**31
                else b"\x8a\x09" + number.to_bytes(9, "little")
            )
            return held[:place] + wide + held[place + 2 :]
    return mutate_bytes(rng, held)
