"""What is stored of examples: shards, and the vocabularies of texts."""
