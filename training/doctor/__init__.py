"""`python -m training.doctor`: whether an installation and a machine train correctly."""
