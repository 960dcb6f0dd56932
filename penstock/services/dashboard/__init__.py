"""The page that people watch, and the API behind it."""
