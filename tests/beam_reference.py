"""Beam search over whole sequences, without a cache, with the arrays that `transformers` keeps."""

from __future__ import annotations

import decoder_models
import numpy as np

_LOW = -1e9


def beam_reference(logits_of, count, beams, *, eos=(), length_penalty=1.0, early_stopping=False):
    """Return the tokens and the score of the best continuation.

    Parameters
    ----------
    logits_of : callable
        Function of the tokens after the prompt (a list) to the logits after them.
    count : int
        Tokens at most.
    """
    kept = max(2, 1 + len(eos)) * beams
    running, scores = [[] for _ in range(beams)], np.array([0.0] + [_LOW] * (beams - 1))
    done, done_scores = [[] for _ in range(beams)], np.full(beams, _LOW)
    is_done, is_open = np.zeros(beams, bool), True
    for length in range(1, count + 1):
        logits = np.stack([logits_of(each) for each in running]).astype(np.float64)
        highest = logits.max(axis=1, keepdims=True)
        sums = np.log(np.exp(logits - highest).sum(axis=1, keepdims=True)) + highest
        totals = (logits - sums + scores[:, None]).ravel()
        top = np.argsort(-totals, kind="stable")[:kept]
        tokens = [[*running[i // logits.shape[1]], int(i % logits.shape[1])] for i in top]
        top_scores = totals[top]
        ends = np.array([each[-1] in eos or length == count for each in tokens])
        order = np.argsort(-(top_scores + ends * _LOW), kind="stable")[:beams]
        running, scores = [tokens[i] for i in order], (top_scores + ends * _LOW)[order]
        new = top_scores / length**length_penalty
        new += (is_done.all() and early_stopping is True) * _LOW + (not is_open) * _LOW
        counts = ends & (np.arange(kept) < beams)
        new += ~counts * _LOW
        merged = np.concatenate([done_scores, new])
        best = np.argsort(-merged, kind="stable")[:beams]
        done = [[*done, *tokens][i] for i in best]
        done_scores, is_done = merged[best], np.concatenate([is_done, counts])[best]
        hoped = count if early_stopping == "never" and length_penalty > 0 else length
        worst = done_scores.min() if is_done.all() else _LOW
        is_open = is_open and bool(scores[0] / hoped**length_penalty > worst)
        if not is_open or (is_done.all() and early_stopping is True) or ends.all():
            break
    return done[0], float(done_scores[0])


def decoder_logits(prompt):
    """Return the function of the logits after a prompt and what follows."""
    session = decoder_models.session_of(decoder_models.without_cache())

    def logits_of(tokens):
        ids = np.array([[*prompt, *tokens]], np.int64)
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.shape[1])[None],
        }
        return session.run(["logits"], feeds)[0][0, -1]

    return logits_of


def source_logits(prompt, start=0):
    """Return the function of the logits of an encoder-decoder after what is written."""
    ids = np.array([prompt], np.int64)
    ones = np.ones_like(ids)
    encoder = decoder_models.session_of(decoder_models.t5_encoder())
    (states,) = encoder.run(None, {"input_ids": ids, "attention_mask": ones})
    session = decoder_models.session_of(decoder_models.t5_without_cache())

    def logits_of(tokens):
        feeds = {
            "input_ids": np.array([[start, *tokens]], np.int64),
            "encoder_hidden_states": states,
            "encoder_attention_mask": ones,
        }
        return session.run(["logits"], feeds)[0][0, -1]

    return logits_of
