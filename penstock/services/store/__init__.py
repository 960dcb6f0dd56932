"""The replay store: the ledger and the payloads, on Redis."""
