"""What a training run is made of; `pixelwise.train` puts it together."""
