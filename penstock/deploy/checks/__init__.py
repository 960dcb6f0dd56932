"""The rules of `penstock check`: one small function per rule, in files by what they have to look at."""
