"""Groups to columns, columns to shares, shares to bytes and back."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.learner import archive, deal, report
from penstock.learner.algorithms.bound import bind
from penstock.learner.algorithms.reductions import sequence_mean
from penstock.learner.assemble import Moment, assemble, signal_in
from penstock.learner.batch import Batch, BatchError
from penstock.learner.config import AlgorithmSection
from penstock.learner.deal import Share
from penstock.services.contracts import PenstockError
from penstock.services.trajectory import Group, Kept, Sampling, Span
from penstock.services.versions import Version

GRPO = bind(AlgorithmSection())
NOW = Moment(Version(0, 5), {}, 2, mask_beyond=False)


def group_of(*trajectories, index=0, temperature=1.0):
    return Group(prompt=builders.prompt(index), sampling=Sampling(temperature=temperature), trajectories=trajectories)


def answer(reward, tokens=(4, 5), **changes):
    return builders.trajectory(reward, tokens=tokens, version=changes.pop("version", Version(0, 5)), **changes)


def test_every_token_gets_its_answers_advantage_lag_and_mask():
    older = (Span(lineage=0, step=3, count=1), Span(lineage=0, step=5, count=2, older_kv=True))
    batch = assemble(
        [
            group_of(
                answer(0.0, (7,)),
                answer(2.0, (4, 5, 6), spans=older, actions=np.array([True, False, True])),
                index=3,
                temperature=0.7,
            )
        ],
        GRPO,
        NOW,
    )
    s = np.sqrt(2) + 1e-4
    assert batch.lengths.tolist() == [1, 3]
    assert batch.tokens.tolist() == [7, 4, 5, 6]
    assert batch.prompt_tokens.tolist() == [1, 2, 3, 1, 2, 3]
    assert batch.advantages.tolist() == pytest.approx([-1 / s, 1 / s, 0, 1 / s])
    assert batch.lags.tolist() == [0, 2, 0, 0]
    assert batch.older_kv.tolist() == [False, False, True, True]
    assert batch.mask.tolist() == [True, True, False, True]
    assert batch.groups.tolist() == [3, 3]
    assert batch.temperatures.tolist() == pytest.approx([0.7, 0.7])
    assert batch.logp_reference is None


def test_an_unscored_answer_is_no_row_of_the_batch():
    batch = assemble([group_of(answer(0.0), answer(None), answer(1.0))], GRPO, NOW)
    assert batch.members.tolist() == [0, 2]


def test_tokens_beyond_the_bound_are_masked_only_where_the_run_says_so():
    spans = (Span(lineage=0, step=1, count=1), Span(lineage=0, step=4, count=1))
    groups = [group_of(answer(0.0, spans=spans), answer(1.0))]
    assert assemble(groups, GRPO, NOW).mask.tolist() == [True] * 4
    masking = Moment(Version(0, 5), {}, 2, mask_beyond=True)
    assert assemble(groups, GRPO, masking).mask.tolist() == [False, True, True, True]


def test_an_answer_without_a_token_to_train_on_is_no_row():
    tools = np.array([False, False])
    assert len(assemble([group_of(answer(0.0, actions=tools), answer(1.0))], GRPO, NOW)) == 1


def kept(counts, tokens):
    return Kept(counts=np.array(counts, np.int32), tokens=np.array(tokens, np.int32))


def test_a_token_whose_filter_is_not_known_is_not_trained_on_and_counted():
    actions = np.array([True, True, False, True])
    half_known = answer(1.0, (4, 5, 6, 7), actions=actions, kept=kept([2, 0, 0, 1], [3, 4, 7]))
    groups = [group_of(half_known, answer(0.0, (5,), kept=kept([2], [5, 9])), answer(None, (5,), kept=kept([0], [])))]
    batch = assemble(groups, GRPO, NOW)
    assert batch.mask.tolist() == [True, False, False, True, True]
    assert batch.kept_counts.tolist() == [2, 0, 0, 1, 2]
    assert batch.kept_tokens.tolist() == [3, 4, 7, 5, 9]
    # The tool's token needs no filter, and the unscored answer is not trained on anyway.
    assert report.batch_metrics(batch, groups)["batch/unknown_mask"] == 1


def test_a_penalty_in_the_reward_skips_tokens_whose_filter_is_not_known():
    logprobs, reference = np.array([-1.0, -1.0], np.float32), np.array([-1.5, -3.0], np.float32)
    given = {"logprobs": logprobs, "kept": kept([1, 0], [4])}
    pair = [_judged(answer(r, (4, 5), **given), reference) for r in (0.0, 1.0)]
    batch = assemble([group_of(*pair)], bind(_with_kl("reward", "k1")), NOW)
    # 0.1 · (−1 + 1.5) at the first token only.
    assert batch.token_rewards.tolist() == pytest.approx([-0.05, 0.0, -0.05, 1.0])


def test_a_token_that_could_not_be_drawn_is_an_error_with_its_place():
    wrong = answer(1.0, (4, 5), kept=kept([2, 3], [4, 9, 6, 7, 8]))
    with pytest.raises(
        PenstockError, match=r"prompt 3, member 1: token 1 is 5, but worker-0 .* left 3 others \(6, 7, 8"
    ):
        assemble([group_of(answer(0.0, (4,), kept=kept([1], [4])), wrong, index=3)], GRPO, NOW)
    tool = answer(1.0, (4, 5), kept=kept([2, 3], [4, 9, 6, 7, 8]), actions=np.array([True, False]))
    assert len(assemble([group_of(answer(0.0, (4,), kept=kept([1], [4])), tool)], GRPO, NOW)) == 2


def test_a_penalty_without_reference_log_probs_is_an_error_that_names_the_prompts():
    with pytest.raises(PenstockError, match=r"prompts \[4\] came without"):
        assemble([group_of(answer(0.0), answer(1.0), index=4)], bind(_with_kl("loss", "k3")), NOW)


def test_a_penalty_in_the_reward_takes_the_sampled_divergence_off_the_task_reward():
    reference = np.array([-1.5, -1.5], np.float32)  # against −0.5 sampled: a divergence of 2 over the answer
    with_reference = [
        _judged(answer(1.0), reference),
        _judged(answer(0.0), np.array([-0.5, -0.5], np.float32)),
    ]
    batch = assemble([group_of(*with_reference)], bind(_with_kl("reward", "k1", baseline={"kind": "group_mean"})), NOW)
    # 1 − 0.1 · 2 = 0.8 against 0: the mean is 0.4.
    assert batch.advantages.tolist() == pytest.approx([0.4, 0.4, -0.4, -0.4])


DIVIDED = (
    {"baseline": {"kind": "group_zscore"}},
    {"baseline": {"kind": "group_mean"}, "whitening": {"over": "sequences"}},
)


def equally_good(**cells):
    """Three answers of reward 1, further and further from the reference."""
    judged = [_judged(answer(1.0), np.array([-0.5 - d, -0.5], np.float32)) for d in (0.0, 1.0, 2.0)]
    return assemble([group_of(*judged)], bind(_with_kl("reward", "k1", group_filter="all", **cells)), NOW)


@pytest.mark.parametrize("cells", DIVIDED)
def test_equal_task_rewards_stay_without_advantage_where_a_deviation_would_blow_the_penalty_up(cells):
    assert equally_good(**cells).advantages.tolist() == [0.0] * 6


@pytest.mark.parametrize("baseline", ["none", "others_mean"])
def test_in_a_batch_of_equal_task_rewards_whitening_does_not_blow_the_penalty_up(baseline):
    cells = {"baseline": {"kind": baseline}, "whitening": {"over": "sequences"}, "quorum": 1}
    assert equally_good(**cells).advantages.tolist() == [0.0] * 6


@pytest.mark.parametrize(("baseline", "factor"), [("group_mean", 1.0), ("leave_one_out", 1.5)])
def test_a_penalty_in_the_reward_acts_at_its_own_size_where_all_task_rewards_are_equal(baseline, factor):
    # 0.1 · (0, 1, 2) comes off, less its mean of 0.1; against the others' mean that is 3/2 of it.
    expected = np.repeat([0.1, 0.0, -0.1], 2) * factor
    assert equally_good(baseline={"kind": baseline}).advantages == pytest.approx(expected, abs=1e-7)


def _with_kl(placement, estimator, **cells):
    kl = {"coefficient": 0.1, "placement": placement, "estimator": estimator}
    return AlgorithmSection.model_validate({"kl": kl, **cells})


def _judged(trajectory, reference):
    values = {f: getattr(trajectory, f) for f in trajectory.__struct_fields__}
    return type(trajectory)(**(values | {"reference_logprobs": reference}))


def test_signal_is_a_difference_among_the_scored():
    assert signal_in(group_of(answer(0.0), answer(1.0)))
    assert not signal_in(group_of(answer(1.0), answer(1.0), answer(None)))


# --- columns --------------------------------------------------------------------------------------


def some_batch(lengths, seed=0, groups=None):
    random = np.random.default_rng(seed)
    rows, total = len(lengths), sum(lengths)
    prompts = random.integers(1, 4, rows)
    return builders.batch_of(
        total,
        rows,
        prompt_tokens=random.integers(0, 32, int(prompts.sum())).astype(np.int32),
        prompt_lengths=prompts.astype(np.int64),
        tokens=random.integers(0, 32, total).astype(np.int32),
        lengths=np.asarray(lengths, np.int64),
        temperatures=np.ones(rows, np.float32),
        groups=np.asarray(groups if groups is not None else np.arange(rows) // 2, np.int64),
        members=np.arange(rows, dtype=np.int64),
        weights=np.zeros(rows),
        mask=random.random(total) > 0.3,
        logp_sampler=random.normal(size=total).astype(np.float32),
        advantages=random.normal(size=total).astype(np.float32),
        lags=random.integers(0, 3, total).astype(np.int32),
        older_kv=random.random(total) > 0.9,
    )


def assert_same(one, other):
    for name in Batch.__dataclass_fields__:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b, err_msg=name)


many_lengths = st.lists(st.integers(0, 9), min_size=1, max_size=12)


@settings(deadline=None, max_examples=40)
@given(many_lengths)
def test_bytes_come_back_as_the_same_batch(lengths):
    batch = some_batch(lengths)
    found, facts = Batch.from_bytes(batch.to_bytes(version="0.3", plan=[[1], []]))
    assert_same(found, batch)
    assert facts == {"version": "0.3", "plan": [[1], []]}


@pytest.mark.parametrize("data", [b"", b"\x80\x04pickle", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_bytes_that_are_no_batch_are_refused(data):
    with pytest.raises(BatchError):
        Batch.from_bytes(data)


def test_columns_of_the_wrong_length_are_refused_by_name():
    with pytest.raises(BatchError, match=r"Batch\.mask: expected bool\[3\], found bool\[2\]"):
        some_batch([1, 2]).with_columns(mask=np.ones(2, np.bool_))


def test_selecting_no_rows_keeps_the_columns():
    empty = some_batch([2, 3]).select([])
    assert len(empty) == 0
    assert empty.mask.shape == (0,)


@settings(deadline=None, max_examples=40)
@given(many_lengths, st.randoms(use_true_random=False))
def test_selecting_and_joining_gives_every_row_back(lengths, random):
    batch = some_batch(lengths)
    order = list(range(len(batch)))
    random.shuffle(order)
    cut = random.randint(0, len(order))
    joined = Batch.join([batch.select(order[:cut]), batch.select(order[cut:])])
    back = [order.index(i) for i in range(len(order))]
    assert_same(joined.select(back), batch)


def test_an_archived_batch_is_read_back_with_its_version_and_facts(tmp_path):
    batch = some_batch([2, 3]).with_columns(logp_learner=np.zeros(5, np.float32))
    archive.write(tmp_path / "step-000004-lineage-1", Version(1, 4), batch, {"metrics": {"actor/loss": 0.5}})
    version, found, facts = archive.read(tmp_path / "step-000004-lineage-1")
    assert version == Version(1, 4)
    assert facts == {"metrics": {"actor/loss": 0.5}}
    assert_same(found, batch)
    with pytest.raises(BatchError, match="holds no archived batch"):
        archive.read(tmp_path)


# --- dealing --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(many_lengths, st.integers(1, 4), st.integers(1, 3), st.integers(4, 40), st.integers(1, 3))
def test_every_row_is_computed_once_per_epoch_and_all_ranks_run_alike(lengths, ranks, parts, budget, epochs):
    batch = some_batch(lengths)
    minis = deal.split_groups(batch, parts, "seed")
    batch = deal.weigh(batch, minis, sequence_mean)
    shares = deal.deal(batch, minis, ranks, budget, epochs, "seed")
    assert len({tuple(len(mini) for mini in share.mini_batches) for share in shares}) == 1
    assert len({tuple(map(tuple, share.epochs)) for share in shares}) == 1
    assert all(sorted(order) == list(range(len(minis))) for order in shares[0].epochs)
    for share in shares:
        rows = sorted(row for mini in share.mini_batches for micro in mini for row in micro)
        assert rows == list(range(len(share.batch)))
    assert sorted(m for share in shares for m in share.batch.members) == list(range(len(batch)))
    for number, rows in enumerate(minis):
        # The weights of a mini-batch's tokens sum to 1, wherever its rows went.
        dealt = [share.batch.select([r for micro in share.mini_batches[number] for r in micro]) for share in shares]
        total = sum(float((part.weights * part.counts).sum()) for part in dealt)
        assert total == pytest.approx(1.0 if batch.select(rows).counts.any() else 0.0)


def test_mini_batches_are_whole_groups_in_equal_numbers_shuffled_by_the_seed():
    batch = some_batch([1] * 16)
    minis = deal.split_groups(batch, 4, "a")
    assert [len(rows) for rows in minis] == [4] * 4
    for rows in minis:
        assert len({batch.groups[r] for r in rows}) == 2
    assert deal.split_groups(batch, 4, "a") == minis
    assert deal.split_groups(batch, 4, "b") != minis


def test_the_longest_rows_do_not_all_go_to_one_rank():
    # 9 | 9, then 8 to the first, then 2, 1 and 1 to the second.
    assert deal.balance([9, 9, 1, 1, 8, 2], 2) == [[0, 4], [1, 5, 2, 3]]


def test_a_share_crosses_to_another_rank_unchanged():
    batch = some_batch([3, 1, 4])
    share = deal.deal(batch, [[0, 1], [2]], 1, 6, 2, "seed")[0]
    found = Share.from_bytes(share.to_bytes())
    assert_same(found.batch, share.batch)
    assert (found.mini_batches, found.epochs) == (share.mini_batches, share.epochs)
    assert found.updates == 4
