"""Records on disk: one JSON line each, none lost and each readable, whatever happens.

- `storage`: the file of a run, its lock, and what becomes of it when it is replaced underneath;
- `reading`: records and the provenance of runs from files;
- `contents`, `quotations`: what a record holds, and what it may not quote;
- `text`: text that is safe to store and to print.
"""
