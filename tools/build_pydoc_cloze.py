"""Build the items of the local lm-eval task ``pydoc_cloze`` from the held-out split of ``pydoc``.

    python -m tools.build_pydoc_cloze

An item is the beginning of a held-out paragraph and four ways to go on: its own next words, and words from the
middle of three other held-out paragraphs. The four are as many words and about as common ones: were commonness left to
chance, a small model would choose the commonest words whatever the context says, and nothing else would be measured.
"""

import argparse
import json
import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from calibration.paragraphs import normalised, paragraphs
from calibration.pydoc import pydoc_corpus
from core.files import write_text

OUTPUT = Path(__file__).resolve().parent.parent / "evaluation" / "tasks" / "pydoc_cloze" / "items.jsonl"
FEWEST_WORDS = 20
CONTEXT_WORDS = (10, 40)  # at least, at most, before the continuation
CONTINUATION_WORDS = 3
PROSE = 0.9  # letters and blanks among the characters: leaves out grammar, tables and code
NEIGHBOURS = 16  # distractors are drawn among so many continuations that are nearest in rarity
UNSEEN = 0.3  # added to every word's count


@dataclass(frozen=True)
class Passage:
    """A paragraph cut in two at a word."""

    context: str
    continuation: str


def is_prose(paragraph: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return len(paragraph.split()) >= FEWEST_WORDS and letters / len(paragraph) >= PROSE and ">>>" not in paragraph


def passage(paragraph: str, rng: random.Random) -> Passage:
    """Cut at a random word that leaves enough on both sides."""
    words = paragraph.split()
    cut = rng.randint(CONTEXT_WORDS[0], len(words) - CONTINUATION_WORDS)
    context = words[max(0, cut - CONTEXT_WORDS[1]) : cut]
    return Passage(" ".join(context), " ".join(words[cut : cut + CONTINUATION_WORDS]))


def rarity(continuation: str, counts: Counter[str]) -> float:
    """Sum of -ln(frequency) of its words, in nats; frequencies are those of the calibration split."""
    total = counts.total()
    return -math.fsum(math.log((counts[word] + UNSEEN) / total) for word in continuation.split())


def items(passages: list[Passage], counts: Counter[str], number: int, rng: random.Random) -> list[dict[str, object]]:
    """``number`` four-way items with the right answer at a random place."""
    ranked = sorted(passages, key=lambda item: (rarity(item.continuation, counts), item.continuation))
    rank = {item: index for index, item in enumerate(ranked)}
    made: list[dict[str, object]] = []
    for item in rng.sample(passages, number):
        first = min(max(0, rank[item] - NEIGHBOURS // 2), len(ranked) - NEIGHBOURS)
        near = {other.continuation for other in ranked[first : first + NEIGHBOURS]}
        choices = rng.sample(sorted(near - {item.continuation}), 3)
        answer = rng.randrange(4)
        choices.insert(answer, item.continuation)
        made.append({"context": item.context, "choices": choices, "answer": answer})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--items", type=int, default=240, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of cuts, distractors and order (%(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON lines file (%(default)s)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    corpus = pydoc_corpus()
    texts = [normalised(text) for document in corpus.evaluation for text in paragraphs(document)]
    passages = [passage(text, rng) for text in texts if is_prose(text)]
    counts = Counter(word for document in corpus.calibration for word in document.split())
    made = items(passages, counts, options.items, rng)
    write_text(options.output, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in made))
    print(f"{len(made)} items from {len(passages)} passages of the {corpus.source}: {options.output}")


if __name__ == "__main__":
    main()
