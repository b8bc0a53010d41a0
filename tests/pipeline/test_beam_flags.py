"""Flags that nobody knows do not start a build."""

import pytest

from pipeline.beam_flags import check_flags


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--runner=FnApiRunner",),
        ("--runner", "FnApiRunner"),
        ("--direct_running_mode=in_memory", "--direct_num_workers=3"),
        ("--temp_location=/tmp/x",),
    ],
)
def test_flags_of_beam_pass(flags):
    check_flags(flags)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--dryrun",
            "--dryrun: neither an option of this command nor of Beam; did you mean --dry-run?",
        ),
        ("--direct_num_worker=3", "; did you mean --direct_num_workers?"),
        ("--zzzzqqqq", "--zzzzqqqq: neither an option of this command nor of Beam"),
    ],
)
def test_other_flags_are_refused(flag, message):
    with pytest.raises(ValueError, match="neither") as error:
        check_flags((flag,))
    assert message in str(error.value)
