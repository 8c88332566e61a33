"""Raw files in; prepared, versioned, provable datasets out."""
