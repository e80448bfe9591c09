"""`data stats`: hand-made counts, and the published table of CamVid."""

import json

import numpy as np
import pytest

from pixelwise import data
from pixelwise.data.stats import measure, median_frequency_weights
from tests.data.made_up import REAL, needs_real_data, write_coco, write_masks, write_yaml


def test_median_frequency_weights_by_hand():
    # Frequencies 0.5, 0.1 and 0.2 where the class occurs; their median is 0.2.
    weights = median_frequency_weights([50, 10, 20, 0], [100, 100, 100, 0])
    assert weights[:3] == pytest.approx([0.4, 2.0, 1.0])
    assert weights[3] is None


def test_counts_of_label_maps(tmp_path):
    labels = np.zeros((24, 32), np.uint8)
    labels[:12] = 1
    labels[0] = 255
    write_masks(tmp_path, labels=labels)
    write_masks(tmp_path, names=("c",), labels=np.zeros((24, 32), np.uint8))
    stats = data.open(write_yaml(tmp_path, "train: images/train\nnames: [x, y, z]\n")).stats(
        quiet=True
    )
    assert stats.images == {"train": 3}
    assert stats.sizes == [(24, 32, 3)]
    assert stats.void_frac == pytest.approx(2 * 32 / (3 * 768))
    x, y, z = stats.classes
    assert (x.pixels, x.images, y.pixels, y.images) == (2 * 384 + 768, 3, 2 * 352, 2)
    assert x.frequency == pytest.approx(1536 / 2240)
    assert (z.pixels, z.images, z.weight, z.objects) == (0, 0, None, None)
    frequency = np.array([1536 / (3 * 768), 704 / (2 * 768)])
    assert stats.weights == pytest.approx([*(np.median(frequency) / frequency), 0.0])


def test_counts_of_objects(tmp_path):
    stats = data.open(write_coco(tmp_path)).stats(quiet=True)
    assert {c.name: c.objects for c in stats.classes} == {"dog": 1, "cat": 2, "background": None}
    assert stats.objects_per_image == {"min": 0, "median": 1, "mean": 1, "max": 2}
    assert stats.object_sizes == {"small": 3, "medium": 0, "large": 0}
    assert stats.classes[0].pixels == 100
    assert json.loads(json.dumps(stats.to_dict()))["images"] == {"train": 3}
    assert "dog" in stats.summary()


def test_mean_and_std_equal_numpy(tmp_path):
    found = data.open(write_coco(tmp_path))
    pixels = np.concatenate([s.image.reshape(-1, 3) for s in found]) / 255
    stats = found.stats(quiet=True)
    assert stats.mean == pytest.approx(pixels.mean(axis=0))
    assert stats.std == pytest.approx(pixels.std(axis=0))


@needs_real_data
@pytest.mark.slow
def test_camvid_equals_the_published_table():
    train = data.open(REAL / "camvid", format="camvid").split("train")
    published = json.loads((REAL / "camvid" / "classes.json").read_text())["classes"]
    stats = measure(train, quiet=True, pixels=False)
    for found, stated in zip(stats.classes, published, strict=True):
        assert found.name == stated["name"]
        assert found.pixels == stated["train_pixels"]
        assert found.images == stated["train_images"]
        assert found.frequency == pytest.approx(stated["train_frequency"], abs=1e-6)
        assert found.weight == pytest.approx(stated["median_frequency_weight"], abs=1e-4)
