"""Tests of `image_io`: completeness, orientation and decoding of image files."""

import contextlib
import io
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.image_io import MAX_PIXELS, decode_image, image_end, read_header, read_image
from lcgcn_jax.inference.face_detector import quiet_opencv

# 24 x 32 pixels in RGB, with red, green, blue and yellow quarters.
COLORS = np.array([[[230, 20, 20], [20, 230, 20]], [[20, 20, 230], [230, 230, 20]]], np.uint8)
PIXELS = COLORS.repeat(12, axis=0).repeat(16, axis=1)


def encoded(suffix, pixels=PIXELS):
    return cv2.imencode(suffix, pixels[..., ::-1])[1].tobytes()


def quarters(pixels):
    """Colors at the centers of the four quarters."""
    h, w = pixels.shape[:2]
    return pixels[h // 4 :: h // 2, w // 4 :: w // 2].astype(int)


def with_orientation(jpeg, orientation):
    """Insert an APP1 segment with an EXIF orientation after the start marker of a JPEG."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    payload = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_read_image_returns_rgb(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    path.write_bytes(encoded(suffix))
    pixels = read_image(path)
    assert pixels.shape == PIXELS.shape
    assert np.abs(quarters(pixels) - COLORS).max() <= (0 if suffix == ".png" else 6)


@pytest.mark.parametrize(
    "stored",
    [
        PIXELS[..., :1],
        np.concatenate([PIXELS, np.full_like(PIXELS[..., :1], 99)], axis=2),
        PIXELS.astype(np.uint16) * 257,
    ],
    ids=["gray", "with alpha", "16 bit"],
)
def test_other_pngs_are_converted_to_8_bit_rgb(tmp_path, stored):
    path = tmp_path / "image.png"
    # OpenCV expects BGR(A).
    assert cv2.imwrite(
        path, stored[..., [2, 1, 0, 3][: stored.shape[2]]] if stored.shape[2] > 1 else stored
    )
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    expected = PIXELS[..., :1].repeat(3, axis=2) if stored.shape[2] == 1 else PIXELS
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, COLORS),
        (2, COLORS[:, ::-1]),
        (3, COLORS[::-1, ::-1]),
        (6, np.rot90(COLORS, -1)),
        (8, np.rot90(COLORS)),
    ],
)
def test_exif_orientation_of_jpeg_is_applied(tmp_path, orientation, upright):
    path = tmp_path / "rotated.jpg"
    path.write_bytes(with_orientation(encoded(".jpg"), orientation))
    pixels = read_image(path)
    assert pixels.shape[:2] == ((24, 32) if orientation < 5 else (32, 24))
    assert np.abs(quarters(pixels) - upright).max() <= 6


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_exif_orientation_of_other_formats_is_applied(tmp_path, suffix):
    path = tmp_path / f"rotated{suffix}"
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(PIXELS).save(path, exif=exif)
    pixels = read_image(path)
    assert pixels.shape == (32, 24, 3)
    assert np.abs(quarters(pixels) - np.rot90(COLORS, -1)).max() <= 12


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_is_converted_to_rgb(tmp_path, suffix):
    path = tmp_path / f"print{suffix}"
    PIL.Image.fromarray(PIXELS).convert("CMYK").save(path)
    pixels = read_image(path)
    assert pixels.shape == PIXELS.shape
    assert np.abs(quarters(pixels) - COLORS).max() <= 12


@pytest.mark.parametrize("suffix", [".tif", ".webp", ".bmp", ".gif"])
def test_other_truncated_formats_raise(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    PIL.Image.fromarray(NOISE).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with quiet_opencv(), pytest.raises(InputError, match=r"cannot be decoded|truncated"):
        read_image(path)


NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encoded(".jpg", NOISE)[:-1000], "truncated"),
        (encoded(".png", NOISE)[:-1000], "truncated"),
        (with_orientation(encoded(".jpg", NOISE), 6)[:-1000], "truncated"),
        (b"", "empty"),
        (b"just a text file\n", "cannot be decoded"),
        (None, "No such file"),
    ],
    ids=["truncated JPEG", "truncated PNG", "truncated JPEG with EXIF", "empty", "text", "missing"],
)
def test_incomplete_image_raises_a_one_line_error(tmp_path, content, reason):
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "\n" not in message


ALL_FORMATS = {
    "JPEG": {}, "PNG": {}, "GIF": {}, "BMP": {}, "TIFF": {}, "WEBP": {}, "AVIF": {}, "JPEG2000": {},
    "PPM": {},
}  # fmt: skip


def saved(format, pixels=PIXELS, **options):
    """Encode pixels in one of Pillow's formats."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ALL_FORMATS)
def test_header_has_format_and_size(format):
    whole = saved(format)
    header = read_header(whole)
    assert header.format == format
    assert header.stored_size == header.size == (32, 24)
    for end in range(len(whole)):
        with contextlib.suppress(ValueError):
            assert read_header(whole[:end]).size == (32, 24)


def test_thumbnail_of_a_jpeg_is_skipped():
    whole = encoded(".jpg")
    rotated = with_orientation(whole, 6)
    thumbnail = b"\xff\xe2" + struct.pack(">H", len(whole) + 2) + whole
    header = read_header(rotated[:2] + thumbnail + b"\xff\xff" + rotated[2:])
    assert header.stored_size == (32, 24)
    assert header.size == (24, 32)


def with_exif(format, orientation, pixels=PIXELS):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return saved(format, pixels, exif=exif)


UPRIGHT = {
    1: COLORS,
    2: COLORS[:, ::-1],
    3: COLORS[::-1, ::-1],
    4: COLORS[::-1],
    5: COLORS.transpose(1, 0, 2),
    6: np.rot90(COLORS, -1),
    7: np.rot90(COLORS, 2).transpose(1, 0, 2),
    8: np.rot90(COLORS),
}
"""EXIF orientation -> quarters of the upright image."""


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_all_orientations_of_all_formats(format, orientation):
    """Pillow writes the orientation of AVIF as rotation (`irot`) and mirroring (`imir`)."""
    whole = with_exif(format, orientation)
    header = read_header(whole)
    assert (header.orientation, header.stored_size) == (orientation, (32, 24))
    upright = decode_image(whole)
    assert upright.shape[1::-1] == header.size
    assert upright.flags.c_contiguous
    assert np.abs(quarters(upright) - UPRIGHT[orientation]).max() <= 12
    stored = decode_image(whole, upright=False)
    assert stored.shape == PIXELS.shape
    assert np.abs(quarters(stored) - COLORS).max() <= 12


@pytest.mark.parametrize("options", [{"compression": "tiff_lzw"}, {"compression": "jpeg"}])
def test_orientation_of_compressed_tiff(options):
    exif = PIL.Image.Exif()
    exif[0x0112] = 8
    whole = saved("TIFF", exif=exif, **options)
    assert np.abs(quarters(decode_image(whole)) - UPRIGHT[8]).max() <= 12
    assert np.abs(quarters(decode_image(whole, upright=False)) - COLORS).max() <= 12


def test_exif_orientation_of_avif_is_ignored():
    """Only `irot` and `imir` apply, so that a file with both is not rotated twice."""
    rotated = with_exif("AVIF", 6)
    angle = rotated.index(b"irot") + 4
    assert rotated[angle] == 3
    assert read_header(rotated).orientation == 6
    only_exif = rotated[:angle] + b"\0" + rotated[angle + 1 :]
    assert read_header(only_exif).orientation == 1
    assert decode_image(only_exif).shape == PIXELS.shape


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_invalid_orientation_is_ignored(orientation):
    assert read_header(with_orientation(encoded(".jpg"), orientation)).orientation == 1
    pixels = decode_image(with_orientation(encoded(".jpg"), orientation))
    assert pixels.shape == PIXELS.shape


def test_corrupt_exif_is_ignored():
    whole = with_orientation(encoded(".jpg"), 6)
    for corrupt in (whole.replace(b"II*\0", b"XX*\0"), whole.replace(b"\x12\x01", b"\x13\x01")):
        assert read_header(corrupt).orientation == 1
        assert decode_image(corrupt).shape == PIXELS.shape


def exif_chunk(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_chunk_before_or_after_the_pixels_of_a_png(orientation):
    plain = encoded(".png")
    for offset in (33, len(plain) - 12):  # after the header, and after the pixels
        rotated = plain[:offset] + exif_chunk(orientation) + plain[offset:]
        assert read_header(rotated).orientation == orientation
        expected = cv2.imdecode(np.frombuffer(rotated, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(decode_image(rotated), expected)


def test_corrupt_or_repeated_exif_chunk_of_a_png():
    plain = encoded(".png")
    corrupt = exif_chunk(6)[:-1] + b"\0"
    for chunks, orientation in ((corrupt, 1), (exif_chunk(6) + exif_chunk(3), 6)):
        assert read_header(plain[:-12] + chunks + plain[-12:]).orientation == orientation
    assert read_header(plain + exif_chunk(6)).orientation == 1


VIDEO = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + np.random.default_rng(1).bytes(50_000)
TRAILERS = {
    "motion photo of Google": VIDEO,
    "motion photo of Samsung": b"\0\0\x30\x0aMotionPhoto_Data" + VIDEO + b"SEFHSEFT",
    "zeros": bytes(4096),
    "padding": b"\xff" * 512,
    "second JPEG": encoded(".jpg", NOISE[::-1]),
    "truncated second JPEG": encoded(".jpg", NOISE[::-1])[:-900],
    "PNG": encoded(".png", NOISE),
    "text": b"\r\n--boundary--\r\n",
    "marker": b"\xff\xda\xff\xd8",
}


@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
@pytest.mark.parametrize("progressive", [False, True])
def test_data_after_a_jpeg_are_ignored(trailer, progressive):
    whole = saved("JPEG", NOISE, progressive=progressive)
    np.testing.assert_array_equal(decode_image(whole + trailer), decode_image(whole))
    assert image_end(whole + trailer) == len(whole)
    for cut in (2, 3, 100, len(whole) // 2):
        with pytest.raises(ValueError, match="truncated"):
            decode_image(whole[:-cut] + trailer)


@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
def test_data_after_a_png_are_ignored(trailer):
    whole = encoded(".png", NOISE)
    np.testing.assert_array_equal(decode_image(whole + trailer), NOISE)
    assert image_end(whole + trailer) == len(whole)
    for cut in (1, 12, 1000):
        with pytest.raises(ValueError, match=r"truncated|checksum"):
            decode_image(whole[:-cut] + trailer)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM"])
def test_data_after_other_formats_are_ignored(format):
    whole = saved(format, NOISE)
    expected = decode_image(whole)
    np.testing.assert_array_equal(decode_image(whole + bytes(1000)), expected)
    for cut in (50, len(whole) // 2):
        with pytest.raises(ValueError, match=r"truncated|cannot be decoded"):
            decode_image(whole[:-cut])


def test_first_image_of_an_mpo_is_decoded():
    first, second = (PIL.Image.fromarray(p) for p in (PIXELS, PIXELS[::-1]))
    file = io.BytesIO()
    first.save(file, "MPO", save_all=True, append_images=[second])
    assert np.abs(quarters(decode_image(file.getvalue())) - COLORS).max() <= 12


GRAY = PIXELS[..., 0]


@pytest.mark.parametrize(
    ("pixels", "format", "expected"),
    [
        (GRAY, "TIFF", GRAY),
        (GRAY, "PPM", GRAY),
        (GRAY.astype(np.uint16) * 257, "TIFF", GRAY),
        (GRAY.astype(np.uint16) * 257, "PPM", GRAY),
        (GRAY > 100, "TIFF", np.where(GRAY > 100, 255, 0)),
    ],
    ids=["gray TIFF", "gray PGM", "16-bit TIFF", "16-bit PGM", "bilevel TIFF"],
)
def test_gray_images_are_decoded_to_rgb(pixels, format, expected):
    decoded = decode_image(saved(format, pixels))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected[..., None].repeat(3, axis=2))


@pytest.mark.parametrize(("bits", "white_is_zero"), [(12, False), (16, False), (16, True)])
def test_gray_tiffs_with_more_than_8_bits(bits, white_is_zero):
    values = GRAY.astype(np.uint16) << (bits - 8)
    if white_is_zero:
        values = (1 << bits) - 1 - values
    height, width = values.shape
    if bits == 12:  # two pixels in three bytes
        a, b = values.reshape(height, -1, 2).transpose(2, 0, 1)
        packed = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=-1).astype(np.uint8)
    else:
        packed = values.astype("<u2")
    data = packed.tobytes()
    tags = {
        256: width, 257: height, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1,
        278: height, 279: len(data),
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    encoded = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory
    np.testing.assert_array_equal(decode_image(encoded)[..., 0], GRAY)


def test_palette_with_transparency_is_decoded():
    for format in ("GIF", "PNG"):
        image = PIL.Image.fromarray(PIXELS).quantize(16)
        file = io.BytesIO()
        transparency = bytes(16) if format == "PNG" else 0
        image.save(file, format, transparency=transparency)
        assert np.abs(quarters(decode_image(file.getvalue())) - COLORS).max() <= 12


def test_float_images_raise():
    with pytest.raises(ValueError, match="the pixels have 32 bits; convert them to 8 bits"):
        decode_image(saved("TIFF", GRAY.astype(np.float32)))


def iso_file(brand, *others):
    brands = brand + b"\0\0\0\0" + b"".join((brand, *others))
    return struct.pack(">I", len(brands) + 8) + b"ftyp" + brands + bytes(500)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (iso_file(b"heic", b"mif1"), "HEIC images cannot be read; convert it to JPEG"),
        (iso_file(b"mif1", b"heic"), "HEIC images cannot be read; convert it to JPEG"),
        (iso_file(b"isom"), "the file is a video"),
        (iso_file(b"qt  "), "the file is a video"),
        (iso_file(b"avif", b"mif1"), "cannot be decoded"),
    ],
)
def test_heic_and_video_files_raise(tmp_path, content, message):
    path = tmp_path / "IMG_1.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_image(path)


def test_format_is_detected_from_the_content(tmp_path):
    for format in ALL_FORMATS:
        path = tmp_path / "wrong.jpg"
        path.write_bytes(saved(format))
        assert read_image(path).shape == PIXELS.shape


@pytest.mark.parametrize(("width", "is_decoded"), [(1 << 14, True), ((1 << 14) + 1, False)])
def test_huge_images_are_rejected_before_decoding(tmp_path, monkeypatch, width, is_decoded):
    path = tmp_path / "huge.jpg"
    jpeg = bytearray(encoded(".jpg"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", MAX_PIXELS >> 14, width)
    path.write_bytes(jpeg)
    calls = []
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: calls.append(arguments))
    with pytest.raises(
        InputError, match="decoded" if is_decoded else r"claims 16385 x 16384 pixels"
    ):
        read_image(path)
    assert bool(calls) == is_decoded


def test_folder_is_not_an_image(tmp_path):
    with pytest.raises(InputError, match="Is a directory"):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("count", [1, 3])
def test_further_frames_are_reported(tmp_path, caplog, suffix, count):
    frames = [PIL.Image.new("RGB", (8, 6), (40 * i, 0, 0)) for i in range(count)]
    path = tmp_path / f"a{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert read_image(path).shape == (6, 8, 3)
    expected = f"{path}: only the first of its 3 frames or pages is read"
    assert caplog.messages == ([expected] if count > 1 else [])


def test_address_of_an_image_is_an_error():
    with pytest.raises(
        InputError, match=r"https://host/a\.jpg: only files are read; save the image"
    ):
        read_image("https://host/a.jpg")


@pytest.mark.parametrize("suffix", [".gif", ".tif"])
def test_damaged_further_frames_are_ignored(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 60), np.uint8)
    frames = [PIL.Image.fromarray(pixels) for pixels in noise]
    path = tmp_path / f"a{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    content = path.read_bytes()
    numbers = []
    for end in range(len(content) // 2, len(content), 97):
        path.write_bytes(content[:end])
        try:
            numbers.append(read_image(path).shape)
        except InputError:
            continue
    assert set(numbers) == {(40, 60, 3)}
