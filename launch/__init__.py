"""Puts a training config on machines: this one, hosts over ssh, SLURM, Kubernetes.

Render, show, submit: what `--submit` sends is exactly what is shown without it.
"""
