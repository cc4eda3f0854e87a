import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import png_utilities
from conftest import make_image
from mask_utilities import cut_out
from png_utilities import encode_png


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
