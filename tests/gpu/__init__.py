"""What must be right on a CUDA device: run with `pytest -m gpu tests/gpu`, with `-n 8` if you can.

PIXELWISE_TEST_DEVICE=cpu runs the same tests without a GPU, to try the tests themselves.
"""
