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

# 24 x 32, its quarters red, green, blue and yellow, in RGB.
COLORS = np.array([[[230, 20, 20], [20, 230, 20]], [[20, 20, 230], [230, 230, 20]]], np.uint8)
PICTURE = COLORS.repeat(12, axis=0).repeat(16, axis=1)


def encoded(suffix, picture=PICTURE):
    return cv2.imencode(suffix, picture[..., ::-1])[1].tobytes()


def quarters(picture):
    """The colors in the middle of the four quarters."""
    h, w = picture.shape[:2]
    return picture[h // 4 :: h // 2, w // 4 :: w // 2].astype(int)


def with_orientation(jpeg, orientation):
    """Puts an APP1 segment with an EXIF orientation behind the JPEG's start marker."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    payload = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_colors_come_out_as_rgb(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encoded(suffix))
    picture = read_image(path)
    assert picture.shape == PICTURE.shape
    assert np.abs(quarters(picture) - COLORS).max() <= (0 if suffix == ".png" else 6)


@pytest.mark.parametrize(
    "stored",
    [
        PICTURE[..., :1],
        np.concatenate([PICTURE, np.full_like(PICTURE[..., :1], 99)], axis=2),
        PICTURE.astype(np.uint16) * 257,
    ],
    ids=["gray", "with alpha", "16 bit"],
)
def test_other_pngs_come_out_as_three_channels_of_8_bits(tmp_path, stored):
    path = tmp_path / "picture.png"
    # OpenCV wants BGR(A).
    assert cv2.imwrite(
        path, stored[..., [2, 1, 0, 3][: stored.shape[2]]] if stored.shape[2] > 1 else stored
    )
    picture = read_image(path)
    assert picture.dtype == np.uint8
    expected = PICTURE[..., :1].repeat(3, axis=2) if stored.shape[2] == 1 else PICTURE
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, COLORS),
        (2, COLORS[:, ::-1]),
        (3, COLORS[::-1, ::-1]),
        (6, np.rot90(COLORS, -1)),
        (8, np.rot90(COLORS)),
    ],
)
def test_exif_orientation_is_followed(tmp_path, orientation, turned):
    path = tmp_path / "turned.jpg"
    path.write_bytes(with_orientation(encoded(".jpg"), orientation))
    picture = read_image(path)
    assert picture.shape[:2] == ((24, 32) if orientation < 5 else (32, 24))
    assert np.abs(quarters(picture) - turned).max() <= 6


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_orientation_of_other_formats_is_followed(tmp_path, suffix):
    path = tmp_path / f"turned{suffix}"
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(PICTURE).save(path, exif=exif)
    picture = read_image(path)
    assert picture.shape == (32, 24, 3)
    assert np.abs(quarters(picture) - np.rot90(COLORS, -1)).max() <= 12


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_print_colors_come_out_as_rgb(tmp_path, suffix):
    path = tmp_path / f"print{suffix}"
    PIL.Image.fromarray(PICTURE).convert("CMYK").save(path)
    picture = read_image(path)
    assert picture.shape == PICTURE.shape
    assert np.abs(quarters(picture) - COLORS).max() <= 12


@pytest.mark.parametrize("suffix", [".tif", ".webp", ".bmp", ".gif"])
def test_other_formats_that_end_early_are_refused(tmp_path, suffix):
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
    ids=["cut JPEG", "cut PNG", "cut JPEG with EXIF", "empty", "text", "missing"],
)
def test_what_is_no_whole_picture_is_named(tmp_path, content, reason):
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


def saved(format, picture=PICTURE, **options):
    """The picture as a file of one of Pillow's formats."""
    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ALL_FORMATS)
def test_header_states_the_size(format):
    whole = saved(format)
    header = read_header(whole)
    assert header.format == format
    assert header.stored_size == header.size == (32, 24)
    for end in range(len(whole)):
        with contextlib.suppress(ValueError):
            assert read_header(whole[:end]).size == (32, 24)


def test_header_of_a_jpeg_stands_behind_the_thumbnail():
    whole = encoded(".jpg")
    turned = with_orientation(whole, 6)
    thumbnail = b"\xff\xe2" + struct.pack(">H", len(whole) + 2) + whole
    header = read_header(turned[:2] + thumbnail + b"\xff\xff" + turned[2:])
    assert header.stored_size == (32, 24)
    assert header.size == (24, 32)


def with_exif(format, orientation, picture=PICTURE):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return saved(format, picture, exif=exif)


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
"""EXIF orientation -> the quarters as they are shown."""


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_all_orientations(format, orientation):
    """Pillow writes AVIF's as rotation (`irot`) and mirroring (`imir`)."""
    whole = with_exif(format, orientation)
    header = read_header(whole)
    assert (header.orientation, header.stored_size) == (orientation, (32, 24))
    shown = decode_image(whole)
    assert shown.shape[1::-1] == header.size
    assert shown.flags.c_contiguous
    assert np.abs(quarters(shown) - UPRIGHT[orientation]).max() <= 12
    stored = decode_image(whole, upright=False)
    assert stored.shape == PICTURE.shape
    assert np.abs(quarters(stored) - COLORS).max() <= 12


@pytest.mark.parametrize("options", [{"compression": "tiff_lzw"}, {"compression": "jpeg"}])
def test_orientation_of_compressed_tiff(options):
    exif = PIL.Image.Exif()
    exif[0x0112] = 8
    whole = saved("TIFF", exif=exif, **options)
    assert np.abs(quarters(decode_image(whole)) - UPRIGHT[8]).max() <= 12
    assert np.abs(quarters(decode_image(whole, upright=False)) - COLORS).max() <= 12


def test_exif_of_an_avif_does_not_turn_it():
    """HEIF's rule: only `irot` and `imir` do. A file that states both must not be turned twice."""
    turned = with_exif("AVIF", 6)
    angle = turned.index(b"irot") + 4
    assert turned[angle] == 3
    assert read_header(turned).orientation == 6
    only_exif = turned[:angle] + b"\0" + turned[angle + 1 :]
    assert read_header(only_exif).orientation == 1
    assert decode_image(only_exif).shape == PICTURE.shape


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_that_is_none_is_ignored(orientation):
    assert read_header(with_orientation(encoded(".jpg"), orientation)).orientation == 1
    shown = decode_image(with_orientation(encoded(".jpg"), orientation))
    assert shown.shape == PICTURE.shape


def test_damaged_exif_is_ignored():
    whole = with_orientation(encoded(".jpg"), 6)
    for damaged in (whole.replace(b"II*\0", b"XX*\0"), whole.replace(b"\x12\x01", b"\x13\x01")):
        assert read_header(damaged).orientation == 1
        assert decode_image(damaged).shape == PICTURE.shape


def exif_chunk(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_after_the_pixels_of_a_png(orientation):
    plain = encoded(".png")
    for place in (33, len(plain) - 12):  # after the header, and after the pixels
        turned = plain[:place] + exif_chunk(orientation) + plain[place:]
        assert read_header(turned).orientation == orientation
        expected = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(decode_image(turned), expected)


def test_exif_of_a_png_that_is_damaged_or_repeated():
    plain = encoded(".png")
    damaged = exif_chunk(6)[:-1] + b"\0"
    for chunks, orientation in ((damaged, 1), (exif_chunk(6) + exif_chunk(3), 6)):
        assert read_header(plain[:-12] + chunks + plain[-12:]).orientation == orientation
    assert read_header(plain + exif_chunk(6)).orientation == 1


NOISE_JPEG = encoded(".jpg", NOISE)
VIDEO = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + np.random.default_rng(1).bytes(50_000)
TRAILERS = {
    "motion photo of Google": VIDEO,
    "motion photo of Samsung": b"\0\0\x30\x0aMotionPhoto_Data" + VIDEO + b"SEFHSEFT",
    "zeros": bytes(4096),
    "padding": b"\xff" * 512,
    "second JPEG": encoded(".jpg", NOISE[::-1]),
    "second JPEG, cut": encoded(".jpg", NOISE[::-1])[:-900],
    "PNG": encoded(".png", NOISE),
    "text": b"\r\n--boundary--\r\n",
    "marker": b"\xff\xda\xff\xd8",
}


@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
@pytest.mark.parametrize("progressive", [False, True])
def test_what_follows_a_whole_jpeg_is_ignored(trailer, progressive):
    whole = saved("JPEG", NOISE, progressive=progressive)
    np.testing.assert_array_equal(decode_image(whole + trailer), decode_image(whole))
    assert image_end(whole + trailer) == len(whole)
    for cut in (2, 3, 100, len(whole) // 2):
        with pytest.raises(ValueError, match="truncated"):
            decode_image(whole[:-cut] + trailer)


@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
def test_what_follows_a_whole_png_is_ignored(trailer):
    whole = encoded(".png", NOISE)
    np.testing.assert_array_equal(decode_image(whole + trailer), NOISE)
    assert image_end(whole + trailer) == len(whole)
    for cut in (1, 12, 1000):
        with pytest.raises(ValueError, match=r"truncated|checksum"):
            decode_image(whole[:-cut] + trailer)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM"])
def test_other_formats_with_data_behind_them(format):
    whole = saved(format, NOISE)
    expected = decode_image(whole)
    np.testing.assert_array_equal(decode_image(whole + bytes(1000)), expected)
    for cut in (50, len(whole) // 2):
        with pytest.raises(ValueError, match=r"truncated|cannot be decoded"):
            decode_image(whole[:-cut])


def test_first_image_of_an_mpo_is_read():
    first, second = (PIL.Image.fromarray(p) for p in (PICTURE, PICTURE[::-1]))
    file = io.BytesIO()
    first.save(file, "MPO", save_all=True, append_images=[second])
    assert np.abs(quarters(decode_image(file.getvalue())) - COLORS).max() <= 12


GRAY = PICTURE[..., 0]


@pytest.mark.parametrize(
    ("picture", "format", "expected"),
    [
        (GRAY, "TIFF", GRAY),
        (GRAY, "PPM", GRAY),
        (GRAY.astype(np.uint16) * 257, "TIFF", GRAY),
        (GRAY.astype(np.uint16) * 257, "PPM", GRAY),
        (GRAY > 100, "TIFF", np.where(GRAY > 100, 255, 0)),
    ],
    ids=["gray TIFF", "gray PGM", "16-bit TIFF", "16-bit PGM", "bilevel TIFF"],
)
def test_gray_images_come_out_as_rgb(picture, format, expected):
    pixels = decode_image(saved(format, picture))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected[..., None].repeat(3, axis=2))


def test_palette_with_transparency_is_read():
    for format in ("GIF", "PNG"):
        image = PIL.Image.fromarray(PICTURE).quantize(16)
        file = io.BytesIO()
        transparency = bytes(16) if format == "PNG" else 0
        image.save(file, format, transparency=transparency)
        assert np.abs(quarters(decode_image(file.getvalue())) - COLORS).max() <= 12


def test_float_images_are_refused():
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
def test_files_of_other_kinds_are_named(tmp_path, content, message):
    path = tmp_path / "IMG_1.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_image(path)


def test_content_counts_and_not_the_suffix(tmp_path):
    for format in ALL_FORMATS:
        path = tmp_path / "wrong.jpg"
        path.write_bytes(saved(format))
        assert read_image(path).shape == PICTURE.shape


@pytest.mark.parametrize(("width", "is_read"), [(1 << 14, True), ((1 << 14) + 1, False)])
def test_pictures_that_claim_to_be_huge_never_reach_the_decoder(
    tmp_path, monkeypatch, width, is_read
):
    path = tmp_path / "huge.jpg"
    jpeg = bytearray(encoded(".jpg"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", MAX_PIXELS >> 14, width)
    path.write_bytes(jpeg)
    asked = []
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: asked.append(arguments))
    with pytest.raises(InputError, match="decoded" if is_read else r"claims 16385 x 16384 pixels"):
        read_image(path)
    assert bool(asked) == is_read


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(InputError, match="Is a directory"):
        read_image(tmp_path)
