"""Text in, token ids out, and back: templates, tokenizer, detokeniser, stop strings, sampling defaults."""
