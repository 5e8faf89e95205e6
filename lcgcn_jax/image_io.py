"""Image files: completeness checks, size limit, EXIF orientation, and decoding to 8-bit RGB.

Pillow reads headers and all formats other than JPEG and PNG, which OpenCV decodes about twice as fast. The
ends of JPEG and PNG files are located here, because neither library reports a missing end marker, or the
start of appended data such as the video of a motion photo.
"""

import dataclasses
import io
import logging
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from jaxtyping import UInt8
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from lcgcn_jax.errors import InputError

_LOGGER = logging.getLogger("lcgcn_jax")

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".tif", ".tiff",
    ".webp", ".avif", ".jp2", ".j2k", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
"""Suffixes of supported image files, in lower case."""

MAX_PIXELS = 1 << 28
"""Maximum number of pixels, such as 16,384 x 16,384; such an image takes 0.8 GB of memory."""

# Opened by the class of the format: `PIL.Image.open` has a lower limit than `MAX_PIXELS`, and warns.
_READERS = (
    (re.compile(rb"\xff\xd8"), JpegImagePlugin.JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    (re.compile(rb"(II|MM)(\*\0|\0\*|\+\0|\0\+)"), TiffImagePlugin.TiffImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    (re.compile(rb"GIF8[79]a"), GifImagePlugin.GifImageFile),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  "), Jpeg2KImagePlugin.Jpeg2KImageFile),
    (re.compile(rb"P[1-6]\s"), PpmImagePlugin.PpmImageFile),
)
_ISO_BOX = re.compile(rb"\0\0[\0-\x0f].ftyp", re.DOTALL)  # start of AVIF, HEIC and MP4
# Except restart markers, padding and 0xff bytes.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_JPEG_EOI, _JPEG_SOS = 0xD9, 0xDA
# Markers between the scans of one image: DHT, EOI, SOS, DQT, DNL, DRI, APP0 to APP15, COM.
_JPEG_AFTER_SCAN = frozenset({0xC4, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)})
_HEADER_BYTES = 1 << 16
_ORIENTATION = 0x0112  # EXIF tag
_INVERSE = {6: 8, 8: 6}  # the other orientations are their own inverse
_TRANSPOSITION = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image[:, ::-1].swapaxes(0, 1),
}


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """Format, size and orientation of an image file.

    Attributes:
      format: Pillow's name of the format, such as "JPEG".
      stored_size: width and height as stored, in pixels.
      orientation: EXIF orientation, 1 to 8; 1 is upright. For AVIF, the equivalent of the rotation and
        mirroring boxes (`irot`, `imir`), which replace EXIF.
    """

    format: str
    stored_size: tuple[int, int]
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image, in pixels."""
        width, height = self.stored_size
        return (width, height) if self.orientation < 5 else (height, width)


def read_image(path: str | Path, *, upright: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file as 8-bit RGB, rotated upright by its EXIF orientation.

    Raises:
      InputError: the file does not exist, or is not a complete image.
    """
    if "://" in str(path):
        raise InputError(f"{path}: only files are read; save the image to a file first")
    path = Path(path)
    try:
        encoded = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: the path has a null byte
        reason = getattr(error, "strerror", error)
        raise InputError(f"{path}: cannot be read: {reason}") from error
    try:
        pixels = decode_image(encoded, upright=upright)
        if (count := _num_frames(encoded)) > 1:
            _LOGGER.warning("%s: only the first of its %d frames or pages is read", path, count)
        return pixels
    except ValueError as error:
        fix = "" if ";" in str(error) else "; use a complete JPEG or PNG file"
        raise InputError(f"{path}: {error}{fix}") from error


def _num_frames(encoded: bytes) -> int:
    """Number of frames of an animation, or of pages of a TIFF file."""
    # MPO files hold previews of the same photo. The chunk of an animation is near the start of a PNG file.
    if encoded.startswith(b"\xff\xd8") or (
        encoded.startswith(b"\x89PNG") and b"acTL" not in encoded[:_HEADER_BYTES]
    ):
        return 1
    try:
        return getattr(_open(encoded)[0], "n_frames", 1)
    except (
        Exception
    ):  # damaged later frames raise errors of many types, and the first one is intact
        return 1


def decode_image(encoded: bytes, *, upright: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image file to 8-bit RGB; an alpha channel is dropped.

    Args:
      upright: apply the EXIF orientation (for AVIF, `irot` and `imir`), as viewers and labeling tools do.
        With False, the result has the pixels as stored.

    Raises:
      ValueError: the bytes are not a complete image, or the image has more than `MAX_PIXELS` pixels.
    """
    check_complete(encoded)
    image, header = _open(encoded)
    # Checked before the decoder allocates memory: a flipped bit in the header may cost gigabytes.
    width, height = header.stored_size
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"the image claims {width} x {height} pixels; the limit is {MAX_PIXELS:,} pixels"
        )
    orientation = header.orientation if upright else 1
    if header.format in ("JPEG", "PNG"):
        pixels = _decode_with_opencv(encoded)
    else:
        pixels = _decode_with_pillow(image)
        if header.format == "TIFF":  # Pillow applies the orientation of TIFF files
            orientation = 1 if upright else _INVERSE.get(header.orientation, header.orientation)
    return pixels if orientation == 1 else np.ascontiguousarray(_TRANSPOSITION[orientation](pixels))


def read_header(encoded: bytes) -> ImageHeader:
    """Read format, size and orientation without decoding the pixels.

    Raises:
      ValueError: the bytes are not an image.
    """
    return _open(encoded)[1]


def check_complete(encoded: bytes) -> None:
    """Check that a JPEG or PNG file is complete, since OpenCV fills missing pixels with gray.

    Data after the image, such as the video of a motion photo, are ignored.

    Raises:
      ValueError: the file is empty, truncated, or has a wrong checksum.
    """
    image_end(encoded)


def image_end(encoded: bytes) -> int:
    """Offset of the first byte after the image, where appended data start.

    For formats other than JPEG and PNG, it is the end of the file.

    Raises:
      ValueError: as in `check_complete`.
    """
    if not encoded:
        raise ValueError("the image file is empty")
    if encoded.startswith(b"\x89PNG"):
        end = _png_end(encoded)
    elif encoded.startswith(b"\xff\xd8"):
        end = _jpeg_end(encoded)
    else:
        end = len(encoded)  # for other formats, the decoder raises if the file is truncated
    if end is None:
        raise ValueError("the image file is truncated")
    return end


@dataclasses.dataclass(frozen=True)
class _PngChunk:
    """Chunk of a PNG file; `stop` is the offset of the next chunk."""

    kind: bytes
    start: int
    stop: int
    is_intact: bool

    def content(self, encoded: bytes) -> bytes:
        return encoded[self.start + 8 : self.stop - 4]


def _png_chunks(encoded: bytes) -> Iterator[_PngChunk]:
    """Complete chunks of a PNG file, up to the end chunk or to a truncated chunk."""
    start = 8
    while start + 12 <= len(encoded):
        (length,) = struct.unpack_from(">I", encoded, start)
        end = start + 8 + length
        if end + 4 > len(encoded):
            return
        kind = encoded[start + 4 : start + 8]
        checksum = struct.pack(">I", zlib.crc32(encoded[start + 4 : end]))
        yield _PngChunk(kind, start, end + 4, checksum == encoded[end : end + 4])
        if kind == b"IEND":
            return
        start = end + 4


def _png_end(encoded: bytes) -> int | None:
    """Offset after the end chunk, or None without one; raises ValueError for a wrong checksum."""
    for chunk in _png_chunks(encoded):
        # Critical chunks have a capital first letter. Decoders skip other chunks if they are corrupt.
        if chunk.kind[:1].isupper() and not chunk.is_intact:
            raise ValueError("the image cannot be decoded (a PNG chunk has a wrong checksum)")
        if chunk.kind == b"IEND":
            return chunk.stop
    return None


def _jpeg_end(encoded: bytes) -> int | None:
    """Offset after the end marker of the first image of a JPEG file, or None if it is truncated."""
    offset = 2
    scan = None  # offset of the first scan
    while match := _JPEG_MARKER.search(encoded, offset):
        marker = match[1][0]
        offset = match.end()
        if marker == _JPEG_EOI:
            # After an appended file, the marker does not belong to this image.
            is_end = scan is not None and not _ISO_BOX.search(encoded, scan, offset)
            return offset if is_end else None
        if scan is not None and marker not in _JPEG_AFTER_SCAN:
            return None
        if marker == 0x01:  # TEM has no length
            continue
        offset += int.from_bytes(encoded[offset : offset + 2])
        if marker == _JPEG_SOS and scan is None:
            scan = offset
    return None


def _open(encoded: bytes) -> tuple[PIL.Image.Image, ImageHeader]:
    """Open an image with Pillow, without decoding it."""
    reader = _reader(encoded)
    try:
        image = reader(io.BytesIO(encoded))
        orientation = _orientation(image, encoded)
        width, height = image.size
        # The size in Pillow is that of the upright image.
        if image.format == "TIFF" and orientation >= 5:
            width, height = height, width
    except Exception as error:  # corrupt headers raise errors of many types
        raise ValueError("the image cannot be decoded") from error
    return image, ImageHeader(image.format or "", (width, height), orientation)


def _reader(encoded: bytes) -> Callable[[io.BytesIO], PIL.Image.Image]:
    for pattern, reader in _READERS:
        if pattern.match(encoded):
            return reader
    if _ISO_BOX.match(encoded):
        size = int.from_bytes(encoded[:4])
        brands = encoded[8:size]
        if b"avif" in brands or b"avis" in brands:
            return AvifImagePlugin.AvifImageFile
        if any(brand in brands for brand in (b"mif1", b"heic", b"heix", b"heim", b"heis", b"hevc")):
            raise ValueError("HEIC images cannot be read; convert it to JPEG")
        if len(encoded) < size:
            raise ValueError("the image file is truncated")
        raise ValueError("the file is a video and not an image; its name must end in .mp4 or .mov")
    raise ValueError("the image cannot be decoded")


def _orientation(image: PIL.Image.Image, encoded: bytes) -> int:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        value = image.tag_v2.get(_ORIENTATION)
    else:
        content = image.info.get("exif")
        if image.format == "PNG":  # Pillow finds the chunk only if it precedes the pixels
            chunks = (c for c in _png_chunks(encoded) if c.kind == b"eXIf" and c.is_intact)
            chunk = next(chunks, None)
            content = None if chunk is None else chunk.content(encoded)
        # Unlike viewers, `getexif` also reads XMP.
        exif = PIL.Image.Exif()
        try:
            exif.load(content or b"")
            value = exif.get(_ORIENTATION)
        except Exception:  # corrupt EXIF data raise errors of many types, and the pixels are intact
            value = None
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _decode_with_opencv(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:
        raise ValueError("the image cannot be decoded") from error
    if image is None:
        raise ValueError("the image cannot be decoded")
    return image


def _gray_encoding(image: PIL.Image.Image) -> tuple[int, bool]:
    """Bits of a pixel with more than 8, and whether 0 is white. Pillow leaves both to the caller."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16, False
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    return bits, image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _decode_with_pillow(image: PIL.Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    try:
        image.load()
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            bits, is_inverted = _gray_encoding(image)
            gray = (np.asarray(image).astype(np.uint16) >> (bits - 8)).astype(np.uint8)
            return (~gray if is_inverted else gray)[..., None].repeat(3, axis=2)
        if image.mode in ("I", "F"):
            raise ValueError("the pixels have 32 bits; convert them to 8 bits")
        if image.mode in ("P", "PA"):  # without this step, Pillow warns about transparency
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"))
    except OSError as error:
        reason = "the image file is truncated" if "truncated" in str(error) else None
        raise ValueError(reason or "the image cannot be decoded") from error
    except ValueError as error:
        raise ValueError(f"the image cannot be decoded ({error})") from error
    except Exception as error:  # corrupt data raise errors of many types
        raise ValueError("the image cannot be decoded") from error
