"""Exit codes tell what another start may mend."""

import errno

import pytest

from configs import command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("a is 3; it must be 4"), 2),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), 2),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (OSError("s3://a/b: not read for 300 s: 503"), 1),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), 1),
        (TimeoutError("no answer"), 1),
    ],
)
def test_a_fault_that_may_pass_has_another_code_than_a_mistake(error, code, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        command.run(main, who="rank 1: ")
    assert ended.value.code == code
    assert capsys.readouterr().err == f"rank 1: error: {error}\n"
