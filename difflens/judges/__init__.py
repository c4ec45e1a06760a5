"""Judges, which read attributes off images, and the networks that describe images for the metrics."""
