"""An experiment spread over several processes and machines, on Ray.

`cluster` hands out batches and writes, `workers` lives in the workers' processes, `travel` is what
reaches them.
"""
