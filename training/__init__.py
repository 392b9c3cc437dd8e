"""Training a causal language model with DDP or FSDP under whichever launcher started this process.

Read `train_llm.py` first: it is the whole run, top to bottom. Every other file is one step of it.
"""
