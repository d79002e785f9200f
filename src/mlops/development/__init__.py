"""Work on the platform itself: its dependency locks and its checks. Needs a checkout."""
