"""Training stages beside reinforcement learning."""
