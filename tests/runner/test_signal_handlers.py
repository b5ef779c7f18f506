"""Signal handlers of a process: whom they leave alone."""

from __future__ import annotations

import signal

from fsa_cli.runner.signal_handlers import handling


def test_nohup_keeps_a_process_from_the_end_of_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handling(lambda number, frame: None, signal.SIGHUP):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
