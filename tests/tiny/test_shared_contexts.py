"""Answers to one context: scored as if each had been run alone, while the context runs once."""

from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, build

from evaluation.shared_contexts import Shared, scores_of, shared_contexts

# Two contexts of one length and a third of another; answers of one to four tokens. Windows of attention hold 6.
CONTEXTS = [[1, 5, 9, 33, 7, 8, 12, 40, 3], [1, 6, 6, 21, 90, 8, 13, 41, 4], [1, 17, 30]]
ANSWERS = [[11, 12], [50], [7, 7, 7, 61], [23, 4, 9]]
REQUESTS = [(None, context, answer) for answer in ANSWERS for context in CONTEXTS]


def alone(model: Any, context: list[int], answer: list[int]) -> tuple[float, bool]:
    """One forward pass of the whole sequence."""
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([context + answer]), use_cache=False).logits[0].log_softmax(-1)
    predicted = log_p[len(context) - 1 : -1]
    nats = sum(float(row[token]) for row, token in zip(predicted, answer, strict=True))
    return nats, predicted.argmax(-1).tolist() == answer


@pytest.mark.parametrize("batch_size", [1, 5, 16])
@pytest.mark.parametrize("name", CONFIGS)
def test_scored_as_if_alone(name: str, batch_size: int) -> None:
    model = build(name)
    likeliest = model(input_ids=torch.tensor([CONTEXTS[2]]), use_cache=False).logits[0, -1].argmax()
    requests = [*REQUESTS, (None, CONTEXTS[2], [int(likeliest)])]  # one answer that is the likeliest
    found = dict(scores_of(model, shared_contexts(requests, 64), batch_size))
    assert sorted(found) == list(range(len(requests)))
    for place, (_, context, answer) in enumerate(requests):
        nats, hit = alone(model, context, answer)
        assert found[place][0] == pytest.approx(nats, abs=2e-4), place
        assert found[place][1] == hit, place
    assert found[len(requests) - 1][1]


def test_context_runs_once_and_its_tokens_have_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    forward, read, predicted = model.forward, [], []

    def counted(input_ids: torch.Tensor, **options: Any) -> Any:
        output = forward(input_ids=input_ids, **options)
        read.append(input_ids.numel())
        predicted.append(output.logits.shape[:2].numel())
        return output

    monkeypatch.setattr(model, "forward", counted)
    dict(scores_of(model, shared_contexts(REQUESTS, 64), 16))
    # The two of 9 tokens without their last, then 8 rows of as many as the longest answer has; the third, and 4 rows.
    assert read == [2 * 8, 8 * 4, 2, 4 * 4]
    assert predicted == [2, 8 * 4, 1, 4 * 4]


def test_what_is_left_to_lm_eval() -> None:
    shared = [1, 2, 3]
    requests: list[tuple[Any, list[int], list[int]]] = [
        (None, shared, [4, 5]),
        (None, [1, 2], [4]),  # all answers of one token: lm-eval runs their context once, too
        (None, shared, [6]),
        (None, [1, 2], [5]),
        (None, [9, 9, 9], [4, 5]),  # the only answer to its context
        (None, shared, []),  # refused by lm-eval
        (None, [7], [4, 5]),  # nothing before the last token
        (None, [7], [4, 6]),
        (None, shared, [4, 5, 6]),  # 6 tokens, of which the model reads 5
        (None, shared, [4, 5, 6, 7]),  # must be cut
    ]
    assert shared_contexts(requests, 5) == [Shared((1, 2, 3), {0: [4, 5], 2: [6], 8: [4, 5, 6]})]
