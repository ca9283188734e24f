"""The harness: a matrix of algorithms, subsets, pairs and seeds on one suite, each cell in a process of its own."""
