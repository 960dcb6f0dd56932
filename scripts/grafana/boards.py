"""What is on the dashboards. `make grafana` writes them to deploy/grafana/dashboards."""

from __future__ import annotations

from penstock.services.replay import STATES
from scripts.grafana.describe import Board, Panel, ask, either, grown, of, rate, share_of_time

UNDERWAY = [state for state in STATES if state not in ("committed", "dropped")]

OVERVIEW = Board(
    "penstock-overview",
    "Penstock / Overview",
    "Is it learning, is it safe, is it fresh, is it busy, who is alive.",
    {
        "Now": (
            Panel("Step", (of("run/step"),), "stat", 4),
            Panel(
                "Phase",
                (ask("max by (run, phase) (<run/phase/{phase}>) == 1", "{{run}} {{phase}}", "run/phase/{phase}"),),
                "stat",
                4,
                "none",
            ),
            Panel(
                "Since the last step",
                (ask("time() - max by (run) (<run/last_step_time>)", "{{run}}", "run/last_step_time"),),
                "stat",
                4,
                "s",
            ),
            Panel("Reward", (of("reward/mean"),), "stat", 4),
            Panel("Rollout workers", (of("rollout/workers"),), "stat", 4),
            Panel("Deaths in the time shown", (grown("event/{kind}", kind="died"),), "stat", 4, whole=True),
        ),
        "Is it learning": (
            Panel("Reward", (of("reward/mean", "mean"), of("reward/solved", "solved"))),
            Panel(
                "Held-out accuracy",
                (of("eval/sampled/accuracy", "sampled"), of("eval/greedy/accuracy", "greedy")),
                unit="percentunit",
            ),
            Panel("Reward parts", (of("reward/part/{name}"),)),
            Panel("Groups with signal", (of("reward/with_signal"),)),
            Panel("Length of answers", (of("response/length_mean", "mean"), of("response/length_max", "max"))),
            Panel(
                "Cut and unscored answers",
                (
                    of("response/clipped", "at max_tokens"),
                    of("response/cut_stale", "outlived max_lag"),
                    of("reward/unscored", "unscored"),
                ),
            ),
        ),
        "Is it safe": (
            Panel("KL to the reference", (of("kl/reference"),)),
            Panel("KL of the update", (of("kl/update"),)),
            Panel("Entropy", (of("actor/entropy"),)),
            Panel("Clipped tokens", (of("actor/pg_clipfrac_low", "low"), of("actor/pg_clipfrac_high", "high"))),
            Panel("Effective sample size", (of("rollout_corr/ess", how="min"),), unit="percentunit"),
            Panel("Gradient norm", (of("actor/grad_norm"),)),
        ),
        "Is it fresh": (
            Panel(
                "Lag of trained tokens",
                (of("off_policy/mean", "mean"), of("off_policy/max", "max"), of("off_policy/bound", "bound")),
            ),
            Panel("Gate closed", (of("gate/closed/{reason}"),), note="1 while it is."),
            Panel(
                "Groups dropped and refused",
                (of("ledger/dropped/{reason}", "dropped:"), of("ledger/refused/{reason}", "by workers:")),
            ),
        ),
        "Is it busy": (
            Panel(
                "Tokens per second",
                (
                    of("rollout/tokens_per_second", "sampled", by="role", how="sum"),
                    of("learner/tokens_per_second", "trained"),
                ),
            ),
            Panel(
                "Where a step's time goes",
                tuple(of(f"time/{part}", part) for part in ("wait", "forward_backward", "publish_blocked")),
                "stack",
            ),
            Panel(
                "Ledger",
                (of("ledger/{state}", state=f"~{'|'.join(UNDERWAY)}"),),
                "stack",
                note="What is under way; committed and dropped groups only ever grow.",
            ),
            Panel("Age of the queue", (of("ledger/queue_age"),)),
            Panel("Learner in forward and backward", (of("learner/busy"),)),
            Panel("Workers with nothing to generate", (of("rollout/waiting_share", by="worker"),)),
        ),
        "Who is alive": (
            Panel("Rollout workers", (of("rollout/wanted", "wanted"), of("rollout/workers", "running"))),
            Panel("Events", (of("event/{kind}"),), note="Since the driver started."),
            Panel("Memory", (of("process/rss", by="worker", how="sum"),), "stack"),
        ),
    },
)

OFF_POLICY = Board(
    "penstock-off-policy",
    "Penstock / Off-policy",
    "How old the tokens are that are trained on, how far sampler and learner are apart, and what the corrections do.",
    {
        "How old": (
            Panel("Tokens by lag", (of("off_policy/{bucket}/tokens"),), "share", 12, note="Share of each bucket."),
            Panel(
                "Lag",
                (of("off_policy/mean", "mean"), of("off_policy/max", "max"), of("off_policy/bound", "bound")),
                width=6,
            ),
            Panel("Tokens on older KV cache", (of("off_policy/older_kv"),), width=6),
        ),
        "How far apart": (
            Panel("KL between sampler and learner", (of("kl/offpolicy", "k3"), of("kl/offpolicy/k1", "k1"))),
            Panel("The same by lag", (of("kl/offpolicy/{bucket}/k3"),)),
            Panel("Sampler and learner without lag", (of("mismatch/mean", "mean"), of("mismatch/max", "max"))),
        ),
        "Audits": (
            Panel(
                "Staleness and mismatch, exactly",
                (of("kl/staleness", "staleness"), of("kl/mismatch", "mismatch"), of("kl/update_audited", "update")),
            ),
            Panel("Staleness by lag", (of("kl/staleness/{bucket}/k3"),)),
            Panel("What audits cost", (of("audit/seconds"),)),
        ),
        "Importance weights": (
            Panel("Effective sample size", (of("rollout_corr/ess", how="min"),), unit="percentunit"),
            Panel("The same by lag", (of("rollout_corr/{bucket}/ess", how="min"),), unit="percentunit"),
            Panel("Largest weight by lag", (of("rollout_corr/{bucket}/max"),)),
            Panel(
                "Mean and second moment",
                (of("rollout_corr/mean", "mean"), of("rollout_corr/second_moment", "second moment")),
            ),
            Panel(
                "Bounded by the trust cell",
                (
                    either("rollout_corr/clipfrac", "rollout_corr/masked", "all"),
                    either("rollout_corr/{bucket}/clipfrac", "rollout_corr/{bucket}/masked"),
                ),
                note="A cell either cuts weights or masks tokens.",
            ),
            Panel(
                "Left out of the loss",
                (
                    of("rollout_corr/left_out", "in all"),
                    of("rollout_corr/rejected", "rejected"),
                    of("actor/out_of_range", "out of range"),
                ),
                note="Rejected only where the row rejects.",
            ),
        ),
        "The update": (
            Panel("KL of the update", (of("kl/update", "k3"), of("kl/update/k1", "k1"))),
            Panel("The same by lag", (of("kl/update/{bucket}/k3"),)),
            Panel(
                "Clipped tokens by lag",
                (of("actor/{bucket}/pg_clipfrac_low", "low"), of("actor/{bucket}/pg_clipfrac_high", "high")),
            ),
        ),
    },
)

FLEET = Board(
    "penstock-fleet",
    "Penstock / Fleet",
    "What every worker, scorer and learner rank is doing, and what it costs.",
    {
        "Doing": (
            Panel(
                "Lanes",
                (of("process/doing/{state}", by="worker state"),),
                "lanes",
                24,
                note="One lane for every state of every actor.",
            ),
        ),
        "Rollout workers": (
            Panel("Tokens per second", (of("rollout/tokens_per_second", by="worker"),), note="Of each worker."),
            Panel("Answers in flight", (of("rollout/in_flight", by="worker"),)),
            Panel("Nothing to generate", (of("rollout/waiting_share", by="worker"),)),
            Panel(
                "Steps behind",
                (
                    ask(
                        "max by (run) (<run/step>) - on (run) group_right min by (run, worker) (<process/step>)",
                        "{{run}} {{worker}}",
                        "run/step",
                        "process/step",
                    ),
                ),
                unit="none",
                note="Published weights against those in use.",
            ),
            Panel(
                "Weight swaps",
                tuple(of(f"rollout/swap/{part}_seconds", part, by="worker") for part in ("verify", "pause", "probe")),
            ),
            Panel(
                "Groups handed on, fenced, refused",
                tuple(
                    of(f"rollout/{what}", what, by="worker") for what in ("handed_back", "resumed", "fenced", "refused")
                ),
            ),
        ),
        "Scorers": (
            Panel("Groups judged per second", (rate("scorer/groups", by="worker"),), unit="suffix:/s"),
            Panel("Time to judge a group", (of("scorer/seconds", by="worker"),)),
            Panel("Answers that a part could not judge", (of("scorer/failed/{part}", by="part", how="sum"),)),
        ),
        "Learner": (
            Panel(
                "What it does", (share_of_time("process/doing/{state}", role="learner"),), "stack", unit="percentunit"
            ),
            Panel("A step", (of("time/step"),)),
            Panel(
                "Publication and checkpoint", (of("time/publish", "publication"), of("time/checkpoint", "checkpoint"))
            ),
        ),
        "Processes": (
            Panel("CPU", (rate("process/cpu_seconds", by="worker"),), unit="suffix:cores"),
            Panel("Memory", (of("process/rss", by="worker"),)),
            Panel("Loop silent", (of("process/silent", by="worker"),)),
        ),
        "Accidents": (
            Panel("Events in the time shown", (grown("event/{kind}"),), "table", 12, whole=True),
            Panel("Groups leased again", (of("ledger/redelivered"),), width=6),
            Panel("Rule processes replaced", (of("scorer/restarts", by="worker"),), width=6),
        ),
    },
)

BOARDS = (OVERVIEW, OFF_POLICY, FLEET)
