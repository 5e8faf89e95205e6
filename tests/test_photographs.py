import struct

import cv2
import numpy as np
import PIL.Image
import pytest

from lcgcn_jax.detection import quiet_opencv
from lcgcn_jax.errors import InputError
from lcgcn_jax.photographs import MAX_PIXELS, claimed_size, read_photograph

# 24 x 32, its quarters red, green, blue and yellow, in RGB.
COLOURS = np.array([[[230, 20, 20], [20, 230, 20]], [[20, 20, 230], [230, 230, 20]]], np.uint8)
PICTURE = COLOURS.repeat(12, axis=0).repeat(16, axis=1)


def encoded(suffix, picture=PICTURE):
    return cv2.imencode(suffix, picture[..., ::-1])[1].tobytes()


def quarters(picture):
    """The colours in the middle of the four quarters."""
    h, w = picture.shape[:2]
    return picture[h // 4 :: h // 2, w // 4 :: w // 2].astype(int)


def with_orientation(jpeg, orientation):
    """Puts an APP1 segment with an EXIF orientation behind the JPEG's start marker."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    payload = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_colours_come_out_as_rgb(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encoded(suffix))
    picture = read_photograph(path)
    assert picture.shape == PICTURE.shape
    assert np.abs(quarters(picture) - COLOURS).max() <= (0 if suffix == ".png" else 6)


@pytest.mark.parametrize(
    "stored",
    [
        PICTURE[..., :1],
        np.concatenate([PICTURE, np.full_like(PICTURE[..., :1], 99)], axis=2),
        PICTURE.astype(np.uint16) * 257,
    ],
    ids=["grey", "with alpha", "16 bit"],
)
def test_other_pngs_come_out_as_three_channels_of_8_bits(tmp_path, stored):
    path = tmp_path / "picture.png"
    # OpenCV wants BGR(A).
    assert cv2.imwrite(
        path, stored[..., [2, 1, 0, 3][: stored.shape[2]]] if stored.shape[2] > 1 else stored
    )
    picture = read_photograph(path)
    assert picture.dtype == np.uint8
    expected = PICTURE[..., :1].repeat(3, axis=2) if stored.shape[2] == 1 else PICTURE
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, COLOURS),
        (2, COLOURS[:, ::-1]),
        (3, COLOURS[::-1, ::-1]),
        (6, np.rot90(COLOURS, -1)),
        (8, np.rot90(COLOURS)),
    ],
)
def test_exif_orientation_is_followed(tmp_path, orientation, turned):
    path = tmp_path / "turned.jpg"
    path.write_bytes(with_orientation(encoded(".jpg"), orientation))
    picture = read_photograph(path)
    assert picture.shape[:2] == ((24, 32) if orientation < 5 else (32, 24))
    assert np.abs(quarters(picture) - turned).max() <= 6


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_orientation_of_other_formats_is_followed(tmp_path, suffix):
    path = tmp_path / f"turned{suffix}"
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(PICTURE).save(path, exif=exif)
    picture = read_photograph(path)
    assert picture.shape == (32, 24, 3)
    assert np.abs(quarters(picture) - np.rot90(COLOURS, -1)).max() <= 12


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_print_colours_come_out_as_rgb(tmp_path, suffix):
    path = tmp_path / f"print{suffix}"
    PIL.Image.fromarray(PICTURE).convert("CMYK").save(path)
    picture = read_photograph(path)
    assert picture.shape == PICTURE.shape
    assert np.abs(quarters(picture) - COLOURS).max() <= 12


@pytest.mark.parametrize("suffix", [".tif", ".webp", ".bmp", ".gif"])
def test_other_formats_that_end_early_are_refused(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    PIL.Image.fromarray(NOISE).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with quiet_opencv(), pytest.raises(InputError, match="cannot be decoded"):
        read_photograph(path)


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
        read_photograph(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif"])
def test_the_size_that_a_header_claims(suffix):
    picture = encoded(suffix)
    assert claimed_size(picture) == (32, 24)
    if suffix == ".jpg":
        # Behind a segment that holds a thumbnail, and with bytes that fill up before a marker.
        turned = with_orientation(picture, 6)
        thumbnail = b"\xff\xe2" + struct.pack(">H", len(picture) + 2) + encoded(suffix)
        assert claimed_size(turned[:2] + thumbnail + b"\xff\xff" + turned[2:]) == (32, 24)
    for end in range(len(picture)):
        assert claimed_size(picture[:end]) in (None, (32, 24))


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".webp", ".ppm"])
def test_headers_of_other_formats_are_left_to_the_decoder(suffix):
    assert claimed_size(encoded(suffix)) is None


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
        read_photograph(path)
    assert bool(asked) == is_read


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(InputError, match="Is a directory"):
        read_photograph(tmp_path)
