"""The image reader: every kind of file gives the same pixels, and bad files one clear error."""

import io

import numpy as np
import PIL
import pytest
from PIL import Image

from pixelwise.data.images import image_size, list_images, read_image, read_label, scale_to_8_bit
from pixelwise.errors import DataError

RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
GREY = RGB[..., 0]


def saved(tmp_path, array, name="x.png", mode=None, **options):
    path = tmp_path / name
    (array if isinstance(array, Image.Image) else Image.fromarray(array, mode)).save(
        path, **options
    )
    return path


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.bmp", "x.webp"])
def test_lossless_formats(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    assert (read_image(saved(tmp_path, RGB, name, **options)) == RGB).all()


def test_jpeg_is_close(tmp_path):
    smooth = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 2, (32, 1, 3))
    assert (
        np.abs(read_image(saved(tmp_path, smooth, "x.jpg", quality=95)).astype(int) - smooth).max()
        < 6
    )


def test_grey_is_repeated_and_colour_becomes_grey(tmp_path):
    grey = saved(tmp_path, GREY)
    assert (read_image(grey) == GREY[..., None]).all()
    assert read_image(grey).shape == (4, 6, 3)
    assert read_image(grey, channels=1).shape == (4, 6, 1)
    colour = read_image(saved(tmp_path, RGB, "rgb.png"), channels=1)
    assert (colour[..., 0] == np.asarray(Image.fromarray(RGB).convert("L"))).all()


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("RGBA", "x.png"),
        ("LA", "x.png"),
        ("P", "x.png"),
        ("1", "x.png"),
        ("CMYK", "x.tif"),
        pytest.param(
            "YCbCr",
            "x.tif",
            marks=pytest.mark.skipif(
                int(PIL.__version__.split(".")[0]) < 13,
                reason="Pillow before 13 cannot read the YCbCr files that it writes",
            ),
        ),
    ],
)
def test_modes_become_rgb(tmp_path, mode, name):
    source = Image.fromarray(RGB).convert(mode)
    pixels = read_image(saved(tmp_path, source, name))
    assert pixels.shape == (4, 6, 3)
    assert pixels.dtype == np.uint8
    expected = np.asarray(source.convert("RGB"))
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_alpha_is_dropped_not_composited(tmp_path):
    rgba = np.dstack([RGB, np.zeros((4, 6), np.uint8)])
    path = saved(tmp_path, rgba)
    assert (read_image(path) == RGB).all()
    assert (read_image(path, channels=4) == rgba).all()


def test_transparent_palette_keeps_its_colours(tmp_path):
    image = Image.fromarray(GREY // 60).copy()
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    path = saved(tmp_path, image, transparency=1)
    assert (read_image(path)[GREY // 60 == 1] == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("values", "expected", "why"),
    [
        ([0, 65535], [0, 255], "16 bits"),
        ([0, 4095], [0, 255], "a 12-bit camera"),
        ([0, 2048, 4095], [0, 128, 255], "the middle of 12 bits"),
        ([0, 200], [0, 200], "8 bits saved as 16"),
        ([100, 900], [25, 224], "10 bits; no stretching of the lower end"),
    ],
)
def test_sixteen_bit_grey(tmp_path, values, expected, why):
    row = np.array([values], np.uint16)
    for name in ("x.png", "x.tif"):
        pixels = read_image(saved(tmp_path, row, name))
        assert pixels[0, :, 0].tolist() == expected, why


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0.0, 0.5, 1.0], np.float32), [0, 128, 255]),
        (np.array([0.0, 77.0, 255.0], np.float32), [0, 77, 255]),
        (np.array([-10.0, 0.0, 10.0], np.float32), [0, 128, 255]),
        (np.array([0.0, np.nan, 1.0], np.float32), [0, 0, 255]),
        (np.array([True, False]), [255, 0]),
        (np.array([-5, 5, 250], np.int32), [0, 10, 255]),
    ],
)
def test_scaling_rules(values, expected):
    assert scale_to_8_bit(values).tolist() == expected


def test_float_tiff(tmp_path):
    path = saved(tmp_path, np.array([[0.0, 0.25, 1.0]], np.float32), "x.tif")
    assert read_image(path)[0, :, 0].tolist() == [0, 64, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    tall = np.zeros((16, 32, 3), np.uint8)
    tall[:8, :16] = 255  # a bright corner that must end up where a viewer shows it
    path = saved(tmp_path, tall, "x.jpg", exif=exif, quality=95)
    pixels = read_image(path)
    assert image_size(path) == pixels.shape[:2] == ((32, 16) if orientation >= 5 else (16, 32))
    corner = {
        1: (0, 0),
        2: (0, -1),
        3: (-1, -1),
        4: (-1, 0),
        5: (0, 0),
        6: (0, -1),
        7: (-1, -1),
        8: (-1, 0),
    }
    assert pixels[corner[orientation]].min() > 200
    assert pixels.mean() < 80


def test_bytes_and_open_files(tmp_path):
    path = saved(tmp_path, RGB)
    assert (read_image(path.read_bytes()) == RGB).all()
    with path.open("rb") as file:
        assert (read_image(file) == RGB).all()
    assert (read_image(io.BytesIO(path.read_bytes())) == RGB).all()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_many_channels(tmp_path, first, dtype):
    tifffile = pytest.importorskip("tifffile")
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(0, top, (7, 9, 5), endpoint=True).astype(dtype)
    pixels[0, 0, 0] = top
    stored = np.moveaxis(pixels, -1, 0) if first else pixels
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, stored, photometric="minisblack")
    read = read_image(path, channels=5)
    assert read.shape == (7, 9, 5)
    assert np.abs(read - pixels.astype(float) * 255 / top).max() <= 0.5


def test_wrong_number_of_channels_names_the_shape(tmp_path):
    pytest.importorskip("tifffile")
    path = saved(tmp_path, RGB, "x.tif")
    with pytest.raises(DataError, match=r"x\.tif: 5 channels .* \(4, 6, 3\)"):
        read_image(path, channels=5)


def bad_files(tmp_path):
    whole = saved(
        tmp_path, np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8), "ok.jpg"
    )
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:900])
    png = saved(
        tmp_path, np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8), "ok.png"
    )
    (tmp_path / "cut.png").write_bytes(png.read_bytes()[:3000])
    (tmp_path / "text.jpg").write_text("I am no picture")
    (tmp_path / "zero.png").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "noise.png").write_bytes(bytes(range(200, 256)) * 9)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut.jpg", "cut off or damaged.*again"),
        ("cut.png", "cut off or damaged.*again"),
        ("text.jpg", "not a picture .*text.*save it again"),
        ("zero.png", "empty .0 bytes.*again"),
        ("folder.jpg", "a folder where a picture was expected"),
        ("missing.png", "no such file; check"),
        ("noise.png", "not a picture"),
        ("a\0b.png", "cannot be opened"),
    ],
)
def test_bad_files_name_the_file_and_the_next_step(tmp_path, name, words):
    bad_files(tmp_path)
    for reader in (read_image, read_label):
        with pytest.raises(DataError, match=f"(?s){words}") as caught:
            reader(tmp_path / name)
        assert name in str(caught.value)


def test_decompression_limit(tmp_path, monkeypatch):
    path = saved(tmp_path, np.zeros((40, 50), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    for reader in (read_image, image_size):
        with pytest.raises(
            DataError, match=r"x\.png: the picture is too large.*PIXELWISE_MAX_PIXELS"
        ):
            reader(path)
    monkeypatch.setenv("PIXELWISE_MAX_PIXELS", "2000")
    assert read_image(path).shape == (40, 50, 3)


def test_labels_keep_their_stored_values(tmp_path):
    values = np.array([[0, 1, 254, 255]], np.uint8)
    index = Image.fromarray(values)
    index.putpalette([7, 8, 9] * 256)
    assert (read_label(saved(tmp_path, index, "p.png")) == values).all()
    assert (read_label(saved(tmp_path, values, "l.png")) == values).all()
    wide = np.array([[0, 300, 65535]], np.uint16)
    assert read_label(saved(tmp_path, wide, "i.png")).tolist() == wide.tolist()
    assert (read_label(saved(tmp_path, RGB, "rgb.png")) == RGB).all()
    assert read_label(saved(tmp_path, values > 1, "one.png")).tolist() == [[0, 0, 1, 1]]


def test_signed_labels(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.array([[-1, 0, 700]], np.int16))
    assert read_label(path).tolist() == [[-1, 0, 700]]


def test_listing_is_sorted_and_leaves_out_what_is_no_picture(tmp_path):
    for name in ("b/2.PNG", "a.jpg", "b/1.tif", ".hidden.png", ".git/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in list_images(tmp_path)] == [
        "a.jpg",
        "b/1.tif",
        "b/2.PNG",
    ]
