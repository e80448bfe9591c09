"""120,000 annotated pictures: under 1 GB in the parent, and nothing grows in the workers."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pixelwise.ops import rle

IMAGES, OBJECTS = 120_000, 900_000

CHILD = """
import json, os, sys, resource
import numpy as np
import pixelwise.data as data

def unique_kib():
    with open("/proc/self/smaps_rollup") as file:
        lines = [line.split() for line in file]
    return sum(int(words[1]) for words in lines if words[0] in ("Private_Clean:", "Private_Dirty:"))

def work(rank, found, pipe):
    # Random order, as in training; the first pictures warm up caches and imports.
    order = np.random.default_rng(rank).permutation(len(found))[:STEPS]
    used = []
    total = 0
    for step, i in enumerate(order):
        _, instances = found.annotation(int(i))
        total += len(instances)
        if step in (STEPS // 10, STEPS // 2, STEPS - 1):
            used.append(unique_kib())
    os.write(pipe, (json.dumps([used, total]) + "\\n").encode())

STEPS = int(sys.argv[2])
found = data.open(sys.argv[1], images=os.path.dirname(sys.argv[1])).as_instances()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read, write = os.pipe()
for rank in range(2):
    if os.fork() == 0:
        work(rank, found, write)
        os._exit(0)
for _ in range(2):
    os.wait()
lines = os.read(read, 1 << 16).decode().splitlines()
print(json.dumps({
    "peak_mb": peak / 1024,
    "packed_mb": found.sources[0].packed.nbytes / 2**20,
    "images": len(found),
    "objects": len(found.sources[0].packed),
    "workers": [json.loads(line) for line in lines],
}))
"""


def shapes(count=2000):
    """Polygons of 20 corners with two decimals, and some run lengths, as json, with their boxes."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    found = []
    for n in range(count):
        x, y, r = rng.integers(40, 400), rng.integers(40, 400), rng.integers(4, 40)
        points = np.stack([x + r * np.cos(angles), y + r * np.sin(angles)], axis=1).round(2)
        shape = [points.reshape(-1).tolist()]
        if n % 25 == 0:
            shape = rle.to_coco(rle.from_polygons([shape], (480, 640)))[0]
        box = [int(x - r), int(y - r), int(2 * r), int(2 * r)]
        found.append(f'"bbox": {json.dumps(box)}, "segmentation": {json.dumps(shape)}}}')
    return found


def write_index(path):
    """A json as large as COCO's: 96 in 100 objects are polygons, the others run lengths."""
    rng = np.random.default_rng(0)
    pool = shapes()
    image, category = rng.integers(IMAGES, size=OBJECTS), rng.integers(80, size=OBJECTS)
    with path.open("w") as file:
        file.write('{"info": {}, "images": [')
        rest = '"height": 480, "width": 640}'
        file.write(
            ",".join(
                f'{{"id": {i * 3 + 1}, "file_name": "{i:012d}.jpg", {rest}' for i in range(IMAGES)
            )
        )
        file.write('], "annotations": [')
        for a in range(OBJECTS):
            comma = "," if a else ""
            file.write(
                f'{comma}{{"id": {a + 1}, "image_id": {image[a] * 3 + 1}, "iscrowd": 0, '
                f'"category_id": {category[a] + 1}, "area": 77.5, {pool[a % len(pool)]}'
            )
        categories = [{"id": k + 1, "name": f"class {k}"} for k in range(80)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_index_as_large_as_coco(tmp_path, record_property):
    path = tmp_path / "instances_train.json"
    write_index(path)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), "4000"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    for key in ("peak_mb", "packed_mb", "workers"):
        record_property(key, found[key])
    print(f"json {path.stat().st_size / 2**20:.0f} MB, {found}")
    assert (found["images"], found["objects"]) == (IMAGES, OBJECTS)
    assert found["peak_mb"] < 1024
    for used, _ in found["workers"]:
        assert (
            used[-1] - used[0] < 8 * 1024
        )  # KiB; one object per annotation would be hundreds of MB
