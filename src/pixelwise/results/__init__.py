"""The forms a result can take; `pixelwise.result` is the result itself."""
