"""From a name or a path to fixed-length sequences of tokens: corpora, tokenizers, packing."""
