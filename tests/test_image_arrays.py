"""Conversion of arrays and PIL images to RGB bytes."""

import array
import io

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lcgcn_jax.errors import InputError
from lcgcn_jax.image_arrays import rgb_crops, rgb_image
from lcgcn_jax.image_io import read_image

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (20, 30, 1), dtype=np.uint8)
GRAY = IMAGE[..., 0]
GRAY_AS_RGB = np.repeat(GRAY[..., None], 3, axis=2)
READ_ONLY = IMAGE.copy()
READ_ONLY.setflags(write=False)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (IMAGE, IMAGE),
        (READ_ONLY, IMAGE),
        (np.asfortranarray(IMAGE), IMAGE),
        (np.ascontiguousarray(IMAGE[:, ::-1])[:, ::-1], IMAGE),
        (np.repeat(IMAGE, 2, axis=1)[:, ::2], IMAGE),
        (IMAGE.astype(np.int32), IMAGE),
        (IMAGE.astype(">i8"), IMAGE),
        (IMAGE.astype(np.uint32), IMAGE),
        (IMAGE.tolist(), IMAGE),
        (memoryview(IMAGE), IMAGE),
        (jnp.asarray(IMAGE), IMAGE),
        (np.ma.masked_array(IMAGE), IMAGE),
        (IMAGE[:1, :1], IMAGE[:1, :1]),
        (IMAGE[:3, :], IMAGE[:3, :]),
        (GRAY, GRAY_AS_RGB),
        (GRAY[..., None], GRAY_AS_RGB),
        (np.concatenate([IMAGE, ALPHA], axis=2), IMAGE),
        (np.zeros((4, 5, 3), np.int64), np.zeros((4, 5, 3), np.uint8)),
    ],
)
def test_unambiguous_array_becomes_rgb_bytes(source, expected):
    image = rgb_image(source)
    np.testing.assert_array_equal(image, expected)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "None; give .*cv2.imread returns None"),
        (IMAGE.astype(np.uint16), r"uint16 array \[20 30 3\] with values 0 to 255; .*image.astype"),
        (IMAGE.astype(np.uint16) * 257, r"values 0 to 65535; .*\(image >> 8\).astype\(np.uint8\)"),
        (IMAGE.astype(">u2"), "uint16"),
        (IMAGE.astype(np.int16) - 1, "int16 .* with values -1 to 254"),
        (IMAGE.astype(np.int64) * 2, "int64 .* with values 0 to 510"),
        (IMAGE.astype(np.int8), "int8"),
        (IMAGE / 255, r"float64 .* with values 0 to 1; .*\(255 \* image\).round\(\).astype"),
        (IMAGE.astype(np.float32), r"float32 .* with values 0 to 255; .*image.round\(\).clip"),
        (np.full((4, 4, 3), np.nan), "float64 .* nan"),
        (IMAGE.astype(np.float16), "float16"),
        (jnp.asarray(IMAGE, jnp.bfloat16), "bfloat16"),
        (IMAGE.astype(complex), "complex128"),
        (IMAGE > 100, "bool"),
        (IMAGE.astype(object), "object"),
        (IMAGE.astype(str), "str"),
        (np.moveaxis(IMAGE, 2, 0), r"uint8 array \[3 20 30\] has its channels first; .*moveaxis"),
        (GRAY[None], "channels first"),
        (IMAGE[None], r"\[1 20 30 3\] is more than one image; .*predict_batch"),
        ([IMAGE, IMAGE], "more than one image"),
        ([IMAGE, IMAGE[:10]], "list cannot become an array"),
        (["a.jpg", "b.jpg"], "a.jpg"),
        (IMAGE[..., :2], r"\[20 30 2\] is not an image"),
        (np.zeros((7, 5, 6), np.uint8), r"\[7 5 6\] is not an image"),
        (IMAGE[0, 0], r"\[3\] is not an image"),
        (np.uint8(3), "is not an image"),
        (IMAGE[:0], r"\[0 30 3\] has no pixels"),
        (IMAGE[:, :0], r"\[20 0 3\] has no pixels"),
        (np.zeros((0, 0)), "give an RGB uint8"),
        ([], "give an RGB uint8"),
        (5, "5; give"),
        ({"image": IMAGE}, "give an RGB uint8"),
        (b"\xff\xd8\xff", "3 bytes; give a path"),
        (bytearray(b"\xff\xd8"), "2 bytes; give a path"),
        (io.BytesIO(b"\xff\xd8"), r"a file object \(BytesIO\); give a path"),
        (array.array("B", b"abc"), r"uint8 array \[3\]|is not an image"),
        (np.ma.masked_array(IMAGE, mask=IMAGE > 100), "a masked array"),
    ],
)
def test_ambiguous_input_is_rejected_in_one_line(source, message):
    with pytest.raises(InputError, match=f"^image 7: .*{message}") as error:
        rgb_image(source, "image 7")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_unreadable_array_of_another_library_is_named():
    class Tensor:
        def __array__(self, *args, **kwargs):
            raise RuntimeError("call detach()\nfirst")

    with pytest.raises(
        InputError, match=r"image: Tensor cannot become an array: call detach\(\) first"
    ):
        rgb_image(Tensor())


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "PNG"),
        ("RGB", "JPEG"),
        ("RGBA", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("1", "PNG"),
        ("CMYK", "JPEG"),
        ("I;16", "PNG"),
        ("I;16", "TIFF"),
    ],
)
def test_pil_image_equals_its_file(tmp_path, mode, kind):
    if mode == "I;16":
        image = Image.fromarray(GRAY.astype(np.uint16) * 251 + 3)
    elif mode == "RGBA":
        image = Image.fromarray(np.concatenate([IMAGE, ALPHA], axis=2))
    elif mode == "LA":
        image = Image.fromarray(np.stack([GRAY, ALPHA[..., 0]], axis=2))
    else:
        image = Image.fromarray(IMAGE).convert(mode)
    assert image.mode == mode
    path = tmp_path / f"image.{kind.lower()}"
    path.write_bytes(encode(image, kind))
    with Image.open(path) as opened:
        pixels = rgb_image(opened)
    # Pillow and OpenCV round the conversion from CMYK differently.
    tolerance = 1 if mode == "CMYK" else 0
    np.testing.assert_allclose(pixels.astype(int), read_image(path), atol=tolerance)
    if kind == "PNG":
        np.testing.assert_array_equal(rgb_image(image), pixels)


def test_transparent_colors_equal_those_of_the_file(tmp_path):
    palette = Image.fromarray(IMAGE).convert("P")
    path = tmp_path / "palette.png"
    path.write_bytes(encode(palette, "PNG", transparency=0))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(rgb_image(opened), read_image(path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_pil_image_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image.jpg"
    path.write_bytes(encode(Image.fromarray(IMAGE), "JPEG", exif=exif))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(rgb_image(opened), read_image(path))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pil_image_of_32_bits_is_checked_as_an_array(mode):
    image = Image.fromarray(GRAY).convert(mode)
    if mode == "I":
        np.testing.assert_array_equal(rgb_image(image), GRAY_AS_RGB)
        image = image.point(lambda value: value * 2)
    with pytest.raises(InputError, match=r"^photo: (float32|int32) .*with values"):
        rgb_image(image, "photo")


def test_truncated_pil_image_is_rejected_in_one_line():
    encoded = encode(Image.fromarray(np.tile(IMAGE, (9, 9, 1))), "PNG")
    with pytest.raises(InputError, match=r"^image: PIL image of mode RGB cannot be decoded: "):
        rgb_image(Image.open(io.BytesIO(encoded[: len(encoded) // 2])))


CROPS = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CROPS, CROPS),
        (list(CROPS), CROPS),
        (tuple(CROPS), CROPS),
        (CROPS.astype(np.int64), CROPS),
        (CROPS[..., 0], np.repeat(CROPS[..., :1], 3, axis=3)),
        (CROPS[..., :1], np.repeat(CROPS[..., :1], 3, axis=3)),
        (np.concatenate([CROPS, CROPS[..., :1]], axis=3), CROPS),
        ([Image.fromarray(CROPS[0]), CROPS[1]], CROPS),
        (CROPS[:0], CROPS[:0]),
        ([], CROPS[:0]),
        (np.zeros((0, 5, 5, 3), np.float32), CROPS[:0]),
    ],
)
def test_unambiguous_crops_become_rgb_bytes(source, expected):
    crops = rgb_crops(source, 8)
    np.testing.assert_array_equal(crops, expected)
    assert crops.dtype == np.uint8


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (CROPS[:, :7], r"crops: uint8 array \[2 7 8 3\]; give RGB uint8 crops \[b 8 8 3\]"),
        (CROPS[0], r"is one crop; give .*crops\[None\]"),
        (np.moveaxis(CROPS, 3, 1), r"\[2 3 8 8\]; give"),
        (CROPS / 255, "float64 .* with values"),
        (CROPS.astype(np.uint16), "uint16"),
        ([CROPS[0], CROPS[1][:5]], r"crop 1: uint8 array \[5 8 3\]; give"),
        ([CROPS[0], None], "crop 1: None"),
        (Image.fromarray(CROPS[0]), "one PIL image; give a list"),
        (None, "crops: None"),
        ("faces", "'faces'; give"),
    ],
)
def test_other_crops_are_rejected_in_one_line(source, message):
    with pytest.raises(InputError, match=message) as error:
        rgb_crops(source, 8)
    assert "\n" not in str(error.value)


def test_bgr_of_opencv_is_not_converted():
    """BGR bytes cannot be distinguished from RGB, which the documentation states."""
    np.testing.assert_array_equal(
        rgb_image(cv2.cvtColor(IMAGE, cv2.COLOR_RGB2BGR)), IMAGE[..., ::-1]
    )


def test_pil_image_of_a_16_bit_pgm_equals_its_file(tmp_path):
    path = tmp_path / "a.pgm"
    Image.fromarray(np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10)).save(path)
    np.testing.assert_array_equal(rgb_image(Image.open(path)), read_image(path))
