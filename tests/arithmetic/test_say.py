"""What a run says on its way stands on lines of its own."""

import pytest

from core.progress import tqdm
from core.say import say


def test_a_line_said_while_a_bar_is_drawn_is_not_glued_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=2, desc="steps", leave=False, mininterval=0) as bar:
        bar.update()
        say("half of it is done")
    shown = capsys.readouterr().err
    assert "half of it is done\n" in shown
    assert shown.split("half of it is done\n")[0].endswith("\r")  # the bar was wiped from this line
    assert "steps:  50%" in shown.split("half of it is done\n")[1]  # and drawn anew below
