"""What a stranger's template may take: in any thread, and only while it runs."""

from pathlib import Path
from threading import Thread

import pytest
from transformers import AutoTokenizer

from fitness.results import TaskError
from fitness.scoring import encoding
from fitness.scoring.encoding import Encoder
from fitness.scoring.time_limit import TooSlow, within

ZOO = Path(__file__).parent.parent.parent.parent / "experiments" / "zoo"
ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"


def test_a_loop_is_stopped() -> None:
    with pytest.raises(TooSlow), within(0.05):
        while True:
            pass


def test_in_another_thread_too() -> None:
    seen = []

    def work() -> None:
        try:
            with within(0.05):
                while True:
                    pass
        except TooSlow:
            seen.append(True)

    thread = Thread(target=work)
    thread.start()
    thread.join(30)
    assert seen == [True]


def test_what_is_done_in_time_is_left_alone() -> None:
    with within(0.01):
        done = 1
    for _ in range(200_000):  # the time would be over now
        done += 1
    assert done == 200_001


def test_a_chat_template_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "models" / "base")
    tokenizer.chat_template = ENDLESS
    monkeypatch.setattr(encoding, "MOST_SECONDS", 0.2)
    with pytest.raises(
        TaskError, match=r"chat template takes longer than 0\.2 s .* fitness\.apply_chat_template: false"
    ):
        Encoder(tokenizer).apply_chat_template([{"role": "user", "content": "hello"}])


def test_other_errors_of_a_template_keep_their_meaning() -> None:
    """A template that knows no system message is asked without it."""
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "models" / "base")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]
    assert Encoder(tokenizer).apply_chat_template(messages) == "hello"
