"""One language model over Mimi's codes: public checkpoints such as SODA's and Llama-Mimi's, on our own engine."""
