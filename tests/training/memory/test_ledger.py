"""The ledger counts what is referred to, and remembers the highest point of each phase."""

from training.memory.ledger import Ledger


def test_buffers_end_with_their_last_reference():
    ledger = Ledger()
    ledger.go_to("forward", "first block")
    kept, passing = ledger.book("activations", 100), ledger.book("logits", 50)
    again = passing
    del passing
    assert ledger.total == 150
    del again
    ledger.go_to("backward", "first block again")
    ledger.visit("gradients", 30)
    assert (ledger.total, kept.num_bytes) == (100, 100)
    assert ledger.peaks["forward"].breakdown == {"activations": 100, "logits": 50}
    assert ledger.peaks["backward"].num_bytes == 130
    assert ledger.peak is ledger.peaks["forward"]
    assert ledger.peak.moment == "first block"
