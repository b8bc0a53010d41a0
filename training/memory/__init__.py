"""The memory of a run: predicted by formula, traced with fake tensors, probed, and planned for.

`predict` plays one optimizer step of a rank in a ledger of bytes: the model's forward and backward
pass on a tape of sizes (`tape`, `operations`, `layers`, `models/`, `tasks/`), and around it what
DeepSpeed holds (`zero`, `gathering`). `trace` checks the first by fake tensors, `probe` all of it
on a device. `search` ranks the plans that fit by `cost`.
"""
