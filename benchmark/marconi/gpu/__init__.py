"""Whether our operations read device memory on the host, beside stock's, and what they take."""
