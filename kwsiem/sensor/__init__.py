"""Stage 1, kernel to lines: probe files, their states, their bpftrace processes. Runs as root."""
