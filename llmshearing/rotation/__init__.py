"""Rotating a source model into a better basis of its residual stream: pure functions first, one command over them."""
