"""A picture file's bytes -> the format, size and depth in its header. Nothing is decoded.

Libraries read more than the header on opening: Pillow loads every tag of a TIFF or EXIF block, so a
file of 1 MB needs 1.5 GB of memory, and its time for a GIF's comments is quadratic. This module
reads JPEG, PNG, GIF, BMP and WebP in one pass without copying bytes, and counts what slows decoders
down; it decompresses a large PNG to count its data. TIFF is left out: no website serves it, and
its tags may point anywhere.
"""

import re
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, field, replace

ENDINGS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
}
"""Extensions of untrusted files -> Pillow's format name; the only such list."""
OWN_ENDINGS = (*ENDINGS, ".tif", ".tiff", ".avif")
"""Extensions of a user's own files: also formats that only Pillow opens."""
OTHER_PICTURES = re.compile(
    rb"....ftyp(avi|hei|mif)|II\*\0|MM\0\*|\xff\x0a|\0\0\0\x0cJXL", re.DOTALL
)
"""First bytes of AVIF, HEIC, TIFF and JPEG XL: pictures, but not accepted from strangers."""

MAX_SCANS = 100  # of a progressive JPEG, each a pass over all pixels; encoders make about ten
MAX_SEGMENTS = 10_000  # of a JPEG, chunks of a PNG, or data blocks of a GIF before its picture
MAX_EXIF_BYTES = 128 << 10  # to open n bytes, Pillow needs n² / 48; a JPEG has at most 64 KB
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by color type
HARMLESS_PNG_BYTES = 1 << 20  # decompress to at most 1.1 GB in 2 s, no more than a large picture
UNPACKED_AT_ONCE = 1 << 20  # bytes
MAX_COMPRESSED_CHUNKS = 20  # of text in a PNG, each up to 8 MB and 0.1 s

JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # not a stuffed FF, nor a bare marker
GIF_BLOCK = re.compile(rb"[!,;]")  # extension, frame, end; decoders skip bytes in between
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
ARITHMETIC, START_OF_SCAN, END_OF_IMAGE, APP1 = 0xC8, 0xDA, 0xD9, 0xE1


class HeaderError(ValueError):
    """The bytes do not begin like a picture, or (`bomb`) would only cost time or memory."""

    def __init__(self, message: str, bomb: bool = False) -> None:
        super().__init__(message)
        self.bomb = bomb


@dataclass(frozen=True)
class ImageHeader:
    """The contents of a file according to its header."""

    format: str  # Pillow's name
    width: int  # of the canvas, pixels, at least 1
    height: int
    bits: int = 8  # per sample
    alpha: bool = False  # a decoder may add a fourth channel
    tags: bool = field(default=False, compare=False)  # EXIF or XMP may turn it; a PNG's profile
    odd: bool = field(default=False, compare=False)  # CMYK or run lengths: decoders disagree


def read_header(content: bytes) -> ImageHeader:
    """Read the header of a JPEG, PNG, GIF, BMP or WebP file.

    Raises:
        HeaderError: it is none of them, is truncated in its header, is empty, or is a bomb.
    """
    read = next((read for magic, read in READERS if magic.match(content)), None)
    if read is None:
        raise HeaderError("not a JPEG, PNG, GIF, BMP or WebP file")
    try:
        header = read(content)
    except (struct.error, IndexError):
        raise HeaderError("cut off in its header") from None
    if header.width < 1 or header.height < 1:
        raise HeaderError("the picture is empty")
    return header


def _jpeg(content: bytes) -> ImageHeader:
    """Follow the markers to the end: frame, scans and EXIF (ITU-T T.81, B.1.1)."""
    frame: ImageHeader | None = None
    position, scans, exif, tags, least = 2, 0, 0, False, 0
    for _ in range(MAX_SEGMENTS):
        # bytes between segments, including a scan's data, are skipped as in libjpeg
        found = JPEG_MARKER.search(content, position)
        marker = END_OF_IMAGE if found is None else content[found.end() - 1]
        if found is None or marker == END_OF_IMAGE:
            break
        if frame is None and marker == START_OF_SCAN:
            raise HeaderError("a scan without a frame")
        position = found.end()
        if len(content) < position + 2:
            break
        (length,) = struct.unpack_from(">H", content, position)
        if marker in JPEG_FRAMES and frame is None:
            bits, height, width, inks = struct.unpack_from(">BHHB", content, position + 2)
            frame = ImageHeader("JPEG", width, height, bits, odd=inks == 4)
            # a Huffman code has a bit at least, and 8×8 pixels have a code; arithmetic coding less
            least = width * height // (64 * 8) if marker < ARITHMETIC else 0
        scans += marker == START_OF_SCAN
        tags = tags or marker == APP1
        exif += length if marker == APP1 and content.startswith(b"Exif", position + 2) else 0
        if scans > MAX_SCANS or exif > MAX_EXIF_BYTES:
            raise HeaderError("too many scans, or too much EXIF", bomb=True)
        position += length
    else:
        raise HeaderError("too many segments", bomb=True)
    if frame is None:
        raise HeaderError("no frame")
    if len(content) < least:
        raise HeaderError("more picture than data", bomb=True)
    return replace(frame, tags=tags)


def _png(content: bytes) -> ImageHeader:
    """Read IHDR, the first chunk (PNG §11.2.1), and follow the others to the end by length."""
    length, kind, width, height, bits, color = struct.unpack_from(">I4sIIBB", content, 8)
    if length != 13 or kind != b"IHDR":
        raise HeaderError("a PNG without its header")
    position, compressed, alpha, tags = 33, 0, color in (4, 6), False
    pixels: list[memoryview] = []
    for _ in range(MAX_SEGMENTS):
        kind = content[position + 4 : position + 8]
        if kind in (b"IEND", b""):
            row = 1 + width * bits * PNG_SAMPLES.get(color, 4) // 8
            _refuse_excess(pixels, 2 * height * row)  # twice: seven passes when interlaced
            return ImageHeader("PNG", width, height, bits, alpha, tags)
        (length,) = struct.unpack_from(">I", content, position)
        alpha = alpha or kind in (b"tRNS", b"acTL")  # acTL: frames are laid over each other
        compressed += kind in (b"zTXt", b"iTXt", b"iCCP")
        if kind == b"IDAT":
            pixels.append(memoryview(content)[position + 8 : position + 8 + length])
        tags = tags or kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"iCCP")
        if compressed > MAX_COMPRESSED_CHUNKS:
            break
        position += length + 12
    raise HeaderError("too many chunks, or too many compressed texts", bomb=True)


def _refuse_excess(pixels: list[memoryview], needed: int) -> None:
    """Refuse data that decompress to far more than the picture: libpng decompresses all of it."""
    if sum(map(len, pixels)) < HARMLESS_PNG_BYTES:
        return
    unpacker, unpacked = zlib.decompressobj(), 0
    with suppress(zlib.error):  # damaged: the decoder will refuse it
        for packed in pixels:
            rest: bytes | memoryview = packed
            while rest and not unpacker.eof:
                unpacked += len(unpacker.decompress(rest, UNPACKED_AT_ONCE))
                rest = unpacker.unconsumed_tail
                if unpacked > needed + UNPACKED_AT_ONCE:
                    raise HeaderError("more data than picture", bomb=True)


def _gif(content: bytes) -> ImageHeader:
    """Read the screen and the blocks up to the first frame; any frame may have transparency."""
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    position, blocks = 13 + (2 << (flags & 7)) * 3 * (flags >> 7), 0
    while (found := GIF_BLOCK.search(content, position)) and found[0] == b"!":
        position = found.end() + 1  # past the kind of extension
        while size := content[position]:
            position += size + 1
            blocks += 1
            if blocks > MAX_SEGMENTS:
                raise HeaderError("too many blocks", bomb=True)
        position += 1
    if found is None or found[0] == b";":
        raise HeaderError("no frame")
    return ImageHeader("GIF", width, height, alpha=True)


def _bmp(content: bytes) -> ImageHeader:
    """Read the old header of 12 bytes, or a newer one; a negative height means top-down."""
    (size,) = struct.unpack_from("<I", content, 14)
    width, height, _, depth = struct.unpack_from("<HHHH" if size == 12 else "<iiHH", content, 18)
    odd = size > 12 and content[30:34] != bytes(4)
    return ImageHeader("BMP", width, abs(height), alpha=depth == 32, odd=odd)


def _webp(content: bytes) -> ImageHeader:
    """Read the first chunk: lossy (VP8), lossless (VP8L) or extended (VP8X)."""
    kind = content[12:16]
    if kind == b"VP8X":
        flags, size = content[20], content[24:30]
        if len(size) < 6:
            raise HeaderError("cut off in its header")
        width, height = (int.from_bytes(size[i : i + 3], "little") + 1 for i in (0, 3))
        # the flags give alpha and animation; an ALPH chunk gives alpha whatever they say
        alpha = bool(flags & 0x12) or b"ALPH" in content or b"VP8L" in content
        tags = b"EXIF" in content or b"XMP " in content
        return ImageHeader("WEBP", width, height, alpha=alpha, tags=tags)
    if kind == b"VP8L" and content[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", content, 21)
        return ImageHeader(
            "WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, alpha=bool(bits >> 28 & 1)
        )
    if kind == b"VP8 " and content[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", content, 26)
        return ImageHeader("WEBP", width & 0x3FFF, height & 0x3FFF)
    raise HeaderError("a WebP file of no known kind")


READERS = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    (re.compile(rb"GIF8[79]a"), _gif),
    (re.compile(rb"BM"), _bmp),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
)
