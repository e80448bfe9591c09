"""What prediction is made of; `pixelwise.predict` puts it together."""
