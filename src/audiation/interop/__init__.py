"""The backbones of this package behind the interfaces of other benchmarks: HEAR, X-ARES and mteb.

One module per benchmark, each a thin layer over `embedder.ClipEmbedder`. None of these benchmarks is a dependency; the
one whose module you use has to be installed where its interface asks for its own types (`mteb` alone does).
"""
