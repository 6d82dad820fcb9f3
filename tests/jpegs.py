"""JPEGs for the tests: photo-like noise encoded by Pillow, and unusual files encoded by hand."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def make_pixels(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Coloured uint8 HWC noise with the spectrum of a photo."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = np.maximum(frequency, 0.5 / max(width, height)) ** -1.2
    planes = []
    for _ in range(3):
        spectrum = (rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)) * amplitude
        plane = np.fft.irfft2(spectrum, (height, width)) if width > 1 else rng.normal(size=(height, 1))
        planes.append(plane / (plane.std() + 1e-9))
    y, u, v = planes
    rgb = np.stack([50 * y + 25 * u, 50 * y - 10 * u + 10 * v, 50 * y + 25 * v], -1) + 128
    return np.clip(rgb, 0, 255).astype(np.uint8)


def make_jpeg(width: int, height: int, seed: int = 0, *, mode: str = "RGB", **options) -> bytes:
    """options: Pillow's (quality, subsampling, progressive, optimize, restart_marker_blocks, ...)."""
    out = io.BytesIO()
    Image.fromarray(make_pixels(width, height, seed)).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


def decode(data: bytes, scale: int = 1) -> np.ndarray:
    """Decode with libjpeg-turbo through Pillow, without colour conversion; `scale` shrinks in the DCT."""
    image = Image.open(io.BytesIO(data))
    if scale > 1:  # what Image.draft does, but for exactly this scale
        codec, _, offset, options = image.tile[0]
        image._size = (-(-image.width // scale), -(-image.height // scale))
        image.tile = [(codec, (0, 0, *image._size), offset, options)]
        image.decoderconfig = (scale, 0)
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def make_odd_jpeg(
    width: int,
    height: int,
    factors: list[tuple[int, int]],
    seed: int = 0,
    *,
    scans: list[tuple[int, ...]] | None = None,
    restart: int = 0,
    identifiers: bytes = b"\1\2\3",
    adobe: int | None = None,
    fill: int = 0,
    wide_quants: bool = False,
    frame: int = 0xC0,
    ac_at: int | None = None,
) -> bytes:
    """A sequential JPEG of random coefficients, with any sampling and scans. Every scan has its own tables.

    factors: (h, v) of each component. fill: how many fill bytes come before every marker. ac_at: the only AC
    coefficient that is not always 0; it is 1, 0 or -1.
    """
    rng = np.random.default_rng(seed)
    h_max, v_max = max(h for h, _ in factors), max(v for _, v in factors)
    columns, rows = -(-width // (8 * h_max)), -(-height // (8 * v_max))
    planes = [_random_blocks(rng, rows * v, columns * h, ac_at) for h, v in factors]

    def marker(code: int, body: bytes = b"") -> bytes:
        return (
            b"\xff" * (fill + 1)
            + bytes((code,))
            + ((len(body) + 2).to_bytes(2, "big") + body if body else b"")
        )

    steps = rng.integers(1, 300 if wide_quants else 30, 64)
    quants = steps.astype(">u2" if wide_quants else "u1").tobytes()
    out = b"\xff\xd8" + marker(0xDB, bytes((wide_quants << 4,)) + quants)
    if adobe is not None:
        out += marker(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes((adobe,)))
    parts = b"".join(bytes((i, h << 4 | v, 0)) for i, (h, v) in zip(identifiers, factors, strict=False))
    out += marker(
        frame, b"\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + bytes((len(factors),)) + parts
    )
    out += marker(0xDD, restart.to_bytes(2, "big"))
    for scan in scans or [tuple(range(len(factors)))]:
        symbols = [
            rng.permutation(np.arange(12)),
            rng.permutation([r << 4 | s for r in range(16) for s in range(11)]),
        ]
        out += marker(0xC4, b"\0" + bytes((0, 0, 0, 12, *[0] * 12)) + bytes(symbols[0].tolist()))
        out += marker(0xC4, b"\x10" + bytes((*[0] * 7, 176, *[0] * 8)) + bytes(symbols[1].tolist()))
        out += marker(0xDA, bytes((len(scan), *(x for i in scan for x in (identifiers[i], 0)), 0, 63, 0)))
        mcus = _mcus(scan, factors, planes, width, height)
        step = restart or len(mcus)
        for first in range(0, len(mcus), step):
            if first:
                out += marker(0xD0 + (first // step - 1) % 8)
            out += _encode(mcus[first : first + step], symbols)
    return out + marker(0xD9)


def _random_blocks(rng: np.random.Generator, rows: int, columns: int, ac_at: int | None) -> np.ndarray:
    blocks = np.zeros((rows, columns, 64), int)
    blocks[:, :, 0] = rng.integers(-60, 60, (rows, columns))
    if ac_at is not None:
        blocks[:, :, ac_at] = rng.integers(-1, 2, (rows, columns))
        return blocks
    for _ in range(4):
        at = rng.integers(1, 64, (rows, columns, 1))
        np.put_along_axis(blocks, at, rng.integers(-9, 10, (rows, columns, 1)), 2)
    return blocks


def _mcus(scan, factors, planes, width, height) -> list[list[tuple[int, np.ndarray]]]:
    """For each MCU its blocks: (component, coefficients)."""
    h_max, v_max = max(h for h, _ in factors), max(v for _, v in factors)
    if len(scan) == 1:
        h, v = factors[scan[0]]
        rows, columns = -(-height * v // (8 * v_max)), -(-width * h // (8 * h_max))
        return [[(scan[0], planes[scan[0]][r, c])] for r in range(rows) for c in range(columns)]
    columns, rows = -(-width // (8 * h_max)), -(-height // (8 * v_max))
    return [
        [
            (i, planes[i][r * factors[i][1] + y, c * factors[i][0] + x])
            for i in scan
            for y in range(factors[i][1])
            for x in range(factors[i][0])
        ]
        for r in range(rows)
        for c in range(columns)
    ]


def _encode(mcus, symbols) -> bytes:
    """Huffman codes of 4 bits (DC) and 8 bits (AC), in the order of `symbols`."""
    dc = {symbol: f"{code:04b}" for code, symbol in enumerate(symbols[0].tolist())}
    ac = {symbol: f"{code:08b}" for code, symbol in enumerate(symbols[1].tolist())}
    bits, last = [], {}

    def extra(value: int) -> str:
        size = abs(value).bit_length()
        return f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""

    for component, block in (pair for mcu in mcus for pair in mcu):
        difference = int(block[0]) - last.get(component, 0)
        last[component] = int(block[0])
        bits += dc[abs(difference).bit_length()], extra(difference)
        run = 0
        for value in block[1:].tolist():
            if not value:
                run += 1
                continue
            bits += [ac[0xF0]] * (run // 16)
            bits += ac[run % 16 << 4 | abs(value).bit_length()], extra(value)
            run = 0
        if run:
            bits.append(ac[0])
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def make_lossless_jpeg(width: int, height: int, seed: int = 0) -> bytes:
    """A grey JPEG of the lossless mode (SOF3): each sample is predicted by the one to its left."""
    samples = make_pixels(width, height, seed)[:, :, 0].astype(int)
    before = np.concatenate([samples[:, :1], samples[:, :-1]], 1)
    before[1:, 0], before[0, 0] = samples[:-1, 0], 128
    bits = ""
    for step in (samples - before).ravel().tolist():
        size = abs(step).bit_length()
        bits += f"{size:04b}" + (f"{step if step > 0 else step + (1 << size) - 1:0{size}b}" if size else "")
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = b"\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\1\1\x11\0"
    out = b"\xff\xd8" + make_segment(0xC3, frame)
    out += make_segment(0xC4, b"\0" + bytes((0, 0, 0, 12, *[0] * 12, *range(12))))
    return out + make_segment(0xDA, b"\1\1\0\1\0\0") + scan + b"\xff\xd9"


def make_segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def insert_before(data: bytes, marker: int, extra: bytes) -> bytes:
    """Put bytes before the first marker of this kind, or before the last if it is EOI."""
    code = bytes((0xFF, marker))
    at = data.rindex(code) if marker == 0xD9 else data.index(code)
    return data[:at] + extra + data[at:]


def remove_segments(data: bytes, marker: int) -> bytes:
    code = bytes((0xFF, marker))
    while (at := data.find(code)) >= 0:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    return data


def replace_size(data: bytes, old: tuple[int, int], new: tuple[int, int]) -> bytes:
    """Write another (width, height) into the frame header."""
    before, after = (b"\x08" + h.to_bytes(2, "big") + w.to_bytes(2, "big") for w, h in (old, new))
    assert data.count(before) == 1
    return data.replace(before, after)
