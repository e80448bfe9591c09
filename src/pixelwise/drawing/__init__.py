"""Colours and labels of pictures; `pixelwise.visualize` draws them."""
