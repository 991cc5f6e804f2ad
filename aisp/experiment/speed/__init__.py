"""How fast engine and methods are (`make bench`, notebook 08).

`timing` is the clock; `engines` puts our engine beside generate and vLLM (`bench_vllm`), `whole_runs` AISP
beside best-of-n; `bench` is what `make bench` prints, `targets` what it asks of CUDA; `runtime` has all
measurements in one file, and in sentences; `scaling` measures and simulates what more workers bring.
"""
