import io
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import png_utilities
from conftest import make_image
from mask_utilities import cut_out
from png_utilities import encode_png, read_mask


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([3, 4]), st.integers(1, 3000), st.integers(0, 2**32 - 1))
def test_what_is_encoded_comes_back_byte_for_byte(height, width, channels, at_once, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png_utilities, "_AT_ONCE", at_once)
        data = encode_png(image)

    with Image.open(io.BytesIO(data)) as opened:
        assert (opened.format, opened.mode) == ("PNG", {3: "RGB", 4: "RGBA"}[channels])
        np.testing.assert_array_equal(np.asarray(opened), image)
    with Image.open(io.BytesIO(data)) as opened:
        opened.verify()  # the checksums


def test_files_do_not_depend_on_where_memory_lies():
    """ISA-L hashes an address of its own; threads have their memory in different places."""
    rng = np.random.default_rng(0)
    photo = make_image(400, 300)
    pictures = []
    for height, width in rng.integers(8, 160, (500, 2)):
        coarse = rng.random((8, 8)) < 0.5
        mask = np.kron(coarse, np.ones((height // 8 + 1, width // 8 + 1), bool))[:height, :width]
        pictures.append((cut_out(photo[:height, :width], mask), mask))
    together = threading.Barrier(16)  # all alive at once, else they would have the same memory one after the other

    def encode_all(_):
        together.wait()
        return [encode_png(*picture) for picture in pictures]

    with ThreadPoolExecutor(together.parties) as pool:
        files = list(pool.map(encode_all, range(together.parties)))

    assert [sum(other[k] != files[0][k] for other in files) for k in range(len(pictures))] == [0] * len(pictures)


def test_opencv_reads_it_too():
    image = cut_out(make_image(300, 200), None, "transparent")

    decoded = cv2.imdecode(np.frombuffer(encode_png(image), np.uint8), cv2.IMREAD_UNCHANGED)

    np.testing.assert_array_equal(cv2.cvtColor(decoded, cv2.COLOR_BGRA2RGBA), image)


def test_files_are_about_as_large_as_pillows_of_level_1():
    photo = make_image(900, 600)
    rows, columns = np.mgrid[:600, :900]
    image = cut_out(photo, ((rows - 300) / 200) ** 2 + ((columns - 450) / 300) ** 2 < 1)
    pillows = io.BytesIO()
    Image.fromarray(image, "RGBA").save(pillows, "PNG", compress_level=1)

    assert len(encode_png(image)) < 1.1 * len(pillows.getvalue())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_a_mask_of_another_size_travels_with_the_pixels(tmp_path_factory, height, width, seed):
    rng = np.random.default_rng(seed)
    image, mask = rng.integers(0, 256, (9, 7, 4), dtype=np.uint8), rng.random((height, width)) < rng.random()
    path = tmp_path_factory.mktemp("png") / "a.png"
    path.write_bytes(encode_png(image, mask))

    np.testing.assert_array_equal(read_mask(path), mask)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(opened), image)
    np.testing.assert_array_equal(cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA), image)


def test_other_pngs_have_no_mask(tmp_path):
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png") is None


def test_a_mask_costs_little(tmp_path):
    rows, columns = np.mgrid[:1200, :1800]
    mask = ((rows - 600) / 400) ** 2 + ((columns - 900) / 600) ** 2 < 1
    image = np.zeros((1, 1, 3), np.uint8)
    assert len(encode_png(image, mask)) - len(encode_png(image)) < 6000


@pytest.mark.parametrize("flipped", range(40))
def test_a_damaged_mask_is_noticed(tmp_path, flipped):
    data = bytearray(encode_png(np.zeros((4, 4, 3), np.uint8), np.tri(30, dtype=bool)))
    at = data.index(b"maSK") + 4 + flipped
    data[at] ^= 1 << flipped % 8
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match="mask"):
        read_mask(tmp_path / "a.png")


def test_a_mask_that_is_no_deflate_stream_is_noticed(tmp_path):
    body = struct.pack(">II", 8, 8) + b"no deflate stream"
    chunk = struct.pack(">I", len(body)) + b"maSK" + body + struct.pack(">I", zlib.crc32(b"maSK" + body))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(ValueError, match="its mask is damaged"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\x09IHDR"])
def test_what_is_no_png_is_said_to_be_none(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match="PNG"):
        read_mask(tmp_path / "a.png")
