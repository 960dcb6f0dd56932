"""The replay store: the ledger of prompts and the payloads of their groups, on Redis or in memory."""
