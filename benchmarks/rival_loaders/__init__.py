"""Ours and other loaders behind one interface, each timed in a process of its own.

A module a loader: `batches(job)` yields collated batches of images without end, and `prepare(job)`, where
there is one, writes what the loader reads into `job.prepared`. Most modules run in an environment of their
own (`environment.py`), so they import nothing of this project but what lies here and needs torch at most.
"""
