"""What every role shares: records, contracts, the store, weights, staleness, metrics. Imports no role."""
