"""Preparation: an Apache Beam pipeline that turns corpora into a dataset of WebDataset tars."""

import logging

# Beam warns at its import of a Google library that nothing here needs
logging.getLogger().addFilter(lambda record: "apitools not found" not in record.getMessage())
