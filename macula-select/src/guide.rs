//! How each algorithm works, its defaults, its source, and when to choose it.
