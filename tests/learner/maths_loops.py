"""The equations once more, as slow loops over plain floats; written from the papers, not from the code under test.

An answer is a list of `maths_parts.Token`. Objectives return the losses of its tokens and a function from cotangents
(what every loss is multiplied by) to the slopes in log π of every token.
"""

from __future__ import annotations

import math


def clip(x, low, high):
    return min(max(x, low), high)


def counted(answer):
    return [t for t, token in enumerate(answer) if token.counts]


def spread(answer, numbers):
    """One number per counted token to one per token."""
    found = [0.0] * len(answer)
    for t, number in zip(counted(answer), numbers, strict=True):
        found[t] = number
    return found


# --- objectives -----------------------------------------------------------------------------------


def _separate(answer, piece):
    """An objective in which every token stands alone; `piece(token)` is its (loss, slope)."""
    pieces = [piece(answer[t]) for t in counted(answer)]
    losses = spread(answer, [loss for loss, _ in pieces])
    slopes = spread(answer, [slope for _, slope in pieces])
    return losses, lambda cotangents: [c * s for c, s in zip(cotangents, slopes, strict=True)]


def policy_gradient(answer):
    return _separate(answer, lambda token: (-token.advantage * token.logp, -token.advantage))


def _surrogate(ratio, advantage, low, high):
    """PPO's loss and its slope in log r."""
    plain, held = ratio * advantage, clip(ratio, 1 - low, 1 + high) * advantage
    return (-plain, -plain) if plain <= held else (-held, 0.0)


def ppo_clip(answer, clip_low, clip_high, dual_clip=None):
    def piece(token):
        loss, slope = _surrogate(math.exp(token.logp - token.prox), token.advantage, clip_low, clip_high)
        if dual_clip is not None and token.advantage < 0 and loss > -dual_clip * token.advantage:
            return -dual_clip * token.advantage, 0.0
        return loss, slope

    return _separate(answer, piece)


def ppo_kl(answer, coefficient):
    def piece(token):
        ratio = math.exp(token.logp - token.prox)
        value = -ratio * token.advantage + coefficient * (ratio - 1 - math.log(ratio))
        return value, -ratio * token.advantage + coefficient * (ratio - 1)

    return _separate(answer, piece)


def cispo(answer, max_weight):
    def piece(token):
        weight = min(math.exp(token.logp - token.sampler), max_weight)
        return -weight * token.advantage * token.logp, -weight * token.advantage

    return _separate(answer, piece)


def gspo(answer, clip_low, clip_high):
    places = counted(answer)
    moved = [answer[t].logp - answer[t].prox for t in places]
    ratio = math.exp(sum(moved) / len(moved)) if moved else 1.0
    pieces = [_surrogate(ratio, answer[t].advantage, clip_low, clip_high) for t in places]

    def pull(cotangents):
        whole = sum(cotangents[t] * slope for t, (_, slope) in zip(places, pieces, strict=True))
        return spread(answer, [whole / len(places) for _ in places])

    return spread(answer, [loss for loss, _ in pieces]), pull


def mirror_descent(answer, tau):
    places = counted(answer)
    moved = [answer[t].logp - answer[t].prox for t in places]
    total = sum(moved)
    losses = [-answer[t].advantage * answer[t].logp + tau / 2 * total * m for t, m in zip(places, moved, strict=True)]

    def pull(cotangents):
        through_total = tau / 2 * sum(cotangents[t] * m for t, m in zip(places, moved, strict=True))
        return spread(answer, [cotangents[t] * (tau / 2 * total - answer[t].advantage) + through_total for t in places])

    return spread(answer, losses), pull


# --- trust, rejection: (weights, keep) and keep, per token ------------------------------------------


def _ratios(answer):
    return [math.exp(token.prox - token.sampler) if token.counts else 1.0 for token in answer]


def uncorrected(answer):
    return [1.0] * len(answer), [token.counts for token in answer]


def truncated_is(answer, max_weight):
    return [min(w, max_weight) for w in _ratios(answer)], [token.counts for token in answer]


def masked_is(answer, min_weight, max_weight):
    weights = _ratios(answer)
    keep = [token.counts and min_weight <= w <= max_weight for token, w in zip(answer, weights, strict=True)]
    return [w if k else 1.0 for w, k in zip(weights, keep, strict=True)], keep


def decoupled(answer, max_weight):
    return masked_is(answer, 0.0, math.inf if max_weight is None else max_weight)


def sequence_is(answer, aggregate, beyond, max_weight):
    weight = 1.0
    for token in answer:
        if token.counts:
            weight *= math.exp(token.prox) / math.exp(token.sampler)
    if aggregate == "geometric_mean" and counted(answer):
        weight = weight ** (1 / len(counted(answer)))
    keep = [token.counts and (beyond == "clip" or weight <= max_weight) for token in answer]
    return [min(weight, max_weight) if k else 1.0 for k in keep], keep


def keep_all(answer, bound):
    return [token.counts for token in answer]


def off_policy_sequence(answer, bound, max_divergence):
    apart = [answer[t].sampler - answer[t].prox for t in counted(answer)]
    far = bool(apart) and sum(apart) / len(apart) > max_divergence
    return [token.counts and not (far and token.advantage < 0) for token in answer]


def second_moment(answer, bound):
    return [token.counts and (token.prox - token.sampler) ** 2 <= bound for token in answer]


# --- penalties: (value, slope in log π) of one token ------------------------------------------------


def k2(logp, reference, sampler):
    return 0.5 * (logp - reference) ** 2, logp - reference


def k3(logp, reference, sampler):
    rho = math.exp(reference) / math.exp(logp)
    return rho - 1 - math.log(rho), 1 - rho


def unbiased(logp, reference, sampler):
    ratio = math.exp(logp) / math.exp(sampler)
    value, slope = k3(logp, reference, sampler)
    return ratio * value, ratio * (value + slope)


# --- credit, on one answer --------------------------------------------------------------------------


def falling(rewards, mask):
    """[(place, what falls to it)] of the tokens that count."""
    found = []
    for t, counts in enumerate(mask):
        if counts:
            found.append([t, rewards[t]])
        elif found:
            found[-1][1] += rewards[t]
    return found


def discounted_return(rewards, actions, advantage, gamma):
    steps = falling(rewards, actions)
    found = [0.0] * len(rewards)
    for i, (t, _) in enumerate(steps):
        found[t] = sum(gamma**k * r for k, (_, r) in enumerate(steps[i:])) - (sum(r for _, r in steps) - advantage)
    return found


def gae(rewards, values, last, mask, gamma, lam):
    steps = falling(rewards, mask)
    advantages, returns = [0.0] * len(rewards), [0.0] * len(rewards)
    held = [values[t] for t, _ in steps] + [last]
    for i, (t, _) in enumerate(steps):
        total = 0.0
        for k in range(i, len(steps)):
            total += (gamma * lam) ** (k - i) * (steps[k][1] + gamma * held[k + 1] - held[k])
        advantages[t], returns[t] = total, total + values[t]
    return advantages, returns


def vtrace(rewards, values, last, ratios, mask, gamma, lam, max_rho, max_c):
    """IMPALA's equation 1, with its sums and products."""
    steps = falling(rewards, mask)
    held = [values[t] for t, _ in steps] + [last]
    rho = [min(max_rho, ratios[t]) for t, _ in steps]
    traces = [lam * min(max_c, ratios[t]) for t, _ in steps]
    corrected = []
    for s in range(len(steps)):
        total = held[s]
        for t in range(s, len(steps)):
            delta = rho[t] * (steps[t][1] + gamma * held[t + 1] - held[t])
            total += gamma ** (t - s) * math.prod(traces[s:t]) * delta
        corrected.append(total)
    corrected.append(last)
    advantages, returns = [0.0] * len(rewards), [0.0] * len(rewards)
    for s, (place, reward) in enumerate(steps):
        advantages[place] = rho[s] * (reward + gamma * corrected[s + 1] - held[s])
        returns[place] = corrected[s]
    return advantages, returns
