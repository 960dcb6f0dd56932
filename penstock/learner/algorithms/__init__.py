"""One pure function per quantity, and one table with a row per algorithm."""
