"""Audio -> semantic tokens: `semantic` is the tokenizer, `conformer` its layers."""
