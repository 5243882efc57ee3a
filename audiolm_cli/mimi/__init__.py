"""One language model over Mimi's codes: public checkpoints of SODA's and Llama-Mimi's kind, behind our own engine."""
