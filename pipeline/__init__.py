"""Preparation: an Apache Beam pipeline that turns corpora into a dataset of WebDataset tars."""
