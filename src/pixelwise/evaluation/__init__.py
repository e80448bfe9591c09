"""What an evaluation is made of; `pixelwise.evaluate` and `pixelwise.report` put it together."""
