"""The learner: takes groups, trains on them with DeepSpeed, publishes weights."""
