"""What is trained or run for real on this machine: a small decoder, its packed weights, its text. Needs torch."""
