import struct

import numpy as np
import pytest

from feature_utilities import FEATURES, FeatureFile, read_features

DIMENSION = 5


def unit(seed):
    features = np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32)
    return features / np.linalg.norm(features)


def append(output, *pairs):
    file = FeatureFile(output)
    for source, seed in pairs:
        file.append(source, unit(seed))
    file.sync()
    file.close()


def of(output, source):
    features, [index] = read_features(output, [source], DIMENSION)
    return None if index < 0 else features[index]


def test_features_come_back_in_half_precision(tmp_path):
    append(tmp_path, ("a.jpg", 1), ("grün/b.jpg", 2))
    np.testing.assert_array_equal(of(tmp_path, "grün/b.jpg"), unit(2).astype(np.float16))
    assert of(tmp_path, "c.jpg") is None
    assert isinstance(read_features(tmp_path, ["a.jpg"], DIMENSION)[0], np.memmap)


def test_the_file_grows_with_each_run_and_the_last_of_a_photo_counts(tmp_path):
    append(tmp_path, ("a.jpg", 1))
    append(tmp_path, ("a.jpg", 2), ("b.jpg", 3))
    np.testing.assert_array_equal(of(tmp_path, "a.jpg"), unit(2).astype(np.float16))
    assert (tmp_path / FEATURES).stat().st_size == 16 + 3 * (16 + 2 * DIMENSION)


def test_the_last_of_a_photo_counts_however_often_it_was_done(tmp_path):
    append(tmp_path, *((source, seed) for seed in range(50) for source in ("a.jpg", "b.jpg", "c.jpg")))
    for source in ("a.jpg", "b.jpg", "c.jpg"):
        np.testing.assert_array_equal(of(tmp_path, source), unit(49).astype(np.float16))


@pytest.mark.parametrize("cut", [1, 13, 25])
def test_a_torn_record_gives_way_to_the_next(tmp_path, cut):
    append(tmp_path, ("a.jpg", 1), ("b.jpg", 2))
    path = tmp_path / FEATURES
    path.write_bytes(path.read_bytes()[:-cut])
    assert of(tmp_path, "b.jpg") is None
    append(tmp_path, ("c.jpg", 3))
    np.testing.assert_array_equal(of(tmp_path, "a.jpg"), unit(1).astype(np.float16))
    np.testing.assert_array_equal(of(tmp_path, "c.jpg"), unit(3).astype(np.float16))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"sam2",
        b"sam2vit1" + bytes(7),
        b"something else entirely, and long",
        b"sam2vit0" + struct.pack("<II", DIMENSION, 0) + bytes(26),
    ],
    ids=["empty", "a torn mark", "a torn head", "another file", "another version"],
)
def test_a_file_of_another_kind_begins_anew(tmp_path, content):
    (tmp_path / FEATURES).write_bytes(content)
    assert of(tmp_path, "a.jpg") is None
    append(tmp_path, ("a.jpg", 1))
    np.testing.assert_array_equal(of(tmp_path, "a.jpg"), unit(1).astype(np.float16))
    assert (tmp_path / FEATURES).read_bytes().startswith(b"sam2vit1")


def test_features_of_another_model_are_none(tmp_path):
    append(tmp_path, ("a.jpg", 1))
    assert read_features(tmp_path, ["a.jpg"], DIMENSION + 1)[1].tolist() == [-1]


def test_without_a_file_no_photo_has_features(tmp_path):
    features, indices = read_features(tmp_path, ["a.jpg", "b.jpg"], DIMENSION)
    assert (features.shape, indices.tolist()) == ((0, DIMENSION), [-1, -1])
