import os
import signal

import pytest

from clipdg.training import trainer
from clipdg.training.schedules import warmup_cosine


def test_the_rate_warms_up_on_a_line_under_a_cosine() -> None:
    assert warmup_cosine(0, 100, 5) == pytest.approx(1 / 5)
    assert warmup_cosine(50, 100, 5) == pytest.approx(0.5)
    assert warmup_cosine(100, 100, 5) == pytest.approx(0)
    assert warmup_cosine(0, 3, 0) == 1  # no warm-up


def test_an_exit_that_ctrl_c_caused_is_keyboard_interrupt_again() -> None:
    before = signal.getsignal(signal.SIGINT)

    def as_lightning_does() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise SystemExit(1)  # noqa: B904  # the context is what is looked at

    with pytest.raises(KeyboardInterrupt), trainer.quiet():
        as_lightning_does()
    assert signal.getsignal(signal.SIGINT) is before


def test_another_exit_stays_one() -> None:
    with pytest.raises(SystemExit), trainer.quiet():
        raise SystemExit(3)
