"""Greedy answers to many questions at once, the same as one by one.

Questions of similar length go together, padded on the left under a mask, so that all answers begin in one column.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.evaluate.models import Answer, quiet_libraries

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 4096
"""Tokens of questions and answers in one batch, padding included."""


def answers(
    model: torch.nn.Module,
    tokenizer: Any,
    questions: Sequence[Sequence[int]],
    stop_ids: frozenset[int],
    max_new_tokens: int,
    *,
    batch_tokens: int = BATCH_TOKENS,
    known: Container[int] = (),
    on_rows: Callable[[int], None] | None = None,
) -> Iterator[dict[int, Answer]]:
    """The model's likeliest answers, token by token, to `questions` (their tokens), a batch at a time, by place.

    A question of no tokens is none, and isn't answered.

    Args:
        known: places of questions that were answered before; batches of nothing else are passed over.
        on_rows: called after each batch with the number of answers in it.
    """
    for places in _batches(questions, max_new_tokens, batch_tokens):
        if not all(place in known for place in places):
            asked = [questions[place] for place in places]
            made = _generate(model, asked, stop_ids, max_new_tokens)
            yield {
                place: answer_of(tokenizer, tokens, stop_ids)
                for place, tokens in zip(places, made, strict=True)
            }
        if on_rows:
            on_rows(len(places))


def _batches(
    questions: Sequence[Sequence[int]], max_new_tokens: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Places of questions in order of length; a long one goes alone."""
    batch: list[int] = []
    asked = [place for place, question in enumerate(questions) if question]
    for place in sorted(asked, key=lambda place: len(questions[place])):
        room = (len(questions[place]) + max_new_tokens) * (len(batch) + 1)
        if batch and room > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _generate(
    model: Any, questions: Sequence[Sequence[int]], stop_ids: frozenset[int], max_new_tokens: int
) -> list[list[int]]:
    """The tokens after each question, with those that follow a stop token."""
    import torch

    device = next(model.parameters()).device
    longest = max(map(len, questions))
    ids = torch.full((len(questions), longest), min(stop_ids), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, question in enumerate(questions):
        ids[row, longest - len(question) :] = torch.tensor(list(question))
        mask[row, longest - len(question) :] = 1
    with torch.no_grad(), quiet_libraries():
        made = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            num_beams=1,
            do_sample=False,
            temperature=None,  # the model's own values would be remarked upon
            top_p=None,
            top_k=None,
            use_cache=True,
            eos_token_id=sorted(stop_ids),
            pad_token_id=min(stop_ids),
        )
    tokens: list[list[int]] = made[:, longest:].tolist()
    return tokens


def answer_of(tokenizer: Any, tokens: Sequence[int], stop_ids: frozenset[int]) -> Answer:
    """What was said up to the first stop token, that one included."""
    end = next((place for place, token in enumerate(tokens) if token in stop_ids), None)
    own = tuple(tokens if end is None else tokens[: end + 1])
    text = tokenizer.decode(own, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(text, own, "length" if end is None else "stop")
